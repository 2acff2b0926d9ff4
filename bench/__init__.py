"""Compares Inkwell with the same API that writes straight to Postgres: `make bench`."""
