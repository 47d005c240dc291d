"""Codes on disk: a data set encoded once by a tokenizer, for priors to train from and to decode
again.

A set of codes is a directory. ``codes-00000.safetensors`` and so on hold the codes of so many
images each, in the least integer type that their levels fit: ``codes.0`` (of a tokenizer with
several grids also ``codes.1``, coarse to fine), ``mirrored.0`` of the mirror images where they were
asked for, ``hashes`` of the pixels, and ``labels`` where there are some. ``names.json`` names the
files that images came from. ``config.json``, which is written last, says which tokenizer made them
(by the hash of its weights), from which images, and the size and SHA-256 of every shard. Codes are
read from the shards as they are needed, through memory maps.

While codes are made, ``made.json`` takes the place of ``config.json``. Each shard appears whole, so
that a run that was killed goes on after the last one, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.image_set import ImageSet
from tessella.errors import ArtifactError, ConfigError, InputError
from tessella.grid import Grid
from tessella.pipeline import fingerprint
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import parts

FORMAT = 1
"""Version of the layout."""

SHARD_IMAGES, SHARD_SYMBOLS = 4096, 1 << 20
"""Images and symbols of a shard, at most (but one image at least): what a run that is killed may
have to do again."""

AT_ONCE = 256
"""Images that are read and encoded together."""

CONFIG, RECORD, NAMES = "config.json", "made.json", "names.json"


class CodeSet:
    """The codes of a data set, read as they are needed; :func:`open_codes` makes one.

    Args:
        path: its directory.
        config: of its ``config.json``.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, config
        self.grids = tuple(Grid(**grid) for grid in config["grids"])

    def __len__(self) -> int:
        return int(self.config["count"])

    def __getitem__(self, places: Any) -> Any:
        """The codes at a slice or at indices, ``int64 [n, h, w, depth]``; of several grids, one
        tensor for each."""
        codes = tuple(
            torch.from_numpy(part.astype(np.int64)) for part in self._read(places, "codes")
        )
        return codes if len(codes) > 1 else codes[0]

    @property
    def tokenizer(self) -> str:
        """The fingerprint of the tokenizer that made them."""
        return str(self.config["tokenizer"]["fingerprint"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width, _ = self.config["shape"]
        return int(height), int(width)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images, ``(n, height, width, channels)``."""
        return (len(self), *self.config["shape"])

    @property
    def mirrored(self) -> bool:
        """Whether the codes of the mirror images are here too."""
        return bool(self.config["mirrored"])

    @cached_property
    def labels(self) -> np.ndarray | None:
        """The class of each image, ``int64 [n]``, or None."""
        return self._whole("labels") if self.config["labelled"] else None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The file that each image came from, or None."""
        place = self.path / NAMES
        return tuple(files.read_json(place)) if place.exists() else None

    def hashes(self) -> np.ndarray:
        """Of the pixels of each image, ``uint64 [n]``, see :mod:`tessella.data.hashes`."""
        return self._whole("hashes").view(np.uint64)

    def identity(self) -> dict[str, Any]:
        """What these codes are, as JSON values: of which images, and by which tokenizer."""
        return {**self.config["data"], "tokenizer": self.tokenizer}

    def variant(self, mirrored: bool = False) -> Variant:
        """The codes as a step of training sees them."""
        return Variant(self, "mirrored" if mirrored else "codes")

    def check(self) -> None:
        """Read everything, and compare it with what was written.

        Raises:
            ArtifactError: naming the shard that is missing or damaged.
        """
        for shard in self.config["shards"]:
            place = self.path / shard["name"]
            if not place.exists() or files.sha256(place) != shard["sha256"]:
                raise ArtifactError(
                    f"{place} is missing or damaged: delete it and {CONFIG}, and tokenize again"
                )

    def _read(self, places: Any, kind: str) -> list[np.ndarray]:
        """The codes of each grid at a slice or at indices."""
        chosen = np.arange(len(self))[places]
        read = []
        for level, grid in enumerate(self.grids):
            shards, each = self._maps[f"{kind}.{level}"], int(self.config["shard_images"])
            found = np.empty((len(chosen), *grid.shape), shards[0].dtype if shards else np.uint8)
            for number in np.unique(chosen // each):
                here = chosen // each == number
                found[here] = shards[number][chosen[here] - number * each]
            read.append(found)
        return read

    def _whole(self, name: str) -> np.ndarray:
        return np.concatenate(
            [np.asarray(part) for part in self._maps[name]] or [np.empty(0, np.int64)]
        )

    @cached_property
    def _maps(self) -> dict[str, list[np.ndarray]]:
        """A memory map of every tensor of every shard, by name."""
        maps: dict[str, list[np.ndarray]] = {}
        for shard in self.config["shards"]:
            for name, array in _mapped(self.path / shard["name"], shard["bytes"]).items():
                maps.setdefault(name, []).append(array)
        return maps


class Variant:
    """Codes for training: ``[n, h, w, depth]``, or those of several grids packed, ``[n, symbols]``.

    Args:
        codes: the set.
        kind: ``codes`` or ``mirrored``.
    """

    def __init__(self, codes: CodeSet, kind: str) -> None:
        self.codes, self.kind = codes, kind
        grids = codes.grids
        rest = grids[0].shape if len(grids) == 1 else (sum(grid.symbols for grid in grids),)
        self.shape: tuple[int, ...] = (len(codes), *rest)
        self.dtype = np.dtype(
            np.int16 if max(grid.levels for grid in grids) <= 1 << 15 else np.int32
        )

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, places: Any) -> np.ndarray:
        read = self.codes._read(places, self.kind)
        whole = (
            read[0]
            if len(read) == 1
            else np.concatenate([part.reshape(len(part), -1) for part in read], axis=1)
        )
        return whole.astype(self.dtype)


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
    """The codes of one split, in the directory of that name, with the labels of the images.

    Raises:
        ArtifactError: when there are none.
    """
    codes = open_codes(Path(path) / split)
    made = codes.config["data"]
    return CodedImages(
        codes,
        codes.labels,
        tuple(made["classes"]),
        name=f"codes of {made['source']}",
        split=split,
        names=codes.names,
        recipe={"split_rule": made["split_rule"]},
    )


def open_codes(path: Path | str, tokenizer: Tokenizer | None = None) -> CodeSet:
    """The codes in a directory.

    Args:
        path: the directory.
        tokenizer: what must have made them; None for any.

    Raises:
        ArtifactError: when there are none, or they are not whole.
        InputError: when another tokenizer made them.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        begun = (
            "; they are not all made yet: the same tessella tokenize goes on"
            if (path / RECORD).exists()
            else ""
        )
        inside = [part for part in ("train", "valid", "test") if (path / part / CONFIG).exists()]
        begun = (
            f"; there are some in {' and '.join(f'{path}/{part}' for part in inside)}"
            if inside
            else begun
        )
        raise ArtifactError(f"{path} holds no codes{begun}")
    config = files.read_json(path / CONFIG)
    if (
        not isinstance(config, dict)
        or config.get("kind") != "codes"
        or config.get("format") != FORMAT
    ):
        raise ArtifactError(f"{path}/{CONFIG} does not describe codes of format {FORMAT}")
    codes = CodeSet(path, config)
    if tokenizer is not None and codes.tokenizer != fingerprint(tokenizer):
        raise InputError(
            f"the codes in {path} were made by the tokenizer {codes.tokenizer}, this one is {fingerprint(tokenizer)}: "
            "codes of different tokenizers do not mix; tokenize the images with this one"
        )
    return codes


def tokenize(
    tokenizer: Tokenizer,
    images: ImageSet | np.ndarray,
    out: Path | str,
    *,
    mirrored: bool = False,
    workers: int = 0,
    watch: Callable[[float], object] | None = None,
) -> CodeSet:
    """Encode images to codes on disk, in the memory of a few batches; a run that was killed goes
    on.

    Args:
        tokenizer: a learned tokenizer, in eval mode.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`.
        out: the directory.
        mirrored: encode the mirror image of each as well, for training with ``data.flip``.
        workers: threads that each encode shards of their own, on one processor (or GPU) each; 0 for
            as many as torch uses. The codes are the same whatever their number.
        watch: called with the number of images that are done.

    Raises:
        InputError: when the directory holds codes of another tokenizer or of other images.
        ArtifactError: when it cannot be written, or another process writes there.
    """
    images = images if isinstance(images, ImageSet) else ImageSet(np.asarray(images))
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise InputError(f"workers must be an integer of at least 0, got {workers!r}")
    path, made = files.make_directory(out), _made(tokenizer, images, mirrored)
    lock = FileLock(path / ".lock")
    try:
        with lock.acquire(timeout=0):
            if _begun(path, made):
                _encode_shards(
                    tokenizer.eval(), images, path, made, workers, watch or (lambda done: None)
                )
                _close(path, made, images)
    except Timeout as error:
        raise ArtifactError(
            f"another process writes codes to {path}: wait for it, or name another --out"
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror or error}; the same command goes on"
        ) from error
    return open_codes(path, tokenizer)


def decoded(
    codes: CodeSet, tokenizer: Tokenizer, start: int = 0, n: int | None = None, batch: int = AT_ONCE
) -> Iterator[np.ndarray]:
    """The images of codes, ``uint8 [batch, height, width, channels]``, a batch at a time.

    Args:
        start: the first image.
        n: how many of all to stop before.
    """
    last = len(codes) if n is None else min(n, len(codes))
    for first in range(start, last, batch):
        yield (
            tokenizer.decode(codes[first : min(first + batch, last)], codes.image_size)
            .cpu()
            .numpy()
        )


def _made(tokenizer: Tokenizer, images: ImageSet, mirrored: bool) -> dict[str, Any]:
    """What the codes are, as JSON values."""
    height, width, channels = images.images.shape[1:]
    if channels != tokenizer.channels:
        raise InputError(
            f"the tokenizer takes images of {tokenizer.channels} channels, these have {channels}"
        )
    grids = tokenizer.grids(height, width)
    symbols = sum(grid.symbols for grid in grids)
    made = {
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
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def _begun(path: Path, made: Mapping[str, Any]) -> bool:
    """Begin, or go on; False where all is done. Refuses a place that holds something else."""
    whole, partial = path / CONFIG, path / RECORD
    found = next((files.read_json(place) for place in (whole, partial) if place.exists()), None)
    if found is None:
        if any(entry.name != ".lock" for entry in path.iterdir()):
            raise InputError(f"{path} holds something else than codes: name another --out")
        files.write_json(partial, made)
        return True
    if not isinstance(found, dict) or found.get("kind") != "codes":
        raise InputError(f"{whole} was not written by tessella tokenize: name another --out")
    differs = [name for name, value in made.items() if found.get(name) != value]
    if differs:
        told = "; ".join(
            f"{name} {_short(found.get(name))} (now {_short(made[name])})" for name in differs
        )
        raise InputError(
            f"{path} holds other codes: {told}. Name another --out, or delete {path} to begin anew"
        )
    return not whole.exists()


def _short(value: Any) -> str:
    if isinstance(value, dict) and "fingerprint" in value:
        return f"{value['name']} {value['fingerprint']}"
    if isinstance(value, dict) and "sha256" in value:
        return f"{value.get('source')} {value.get('split')} {str(value['sha256'])[:12]}"
    return str(value)


def _encode_shards(
    tokenizer: Tokenizer,
    images: ImageSet,
    path: Path,
    made: Mapping[str, Any],
    workers: int,
    watch: Callable[[float], object],
) -> None:
    """Make the shards that are missing, each by one of several threads."""
    each, n, done = int(made["shard_images"]), len(images), itertools.count(1)
    files.sweep(path)
    before = torch.get_num_threads()
    device = tokenizer.device
    gpus = (
        [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        if device.type == "cuda"
        else [device]
    )
    copies = (
        [copy.deepcopy(tokenizer).to(gpu).eval() for gpu in gpus] if len(gpus) > 1 else [tokenizer]
    )
    threads = workers or (before if device.type == "cpu" else len(copies))

    def encode(number: int) -> None:
        torch.set_num_threads(1)  # of this thread: rounding must not depend on how many there are
        own, places = (
            copies[number % len(copies)],
            range(number * each, min(n, (number + 1) * each)),
        )
        if not (path / _name(number)).exists():
            files.write_tensors(path / _name(number), _shard(own, images, places, made))
        watch(min(n, next(done) * each))

    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(encode, range(-(-n // each))):
                pass
    finally:
        torch.set_num_threads(before)


def _shard(
    tokenizer: Tokenizer, images: ImageSet, places: range, made: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors of one shard."""
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(places.start, places.stop, AT_ONCE):
        here = slice(start, min(start + AT_ONCE, places.stop))
        pixels = np.asarray(images.images[here])
        found.setdefault("hashes", []).append(torch.from_numpy(image_hashes(pixels).view(np.int64)))
        kinds = {"codes": pixels} | ({"mirrored": pixels[:, :, ::-1]} if made["mirrored"] else {})
        for kind, given in kinds.items():
            encoded = parts(tokenizer.encode(np.ascontiguousarray(given)))
            for level, (part, grid) in enumerate(zip(encoded, made["grids"], strict=True)):
                found.setdefault(f"{kind}.{level}", []).append(
                    part.cpu().to(_least(grid["levels"]))
                )
    whole = {name: torch.cat(pieces) for name, pieces in found.items()}
    if images.labels is not None:
        whole["labels"] = torch.from_numpy(
            np.asarray(images.labels)[places.start : places.stop].astype(np.int64)
        )
    return whole


def _close(path: Path, made: Mapping[str, Any], images: ImageSet) -> None:
    """Write what the codes are, now that all are there."""
    shards = []
    for number in range(-(-made["count"] // made["shard_images"])):
        place = path / _name(number)
        shards.append(
            {"name": place.name, "bytes": place.stat().st_size, "sha256": files.sha256(place)}
        )
    if images.names is not None:
        files.write_json(path / NAMES, list(images.names))
    files.write_json(path / CONFIG, {**made, "shards": shards})
    with contextlib.suppress(FileNotFoundError):
        (path / RECORD).unlink()


def _name(number: int) -> str:
    return f"codes-{number:05d}.safetensors"


def _least(levels: int) -> torch.dtype:
    """The least type of integers that holds so many levels."""
    return torch.uint8 if levels <= 1 << 8 else torch.int16 if levels <= 1 << 15 else torch.int32


_TYPES = {"U8": "|u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def _mapped(path: Path, size: int) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as memory maps.

    Raises:
        ArtifactError: when the file is missing, or not as long as it was.
    """
    if not path.exists() or path.stat().st_size != size:
        raise ArtifactError(
            f"{path} is missing or damaged: delete it and {CONFIG} beside it, and tokenize again"
        )
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    bytes_ = np.memmap(path, np.uint8, "r")[8 + length :]
    arrays = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            arrays[name] = bytes_[first:last].view(_TYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return arrays


LEAST = 1024
"""Images from which on codes are kept in the cache: fewer are made again in no time."""


def cached(tokenizer: Tokenizer, images: Any, mirrored: bool) -> CodeSet | None:
    """The codes of images that a prior trains on, kept in ``codes/`` of the cache folder.

    None where there are few images, where nothing can be written, or with ``TESSELLA_CODES=0`` in
    the environment.
    """
    if len(images) < LEAST or os.environ.get("TESSELLA_CODES") == "0":
        return None
    identity = ImageSet(images).identity()["sha256"]
    key = hashlib.sha256(
        f"{FORMAT} {fingerprint(tokenizer)} {identity} {mirrored}".encode()
    ).hexdigest()[:24]
    try:
        return tokenize(tokenizer, images, files.cache_folder() / "codes" / key, mirrored=mirrored)
    except (ArtifactError, ConfigError):
        return None
