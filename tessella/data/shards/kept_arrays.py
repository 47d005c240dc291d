"""Arrays in the cache folder that are as long as a data set, and take no memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tessella import files
from tessella.data.paths import reason
from tessella.errors import ArtifactError, DataError


def kept_array(key: str, dtype: np.dtype, pieces: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """An array that is mapped from a file of the cache, which is written first if need be.

    The system reads the parts that are used, and forgets them when memory is short. Changes of the
    array stay in memory and do not reach the file.

    Args:
        key: name of the file; equal keys mean equal arrays.
        dtype: of the elements.
        pieces: gives the array piece by piece, ``[k]`` each.

    Raises:
        DataError: when the file cannot be written.
    """
    folder = files.cache_folder() / "shards"
    path = folder / f"{key}.array"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with files.atomic_file(path) as temporary, temporary.open("wb") as file:
                for piece in pieces():
                    file.write(np.ascontiguousarray(piece, dtype).data)
        except (OSError, ArtifactError) as error:
            raise DataError(
                f"cannot write to {folder}: {reason(error.__cause__ or error)}; set TESSELLA_CACHE"
                " to a writable folder on a disk with enough space"
            ) from error
    # An empty file cannot be mapped.
    if not path.stat().st_size:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="c")
