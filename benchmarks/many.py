"""A run of many images: flat memory, and kills that leave no trace.

    python benchmarks/many.py --json results/many.json
    python benchmarks/many.py --n 2000 --few 200 --kills 2

Images of a bundled model are drawn with the command line into a .npz file and into single PNG
files: a few, to compare the peak of memory with, then all of them undisturbed, then all of them by
processes that are killed with SIGKILL at random times and started again with the same words. The
two results are compared byte for byte, names included.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import harness

WATCHED = """
import sys
from tessella.cli.entry import main
status = main(sys.argv[1:])
facts = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
print("peak", int(facts["VmHWM"].split()[0]) // 1024)
sys.exit(status)
"""
"""The command line; at its end it prints its peak of memory in MiB (Linux)."""


def start(model: str, n: int, out: str) -> subprocess.Popen[str]:
    """Begin to draw, or go on."""
    words = ["sample", model, "--n", str(n), "--out", out, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(harness.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end and return what was printed; exits if the process failed."""
    printed, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}: {errors}")
    return printed


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in the folder."""
    hashes = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(folder))
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of the files that differ, or that only one side has."""
    # get() gives None for a missing file, which equals no hash.
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def last_write(folder: Path) -> int:
    """When images were last written, in nanoseconds; 0 if none were."""
    # An archive grows in a raw file beside it; of single pictures the folder changes.
    places = [*folder.glob("*.part/images.u8"), *folder.glob("pictures")]
    return max((place.stat().st_mtime_ns for place in places), default=0)


def draw_and_kill(model: str, n: int, out: Path, name: str, seconds: float) -> tuple[bool, int]:
    """Draw for so many seconds after the first new images, then kill.

    Returns:
        Whether the process was killed before its end, and the image that it began with.
    """
    before = last_write(out)
    process = start(model, n, f"{out}/{name}")
    # Starting takes seconds and is not what should be killed, so the clock waits for an image.
    while process.poll() is None and last_write(out) <= before:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    printed, _ = process.communicate()
    return process.returncode == -9, first_image(printed)


def first_image(printed: str) -> int:
    """The image that a process began with, from what it printed."""
    found = re.search(r"resuming at image (\d+)", printed)
    if found is None:
        return 0
    return int(found[1])


def measure(name: str, folder: Path, chosen: argparse.Namespace) -> harness.Row:
    """All runs of one kind of output."""
    peaks = []
    seconds = []
    for n, run in ((chosen.few, "few"), (chosen.n, "straight")):
        (folder / run).mkdir(parents=True)
        began = time.perf_counter()
        printed = finish(start(chosen.model, n, f"{folder / run}/{name}"))
        seconds.append(time.perf_counter() - began)
        peaks.append(int(printed.split()[-1]))

    out = folder / "killed"
    out.mkdir()
    chance = random.Random(f"{chosen.seed} {name}")
    # The difference leaves out the start of the process. A random share of a part is half of it
    # on average, so all kills together get about as far as the run without any.
    part = 2 * max(0.1, seconds[1] - seconds[0]) / (chosen.kills + 1)
    tries = []
    for _ in range(chosen.kills):
        seconds_to_kill = part * chance.random()
        tries.append(draw_and_kill(chosen.model, chosen.n, out, name, seconds_to_kill))
    last = first_image(finish(start(chosen.model, chosen.n, f"{out}/{name}")))

    expected = hash_files(folder / "straight")
    differs = differences(expected, hash_files(out))
    return {
        "model": chosen.model,
        "output": name,
        "images": chosen.n,
        "files": len(expected),
        "seconds": seconds[1],
        "peak_mib": {str(chosen.few): peaks[0], str(chosen.n): peaks[1]},
        "kills": sum(was_killed for was_killed, _ in tries),
        # The first process began at image 0.
        "resumed_at": [*(first for _, first in tries[1:]), last],
        "differs": differs[:10],
    }


def main() -> int:
    """Measure; the exit status is 1 if a kill left a trace, or if nothing was killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="digits", help="a bundled model, or a run directory")
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument(
        "--few", type=int, default=1000, help="images of the run that memory is compared with"
    )
    parser.add_argument("--kills", type=int, default=5, help="of each kind of output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="file to write the rows to")
    chosen = parser.parse_args()

    rows = []
    failed = False
    for name in ("samples.npz", "pictures/"):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder), chosen)
        rows.append(row)
        failed |= bool(row["differs"]) or not row["kills"]
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.json:
        print(harness.write("many", rows, chosen.json))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
