"""The same API without a queue, written as FastAPI's async database tutorial teaches."""
