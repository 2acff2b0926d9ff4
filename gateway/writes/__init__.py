"""A write's way: its command is published, and its outcome awaited."""
