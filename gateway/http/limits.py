"""Limits on the head of a request: the front rejects what exceeds them, the protocol reads at most twice as much."""

TARGET_LIMIT_BYTES = 8 * 1024
"""Path and query."""
HEADERS_LIMIT_BYTES = 32 * 1024
HEADERS_LIMIT = 100
