"""Who calls, and what keeps passwords and tokens safe."""
