"""A run for people: a summary as text and JSON, curves in the terminal, a page with pictures."""
