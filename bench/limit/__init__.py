"""What bounds Inkwell from above, the framework alone, and from below, a queue without batches."""
