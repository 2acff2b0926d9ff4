"""Writes: publishes their commands and awaits their outcomes."""
