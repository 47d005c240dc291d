"""Layers with two ways to evaluate them: ``forward`` over a whole grid, ``step`` along it with an
explicit state."""
