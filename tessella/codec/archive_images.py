"""Images of an archive as pictures with values from 0 to 255, for the data source ``archive``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tessella.codec.archive_writer import GROUP
from tessella.codec.container import IS_LOSSY, Container, read_container
from tessella.codec.group_walk import Twin
from tessella.codec.image_modes import MODES, MODES_OF_ARRAYS, PALETTE, scaled_values
from tessella.codec.model_lookup import find_twin
from tessella.codec.picture_files import as_picture
from tessella.codec.random_access import read_archive
from tessella.codec.stream_reader import StreamReader
from tessella.errors import BitstreamError


def open_images(path: Path) -> ArchiveImages:
    """The images of a file, with the model that is found by its id.

    Raises:
        BitstreamError: when the file is damaged, or holds no pictures.
        ArtifactError: when it cannot be read, or its model is missing.
    """
    container = read_container(read_archive(path))
    return ArchiveImages(container, find_twin(container.contents.model, "", path.parent))


class ArchiveImages:
    """The images of an archive.

    Args:
        container: the archive.
        twin: its model.

    Raises:
        BitstreamError: when it holds something else than pictures.
    """

    def __init__(self, container: Container, twin: Twin) -> None:
        self.contents = container.contents
        if self.contents.flags & IS_LOSSY:
            raise BitstreamError("it holds the codes of a tokenizer: decompress it to a folder")
        self.reader = StreamReader(container, twin, GROUP)
        self.names: Sequence[str] = self.contents.names
        self.levels = min(256, self.contents.grid.levels)
        self.sizes: list[tuple[int, int]] = []
        for run in self.contents.runs:
            if self.contents.grid.levels > 256 or run.shape.channels not in MODES_OF_ARRAYS:
                raise BitstreamError("it holds arrays that are no pictures: use ts.decompress")
            self.sizes += [(run.shape.height, run.shape.width)] * run.count

    def pictures(self, numbers: Sequence[int]) -> Iterator[Image.Image]:
        """The images of these numbers, which rise."""
        palettes = self._palettes()
        for number, values in zip(numbers, self.reader.chosen(numbers), strict=True):
            run = self.contents.run_of(number)
            mode = MODES[run.mode].name or MODES_OF_ARRAYS[run.shape.channels]
            # Symbols of fewer levels become what they are drawn with; indices stay as they are.
            if not run.scaled and self.levels < 256 and mode != "P":
                values = scaled_values(self.levels)[values]
            yield as_picture(values.astype(np.uint8), mode, palettes.get(number, b""))

    def _palettes(self) -> dict[int, bytes]:
        """The palettes by the numbers of their images."""
        found = {}
        waiting = iter(self.contents.palettes)
        number = 0
        for run in self.contents.runs:
            for place in range(number, number + run.count):
                if run.mode == PALETTE:
                    found[place] = next(waiting)
            number += run.count
        return found
