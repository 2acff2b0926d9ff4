"""Upper and lower bounds for Inkwell: the framework alone, and a queue without batches."""
