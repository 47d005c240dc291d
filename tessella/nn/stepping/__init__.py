"""One step of a model along the grid: the explicit state, and the work on a place as a program."""
