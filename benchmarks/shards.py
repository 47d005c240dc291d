"""Images in shards: how fast they are read, and what memory they take.

    python benchmarks/shards.py --out results/shards.json
    python benchmarks/shards.py --images 2000 --few 1000 --many 20000 --out /tmp/shards.json

Generated JPEG images are packed into shards. Batches in the order of training are read from a
folder and from the shards, both decoded once, and from the shards decoded each time, with none and
two threads that read ahead. For the memory, a process of its own opens shards of few and of many
tiny images, and reads two hundred batches of them.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from tessella import data
from tessella.config import DataConfig
from tessella.training.examples import Examples
from tessella.training.read_ahead import ReadAhead

BATCH = 64
PER_SHARD = 5000
"""Images of a generated shard."""
KINDS = 64
"""Different pictures, which repeat: to make each anew would take longer than to read it."""

WATCHED = """
import sys
import torch
from tessella import data
from tessella.config import DataConfig
from tessella.training.examples import Examples

def resident():
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024

# Twice: the first time makes the index, the second is what every later run does.
for _ in range(2):
    images = data.load(DataConfig("shards:" + sys.argv[1], stream=True, limit=0), "train")
examples = Examples([images.images], torch.as_tensor(images.labels), images.classes)
order = examples.order(64, 0)
for step in range(200):
    examples.read(order.at(step * len(examples) // 64 // 200))
print(len(images), resident())
"""
"""Opens shards, reads 200 batches over an epoch, and prints the number of images and MiB."""


def pictures(size: int) -> list[bytes]:
    """Small files of soft colours."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(KINDS):
        # Noise enlarged fourfold is smooth, which makes small files.
        pixels = random.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).resize((size, size)).save(content, "JPEG", quality=80)
        made.append(content.getvalue())
    return made


def make_folder(folder: Path, images: int, size: int) -> None:
    """Write image files, a thousand to a sub-folder of train and valid."""
    files = pictures(size)
    for number in range(images):
        split = "valid" if number % 100 == 99 else "train"
        place = folder / split / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08}.jpg").write_bytes(files[number % KINDS])


def make_shards(folder: Path, images: int, size: int) -> None:
    """Write shards of train, and one of valid."""
    folder.mkdir()
    files = pictures(size)
    for first in range(0, images, PER_SHARD):
        name = f"made-train-{first // PER_SHARD:06}.tar"
        _make_shard(folder / name, range(first, min(images, first + PER_SHARD)), files)
    _make_shard(folder / "made-valid-000000.tar", range(images, images + 100), files)
    _make_shard(folder / "made-test-000000.tar", range(images + 100, images + 200), files)


def _make_shard(path: Path, numbers: range, files: list[bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            members = {"cls": str(number % 10).encode(), "jpg": files[number % KINDS]}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:08}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def reading(images: data.ImageSet, batches: int, workers: int = 0) -> Callable[[], float]:
    """Work that reads so many batches in the order of training, and returns its seconds."""
    examples = Examples([images.images])  # type: ignore[list-item]
    first = 0

    def read() -> float:
        nonlocal first
        order = examples.order(BATCH, seed=0)
        reader = ReadAhead(examples, order, passes=1, rank=0, world=1, workers=workers)
        started = time.perf_counter()
        for step in range(first, first + batches):
            for indices, ahead in reader.step(step):
                if ahead is None:
                    examples.read(indices)
        seconds = time.perf_counter() - started
        reader.close()
        # The next round sees other batches.
        first += batches
        return seconds

    return read


def measure_speed(folder: Path, images: int, size: int, rounds: int) -> list[harness.Row]:
    """Images a second of each way to read them."""
    make_folder(folder / "files", images, size)
    make_shards(folder / "shards", images, size)
    rows: list[harness.Row] = []
    sets = {}
    started = time.perf_counter()
    for name, source in (("folder", "files"), ("shards", "shards")):
        sets[name] = data.load(DataConfig(f"{name}:{folder / source}"), "train")
        seconds = time.perf_counter() - started
        rows.append({"what": "decode once", "from": name, "images": images, "seconds": seconds})
        started = time.perf_counter()
    streamed = data.load(DataConfig(f"shards:{folder / 'shards'}", stream=True), "train")
    # All of an epoch from the cache; a few batches where each is decoded.
    many = len(sets["shards"]) // BATCH
    few = min(many, 100)
    work = {
        "folder, decoded once": (reading(sets["folder"], many), many),
        "shards, decoded once": (reading(sets["shards"], many), many),
        "shards, streamed, workers=0": (reading(streamed, few), few),
        "shards, streamed, workers=2": (reading(streamed, few, workers=2), few),
    }
    times = harness.alternate({name: run for name, (run, _) in work.items()}, rounds)
    for name, (_, batches) in work.items():
        count = batches * BATCH
        row = {"what": "read", "from": name, "images": images, "size": size, "batch": BATCH}
        row["images_per_second"] = round(count / times[name]["median"])
        row["slowest"] = round(count / times[name]["greatest"])
        row["fastest"] = round(count / times[name]["least"])
        rows.append(row)
    return rows


def measure_memory(folder: Path, images: int) -> harness.Row:
    """MiB of memory of its own that a process holds after it read from so many images."""
    place = folder / f"tiny-{images}"
    make_shards(place, images, 16)
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
    command = [sys.executable, "-c", WATCHED, str(place)]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, resident = done.stdout.split()[-2:]
    return {
        "what": "memory",
        "images": int(count),
        "resident_mib": round(float(resident), 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Measure speed and memory for the numbers of images that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TESSELLA_CACHE"] = str(folder / "cache")
        rows = measure_speed(folder, chosen.images, chosen.size, chosen.rounds)
        for images in (chosen.few, chosen.many):
            rows.append(measure_memory(folder, images))
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    print(harness.write("shards", rows, chosen.out))


if __name__ == "__main__":
    main()
