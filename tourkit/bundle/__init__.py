"""The folder that travels: its index, making one, checking one."""
