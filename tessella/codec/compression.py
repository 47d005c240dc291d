"""``ts.compress`` and ``ts.decompress``: images in memory to bytes and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tessella.codec.archive_writer import GROUP, ArchiveWriter, CodedImage
from tessella.codec.container import IS_LIST, IS_WIDE, MAX_PIXELS, read_container
from tessella.codec.group_walk import Twin
from tessella.codec.image_modes import as_symbols
from tessella.codec.stream_reader import StreamReader
from tessella.errors import BitstreamError, InputError, check_integer
from tessella.grid import to_tensor


def compress(
    images: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray],
    twin: Twin,
    *,
    group: int = GROUP,
    batch: int = GROUP,
) -> bytes:
    """Images as the bytes of a ``.tsl`` file, without loss.

    The file takes what the twin's ``log_prob`` says, for images of its size, and a header.

    Args:
        images: integers ``[n, height, width, channels]``, or a sequence of ``[height, width,
            channels]`` of different sizes. Values are symbols of the model, or the levels of the
            model scaled to 0..255. Sizes other than the model's are cut into tiles.
        twin: the exact twin of a model.
        group: pieces (images or tiles) that share a stream. Larger groups are a little shorter; to
            read one image takes decoding its group.
        batch: pieces that step at a time; changes speed and memory only.

    Raises:
        InputError: for images of another type, shape or range, for no images, or without the
            library of the entropy coder.
    """
    check_integer("batch", batch, least=1)
    arrays, flags = _as_arrays(images)
    writer = ArchiveWriter(twin, group, batch)
    for array in arrays:
        # Images of one array are all scaled, or none is; those of a list are looked at one by one.
        symbols, scaled = as_symbols(array, twin.grid.levels, prefer_scaled=False)
        for image in symbols:
            writer.add(CodedImage(image, scaled))
    return writer.finish(flags)


def _as_arrays(
    images: torch.Tensor | np.ndarray | Sequence[torch.Tensor | np.ndarray],
) -> tuple[list[np.ndarray], int]:
    """Arrays ``[n, height, width, channels]``, and the flags that say what they were."""
    flags = 0
    if isinstance(images, (list, tuple)):
        flags = IS_LIST
        arrays = []
        for place, item in enumerate(images):
            array = _as_array(f"images[{place}]", item)
            _check_shape(f"images[{place}]", array, "[height, width, channels]", 3)
            arrays.append(array[None])
    else:
        array = _as_array("images", images)
        _check_shape("images", array, "[n, height, width, channels]", 4)
        arrays = [array]
    if not arrays:
        raise InputError("there are no images to compress: give at least one")
    if {array.dtype for array in arrays} != {np.dtype(np.uint8)}:
        flags |= IS_WIDE
    return arrays, flags


def _check_shape(name: str, array: np.ndarray, wanted: str, axes: int) -> None:
    if array.ndim != axes or not array.size:
        raise InputError(
            f"{name} must have shape {wanted} with at least one pixel, got {list(array.shape)}"
        )


def _as_array(name: str, value: object) -> np.ndarray:
    tensor = to_tensor(name, value)
    if tensor.is_floating_point() or tensor.is_complex():
        raise InputError(f"{name} must be integers, got {tensor.dtype}")
    array: np.ndarray = tensor.detach().cpu().numpy()
    if array.dtype != np.uint8:
        array = array.astype(np.int64)
    return array


def decompress(
    data: bytes | bytearray | memoryview,
    twin: Twin,
    *,
    batch: int = GROUP,
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor | list[torch.Tensor]:
    """The images of a ``.tsl`` file.

    Args:
        data: the bytes of the file.
        twin: the exact twin with which it was made.
        batch: pieces that step at a time; changes speed and memory only.
        max_pixels: most pixels that all images may have together.

    Returns:
        What was compressed: ``[n, height, width, channels]``, or a list of images. They are uint8
        if they were, else int64.

    Raises:
        BitstreamError: when the bytes are not those of a whole file, when it was made with another
            model, or when it has more pixels.
        InputError: without the library of the entropy coder.
    """
    check_integer("batch", batch, least=1)
    check_integer("max_pixels", max_pixels, least=1)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise BitstreamError(f"a compressed file is bytes, got {type(data).__name__}")
    container = read_container(bytes(data), max_pixels)
    flags = container.contents.flags
    shapes = {run.shape for run in container.contents.runs}
    if not flags & IS_LIST and len(shapes) != 1:
        raise BitstreamError("the file is damaged: the images of one array differ in shape")
    reader = StreamReader(container, twin, batch)
    images = [torch.from_numpy(array) for array in reader.images()]
    if flags & IS_LIST:
        return images
    return torch.stack(images)
