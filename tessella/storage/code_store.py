"""Codes on disk: a data set encoded once by a tokenizer, to train priors on and to decode again.

A set of codes is a directory. ``codes-00000.safetensors`` and so on hold the codes of so many
images each, in the smallest integer type that their levels fit: ``codes.0`` (of a tokenizer with
several grids also ``codes.1``, coarse to fine), ``mirrored.0`` of the mirror images where they were
asked for, ``hashes`` of the pixels, and ``labels`` where there are some. ``names.json`` names the
files that images came from. ``config.json``, which is written last, says which tokenizer made them
(by the hash of its weights), from which images, and the size and SHA-256 of every shard.

Codes are read from the shards as they are needed, through memory maps. A shard is checked when it
is first used: its hash, and that every code lies below the levels of its grid.

Encoding follows the protocol of :mod:`tessella.storage.resumable`: each shard appears whole, so a
run that was killed goes on after the last one, and ends with the same bytes.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.image_set import ImageSet
from tessella.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    TessellaError,
    TessellaWarning,
    check_integer,
)
from tessella.grid import Grid
from tessella.pipeline import fingerprint
from tessella.storage import resumable
from tessella.storage.resumable import RECORD
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import parts

FORMAT = 1
"""Version of the layout."""

SHARD_IMAGES = 4096
SHARD_SYMBOLS = 1 << 20
"""Images and symbols of a shard, at most (but one image at least): what a run that is killed may
have to do again."""

AT_ONCE = 256
"""Images that are read and encoded together."""

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
        self._shards = [_shard_file(entry, i) for i, entry in enumerate(config["shards"])]
        if len(self._shards) != -(-self.count // self.shard_images):
            raise ValueError(f"{len(self._shards)} shards for {self.count} images")

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
        for number in range(len(self._shards)):
            self._checked.pop(number, None)
            self._shard(number)

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
            found = np.empty((len(chosen), *grid.shape), _smallest_type(grid.levels))
            for number in numbers.tolist():
                here = shard_of == number
                shard = self._shard(number)[f"{kind}.{level}"]
                found[here] = shard[chosen[here] - number * self.shard_images]
            read.append(found)
        return read

    def _column(self, name: str) -> np.ndarray:
        """A tensor of one value an image, of all shards."""
        columns = [self._shard(number)[name] for number in range(len(self._shards))]
        return np.concatenate(columns) if columns else np.empty(0, np.int64)

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        """The tensors of a shard as memory maps, checked when they are first asked for."""
        if number not in self._checked:
            shard = self._shards[number]
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
        expected = {"hashes": ((images,), np.dtype("<i8"))}
        if self._labelled:
            expected["labels"] = ((images,), np.dtype("<i8"))
        kinds = ("codes", "mirrored") if self.mirrored else ("codes",)
        for level, grid in enumerate(self.grids):
            for kind in kinds:
                dtype = np.dtype(_smallest_type(grid.levels))
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
    if not all(shard.sha256 for shard in codes._shards):
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


def tokenize(
    tokenizer: Tokenizer,
    images: ImageSet | np.ndarray,
    out: Path | str,
    *,
    mirrored: bool = False,
    workers: int = 0,
    watch: Callable[[float], object] | None = None,
) -> CodeSet:
    """Encode images to codes on disk, in the memory of a few batches.

    A run that was killed goes on; of finished codes, shards that are missing or damaged are made
    again.

    Args:
        tokenizer: a learned tokenizer, in eval mode.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`.
        out: the directory.
        mirrored: encode the mirror image of each as well, for training with ``data.flip``.
        workers: threads that each encode other shards, on one processor (or GPU) each; 0 for as
            many as torch uses. The codes are equal whatever their number.
        watch: called with the number of images that are done.

    Raises:
        InputError: when the directory holds something else, or codes of another tokenizer or of
            other images.
        ArtifactError: when it cannot be written, or another process writes there.
    """
    image_set = images if isinstance(images, ImageSet) else ImageSet(np.asarray(images))
    workers = check_integer("workers", workers, most=MOST_WORKERS)
    path = Path(out)
    record = _record(tokenizer, image_set, mirrored)
    if path.is_symlink() and not path.is_dir():
        files.check_replaceable(path)  # which refuses links
    files.check_writable(path / CONFIG)
    _check_place(path, record)
    with resumable.exclusive(path, path, "writes codes"):
        _check_place(path, record)  # again: another process may have been there meanwhile
        if not _is_finished(path):
            resumable.write_record(path, record)
            _encode_shards(tokenizer.eval(), image_set, path, record, workers, watch)
            _finish(path, record, image_set)
    return open_codes(path, tokenizer)


MOST_WORKERS = 1024
"""More threads than any machine has processors for."""


def decoded(
    codes: CodeSet, tokenizer: Tokenizer, start: int = 0, n: int | None = None, batch: int = AT_ONCE
) -> Iterator[np.ndarray]:
    """Yield the images of codes, ``uint8 [batch, height, width, channels]``, a batch at a time.

    Args:
        start: the first image.
        n: the image to stop before; None for all.
        batch: images at a time.

    Raises:
        InputError: for numbers out of range.
        ArtifactError: for damaged codes.
    """
    stop = len(codes) if n is None else check_integer("n", n, most=len(codes))
    start = check_integer("start", start, most=len(codes))
    batch = check_integer("batch", batch, least=1)
    return _decoded(codes, tokenizer, range(start, stop, batch), stop)


def _decoded(
    codes: CodeSet, tokenizer: Tokenizer, starts: range, stop: int
) -> Iterator[np.ndarray]:
    # Apart from decoded(), so that numbers are refused at the call and not at the first image.
    for first in starts:
        last = min(first + starts.step, stop)
        yield tokenizer.decode(codes[first:last], codes.image_size).cpu().numpy()


def _record(tokenizer: Tokenizer, images: ImageSet, mirrored: bool) -> dict[str, Any]:
    """Say as JSON values what the codes are."""
    height, width, channels = images.images.shape[1:]
    if channels != tokenizer.channels:
        raise InputError(
            f"the tokenizer takes images of {tokenizer.channels} channels, these have {channels}"
        )
    grids = tokenizer.grids(height, width)
    symbols = sum(grid.symbols for grid in grids)
    record = {
        "format": FORMAT,
        "kind": "codes",
        "tokenizer": {"name": tokenizer.name, "fingerprint": fingerprint(tokenizer)},
        "grids": [asdict(grid) for grid in grids],
        "shape": [height, width, channels],
        "count": len(images),
        "shard_images": max(1, min(SHARD_IMAGES, SHARD_SYMBOLS // symbols)),
        "mirrored": mirrored,
        "labelled": images.labels is not None,
        "data": images.identity(),
    }
    # Through JSON and back: what is read from a file is compared with this.
    plain: dict[str, Any] = files.parse_json(files.json_text(record), "the record of codes")
    return plain


def _check_place(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a place that holds something else than these codes, whole or in part."""
    found = None
    if (path / CONFIG).exists():
        found = files.read_json_object(path / CONFIG, INDEX_BYTES)
    else:
        found = resumable.read_record(path)
    if found is None:
        foreign = path.exists() and (not path.is_dir() or _holds_something(path))
        if foreign:
            raise InputError(f"{path} holds something else than codes: name another --out")
        return
    if found.get("kind") != "codes":
        raise InputError(f"{path} was not written by tessella tokenize: name another --out")
    differences = []
    for name in resumable.differing(found, record, ignored={"shards"}):
        was, now = _summary(found.get(name)), _summary(record.get(name))
        differences.append(f"{name} {was} (now {now})")
    if differences:
        raise InputError(
            f"{path} holds other codes: {'; '.join(differences)}. Name another --out, or delete"
            f" {path} to begin anew"
        )


def _holds_something(folder: Path) -> bool:
    return any(entry.name != ".lock" for entry in folder.iterdir())


def _is_finished(path: Path) -> bool:
    """Whether all codes are there and undamaged; else damaged shards go, to be made again."""
    if not (path / CONFIG).exists():
        return False
    config = files.read_json_object(path / CONFIG, INDEX_BYTES)
    try:
        codes = CodeSet(path, config)
    except ArtifactError:
        return False  # every shard is looked at below, and the configuration is written anew
    finished = True
    for number, shard in enumerate(codes._shards):
        try:
            codes._shard(number)
        except ArtifactError:
            finished = False
            (path / shard.name).unlink(missing_ok=True)
    return finished


def _summary(value: object) -> str:
    """A value of a record in a few words."""
    if isinstance(value, dict) and "fingerprint" in value:
        return f"{value.get('name')} {value['fingerprint']}"
    if isinstance(value, dict) and "sha256" in value:
        return f"{value.get('source')} {value.get('split')} {str(value['sha256'])[:12]}"
    return str(value)


def _encode_shards(
    tokenizer: Tokenizer,
    images: ImageSet,
    path: Path,
    record: Mapping[str, Any],
    workers: int,
    watch: Callable[[float], object] | None,
) -> None:
    """Make the shards that are missing, each by one of several threads."""
    shard_images = int(record["shard_images"])
    n = len(images)
    done = itertools.count(1)
    files.sweep(path)
    torch_threads = torch.get_num_threads()
    copies = _copies(tokenizer)
    threads = workers or (torch_threads if tokenizer.device.type == "cpu" else len(copies))

    def encode(number: int) -> None:
        # One thread an operation: rounding must not depend on how many threads there are.
        torch.set_num_threads(1)
        places = range(number * shard_images, min(n, (number + 1) * shard_images))
        if not _is_whole(path / _shard_name(number)):
            tensors = _shard(copies[number % len(copies)], images, places, record)
            files.write_tensors(path / _shard_name(number), tensors)
        if watch is not None:
            watch(min(n, next(done) * shard_images))

    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(encode, range(-(-n // shard_images))):
                pass  # raises what a thread raised
    finally:
        torch.set_num_threads(torch_threads)


def _copies(tokenizer: Tokenizer) -> list[Tokenizer]:
    """The tokenizer, or on GPUs a copy of it on each."""
    gpus = torch.cuda.device_count() if tokenizer.device.type == "cuda" else 1
    if gpus < 2:
        return [tokenizer]
    devices = [torch.device("cuda", number) for number in range(gpus)]
    return [copy.deepcopy(tokenizer).to(device).eval() for device in devices]


def _is_whole(path: Path) -> bool:
    """Whether a shard of an earlier, stopped run is there and undamaged."""
    try:
        files.read_tensors(path)
    except ArtifactError:
        return False
    return True


def _shard(
    tokenizer: Tokenizer, images: ImageSet, places: range, record: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Encode the images of one shard; returns its tensors by name."""
    pieces: dict[str, list[torch.Tensor]] = {}
    for start in range(places.start, places.stop, AT_ONCE):
        pixels = np.asarray(images.images[start : min(start + AT_ONCE, places.stop)])
        hashes = torch.from_numpy(image_hashes(pixels).view(np.int64))
        pieces.setdefault("hashes", []).append(hashes)
        kinds = {"codes": pixels}
        if record["mirrored"]:
            kinds["mirrored"] = pixels[:, :, ::-1]
        for kind, given in kinds.items():
            codes = parts(tokenizer.encode(np.ascontiguousarray(given)))
            for level, (part, grid) in enumerate(zip(codes, record["grids"], strict=True)):
                dtype = _TORCH_TYPES[_smallest_type(grid["levels"])]
                pieces.setdefault(f"{kind}.{level}", []).append(part.cpu().to(dtype))
    tensors = {name: torch.cat(batches) for name, batches in pieces.items()}
    if images.labels is not None:
        labels = np.asarray(images.labels)[places.start : places.stop]
        tensors["labels"] = torch.from_numpy(labels.astype(np.int64))
    return tensors


def _finish(path: Path, record: Mapping[str, Any], images: ImageSet) -> None:
    """Write what the codes are, now that every shard is there."""
    shards = []
    for number in range(-(-record["count"] // record["shard_images"])):
        shard = path / _shard_name(number)
        if not shard.exists():
            raise ArtifactError(f"{path} is not finished: {shard.name} was not written")
        digest = files.sha256(shard)
        shards.append({"name": shard.name, "bytes": shard.stat().st_size, "sha256": digest})
    if images.names is not None:
        files.write_json(path / NAMES, list(images.names))
    files.write_json(path / CONFIG, {**record, "shards": shards})
    resumable.remove_record(path)


def _shard_name(number: int) -> str:
    return f"codes-{number:05d}.safetensors"


def _shard_file(entry: object, number: int) -> ShardFile:
    """One entry of the list of shards, checked: its name must not lead out of the directory."""
    if not isinstance(entry, Mapping) or entry.get("name") != _shard_name(number):
        raise ValueError(f"shard {number} is not named {_shard_name(number)}")
    size = check_integer("bytes of a shard", entry["bytes"])
    return ShardFile(_shard_name(number), size, str(entry.get("sha256") or ""))


def _flag(config: Mapping[str, Any], name: str) -> bool:
    if not isinstance(config[name], bool):
        raise TypeError(f"{name} must be true or false")
    return bool(config[name])


def _smallest_type(levels: int) -> type[np.integer[Any]]:
    """The smallest type of integers that holds so many levels."""
    if levels <= 1 << 8:
        return np.uint8
    return np.int16 if levels <= 1 << 15 else np.int32


_TORCH_TYPES = {np.uint8: torch.uint8, np.int16: torch.int16, np.int32: torch.int32}


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


LEAST = 1024
"""Images from which on codes are kept in the cache: fewer are quickly made again."""


def cached(tokenizer: Tokenizer, images: Any, mirrored: bool) -> CodeSet | None:
    """The codes of images that a prior trains on, kept in ``codes/`` of the cache folder.

    Returns None where there are few images, where nothing can be written, or with
    ``TESSELLA_CODES=0`` in the environment.
    """
    if len(images) < LEAST or os.environ.get("TESSELLA_CODES") == "0":
        return None
    identity = ImageSet(images).identity()["sha256"]
    facts = f"{FORMAT} {fingerprint(tokenizer)} {identity} {mirrored}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    try:
        return tokenize(tokenizer, images, files.cache_folder() / "codes" / key, mirrored=mirrored)
    except (ArtifactError, ConfigError):
        return None
