"""A run of many images: the same memory however many, and killed again and again it ends as if
nothing had happened.

    python benchmarks/many.py --json results/many.json
    python benchmarks/many.py --n 2000 --few 200 --kills 2

Images of a bundled model are drawn with the command line into a .npz file and into single PNG
files: a few, to compare the peak of memory with, then all of them undisturbed, then all of them by
processes that are killed with SIGKILL at random times and started again with the same words. What
the two leave is compared byte for byte, names included.
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
from pathlib import Path
from typing import Any

import harness

WATCHED = """
import sys
from tessella.cli.entry import main
status = main(sys.argv[1:])
facts = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Vm"))
print("peak", int(facts["VmHWM"].split()[0]) // 1024)
sys.exit(status)
"""


def start(model: str, n: int, out: str) -> subprocess.Popen[str]:
    """Begin to draw, or go on."""
    words = ["sample", model, "--n", str(n), "--out", out, "--device", "cpu"]
    place = {**os.environ, "PYTHONPATH": str(harness.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WATCHED, *words]
    return subprocess.Popen(
        command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end. Returns what was printed; raises if it did not go well."""
    shown, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}: {told}")
    return shown


def left(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def written(folder: Path) -> int:
    """When images were last written, in nanoseconds; 0 when none were."""
    places = [*folder.glob("*.part/images.u8"), *folder.glob("pictures")]
    return max((place.stat().st_mtime_ns for place in places), default=0)


def killed(model: str, n: int, out: Path, name: str, seconds: float) -> tuple[bool, int]:
    """Draw for so long after the first images. Whether that ended in a kill, and the image that it
    had begun with."""
    before, process = written(out), start(model, n, f"{out}/{name}")
    while process.poll() is None and written(out) <= before:
        time.sleep(0.01)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    shown, _ = process.communicate()
    return process.returncode == -9, resumed(shown)


def resumed(shown: str) -> int:
    """The image that a process began with."""
    found = re.search(r"resuming at image (\d+)", shown)
    return int(found[1]) if found else 0


def measure(name: str, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """All runs of one kind of output."""
    peaks, seconds = [], []
    for n, end in ((chosen.few, "few"), (chosen.n, "straight")):
        (folder / end).mkdir(parents=True)
        began = time.perf_counter()
        shown = finish(start(chosen.model, n, f"{folder / end}/{name}"))
        seconds.append(time.perf_counter() - began)
        peaks.append(int(shown.split()[-1]))
    out, chance = folder / "killed", random.Random(f"{chosen.seed} {name}")
    out.mkdir()
    part = (
        2 * max(0.1, seconds[1] - seconds[0]) / (chosen.kills + 1)
    )  # a random part of it is half of it in the mean
    tries = [
        killed(chosen.model, chosen.n, out, name, part * chance.random())
        for _ in range(chosen.kills)
    ]
    last = resumed(finish(start(chosen.model, chosen.n, f"{out}/{name}")))
    expected, found = left(folder / "straight"), left(out)
    differs = sorted(
        file for file in expected.keys() | found.keys() if expected.get(file) != found.get(file)
    )
    return {
        "model": chosen.model,
        "output": name,
        "images": chosen.n,
        "files": len(expected),
        "seconds": seconds[1],
        "peak_mib": {str(chosen.few): peaks[0], str(chosen.n): peaks[1]},
        "kills": sum(kill for kill, _ in tries),
        "resumed_at": [*(at for _, at in tries[1:]), last],
        "differs": differs[:10],
    }


def main() -> int:
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
    for name in ("samples.npz", "pictures/"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder), chosen))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if chosen.json:
        print(harness.write("many", rows, chosen.json))
    return 1 if any(row["differs"] or not row["kills"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
