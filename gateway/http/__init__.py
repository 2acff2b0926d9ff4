"""HTTP: a request's way from the socket to its handler and back. Knows nothing of notes."""
