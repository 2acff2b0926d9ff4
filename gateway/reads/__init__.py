"""Reads: every SELECT of the gateway."""
