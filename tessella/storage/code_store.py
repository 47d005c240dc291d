"""Codes on disk: a data set encoded once by a tokenizer, to train priors on and to decode again.

:mod:`tessella.storage.code_set` describes the layout and reads it; this module makes it. Encoding
follows the protocol of :mod:`tessella.storage.resumable`: each shard appears whole, so a run that
was killed goes on after the last one, and ends with the same bytes.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import torch

from tessella import files
from tessella.data.hashes import image_hashes
from tessella.data.image_set import Images, ImageSet
from tessella.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    check_integer,
)
from tessella.grid import Grid
from tessella.pipeline import fingerprint
from tessella.pipeline.run_record import SplitRecord
from tessella.storage import resumable
from tessella.storage.code_set import (
    CONFIG,
    FORMAT,
    INDEX_BYTES,
    NAMES,
    CodedImages,
    CodeSet,
    CodesRecord,
    CodeVariant,
    GridRecord,
    ShardRecord,
    load_split,
    open_codes,
    shard_name,
    smallest_type,
)
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.fixed_pieces import encode_in_pieces

__all__ = ["CodeSet", "CodedImages", "cached", "decoded", "load_split", "open_codes", "tokenize"]

SHARD_IMAGES = 4096
SHARD_SYMBOLS = 1 << 20
"""Images and symbols of a shard, at most (but one image at least): what a run that is killed may
have to do again."""

AT_ONCE = 256
"""Images that are read and encoded together."""

MakesShards = Callable[[CodesRecord, Sequence[int]], Iterator[tuple[int, bytes]]]
"""Makes some shards of codes elsewhere: yields their numbers and the contents of their files."""


def tokenize(
    tokenizer: Tokenizer,
    images: ImageSet | np.ndarray,
    out: Path | str,
    *,
    mirrored: bool = False,
    workers: int = 0,
    watch: Callable[[float], object] | None = None,
    elsewhere: MakesShards | None = None,
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
        elsewhere: makes the shards that are missing, in place of threads of this process.

    Raises:
        InputError: when the directory holds something else, or codes of another tokenizer or of
            other images.
        ArtifactError: when it cannot be written, or another process writes there.
    """
    if not isinstance(images, ImageSet):
        images = ImageSet(np.asarray(images))
    workers = check_integer("workers", workers, most=MOST_WORKERS)
    path = Path(out)
    record = _record(tokenizer, images, mirrored)
    if path.is_symlink() and not path.is_dir():
        files.check_replaceable(path)  # which refuses links
    files.check_writable(path / CONFIG)
    # Before anything is created: a refused command leaves nothing behind.
    _check_place(path, record)
    with resumable.exclusive(path, path, "writes codes"):
        _check_place(path, record)  # again: another process may have been faster
        if not _is_finished(path):
            resumable.write_record(path, record)
            files.sweep(path)
            if elsewhere is None:
                _encode_shards(tokenizer.eval(), images, path, record, workers, watch)
            else:
                _fetch_shards(elsewhere, path, record, watch)
            _finish(path, record, images)
    return open_codes(path, tokenizer)


TORCH_TYPES = {np.uint8: torch.uint8, np.int16: torch.int16, np.int32: torch.int32}

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
    stop = len(codes)
    if n is not None:
        stop = check_integer("n", n, most=len(codes))
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


def _record(tokenizer: Tokenizer, images: ImageSet, mirrored: bool) -> CodesRecord:
    """Say as JSON values what the codes are."""
    height, width, channels = images.images.shape[1:]
    if channels != tokenizer.channels:
        raise InputError(
            f"the tokenizer takes images of {tokenizer.channels} channels, these have {channels}"
        )
    grids = tokenizer.grids(height, width)
    # Shards of many symbols have few images: the work that a kill can undo is bounded by both.
    symbols = sum(grid.symbols for grid in grids)
    record: CodesRecord = {
        "format": FORMAT,
        "kind": "codes",
        "tokenizer": {"name": tokenizer.name, "fingerprint": fingerprint(tokenizer)},
        "grids": [_grid_record(grid) for grid in grids],
        "shape": [height, width, channels],
        "count": len(images),
        "shard_images": max(1, min(SHARD_IMAGES, SHARD_SYMBOLS // symbols)),
        "mirrored": mirrored,
        "labelled": images.labels is not None,
        "data": cast(SplitRecord, images.identity()),
    }
    # Through JSON and back: what is read from a file is compared with this.
    plain = files.parse_json(files.json_text(record), "the record of codes")
    return cast(CodesRecord, plain)


def _grid_record(grid: Grid) -> GridRecord:
    return {
        "height": grid.height,
        "width": grid.width,
        "channels": grid.channels,
        "levels": grid.levels,
    }


def _check_place(path: Path, record: CodesRecord) -> None:
    """Refuse a place that holds something else than these codes, whole or in part."""
    # Finished codes have a configuration, those that are being made a record.
    if (path / CONFIG).exists():
        found: Mapping[str, object] | None = files.read_json_object(path / CONFIG, INDEX_BYTES)
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
        before = _summary(found.get(name))
        differences.append(f"{name} {before} (now {_summary(record.get(name))})")
    if differences:
        raise InputError(
            f"{path} holds other codes: {'; '.join(differences)}. Name another --out, or delete"
            f" {path} to start over"
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
        return False  # then every shard is checked, and the configuration is written again
    finished = True
    for number, shard in enumerate(codes.shards):
        try:
            codes.shard(number)
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
    record: CodesRecord,
    workers: int,
    watch: Callable[[float], object] | None,
) -> None:
    """Make the shards that are missing, each by one of several threads."""
    shard_images = record["shard_images"]
    n = len(images)
    # Threads finish in any order: whoever is done takes the next number.
    done = itertools.count(1)
    torch_threads = torch.get_num_threads()
    copies = _copies(tokenizer)
    if workers:
        threads = workers
    elif tokenizer.device.type == "cpu":
        threads = torch_threads
    else:
        threads = len(copies)

    def encode(number: int) -> None:
        # One thread an operation: rounding must not depend on how many threads there are.
        torch.set_num_threads(1)
        places = range(number * shard_images, min(n, (number + 1) * shard_images))
        if not _is_whole(path / shard_name(number)):
            tensors = encoded_shard(copies[number % len(copies)], images, places, record)
            files.write_tensors(path / shard_name(number), tensors)
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
    if tokenizer.device.type != "cuda" or torch.cuda.device_count() < 2:
        return [tokenizer]
    copies = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        copies.append(copy.deepcopy(tokenizer).to(device).eval())
    return copies


def _is_whole(path: Path) -> bool:
    """Whether a shard of an earlier, stopped run is there and undamaged."""
    try:
        files.read_tensors(path)
    except ArtifactError:
        return False
    return True


def _fetch_shards(
    elsewhere: MakesShards,
    path: Path,
    record: CodesRecord,
    watch: Callable[[float], object] | None,
) -> None:
    """Write the shards that are missing, as they are made elsewhere."""
    count = record["count"]
    shard_images = record["shard_images"]
    numbers = range(-(-count // shard_images))
    missing = [number for number in numbers if not _is_whole(path / shard_name(number))]
    done = len(numbers) - len(missing)
    for number, content in elsewhere(record, missing):
        files.write_bytes(path / shard_name(number), content)
        done += 1
        if watch is not None:
            watch(min(count, done * shard_images))


def encoded_shard(
    tokenizer: Tokenizer, images: ImageSet, places: range, record: CodesRecord
) -> dict[str, torch.Tensor]:
    """Encode the images of one shard.

    Args:
        tokenizer: in eval mode.
        images: all images.
        places: those of the shard.
        record: what the codes are.

    Returns:
        Its tensors by name.
    """
    pieces: dict[str, list[torch.Tensor]] = {}
    for start in range(places.start, places.stop, AT_ONCE):
        pixels = np.asarray(images.images[start : min(start + AT_ONCE, places.stop)])
        hashes = torch.from_numpy(image_hashes(pixels).view(np.int64))
        pieces.setdefault("hashes", []).append(hashes)
        kinds = {"codes": pixels}
        # [n, h, w, c]: the third axis is the one from left to right.
        if record["mirrored"]:
            kinds["mirrored"] = pixels[:, :, ::-1]
        for kind, given in kinds.items():
            codes = encode_in_pieces(tokenizer, given)
            for level, grid in enumerate(record["grids"]):
                dtype = TORCH_TYPES[smallest_type(grid["levels"])]
                part = codes[level].cpu().to(dtype)
                pieces.setdefault(f"{kind}.{level}", []).append(part)
    tensors = {}
    for name, batches in pieces.items():
        tensors[name] = torch.cat(batches)
    if images.labels is not None:
        labels = np.asarray(images.labels)[places.start : places.stop]
        tensors["labels"] = torch.from_numpy(labels.astype(np.int64))
    return tensors


def _finish(path: Path, record: CodesRecord, images: ImageSet) -> None:
    """Write what the codes are, now that every shard is there."""
    shards: list[ShardRecord] = []
    for number in range(-(-record["count"] // record["shard_images"])):
        shard = path / shard_name(number)
        if not shard.exists():
            raise ArtifactError(f"{path} is not finished: {shard.name} was not written")
        digest = files.sha256(shard)
        shards.append({"name": shard.name, "bytes": shard.stat().st_size, "sha256": digest})
    if images.names is not None:
        files.write_json(path / NAMES, list(images.names))
    # Last: from now on the codes count as finished.
    files.write_json(path / CONFIG, {**record, "shards": shards})
    resumable.remove_record(path)


LEAST = 1024
"""Images from which on codes are kept in the cache: fewer are quickly made again."""


def cached(tokenizer: Tokenizer, images: Images | CodeVariant, mirrored: bool) -> CodeSet | None:
    """The codes of images that a prior trains on, kept in ``codes/`` of the cache folder.

    Returns None where there are few images, where nothing can be written, or with
    ``TESSELLA_CODES=0`` in the environment.
    """
    # Codes are there already, and need no cache.
    if isinstance(images, CodeVariant):
        return None
    if len(images) < LEAST or os.environ.get("TESSELLA_CODES") == "0":
        return None
    image_set = ImageSet(images)
    identity = image_set.identity()["sha256"]
    # Other weights, other pixels or a newer layout are other codes.
    facts = f"{FORMAT} {fingerprint(tokenizer)} {identity} {mirrored}"
    key = hashlib.sha256(facts.encode()).hexdigest()[:24]
    folder = files.cache_folder() / "codes" / key
    # Without a cache the images are encoded again, which is only slower.
    try:
        return tokenize(tokenizer, image_set, folder, mirrored=mirrored)
    except (ArtifactError, ConfigError):
        return None
