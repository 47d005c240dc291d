"""Named tensors in safetensors files, with a checksum."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tessella.errors import ArtifactError
from tessella.files.reading import parse_json, read_beginning
from tessella.files.writing import atomic_file

if TYPE_CHECKING:
    import torch

HEADER_BYTES = 1 << 26
"""Largest header that is read, in bytes. The format itself allows 100 MB."""


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file with their SHA-256 in its metadata, atomically.

    Raises:
        ArtifactError: naming the file and the reason; an old file, if any, is unchanged.
    """
    from safetensors.torch import save_file

    # safetensors only stores contiguous tensors, and the digest reads their memory directly.
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "sha256": _digest(contiguous)}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)
        _sort_metadata(temporary)


@dataclass(frozen=True)
class StoredTensor:
    """Type and shape of a tensor in a safetensors file, as its header states them.

    Args:
        dtype: name of the type in the format: ``F32``, ``BF16``, ``I64``, ``U8``, ...
        shape: sizes of its dimensions.
        start, stop: offsets of its first byte, and of the byte after its last, in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorsHeader:
    """The header of a safetensors file: metadata, and every tensor by name."""

    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


# Bits per item of each type. Files with any other type are refused.
ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16,
    "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


def read_tensors_header(path: Path | str) -> TensorsHeader:
    """Read the names, types and shapes in a safetensors file, but no tensor.

    Every shape is checked against the bytes that the file holds for it, so a header cannot declare
    more than there is.

    Raises:
        ArtifactError: when it is missing, not a regular file, or its header does not match it.
    """
    # The file begins with the length of its header, in eight bytes.
    beginning = read_beginning(path, 8)
    length = int.from_bytes(beginning, "little")
    size = Path(path).stat().st_size
    if len(beginning) < 8 or length > min(size - 8, HEADER_BYTES):
        raise ArtifactError(
            f"{path} is damaged, or not a safetensors file: its header does not fit"
        )
    header = parse_json(read_beginning(path, 8 + length)[8:], f"the header of {path}")
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} is damaged: its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ArtifactError(f"{path} is damaged: the metadata in its header are not a JSON object")
    # Everything else in the header describes a tensor.
    tensors = {}
    for name, entry in header.items():
        tensors[name] = _stored_tensor(entry, 8 + length, size, f"{path}: the tensor {name!r}")
    return TensorsHeader(metadata, tensors)


def _stored_tensor(entry: object, begin: int, size: int, where: str) -> StoredTensor:
    """Check an entry of a header.

    Args:
        entry: type, shape and offsets of the tensor.
        begin: offset in the file from which its offsets count.
        size: bytes of the file.
        where: name of file and tensor, for messages.
    """
    try:
        # Whatever is wrong with an entry ends in one of the errors below.
        assert isinstance(entry, dict)
        dtype = entry["dtype"]
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        bits = ITEM_BITS[dtype] * math.prod(shape)
        is_whole = all(isinstance(number, int) and number >= 0 for number in (*shape, first, last))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} has no readable entry in the header") from error
    if is_whole and begin + last > size:
        raise ArtifactError(
            f"{where} goes on beyond the end of the file, which is cut off: copy it again"
        )
    if not is_whole or (last - first) * 8 != bits:
        raise ArtifactError(f"{where} has a different number of bytes in the file than it needs")
    return StoredTensor(dtype, shape, begin + first, begin + last)


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a safetensors file, and verify its checksum if :func:`write_tensors` wrote it.

    Raises:
        ArtifactError: when it is missing or damaged.
    """
    from safetensors import safe_open

    read_beginning(path, 0)  # refuses devices and pipes, which might never end
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = file.get_tensors()
    except Exception as error:
        # Readers built on native code report a damaged header as errors of several kinds.
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error
    # Files of other programs have no checksum, and are only as good as their format.
    if "sha256" in metadata and metadata["sha256"] != _digest(tensors):
        raise ArtifactError(f"{path} is damaged: its tensors differ from those that were written")
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of contiguous tensors, without a copy."""
    import torch

    digest = hashlib.sha256()
    # In the order of names, so that the order of the mapping does not matter.
    for name, tensor in sorted(tensors.items()):
        facts = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(facts).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, so that equal tensors make equal files.

    The writer of the format orders them arbitrarily.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The header keeps its length, so that no tensor moves; the format allows trailing blanks.
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))
