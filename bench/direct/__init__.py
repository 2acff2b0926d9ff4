"""The same API without a queue, in the way that FastAPI's async database tutorial teaches."""
