"""HTTP: a request's way from the socket to its handler and back. Imports nothing about notes."""
