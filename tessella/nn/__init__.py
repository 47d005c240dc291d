"""Neural network layers: ``forward`` runs over a whole grid, ``write`` sets up one cached step.

Three words recur in all layers:

* *places* are the positions of a row or a sequence, and the memory that holds their features;
* a *step* is the work that sampling does for one pixel; layers append their part of it to programs
  (``tessella.nn.stepping``) instead of computing it at once;
* a method ``field`` traces the receptive field. It takes and returns boolean maps
  ``[sources, ..., height, width]`` that say whether a source pixel can influence a position.
"""
