"""Runs that are killed at random times, and inside their writes, must end as the run that nothing
happened to.

    python benchmarks/kill.py --json results/kill.json
    python benchmarks/kill.py --variants pixelcnn --trials 2 --inside 1

Each trial trains a small run with the command line, kills it with SIGKILL, and resumes it until it
is finished; a resumed run is killed again with probability one third. A trial *inside* a write
waits for a few checkpoints, then for the temporary name of a file or a checkpoint to appear, and
kills at once. A kill counts as inside a write only if such a name was left on the disk. Then all
logged losses and all weights are compared, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from tessella import files
from tessella.training import checkpoint

SHARED = [
    "train.batch=8",
    "train.validate_every=6",
    "train.checkpoint_every=2",
    "train.warmup=5",
    "data.limit=200",
]
VARIANTS = {
    "vqvae": [
        "digits-vqvae",
        "tokenizer.hidden=16",
        "tokenizer.codebook_size=16",
        "tokenizer.code_dim=8",
    ],
    "pixelcnn": ["digits", "model.layers=2", "model.hidden=16"],
}


def start(variant: str, out: Path, steps: int) -> subprocess.Popen[str]:
    """Begin a run, or resume it where there is one."""
    if (out / "run.json").exists():
        words = ["--resume", str(out)]
    else:
        words = [
            *VARIANTS[variant],
            *SHARED,
            "--steps",
            str(steps),
            "--threads",
            "1",
            "--device",
            "cpu",
            "--out",
            str(out),
        ]
    command = [sys.executable, "-m", "tessella", "train", *words]
    return subprocess.Popen(
        command, cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def half_written(out: Path) -> list[str]:
    """Temporary names in a run directory and its folder of checkpoints."""
    places = [path for folder in (out, out / "checkpoints") for path in folder.glob(".*")]
    return [path.name for path in places if path.name.endswith((".partial", ".old"))]


def kill_inside(process: subprocess.Popen[str], out: Path, after: int, jitter: float) -> None:
    """Kill while something is half written, once ``after`` more checkpoints are there, ``jitter``
    seconds late."""
    seen: set[str] = set()
    while process.poll() is None:
        names = {path.name for path in (out / "checkpoints").glob("step-*")}
        seen |= names
        if len(seen) >= after and half_written(out):
            time.sleep(jitter)
            process.kill()
    process.wait()


def kill_at(process: subprocess.Popen[str], seconds: float) -> None:
    """Kill after so many seconds, unless it ends before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end. Returns what was printed; raises if it did not go well."""
    shown, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}: {shown}")
    return shown


def left(out: Path) -> dict[str, Any]:
    """All that a run leaves but its times."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tensors, state, problems = checkpoint.newest(out)
    weights = files.read_tensors(out / "model.safetensors")
    return {
        "log": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "progress": state["progress"] | {"seconds": 0, "validating": 0},
        "status": files.read_json(out / "run.json")["status"],
        "left over": [*problems, *half_written(out)],
    }


def attempt(
    variant: str, out: Path, steps: int, seconds: float, inside: bool, chance: random.Random
) -> dict[str, Any]:
    """One trial: kills until the run is finished. Returns how many there were, and how many were
    inside a write."""
    kills = written = 0
    from_scratch = 0
    again = True
    while again:
        process = start(variant, out, steps)
        if inside:
            kill_inside(process, out, chance.randint(1, steps // 4), chance.random() * 2e-3)
        else:
            kill_at(process, seconds * chance.random())
        if process.returncode == 0:
            break
        assert process.returncode == -9, process.communicate()[0]
        kills, written = kills + 1, written + bool(half_written(out))
        from_scratch += not list((out / "checkpoints").glob("step-*"))
        again = chance.random() < 1 / 3
    else:
        finish(start(variant, out, steps))
    return {"kills": kills, "inside_a_write": written, "before_the_first_checkpoint": from_scratch}


def measure(variant: str, folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """All trials of one variant, each compared with an uninterrupted run."""
    started = time.perf_counter()
    finish(start(variant, folder / "straight", chosen.steps))
    seconds = time.perf_counter() - started
    expected, rows = left(folder / "straight"), []
    print(
        f"{variant}: {len(expected['log'])} log lines, {len(expected['checkpoint'])} tensors, "
        f"{seconds:.1f} s a run"
    )
    print(f"{'trial':>5} {'kills':>5} {'inside a write':>14} {'before a checkpoint':>19}  same")
    for trial in range(chosen.trials):
        chance = random.Random(f"{chosen.seed} {variant} {trial}")
        out = folder / f"trial-{trial}"
        counted = attempt(variant, out, chosen.steps, seconds, trial < chosen.inside, chance)
        found = left(out)
        differs = [name for name, value in expected.items() if found[name] != value]
        rows.append(
            {
                "variant": variant,
                "trial": trial,
                "uninterrupted_seconds": seconds,
                **counted,
                "differs": differs,
            }
        )
        cells = (
            f"{counted['kills']:5} {counted['inside_a_write']:14} "
            f"{counted['before_the_first_checkpoint']:19}"
        )
        print(
            f"{trial:5} {cells}  {'differs: ' + ', '.join(differs) if differs else 'yes'}",
            flush=True,
        )
        shutil.rmtree(out)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--trials", type=int, default=20, help="of each variant")
    parser.add_argument(
        "--inside", type=int, default=10, help="trials that are killed inside a write"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="file to write the rows to")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row for name in chosen.variants for row in measure(name, Path(folder) / name, chosen)
        ]
    kills, inside = sum(row["kills"] for row in rows), sum(row["inside_a_write"] for row in rows)
    wrong = sum(bool(row["differs"]) for row in rows)
    print(
        f"{len(rows)} trials, {kills} kills, {inside} of them inside a write; {wrong} runs differ"
    )
    if chosen.json:
        print(harness.write("kill", rows, chosen.json))
    return 1 if wrong or inside < chosen.inside // 2 else 0


if __name__ == "__main__":
    sys.exit(main())
