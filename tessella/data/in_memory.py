"""Resizing for sources that are held in memory, once their size is known to be reasonable."""

from __future__ import annotations

from tessella.config import DataConfig
from tessella.data.limits import check_resized
from tessella.data.transform import Part, fit_arrays, parse_size


def fit_in_memory(part: Part, config: DataConfig) -> Part:
    """:func:`tessella.data.transform.fit_arrays` within the limits of memory.

    Raises:
        InputError: when the images asked for would take too much memory, or an image is smaller
            than the tiles to be cut from it.
    """
    size = parse_size(config.size, "size")
    # Tiles are cut out of existing pixels, so together they are never larger.
    if size is not None and config.crop != "tiles":
        count = len(part.images)
        if config.limit:
            count = min(count, config.limit)
        # All images exist at the same time, first in a list and then in one array.
        channels = config.channels or part.images.shape[-1]
        check_resized((count, *size, channels))
    return fit_arrays(part, config)
