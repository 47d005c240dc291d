"""Images that are somewhere else than in memory, indexed like an array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class LazyImages(ABC):
    """Images ``uint8 [n, height, width, channels]``, read into fresh numpy arrays when asked for.

    ``images[3]`` is ``[height, width, channels]``; ``images[2:9]``, ``images[[5, 0]]`` and
    ``images[mask]`` are ``[k, height, width, channels]``; ``numpy.asarray(images)`` is everything.
    They can be used from several threads.

    Args:
        shape: ``(n, height, width, channels)``.
        sha256: what identifies the images, hexadecimal.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4
    groups: Sequence[int] | None = None
    """Of images that are best read in groups: the number of the first one of each group, and how
    many there are at the end; None where the order of reading does not matter."""
    hashed: bool = True
    """Whether :attr:`hashes` is known without reading the images."""

    def __init__(self, shape: tuple[int, int, int, int], sha256: str) -> None:
        self.shape = shape
        self.sha256 = sha256

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: object) -> np.ndarray:
        """Images by a number, a slice, a list or array of numbers, or a mask ``bool [n]``.

        Raises:
            IndexError: for a number out of range, or an index of another kind.
            DataError: when they cannot be read.
        """
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        indices = self._indices(index)
        # [*shape of the index, height, width, channels], as in numpy
        return self._read(indices.ravel()).reshape(*indices.shape, *self.shape[1:])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "images in a file become an array only by reading them, which is a copy"
            )
        return self[:].astype(dtype or self.dtype, copy=False)

    @property
    @abstractmethod
    def hashes(self) -> np.ndarray:
        """:func:`~tessella.data.hashes.image_hashes` of all images, ``uint64 [n]``."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> np.ndarray:
        """The images at ``indices`` (``int64 [k]``, each in 0..n-1)."""

    def _indices(self, index: object) -> np.ndarray:
        """Indices in 0..n-1 for any index but a slice; zero-dimensional for a single number."""
        # numpy would interpret these as masks, new axes or several axes.
        if isinstance(index, (bool, np.bool_, tuple)) or index is None or index is Ellipsis:
            raise IndexError(
                f"images in a file are indexed along their first axis only, got {index!r};"
                " index the array that this returns"
            )
        indices = np.asarray(index)
        if indices.dtype == np.bool_:
            if indices.shape != (len(self),):
                raise IndexError(
                    f"a mask of {len(self)} images must be bool [{len(self)}],"
                    f" got {list(indices.shape)}"
                )
            return np.flatnonzero(indices)
        if not indices.size:
            return indices.astype(np.int64)
        if indices.dtype.kind not in "iu":
            raise IndexError(f"images are numbered by integers, got {indices.dtype}")
        outside = (indices < -len(self)) | (indices >= len(self))
        if outside.any():
            wrong = indices[outside].ravel()[0]
            raise IndexError(f"index {wrong} is out of range for {len(self)} images")
        return np.where(indices < 0, indices + len(self), indices).astype(np.int64)
