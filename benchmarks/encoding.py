"""A data set encoded to codes on disk: flat memory, and kills that leave no trace.

    python benchmarks/encoding.py --json results/encoding.json
    python benchmarks/encoding.py --n 5000 --few 1000 --kills 3

Small pictures are generated (noise around a slope, 16x16, a PNG file each) and encoded by a VQ-VAE
with fresh weights, with the command line: a few, to compare the peak of memory with, then all of
them undisturbed, then all of them by processes that are killed with SIGKILL at random times and
started again with the same words. The two results are compared byte for byte. At the end another
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

import harness
import numpy as np
from many import WATCHED, differences, finish, hash_files
from PIL import Image

import tessella as ts
from tessella.pipeline import save_model

SIDE = 16
REFUSED = 2
"""Exit status of a command that was refused."""


def generate(folder: Path, n: int) -> None:
    """Write ``n`` pictures, no two of them alike."""
    folder.mkdir()
    slope = np.arange(SIDE)[:, None, None] * 8

    def save(number: int) -> None:
        # Seeded by its number, so that threads can work in any order.
        noise = np.random.default_rng(number).integers(0, 128, (SIDE, SIDE, 3))
        pixels = (slope + noise).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png", compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(n)))


def start_encoding(run: Path, pictures: Path, out: Path) -> subprocess.Popen[str]:
    """Begin to encode a folder of pictures, or go on with it."""
    words = ["tokenize", str(run), "--data", f"folder:{pictures}", "--split", "all"]
    words += [f"data.size={SIDE}", "--out", str(out)]
    return start(words, out.parent)


def start_decoding(run: Path, codes: Path, out: Path) -> subprocess.Popen[str]:
    """Begin to decode the codes on disk."""
    return start(["detokenize", str(run), str(codes), "--out", str(out)], out.parent)


def start(words: list[str], place: Path) -> subprocess.Popen[str]:
    """Start the command line so that it prints its peak of memory at the end."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(harness.ROOT),
        # Decoded pictures are cached with the rest, and vanish with it.
        "TESSELLA_CACHE": str(place / "cache"),
    }
    command = [sys.executable, "-c", WATCHED, *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def count_shards(out: Path) -> int:
    """Number of shards written so far."""
    return len(list(out.glob("codes-*.safetensors")))


def encode_and_kill(run: Path, pictures: Path, out: Path, seconds: float) -> tuple[bool, int]:
    """Encode for so many seconds after a new shard, then kill.

    Returns:
        Whether the process was killed before its end, and the shards there were before it began.
    """
    before = count_shards(out)
    # Begun again with equal words, a command goes on where it was killed.
    process = start_encoding(run, pictures, out)
    # Starting takes seconds and is not what should be killed, so the clock waits for a shard.
    while process.poll() is None and count_shards(out) <= before:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate()
    return process.returncode == -9, before


def save_tokenizers(place: Path) -> tuple[Path, Path]:
    """Two tokenizers that differ in their weights alone."""
    runs = (place / "tokenizer", place / "other")
    for seed, run in enumerate(runs):
        tokenizer = ts.create_tokenizer(
            "vqvae", image_size=(SIDE, SIDE), channels=3, hidden=128, code_dim=64, seed=seed
        )
        save_model(tokenizer, run)
    return runs


def measure(place: Path, chosen: argparse.Namespace) -> harness.Row:
    """Measure everything, below a folder that is empty."""
    run, other_run = save_tokenizers(place)

    peaks = {}
    seconds = {}
    for n, name in ((chosen.few, "few"), (chosen.n, "all")):
        pictures = place / f"{name}-pictures"
        generate(pictures, n)
        # The first time the pictures are decoded into the cache.
        for turn in ("first", "again"):
            began = time.perf_counter()
            printed = finish(start_encoding(run, pictures, place / f"{name}-{turn}"))
            seconds[f"{n}, {turn}"] = time.perf_counter() - began
            peaks[f"{n}, {turn}"] = int(printed.split()[-1])

    pictures = place / "all-pictures"
    out = place / "killed"
    out.mkdir()
    chance = random.Random(chosen.seed)
    # The difference leaves out the start of the process. A random share of a part is half of it
    # on average, so all kills together get about as far as the run without any.
    encoding = seconds[f"{chosen.n}, again"] - seconds[f"{chosen.few}, again"]
    part = 2 * encoding / (chosen.kills + 1)
    tries = []
    for _ in range(chosen.kills):
        tries.append(encode_and_kill(run, pictures, out, max(0.0, part) * chance.random()))
    finish(start_encoding(run, pictures, out))
    differs = differences(hash_files(place / "all-again"), hash_files(out))

    # Its codes would be mixed with those of the first tokenizer.
    refused = start_encoding(other_run, pictures, out)
    message = refused.communicate()[1].strip()

    began = time.perf_counter()
    printed = finish(start_decoding(run, out, place / "back.npz"))
    decoding = {"seconds": time.perf_counter() - began, "peak_mib": int(printed.split()[-1])}
    return {
        "images": chosen.n,
        "shape": [SIDE, SIDE, 3],
        "shards": count_shards(out),
        "peak_mib": peaks,
        "seconds": seconds,
        "kills": sum(was_killed for was_killed, _ in tries),
        "shards_before": [before for _, before in tries],
        "differs": differs,
        "another_tokenizer": {
            "status": refused.returncode,
            "message": message.replace(str(place), "PLACE"),
        },
        "detokenize": decoding,
    }


def main() -> int:
    """Measure; the exit status is 1 if a kill left a trace or a wrong tokenizer was accepted."""
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
    refused = row["another_tokenizer"]["status"] == REFUSED
    return int(bool(row["differs"]) or not refused)


if __name__ == "__main__":
    sys.exit(main())
