"""The API, one module for each resource: its operations and their handlers."""
