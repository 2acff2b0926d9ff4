"""The checker's rules, by promise: each yields a sentence for each violation that the evidence shows."""
