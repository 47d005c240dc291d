"""Codes on disk, as they are read: by index, checked, through memory maps.

A set of codes is a directory. ``codes-00000.safetensors`` and so on hold the codes of so many
images each, in the smallest integer type that their levels fit: ``codes.0`` (of a tokenizer with
several grids also ``codes.1``, coarse to fine), ``mirrored.0`` of the mirror images where they were
asked for, ``hashes`` of the pixels, and ``labels`` where there are some. ``names.json`` names the
files that images came from. ``config.json``, which is written last, says which tokenizer made them
(by the hash of its weights), from which images, and the size and SHA-256 of every shard.

A shard is checked when it is first used: its hash, and that every code lies below the levels of its
grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessella import files
from tessella.data.image_set import ImageSet
from tessella.errors import (
    ArtifactError,
    InputError,
    TessellaError,
    TessellaWarning,
    check_integer,
)
from tessella.grid import Grid
from tessella.pipeline import fingerprint
from tessella.storage.resumable import RECORD
from tessella.tokenizers import Tokenizer

FORMAT = 1
"""Version of the layout."""

CONFIG = "config.json"
NAMES = "names.json"

INDEX_BYTES = 1 << 30
"""Largest file of names or of shards that is read: enough for millions of images."""

DTYPES = {"U8": "|u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
"""The integer types of shards, in the words of safetensors and of numpy."""


Places = slice | np.ndarray | torch.Tensor | list[int]
"""Which images: a slice, or indices."""


@dataclass(frozen=True)
class ShardFile:
    """What ``config.json`` says of a shard; ``sha256`` is empty for codes of early versions."""

    name: str
    size: int
    sha256: str


class CodeSet:
    """The codes of a data set, read as they are needed; :func:`open_codes` makes one.

    Args:
        path: its directory.
        config: what its ``config.json`` holds.

    Raises:
        ArtifactError: when the configuration contradicts itself.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        try:
            self._read_config(config)
        except (KeyError, TypeError, ValueError, AttributeError, TessellaError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(
                f"{path / CONFIG} does not describe codes ({detail}): tokenize the images again"
            ) from error
        self._checked: dict[int, dict[str, np.ndarray]] = {}

    def _read_config(self, config: Mapping[str, Any]) -> None:
        """Take the facts out of a configuration that may hold anything."""
        self.grids = tuple(Grid(**grid) for grid in config["grids"])
        if not self.grids:
            raise ValueError("no grids")
        self.count = check_integer("count", config["count"])
        self.shard_images = check_integer("shard_images", config["shard_images"], least=1)
        height, width, channels = config["shape"]
        self.shape: tuple[int, int, int, int] = (
            self.count,
            check_integer("height", height, least=1),
            check_integer("width", width, least=1),
            check_integer("channels", channels, least=1),
        )
        """Of the images, ``(n, height, width, channels)``."""
        self.mirrored = _flag(config, "mirrored")
        """Whether the codes of the mirror images are here too."""
        self._labelled = _flag(config, "labelled")
        self.tokenizer = str(config["tokenizer"]["fingerprint"])
        """Fingerprint of the tokenizer that made them."""
        if not isinstance(config["data"], Mapping):
            raise TypeError("data must be an object")
        self.shards = [_shard_file(entry, i) for i, entry in enumerate(config["shards"])]
        if len(self.shards) != -(-self.count // self.shard_images):
            raise ValueError(f"{len(self.shards)} shards for {self.count} images")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: Places) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Codes at a slice or at indices, ``int64 [n, h, w, depth]``.

        A tokenizer with several grids gives a tuple, one tensor for each grid.
        """
        codes = [torch.from_numpy(part.astype(np.int64)) for part in self.read(places)]
        return tuple(codes) if len(codes) > 1 else codes[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.shape[1], self.shape[2]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The class of each image, ``int64 [n]``, or None."""
        return self._column("labels") if self._labelled else None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The file that each image came from, or None."""
        path = self.path / NAMES
        if not path.exists():
            return None
        names = files.read_json(path, INDEX_BYTES)
        if not isinstance(names, list) or len(names) != len(self):
            raise ArtifactError(f"{path} does not name {len(self)} images: tokenize them again")
        return tuple(str(name) for name in names)

    def hashes(self) -> np.ndarray:
        """Hash of the pixels of each image, ``uint64 [n]``; see :mod:`tessella.data.hashes`."""
        return self._column("hashes").view(np.uint64)

    def identity(self) -> dict[str, Any]:
        """Say as JSON values which images these codes are of, and which tokenizer made them."""
        return {**self.config["data"], "tokenizer": self.tokenizer}

    def variant(self, mirrored: bool = False) -> CodeVariant:
        """The codes as a step of training sees them."""
        return CodeVariant(self, "mirrored" if mirrored else "codes")

    def check(self) -> None:
        """Read every shard and compare it with what was written.

        Raises:
            ArtifactError: naming the shard that is missing or damaged.
        """
        for number in range(len(self.shards)):
            self._checked.pop(number, None)
            self.shard(number)

    def read(self, places: Places, kind: str = "codes") -> list[np.ndarray]:
        """Codes of each grid at a slice or at indices, in the types that they are stored in.

        Args:
            kind: ``codes``, or ``mirrored`` for those of the mirror images.

        Raises:
            ArtifactError: when a shard is missing or damaged.
        """
        chosen = np.arange(len(self))[places]
        shard_of = chosen // self.shard_images
        numbers = np.unique(shard_of)
        read = []
        for level, grid in enumerate(self.grids):
            found = np.empty((len(chosen), *grid.shape), smallest_type(grid.levels))
            for number in numbers.tolist():
                here = shard_of == number
                shard = self.shard(number)[f"{kind}.{level}"]
                found[here] = shard[chosen[here] - number * self.shard_images]
            read.append(found)
        return read

    def _column(self, name: str) -> np.ndarray:
        """A tensor of one value an image, of all shards."""
        columns = [self.shard(number)[name] for number in range(len(self.shards))]
        return np.concatenate(columns) if columns else np.empty(0, np.int64)

    def shard(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a shard as memory maps, checked when they are first asked for."""
        if number not in self._checked:
            shard = self.shards[number]
            path = self.path / shard.name
            try:
                arrays = _mapped(path, shard)
                self._check_arrays(arrays, number)
            except (ArtifactError, ValueError) as error:
                raise ArtifactError(
                    f"{path} is missing or damaged ({error}): tessella tokenize with the same"
                    " --out makes it again"
                ) from error
            self._checked[number] = arrays
        return self._checked[number]

    def _check_arrays(self, arrays: Mapping[str, np.ndarray], number: int) -> None:
        """Refuse tensors of another shape or type than the configuration says, or codes too large.

        A hash finds damage; this finds a file that was made wrong, and guards codes without hashes.
        """
        images = min(self.shard_images, self.count - number * self.shard_images)
        expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "hashes": ((images,), np.dtype("<i8"))
        }
        if self._labelled:
            expected["labels"] = ((images,), np.dtype("<i8"))
        kinds = ("codes", "mirrored") if self.mirrored else ("codes",)
        for level, grid in enumerate(self.grids):
            for kind in kinds:
                dtype = np.dtype(smallest_type(grid.levels))
                expected[f"{kind}.{level}"] = ((images, *grid.shape), dtype)
        found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if found != expected:
            raise ArtifactError("its tensors are not those that the configuration describes")
        for level, grid in enumerate(self.grids):
            for kind in kinds:
                codes = arrays[f"{kind}.{level}"]
                if codes.size and not 0 <= codes.min() <= codes.max() < grid.levels:
                    raise ArtifactError(f"codes of {kind}.{level} lie outside 0..{grid.levels - 1}")


class CodeVariant:
    """Codes for training: ``[n, h, w, depth]``, or those of several grids packed, ``[n, symbols]``.

    Args:
        codes: the set.
        kind: ``codes`` or ``mirrored``.
    """

    def __init__(self, codes: CodeSet, kind: str) -> None:
        self.codes = codes
        self.kind = kind
        grids = codes.grids
        if len(grids) == 1:
            self.shape: tuple[int, ...] = (len(codes), *grids[0].shape)
        else:
            self.shape = (len(codes), sum(grid.symbols for grid in grids))
        most_levels = max(grid.levels for grid in grids)
        self.dtype = np.dtype(np.int16 if most_levels <= 1 << 15 else np.int32)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: Places) -> np.ndarray:
        levels = self.codes.read(places, self.kind)
        if len(levels) == 1:
            return levels[0].astype(self.dtype)
        flat = [level.reshape(len(level), -1) for level in levels]
        return np.concatenate(flat, axis=1).astype(self.dtype)


@dataclass(frozen=True)
class CodedImages(ImageSet):
    """A set of codes in the place of the images they were made of."""

    images: Any

    def hashes(self) -> np.ndarray:
        hashes: np.ndarray = self.images.hashes()
        return hashes

    def identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.images.identity()
        return identity


def load_split(path: Path | str, split: str) -> CodedImages:
    """Open the codes of one split, in the directory of that name, with the labels of the images.

    Raises:
        ArtifactError: when there are none, or they are damaged.
    """
    codes = open_codes(Path(path) / split)
    data = codes.config["data"]
    return CodedImages(
        codes,
        codes.labels,
        tuple(data.get("classes", ())),
        name=f"codes of {data.get('source', '?')}",
        split=split,
        names=codes.names,
        recipe={"split_rule": data.get("split_rule", "")},
    )


def open_codes(path: Path | str, tokenizer: Tokenizer | None = None) -> CodeSet:
    """Open the codes in a directory.

    Codes of early versions, without hashes, are opened with a warning.

    Args:
        path: the directory.
        tokenizer: what must have made them; None for any.

    Raises:
        ArtifactError: when there are none, or they are not complete.
        InputError: when another tokenizer made them.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        raise ArtifactError(f"{path} holds no codes{_what_is_there(path)}")
    config = files.read_json_object(path / CONFIG, INDEX_BYTES)
    if config.get("kind") != "codes" or config.get("format") != FORMAT:
        raise ArtifactError(f"{path}/{CONFIG} does not describe codes of format {FORMAT}")
    codes = CodeSet(path, config)
    if not all(shard.sha256 for shard in codes.shards):
        warnings.warn(
            f"the codes in {path} carry no hashes, so damage can go unnoticed:"
            " tokenize the images again where that matters",
            TessellaWarning,
            stacklevel=2,
        )
    if tokenizer is not None:
        _check_tokenizer(codes, tokenizer)
    return codes


def _what_is_there(path: Path) -> str:
    """Say what stands in a place where codes were expected."""
    inside = [
        f"{path}/{part}" for part in ("train", "valid", "test") if (path / part / CONFIG).exists()
    ]
    if inside:
        return f"; there are some in {' and '.join(inside)}"
    if (path / RECORD).exists():
        return "; they are not all made yet: the same tessella tokenize goes on"
    return ""


def _check_tokenizer(codes: CodeSet, tokenizer: Tokenizer) -> None:
    """Refuse codes that this tokenizer did not make."""
    if codes.tokenizer != fingerprint(tokenizer):
        raise InputError(
            f"the codes in {codes.path} were made by the tokenizer {codes.tokenizer}, this one is"
            f" {fingerprint(tokenizer)}: codes of different tokenizers do not mix;"
            " tokenize the images with this one"
        )
    # The fingerprint covers the weights; the sizes in config.json are the file's word alone.
    fits = codes.shape[3] == tokenizer.channels and codes.grids == tokenizer.grids(
        *codes.image_size
    )
    if not fits:
        raise ArtifactError(
            f"{codes.path / CONFIG} is damaged: its grids are not those that the tokenizer makes of"
            f" images of {codes.shape[1]}x{codes.shape[2]}x{codes.shape[3]}"
        )


def shard_name(number: int) -> str:
    return f"codes-{number:05d}.safetensors"


def _shard_file(entry: object, number: int) -> ShardFile:
    """One entry of the list of shards, checked: its name must not lead out of the directory."""
    if not isinstance(entry, Mapping) or entry.get("name") != shard_name(number):
        raise ValueError(f"shard {number} is not named {shard_name(number)}")
    size = check_integer("bytes of a shard", entry["bytes"])
    return ShardFile(shard_name(number), size, str(entry.get("sha256") or ""))


def _flag(config: Mapping[str, Any], name: str) -> bool:
    if not isinstance(config[name], bool):
        raise TypeError(f"{name} must be true or false")
    return bool(config[name])


def smallest_type(levels: int) -> type[np.integer[Any]]:
    """The smallest type of integers that holds so many levels."""
    if levels <= 1 << 8:
        return np.uint8
    return np.int16 if levels <= 1 << 15 else np.int32


def _mapped(path: Path, shard: ShardFile) -> dict[str, np.ndarray]:
    """The tensors of a shard as memory maps, after its size and its hash were checked."""
    header = files.read_tensors_header(path)
    if path.stat().st_size != shard.size:
        raise ArtifactError("it does not have the size that it was written with")
    if shard.sha256 and files.sha256(path) != shard.sha256:
        raise ArtifactError("it does not have the content that it was written with")
    raw = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name, tensor in header.tensors.items():
        if tensor.dtype not in DTYPES:
            raise ArtifactError(f"{name} is of type {tensor.dtype}")
        values = raw[tensor.start : tensor.stop].view(DTYPES[tensor.dtype])
        arrays[name] = values.reshape(tensor.shape)
    return arrays
