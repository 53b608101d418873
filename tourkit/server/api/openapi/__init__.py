"""The OpenAPI document at /openapi.json: JSON Schemas of the fields and the replies, and the routes."""
