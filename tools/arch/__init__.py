"""Tiny random models of every architecture of the catalogue, and whether each stack loads them, chats and extracts."""
