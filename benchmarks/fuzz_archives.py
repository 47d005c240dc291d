"""Compressed files that were tampered with: every one is refused with our error, or is unchanged.

    python benchmarks/fuzz_archives.py                                  # 2,000 mutations
    python benchmarks/fuzz_archives.py --mutations 20000 --json results/fuzz_archives.json

A few files are made: one image, arrays, a list of sizes with an image of noise, a folder with names
and a palette. One of them is changed at a time: bits, bytes, its end cut off (of the smallest at
every length), a piece of another file, a field of its header. Half of the changed files get a
checksum that fits, so that what stands behind it is tested too. *Refused* is a BitstreamError,
*same* the unchanged images, *wrong* other images, *unexplained* another exception, *slow* a call
that takes more than twice the processor time of the file that was changed, which counts as 2 ms if
it takes less: in shorter times the clock and the exception itself are most of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tessella as ts
from tessella.codec.archive_writer import ArchiveWriter, CodedImage
from tessella.codec.container import HAS_FILES, IS_LIST, Contents, ImageRun, read_container
from tessella.codec.group_walk import Twin
from tessella.codec.stream_reader import StreamReader
from tessella.codec.tiles import ImageShape
from tessella.errors import BitstreamError

MEMORY = 1 << 30
"""Bytes of address space that may be taken beyond those of the start."""

NUMBERS = (0, 1, 2, 3, 7, 16, 17, 63, 64, 65, 127, 128, 255, 1000, 1 << 16, 1 << 28, (1 << 63) - 1)
"""Values that take the place of numbers in a header."""

LEAST_SECONDS = 0.002
"""Times below this are taken for this: of less, an exception or the clock is a large part."""

REPEATS = 3
"""Times that a slow call is timed again, since others use the machine as well."""

Images = list[np.ndarray]


def prepare(model: ts.DensityModel, twin: Twin) -> dict[str, bytes]:
    """Files to change, by name."""
    dice = torch.Generator().manual_seed(0)
    drawn = ts.sample(model, n=70, seed=0).to(torch.uint8)
    noise = torch.randint(0, 17, (9, 13, 1), generator=dice)
    writer = ArchiveWriter(twin, group=8)
    for number in range(12):
        image = CodedImage(drawn[number].numpy(), mode=2, name=f"folder/{number:02d}.png")
        writer.add(image)
    palette = bytes(range(51))
    writer.add(CodedImage(noise.numpy(), mode=3, palette=palette, name="palette.png"))
    return {
        "one": ts.compress(drawn[:1], twin),
        "arrays": ts.compress(drawn, twin),
        "list": ts.compress([drawn[0], drawn[1][:5, :3], noise, drawn[2]], twin, group=3),
        "noise": ts.compress([noise], twin),
        "folder": writer.finish(HAS_FILES | IS_LIST),
    }


def decoded(data: bytes, twin: Twin) -> tuple[Images, object]:
    """The images of a file, and what else it says of them."""
    container = read_container(data)
    images = list(StreamReader(container, twin, 64).images())
    contents = container.contents
    return images, (contents.flags, contents.names, contents.palettes, contents.runs)


def mutated(name: str, files: dict[str, bytes], dice: random.Random) -> tuple[str, bytes]:
    """A file with one change, and the kind of the change."""
    data = files[name]
    way = dice.choice(("bits", "bytes", "cut", "splice", "field", "field"))
    changed = bytearray(data)
    if way == "bits":
        for _ in range(dice.choice((1, 1, 2, 8))):
            place = dice.randrange(8 * len(data))
            changed[place // 8] ^= 1 << place % 8
    elif way == "bytes":
        place = dice.randrange(len(data))
        changed[place : place + dice.randrange(4)] = dice.randbytes(dice.randrange(4))
    elif way == "cut":
        del changed[dice.randrange(len(data)) :]
    elif way == "splice":
        other = files[dice.choice(sorted(files))]
        place = dice.randrange(len(data))
        start = dice.randrange(len(other))
        changed[place : place + dice.randrange(64)] = other[start : start + dice.randrange(64)]
    else:
        changed = bytearray(with_other_field(data, dice))
    return way, bytes(changed)


def with_other_field(data: bytes, dice: random.Random) -> bytes:
    """A file with another header, in which one field is changed; the rest stays."""
    container = read_container(data)
    contents = container.contents
    rest = data[len(container.header) :]
    field = dice.choice(("grid", "group", "flags", "model", "run", "names", "count"))
    number = dice.choice(NUMBERS)
    changes: dict[str, Any] = {}
    if field == "group":
        changes = {"group": number}
    elif field == "flags":
        changes = {"flags": number % 8}
    elif field == "model":
        changes = {"model": dice.randbytes(16)}
    elif field == "names":
        names = list(contents.names)
        dice.shuffle(names)
        changes = {"names": names}
    elif field == "grid":
        sizes = list(dataclasses.astuple(contents.grid))
        sizes[dice.randrange(4)] = max(2, number)
        changes = {"grid": ts.Grid(*sizes)}
    else:
        runs = list(contents.runs)
        place = dice.randrange(len(runs))
        runs[place] = other_run(runs[place], number, dice)
        changes = {"runs": runs}
    changed: Contents = dataclasses.replace(contents, **changes)
    return changed.written() + rest


def other_run(run: ImageRun, number: int, dice: random.Random) -> ImageRun:
    """A run of images with one other number."""
    shape = [run.shape.height, run.shape.width, run.shape.channels]
    choice = dice.randrange(6)
    if choice < 3:
        shape[choice] = number
        return dataclasses.replace(run, shape=ImageShape(*shape))
    if choice == 3:
        return dataclasses.replace(run, count=number)
    if choice == 4:
        return dataclasses.replace(run, mode=number % 9)
    return dataclasses.replace(run, scaled=not run.scaled)


def with_checksum(data: bytes) -> bytes:
    """A file whose checksum fits."""
    body = data[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    started = time.process_time()
    with contextlib.suppress(BitstreamError):
        call()
    return time.process_time() - started


def is_equal(found: tuple[Images, object], expected: tuple[Images, object]) -> bool:
    """Whether images, names, palettes and modes are the same."""
    if len(found[0]) != len(expected[0]) or found[1] != expected[1]:
        return False
    return all(np.array_equal(*pair) for pair in zip(found[0], expected[0], strict=True))


def try_all(mutations: int, seed: int) -> dict[str, Any]:
    """Try all mutations; the counts, and what was not as it should be."""
    model = ts.load("digits").priors[0]
    twin = model.exact()
    files = prepare(model, twin)
    expected = {name: decoded(data, twin) for name, data in files.items()}
    usual = {}
    for name, data in files.items():
        times = [processor_seconds(lambda data=data: decoded(data, twin)) for _ in range(9)]
        usual[name] = max(sorted(times)[4], LEAST_SECONDS)
    limit_memory()
    counts: dict[str, Counter[str]] = {}
    faults = []
    slowest = 0.0
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(mutations):
        dice = random.Random(seed * 1_000_003 + number)
        name = dice.choice(sorted(files))
        if number < 2 * len(files["one"]):
            # The smallest file, cut off at every length, without and with a fitting checksum.
            name = "one"
            way, data = "cut", files["one"][: number // 2]
        else:
            way, data = mutated(name, files, dice)
        if number % 2:
            data = with_checksum(data)
            way += ", checksum"
        if data == files[name]:
            continue
        began = time.process_time()
        try:
            outcome = "same" if is_equal(decoded(data, twin), expected[name]) else "wrong"
        except BitstreamError:
            outcome = "refused"
        except Exception as error:  # noqa: BLE001 - what is looked for
            outcome = "unexplained"
            way += f", {type(error).__name__}: {error!s:.100}"
        ratio = (time.process_time() - began) / usual[name]
        if ratio > 2:
            again = [
                processor_seconds(lambda data=data: decoded(data, twin)) for _ in range(REPEATS)
            ]
            ratio = min(again) / usual[name]
        slowest = max(slowest, ratio)
        if ratio > 2:
            outcome = "slow"
        counts.setdefault(way.split(", ")[0], Counter())[outcome] += 1
        if outcome not in ("refused", "same"):
            faults.append({"number": number, "file": name, "way": way, "outcome": outcome})
            faults[-1]["ratio"] = round(ratio, 2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    return {
        "mutations": mutations,
        "seed": seed,
        "bytes_of_files": {name: len(data) for name, data in files.items()},
        "outcomes": {way: dict(counter) for way, counter in sorted(counts.items())},
        "faults": faults[:20],
        "faults_count": len(faults),
        "slowest_relative_to_the_whole_file": round(slowest, 2),
        "memory_grown_mb": round(grown / 1024, 1),
    }


def limit_memory() -> None:
    """Let this process take no more than :data:`MEMORY` beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = try_all(chosen.mutations, chosen.seed)
    print(json.dumps(result, indent=2))
    if chosen.json:
        import harness

        harness.write("fuzz_archives", [result], chosen.json)
    return 1 if result["faults_count"] else 0


if __name__ == "__main__":
    sys.exit(main())
