"""Single images of an archive, without decoding the rest."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from pathlib import Path

import torch

from tessella import files
from tessella.codec.archive_writer import GROUP
from tessella.codec.container import MAX_PIXELS, read_container
from tessella.codec.group_walk import Twin
from tessella.codec.stream_reader import StreamReader
from tessella.errors import check_integer


class Archive:
    """The images of a ``.tsl`` file by their number.

    An image costs decoding the groups that hold a part of it: the group size of the file, 64 pieces
    unless it was chosen, which step together.

    Args:
        source: the path of the file, or its bytes.
        twin: the exact twin with which it was made.
        batch: pieces that step at a time; changes speed and memory only.
        max_pixels: most pixels that all images may have together.

    Raises:
        BitstreamError: when the file is damaged or of another model.
        ArtifactError: when it cannot be read.
    """

    def __init__(
        self,
        source: Path | str | bytes,
        twin: Twin,
        *,
        batch: int = GROUP,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_integer("batch", batch, least=1)
        check_integer("max_pixels", max_pixels, least=1)
        data = source
        if not isinstance(data, bytes):
            data = read_archive(data)
        self._container = read_container(data, max_pixels)
        self._reader = StreamReader(self._container, twin, batch)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files; none for images that came from memory."""
        return tuple(self._container.contents.names)

    def __len__(self) -> int:
        return self._container.layout.images

    def __getitem__(self, number: int) -> torch.Tensor:
        """Image ``number``, ``[height, width, channels]``.

        Raises:
            IndexError: when there is none.
            BitstreamError: when its streams are damaged.
        """
        place = operator.index(number)
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(f"image {number} of an archive of {len(self)}")
        return torch.from_numpy(next(self._reader.chosen([place])))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """All images in order; each group is decoded once."""
        for image in self._reader.images():
            yield torch.from_numpy(image)

    def __repr__(self) -> str:
        return f"Archive({len(self)} images, model {self._container.contents.model.hex()})"


def read_archive(path: Path | str) -> bytes:
    """The bytes of a file.

    Raises:
        ArtifactError: when it is missing, not a regular file, or unreadable.
    """
    # A file that cannot be looked at cannot be read either, which gets its message there.
    size = 0
    with contextlib.suppress(OSError):
        size = Path(path).stat().st_size
    return files.read_bytes(path, size)
