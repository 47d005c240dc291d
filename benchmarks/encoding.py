"""A data set encoded to codes on disk: the same memory however many images, and killed again and
again it ends as if nothing had happened.

    python benchmarks/encoding.py --json results/encoding.json
    python benchmarks/encoding.py --n 5000 --few 1000 --kills 3

Small pictures are generated (noise around a slope, 16x16, a PNG file each) and encoded by a VQ-VAE
with fresh weights, with the command line: a few, to compare the peak of memory with, then all of
them undisturbed, then all of them by processes that are killed with SIGKILL at random times and
started again with the same words. What the two leave is compared byte for byte. At the end another
tokenizer tries the same place, and the codes are decoded again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
from many import WATCHED, finish, left
from PIL import Image

import tessella as ts
from tessella.pipeline import save_model

SIDE = 16


def generate(folder: Path, n: int) -> None:
    """``n`` pictures, each another one."""
    folder.mkdir()
    slope = np.arange(SIDE)[:, None, None] * 8

    def save(number: int) -> None:
        noise = np.random.default_rng(number).integers(0, 128, (SIDE, SIDE, 3))
        Image.fromarray((slope + noise).astype(np.uint8)).save(
            folder / f"{number:06d}.png", compress_level=1
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(n)))


def start(
    run: Path, folder: Path, out: Path, *more: str, verb: str = "tokenize"
) -> subprocess.Popen[str]:
    """Begin to encode, or go on."""
    given = (
        ["--data", f"folder:{folder}", "--split", "all", f"data.size={SIDE}"]
        if verb == "tokenize"
        else []
    )
    words = [
        verb,
        str(run),
        *([] if verb == "tokenize" else [str(folder)]),
        *given,
        "--out",
        str(out),
        *more,
    ]
    place = {
        **os.environ,
        "PYTHONPATH": str(harness.ROOT),
        "TESSELLA_CACHE": str(out.parent / "cache"),
    }
    command = [sys.executable, "-c", WATCHED, *words]
    return subprocess.Popen(
        command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shards(out: Path) -> int:
    """Shards that are there."""
    return len(list(out.glob("codes-*.safetensors")))


def killed(run: Path, folder: Path, out: Path, seconds: float) -> tuple[bool, int]:
    """Encode for so long after a new shard. Whether that ended in a kill, and the shards that there
    were before."""
    before, process = shards(out), start(run, folder, out)
    while process.poll() is None and shards(out) <= before:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode == -9, before


def measure(place: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything, below a folder that is empty."""
    sizes: dict[str, Any] = {
        "image_size": (SIDE, SIDE),
        "channels": 3,
        "hidden": 128,
        "code_dim": 64,
    }
    runs = [place / "tokenizer", place / "other"]
    for seed, run in enumerate(runs):
        save_model(ts.create_tokenizer("vqvae", seed=seed, **sizes), run)
    peaks, seconds = {}, {}
    for n, name in ((chosen.few, "few"), (chosen.n, "all")):
        generate(place / f"{name}-pictures", n)
        for turn in ("first", "again"):  # the first time the pictures are decoded into the cache
            began = time.perf_counter()
            shown = finish(start(runs[0], place / f"{name}-pictures", place / f"{name}-{turn}"))
            seconds[f"{n}, {turn}"] = time.perf_counter() - began
            peaks[f"{n}, {turn}"] = int(shown.split()[-1])
    pictures, out, chance = place / "all-pictures", place / "killed", random.Random(chosen.seed)
    out.mkdir()
    part = (
        2 * (seconds[f"{chosen.n}, again"] - seconds[f"{chosen.few}, again"]) / (chosen.kills + 1)
    )
    tries = [killed(runs[0], pictures, out, part * chance.random()) for _ in range(chosen.kills)]
    finish(start(runs[0], pictures, out))
    expected, found = left(place / "all-again"), left(out)
    differs = [
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ]
    refused = start(runs[1], pictures, out)
    told = refused.communicate()[1].strip()
    began = time.perf_counter()
    shown = finish(start(runs[0], out, place / "back.npz", verb="detokenize"))
    return {
        "images": chosen.n,
        "shape": [SIDE, SIDE, 3],
        "shards": shards(out),
        "peak_mib": peaks,
        "seconds": seconds,
        "kills": sum(kill for kill, _ in tries),
        "shards_before": [before for _, before in tries],
        "differs": sorted(differs),
        "another_tokenizer": {
            "status": refused.returncode,
            "told": told.replace(str(place), "PLACE"),
        },
        "detokenize": {"seconds": time.perf_counter() - began, "peak_mib": int(shown.split()[-1])},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument(
        "--few", type=int, default=5000, help="images of the run that memory is compared with"
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="file to write the row to")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), chosen)
    print(row)
    if chosen.json:
        harness.write("encoding", [row], chosen.json)
    return 1 if row["differs"] or row["another_tokenizer"]["status"] != 2 else 0


if __name__ == "__main__":
    sys.exit(main())
