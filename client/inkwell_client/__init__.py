"""The client program `inkwell`: exports, imports and watches notes over the API, without code of the services."""
