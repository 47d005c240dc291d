"""Work on many images: the same stages in one process, in several, or on a cluster of Ray.

:class:`Tokenize`, :class:`Score`, :class:`Compress` and :class:`Sample` are stages, which
``map_batches`` of Ray Data takes as they are; see :mod:`tessella.bulk.stages`. The command line
divides its work into units (:mod:`tessella.bulk.units`) and gives them to an engine.
"""

from tessella.bulk.coding_stages import CompressStage as Compress
from tessella.bulk.coding_stages import ScoreStage as Score
from tessella.bulk.sample_stage import SampleStage as Sample
from tessella.bulk.stages import TokenizeStage as Tokenize

__all__ = ["Compress", "Sample", "Score", "Tokenize"]
