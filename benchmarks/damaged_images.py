"""Thousands of damaged image files as a folder: outcomes, time and memory.

    python benchmarks/damaged_images.py                                 # 2,000 files
    python benchmarks/damaged_images.py --files 10000 --seed 1 --json results/damaged_images.json

Images of our own are saved in every common format, damaged in six ways, and decoded one after the
other in one child process, which reports each file; a second child loads them all as one folder,
between four times as many intact files (a folder with more than 20 % unusable files is refused). A
file may be decoded or skipped with a reason; anything else is a crash. *Other pixels* are files
that decode, but not to the pixels they had before the damage: for formats without checksums a
changed file can be as valid as the one before.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 96, 128
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 85}),
    "jpeg-progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "webp": ("WEBP", {"quality": 80}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "tga": ("TGA", {}),
    "qoi": ("QOI", {}),
}
INTACT = 4  # intact files for each damaged one in the folder that is loaded whole

Random = np.random.Generator
Row = dict[str, Any]
"""JSON values about one file, or about all of them."""


def originals(seed: int) -> dict[str, bytes]:
    """One image in each format: smooth colours with noise, so that every decoder has work to do."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = []
    for down, across in ((9, 17), (23, 7), (13, 31)):
        waves.append(128 + 90 * np.sin(rows / down + columns / across))
    colours = np.stack(waves, axis=-1) + random.normal(0, 8, (HEIGHT, WIDTH, 3))
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    files = {}
    for name, (kind, options) in FORMATS.items():
        buffer = io.BytesIO()
        # GIF takes palettes alone; the others would make colours of them.
        saved = image.quantize(64) if kind == "GIF" else image
        saved.save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def _flipped(data: bytearray, random: Random) -> bytearray:
    """One to eight bits flipped anywhere."""
    for place in random.integers(0, len(data), random.integers(1, 9)):
        data[place] ^= 1 << int(random.integers(8))
    return data


def _cut(data: bytearray, random: Random) -> bytearray:
    """Cut short by more than a footer, so that pixels are missing."""
    return data[: int(random.integers(1, len(data) - 40))]


def _spliced(data: bytearray, random: Random) -> bytearray:
    """A part of the file put in at another place."""
    start, end = sorted(random.integers(0, len(data), 2).tolist())
    place = int(random.integers(0, len(data)))
    return data[:place] + data[start:end] + data[place:]


def _header(data: bytearray, random: Random) -> bytearray:
    """Odd bytes among the first 200, or the last, where TIFF keeps what others keep in front."""
    low = 0
    if random.random() >= 0.7:
        low = max(0, len(data) - 200)
    for place in low + random.integers(0, min(200, len(data)), random.integers(1, 5)):
        data[place] = int(random.choice([0, 1, 127, 255, int(random.integers(256))]))
    return data


def _inserted(data: bytearray, random: Random) -> bytearray:
    """Up to 64 random bytes put in."""
    place = int(random.integers(0, len(data)))
    return data[:place] + random.bytes(int(random.integers(1, 65))) + data[place:]


def _zeroed(data: bytearray, random: Random) -> bytearray:
    """Up to a quarter of the file set to zero."""
    place = int(random.integers(0, len(data)))
    length = int(random.integers(1, 1 + len(data) // 4))
    length = min(length, len(data) - place)
    data[place : place + length] = bytes(length)
    return data


DAMAGES: dict[str, Callable[[bytearray, Random], bytearray]] = {
    "flipped": _flipped,
    "cut": _cut,
    "spliced": _spliced,
    "header": _header,
    "inserted": _inserted,
    "zeroed": _zeroed,
}


def damaged(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Format, damage and content of ``count`` files, all formats and damages in turn."""
    files = originals(seed)
    random = np.random.default_rng([seed, 1])
    kinds = list(FORMATS)
    ways = list(DAMAGES)
    for number in range(count):
        # Every pair of format and damage comes equally often.
        kind = kinds[number % len(kinds)]
        how = ways[number // len(kinds) % len(ways)]
        yield kind, how, bytes(DAMAGES[how](bytearray(files[kind]), random))


def write_files(folder: Path, count: int, seed: int) -> list[Row]:
    """Write the damaged files and the originals; returns a row for each damaged one."""
    (folder / "damaged").mkdir(parents=True)
    (folder / "original").mkdir()
    for kind, data in originals(seed).items():
        (folder / "original" / kind).write_bytes(data)
    rows = []
    for number, (kind, how, data) in enumerate(damaged(count, seed)):
        name = f"{number:05}.{FORMATS[kind][0].lower()}"
        (folder / "damaged" / name).write_bytes(data)
        rows.append({"name": name, "format": kind, "damage": how})
    return rows


def peak_mb() -> float:
    """Greatest resident memory since :func:`forget_peak`, in MB.

    Elsewhere than on Linux, that of the process so far.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def forget_peak() -> None:
    """Start the measurement of :func:`peak_mb` anew."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def decode_each(folder: Path) -> None:
    """The first child: decode every damaged file and print one JSON line for each."""
    from tessella.data.decode import UnusableImage, decode, without_pillow_warnings

    def pixels(path: Path) -> str:
        with path.open("rb") as file:
            image = decode(file, 3)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    # One line a file, at once: after a crash the last line names the file before.
    with without_pillow_warnings():
        before = {path.name: pixels(path) for path in (folder / "original").iterdir()}
        for row in json.loads((folder / "rows.json").read_text()):
            forget_peak()
            started = time.process_time()
            try:
                found = pixels(folder / "damaged" / row["name"])
                row["outcome"] = "other pixels"
                if found == before[row["format"]]:
                    row["outcome"] = "same pixels"
            except UnusableImage as error:
                row["outcome"] = "skipped"
                row["reason"] = str(error)
            row["seconds"] = time.process_time() - started
            row["peak_mb"] = peak_mb()
            print(json.dumps(row), flush=True)


def load_folder(folder: Path) -> None:
    """The second child: load damaged and intact files as one folder and print one JSON line."""
    from tessella import data
    from tessella.config import DataConfig

    started = time.process_time()
    images = data.load(DataConfig(f"folder:{folder}", size=f"{HEIGHT}x{WIDTH}"), "train")
    facts = {
        "images": len(images),
        "skipped": len(images.skipped),
        "seconds": time.process_time() - started,
    }
    print(json.dumps({**facts, "peak_mb": peak_mb()}))


def child(work: str, folder: Path) -> tuple[list[Row], int, str]:
    """Run one of the two children.

    Returns:
        The lines it printed, its exit status, the end of its messages.
    """
    settings = {
        **os.environ,
        "TESSELLA_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, __file__, "--child", work, "--folder", str(folder)]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    return (
        [json.loads(line) for line in ended.stdout.splitlines()],
        ended.returncode,
        ended.stderr[-2000:],
    )


def measure(count: int, seed: int, folder: Path) -> Row:
    """Both children over ``count`` files."""
    rows = write_files(folder, count, seed)
    (folder / "rows.json").write_text(json.dumps(rows))
    reports, status, messages = child("decode", folder)
    # The folder is loaded with the same damaged files, and enough intact ones to be accepted.
    kinds = list(FORMATS)
    for number in range(INTACT * count):
        kind = kinds[number % len(kinds)]
        target = folder / "damaged" / f"intact-{number:06}.{FORMATS[kind][0].lower()}"
        target.write_bytes((folder / "original" / kind).read_bytes())
    whole, whole_status, whole_messages = child("load", folder)
    return {
        **summary(reports),
        "files": count,
        "seed": seed,
        "crashes": (status != 0) + (whole_status != 0),
        "unreported": count - len(reports),
        "messages": messages + whole_messages,
        "folder": whole[0] if whole else None,
    }


def summary(reports: list[Row]) -> Row:
    """Counts by format and by damage, the slowest and the largest file, and frequent reasons."""
    slowest = max(reports, key=lambda row: row["seconds"])
    greatest = max(reports, key=lambda row: row["peak_mb"])
    reasons = Counter(row["reason"][:60] for row in reports if "reason" in row)
    return {
        "formats": {kind: _outcomes(reports, "format", kind) for kind in FORMATS},
        "damages": {how: _outcomes(reports, "damage", how) for how in DAMAGES},
        "slowest": slowest,
        "greatest": greatest,
        "least_peak_mb": min(row["peak_mb"] for row in reports),
        "reasons": dict(reasons.most_common(25)),
    }


def _outcomes(reports: list[Row], key: str, value: str) -> dict[str, int]:
    counts = Counter(row["outcome"] for row in reports if row[key] == value)
    return {outcome: counts[outcome] for outcome in ("skipped", "same pixels", "other pixels")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json",
        default="",
        help="where to write the figures; results/damaged_images.json if empty",
    )
    parser.add_argument(
        "--child", choices=("", "decode", "load"), default="", help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child == "decode":
        return decode_each(chosen.folder)
    if chosen.child == "load":
        return load_folder(chosen.folder / "damaged")
    import harness  # not for the children, whose memory is measured: it imports torch

    with tempfile.TemporaryDirectory() as folder:
        row = measure(chosen.files, chosen.seed, Path(folder))
    for kind, counts in row["formats"].items():
        print(f"{kind:17}", ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    print(
        f"slowest {row['slowest']['seconds']:.3f} s CPU, greatest memory "
        f"{row['greatest']['peak_mb']:.0f} MB"
    )
    print(
        f"crashes {row['crashes']}, unreported {row['unreported']}; as one folder: {row['folder']}"
    )
    print(harness.write("damaged_images", [row], chosen.json))


if __name__ == "__main__":
    main()
