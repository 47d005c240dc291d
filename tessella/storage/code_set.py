"""Codes on disk, as they are read: by index, checked, through memory maps.

A set of codes is a directory. The files ``codes-00000.safetensors`` and so on are its shards: the
codes of equally many images each, in the smallest integer type that holds their levels. Their
tensors are ``codes.0`` (of a tokenizer with several grids also ``codes.1``, coarse to fine),
``mirrored.0`` of the mirror images where they were asked for, ``hashes`` of the pixels, and
``labels`` where there are some. ``names.json`` names the files that images came from.
``config.json``, which is written last, says which tokenizer made them (by the hash of its weights),
from which images, and the size and SHA-256 of every shard.

A shard is checked when it is first used: its hash, and that every code is below the levels of its
grid.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, cast

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
from tessella.files import JSONValue
from tessella.grid import Grid
from tessella.pipeline import fingerprint
from tessella.pipeline.run_record import SplitRecord
from tessella.storage.resumable import RECORD
from tessella.tokenizers import Tokenizer

FORMAT = 1
"""Version of the layout."""

CONFIG = "config.json"
NAMES = "names.json"

MOST_IMAGES = 1 << 48
"""Most images of a set; more would not fit into a number of the machine."""

INDEX_BYTES = 1 << 30
"""Largest file of names or of shards that is read: enough for millions of images."""

DTYPES = {"U8": "|u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
"""The integer types of shards, in the words of safetensors and of numpy."""


class TokenizerRecord(TypedDict):
    """The tokenizer that made codes."""

    name: str
    fingerprint: str


class GridRecord(TypedDict):
    """Arguments of :class:`~tessella.Grid`."""

    height: int
    width: int
    channels: int
    levels: int


class ShardRecord(TypedDict):
    """A file of codes, its size in bytes and its hash."""

    name: str
    bytes: int
    sha256: str


class CodesRecord(TypedDict, total=False):
    """The entries of ``config.json``; ``shards`` is missing until all of them are made."""

    format: int
    kind: str
    tokenizer: TokenizerRecord
    grids: list[GridRecord]
    shape: list[int]
    """Height, width and channels of the images."""
    count: int
    shard_images: int
    mirrored: bool
    labelled: bool
    data: SplitRecord
    shards: list[ShardRecord]


SeveralPlaces = slice | np.ndarray | torch.Tensor | list[int]
"""Which images: a slice, or indices."""

Places = int | np.integer | SeveralPlaces
"""One image, or several."""


@dataclass(frozen=True)
class ShardFile:
    """A shard according to ``config.json``; ``sha256`` is empty for codes of early versions."""

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

    def __init__(self, path: Path, config: Mapping[str, object]) -> None:
        self.path = path
        # So it says; whether it is so, reading it shows.
        self.config = cast(CodesRecord, config)
        try:
            self._read_config(self.config)
        except (KeyError, TypeError, ValueError, AttributeError, TessellaError) as error:
            detail = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ArtifactError(
                f"{path / CONFIG} does not describe codes ({detail}): tokenize the images again"
            ) from error
        self._checked: dict[int, dict[str, np.ndarray]] = {}

    def _read_config(self, config: CodesRecord) -> None:
        """Take the facts out of a configuration that may hold anything."""
        grids = []
        for sizes in config["grids"]:
            grids.append(Grid(**sizes))
        self.grids = tuple(grids)
        if not self.grids:
            raise ValueError("no grids")
        self.count = check_integer("count", config["count"], most=MOST_IMAGES)
        self.shard_images = check_integer(
            "shard_images", config["shard_images"], least=1, most=MOST_IMAGES
        )
        # Whatever is wrong here raises an error that the constructor puts into words.
        height, width, channels = config["shape"]
        self.shape: tuple[int, int, int, int] = (
            self.count,
            check_integer("height", height, least=1),
            check_integer("width", width, least=1),
            check_integer("channels", channels, least=1),
        )
        """Of the images, ``(n, height, width, channels)``."""
        self.mirrored = _flag(config["mirrored"], "mirrored")
        """Whether the codes of the mirror images are here too."""
        self._labelled = _flag(config["labelled"], "labelled")
        self.tokenizer = str(config["tokenizer"]["fingerprint"])
        """Fingerprint of the tokenizer that made them."""
        if not isinstance(config["data"], Mapping):
            raise TypeError("data must be an object")
        self.shards = []
        for number, entry in enumerate(config["shards"]):
            self.shards.append(_shard_file(entry, number))
        # The last shard may hold fewer images than the others.
        if len(self.shards) != -(-self.count // self.shard_images):
            raise ValueError(f"{len(self.shards)} shards for {self.count} images")
        # A symbol takes a byte at least. Whoever reads images may rely on memory for their codes.
        symbols = self.count * sum(grid.symbols for grid in self.grids)
        if symbols > sum(shard.size for shard in self.shards):
            raise ValueError(f"its shards are too small for {symbols:,} symbols")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: Places) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Codes at a slice or at indices, ``int64 [n, h, w, depth]``; at one index, without ``n``.

        A tokenizer with several grids gives a tuple, one tensor for each grid.
        """
        if isinstance(places, (int, np.integer)):
            # One image is a batch of one, without its first dimension.
            index = range(len(self))[int(places)]
            one = self[index : index + 1]
            return one[0] if isinstance(one, torch.Tensor) else tuple(part[0] for part in one)
        codes = []
        for part in self.read(places):
            codes.append(torch.from_numpy(part.astype(np.int64)))
        if len(codes) == 1:
            return codes[0]
        return tuple(codes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.shape[1], self.shape[2]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The class of each image, ``int64 [n]``, or None."""
        if not self._labelled:
            return None
        return self._column("labels")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The file that each image came from, or None."""
        # Read when it is asked for: names of millions of files take a while.
        path = self.path / NAMES
        if not path.exists():
            return None
        names = files.read_json(path, INDEX_BYTES)
        if not isinstance(names, list) or len(names) != len(self):
            raise ArtifactError(f"{path} does not name {len(self)} images: tokenize them again")
        return tuple(map(str, names))

    def hashes(self) -> np.ndarray:
        """Hash of the pixels of each image, ``uint64 [n]``; see :mod:`tessella.data.hashes`."""
        # The format of shards has no unsigned 64-bit integers: the bits were kept as signed ones.
        return self._column("hashes").view(np.uint64)

    def identity(self) -> dict[str, JSONValue]:
        """Say as JSON values which images these codes are of, and which tokenizer made them."""
        identity: dict[str, JSONValue] = dict(self.config["data"])  # type: ignore[arg-type]
        identity["tokenizer"] = self.tokenizer
        return identity

    def variant(self, mirrored: bool = False) -> CodeVariant:
        """The codes as a step of training sees them."""
        if mirrored:
            return CodeVariant(self, "mirrored")
        return CodeVariant(self, "codes")

    def check(self) -> None:
        """Read every shard and compare it with what was written.

        Raises:
            ArtifactError: naming the shard that is missing or damaged.
        """
        for number in range(len(self.shards)):
            # It may have been damaged since it was first used.
            self._checked.pop(number, None)
            self.shard(number)

    def read(self, places: SeveralPlaces, kind: str = "codes") -> list[np.ndarray]:
        """Codes of each grid at a slice or at indices, in the types that they are stored in.

        Args:
            kind: ``codes``, or ``mirrored`` for those of the mirror images.

        Raises:
            ArtifactError: when a shard is missing or damaged.
        """
        # Also negative indices and masks become numbers of images.
        chosen = np.arange(len(self))[places]
        # All shards but the last are of one size.
        shard_of = chosen // self.shard_images
        numbers = np.unique(shard_of)
        read = []
        for level, grid in enumerate(self.grids):
            found = np.empty((len(chosen), *grid.shape), smallest_type(grid.levels))
            # Shard by shard, whatever the order of the places: each is indexed once.
            for number in numbers.tolist():
                here = shard_of == number
                shard = self.shard(number)[f"{kind}.{level}"]
                found[here] = shard[chosen[here] - number * self.shard_images]
            read.append(found)
        return read

    def _column(self, name: str) -> np.ndarray:
        """A tensor of one value an image, of all shards."""
        # numpy does not concatenate nothing.
        columns = [np.empty(0, np.int64)]
        for number in range(len(self.shards)):
            columns.append(self.shard(number)[name])
        return np.concatenate(columns)

    def shard(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a shard as memory maps, checked when they are first asked for."""
        # The hash is computed once for each shard; its pages stay on disk until they are read.
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
        one_each = ((images,), np.dtype("<i8"))
        expected: dict[str, tuple[tuple[int, ...], object]] = {"hashes": one_each}
        if self._labelled:
            expected["labels"] = one_each
        kinds = ["codes"]
        if self.mirrored:
            kinds.append("mirrored")
        for level, grid in enumerate(self.grids):
            for kind in kinds:
                dtype = np.dtype(smallest_type(grid.levels))
                expected[f"{kind}.{level}"] = ((images, *grid.shape), dtype)
        found: dict[str, tuple[tuple[int, ...], object]] = {}
        for name, array in arrays.items():
            found[name] = (array.shape, array.dtype)
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
        # One type for all grids, signed as torch has it: int16 holds symbols up to 2^15 - 1.
        most_levels = max(grid.levels for grid in grids)
        self.dtype: np.dtype[np.signedinteger] = np.dtype(np.int32)
        if most_levels <= 1 << 15:
            self.dtype = np.dtype(np.int16)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: SeveralPlaces) -> np.ndarray:
        levels = self.codes.read(places, self.kind)
        if len(levels) == 1:
            return levels[0].astype(self.dtype)
        # [n, h, w, depth] of each grid, side by side: [n, symbols]
        flat = [level.reshape(len(level), -1) for level in levels]
        return np.concatenate(flat, axis=1).astype(self.dtype)


@dataclass(frozen=True)
class CodedImages(ImageSet):
    """A set of codes in the place of the images they were made of."""

    images: Any

    def hashes(self) -> np.ndarray:
        hashes: np.ndarray = self.images.hashes()
        return hashes

    def identity(self) -> dict[str, JSONValue]:
        return self.images.identity()


def load_split(path: Path | str, split: str) -> CodedImages:
    """Open the codes of one split, in the directory of that name, with the labels of the images.

    Raises:
        ArtifactError: when there are none, or they are damaged.
    """
    folder = Path(path)
    # The codes of one split were named, which are themselves in a folder.
    if (folder / CONFIG).exists() and not (folder / split).exists():
        raise ArtifactError(
            f"{path} holds the codes of one split, and none of the split {split}: name the folder "
            f"above it, which holds one for each split, codes:{folder.parent}"
        )
    codes = open_codes(folder / split)
    # Images without classes or a rule of the split say nothing of them.
    data = codes.config["data"]
    return CodedImages(
        codes,
        codes.labels,
        tuple(data.get("classes") or ()),
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
    # Shards are only checked as they are used, since reading all of them would take long.
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
    inside = []
    for split in ("train", "valid", "test"):
        if (path / split / CONFIG).exists():
            inside.append(f"{path}/{split}")
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
    same_channels = codes.shape[3] == tokenizer.channels
    same_grids = codes.grids == tokenizer.grids(*codes.image_size)
    if not same_channels or not same_grids:
        raise ArtifactError(
            f"{codes.path / CONFIG} is damaged: its grids are not those that the tokenizer makes of"
            f" images of {codes.shape[1]}x{codes.shape[2]}x{codes.shape[3]}"
        )


def shard_name(number: int) -> str:
    """The file of a shard, numbered from 0."""
    return f"codes-{number:05d}.safetensors"


def _shard_file(entry: object, number: int) -> ShardFile:
    """One entry of the list of shards, checked: its name must not lead out of the directory."""
    if not isinstance(entry, Mapping) or entry.get("name") != shard_name(number):
        raise ValueError(f"shard {number} is not named {shard_name(number)}")
    size = check_integer("bytes of a shard", entry["bytes"])
    return ShardFile(shard_name(number), size, str(entry.get("sha256") or ""))


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be true or false")
    return value


def smallest_type(levels: int) -> type[np.uint8] | type[np.int16] | type[np.int32]:
    """The smallest type of integers that holds ``levels`` levels."""
    if levels <= 1 << 8:
        return np.uint8
    # Signed from here on: torch hardly computes with wider unsigned types.
    if levels <= 1 << 15:
        return np.int16
    return np.int32


def _mapped(path: Path, shard: ShardFile) -> dict[str, np.ndarray]:
    """The tensors of a shard as memory maps, after its size and its hash were checked."""
    # Cheap checks first: hashing reads the whole file.
    header = files.read_tensors_header(path)
    if path.stat().st_size != shard.size:
        raise ArtifactError("it does not have the size that it was written with")
    if shard.sha256 and files.sha256(path) != shard.sha256:
        raise ArtifactError("it does not have the content that it was written with")
    # Views into one map of the file: nothing is read before it is used.
    raw = np.memmap(path, np.uint8, "r")
    arrays = {}
    for name, tensor in header.tensors.items():
        if tensor.dtype not in DTYPES:
            raise ArtifactError(f"{name} is of type {tensor.dtype}")
        values = raw[tensor.start : tensor.stop].view(DTYPES[tensor.dtype])
        arrays[name] = values.reshape(tensor.shape)
    return arrays
