"""The client program `inkwell`: exports, imports and watches notes over the API; imports nothing of the services."""
