"""Metrics, traces and request ids."""
