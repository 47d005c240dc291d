"""Neural network layers: ``forward`` runs over a whole grid, ``write`` sets up one cached step.

Three words recur in all layers:

* *places* are the positions of a row or a sequence, and the memory that holds their features;
* a *step* is the work that sampling does for one pixel. Layers do not compute their part at once:
  ``write`` appends it to programs (``tessella.nn.stepping``), which run at every pixel. A layer
  whose work is spread over several programs has ``bind`` instead, which allocates its memory in the
  step and returns an object (``Stepped...``) with one ``write_...`` method for each part;
* a method ``field`` traces the receptive field. It takes and returns boolean maps
  ``[sources, ..., height, width]`` that say whether a source pixel can influence a position.
"""
