"""Runs that are killed must end as the run that nothing happened to.

    python benchmarks/kill.py --json results/kill.json
    python benchmarks/kill.py --variants pixelcnn --trials 2 --inside 1

Each trial trains a small run with the command line, kills it with SIGKILL at a random time, and
resumes it until it is finished; a resumed run is killed again with probability one third. A trial
*inside* a write waits for a few checkpoints, then for the temporary name of a file or a checkpoint
to appear, and kills at once. A kill counts as inside a write only if such a name was left on the
disk. Then all logged losses and all weights are compared, bit for bit.
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
KILLED = -9
"""Exit status of a process that SIGKILL ended."""
TIMES = ("seconds", "training", "validating", "reserve")
"""What the progress of a run says of time."""
TEMPORARY = (".partial", ".old")
"""Endings of names that exist only while something is written."""


def start(variant: str, out: Path, steps: int) -> subprocess.Popen[str]:
    """Begin a run, or resume it if there is one."""
    if (out / "run.json").exists():
        words = ["--resume", str(out)]
    else:
        # One thread on a CPU, since sums of several threads are not equal bit for bit.
        words = [*VARIANTS[variant], *SHARED, "--steps", str(steps)]
        words += ["--threads", "1", "--device", "cpu", "--out", str(out)]
    # The command line, not a function: a process is what can be killed.
    command = [sys.executable, "-m", "tessella", "train", *words]
    return subprocess.Popen(
        command, cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def half_written(out: Path) -> list[str]:
    """Temporary names in a run directory and its folder of checkpoints."""
    names = []
    for folder in (out, out / "checkpoints"):
        for path in folder.glob(".*"):
            if path.name.endswith(TEMPORARY):
                names.append(path.name)
    return names


def kill_inside(process: subprocess.Popen[str], out: Path, after: int, jitter: float) -> None:
    """Kill while something is half written.

    Args:
        process: of the run.
        out: its directory.
        after: checkpoints to wait for.
        jitter: seconds from the first sight of a temporary name to the kill.
    """
    seen: set[str] = set()
    while process.poll() is None:
        # Old checkpoints are deleted on the way, so their names are collected.
        seen.update(path.name for path in (out / "checkpoints").glob("step-*"))
        if len(seen) >= after and half_written(out):
            time.sleep(jitter)
            process.kill()
    process.wait()


def kill_at(process: subprocess.Popen[str], seconds: float) -> None:
    """Kill after so many seconds, unless the process ends before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end; exits if the run failed."""
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}: {printed}")


def read_outcome(out: Path) -> harness.Row:
    """Everything that a run leaves behind, except its times."""
    log = []
    for text in (out / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        log.append({name: value for name, value in line.items() if "seconds" not in name})

    tensors, state, problems = checkpoint.newest(out)
    weights = files.read_tensors(out / "model.safetensors")
    # As bytes, so that a NaN equals itself and -0 differs from 0.
    return {
        "log": log,
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "progress": state["progress"] | dict.fromkeys(TIMES, 0),
        "status": files.read_json(out / "run.json")["status"],
        "left over": [*problems, *half_written(out)],
    }


def attempt(
    variant: str, out: Path, steps: int, seconds: float, inside: bool, chance: random.Random
) -> dict[str, int]:
    """One trial: kill and resume a run until it is finished.

    Args:
        variant: a key of ``VARIANTS``.
        out: directory of the run.
        steps: its length.
        seconds: how long it takes without a kill.
        inside: whether to kill inside writes.
        chance: decides when, and whether again.

    Returns:
        How many kills there were, how many of them inside a write, and how many before the first
        checkpoint.
    """
    kills = 0
    inside_a_write = 0
    before_the_first_checkpoint = 0
    finished = False
    again = True
    while again and not finished:
        process = start(variant, out, steps)
        if inside:
            kill_inside(process, out, chance.randint(1, steps // 4), chance.random() * 2e-3)
        else:
            kill_at(process, seconds * chance.random())
        if process.returncode == 0:
            # It was faster than the kill.
            finished = True
            continue
        assert process.returncode == KILLED, process.communicate()[0]
        kills += 1
        # A temporary name that is left shows that the kill hit a write.
        inside_a_write += bool(half_written(out))
        before_the_first_checkpoint += not list((out / "checkpoints").glob("step-*"))
        again = chance.random() < 1 / 3
    if not finished:
        finish(start(variant, out, steps))
    return {
        "kills": kills,
        "inside_a_write": inside_a_write,
        "before_the_first_checkpoint": before_the_first_checkpoint,
    }


def measure(variant: str, folder: Path, chosen: argparse.Namespace) -> list[harness.Row]:
    """All trials of one variant, each compared with an uninterrupted run."""
    started = time.perf_counter()
    finish(start(variant, folder / "straight", chosen.steps))
    seconds = time.perf_counter() - started
    expected = read_outcome(folder / "straight")
    print(
        f"{variant}: {len(expected['log'])} log lines, {len(expected['checkpoint'])} tensors, "
        f"{seconds:.1f} s a run"
    )
    print(f"{'trial':>5} {'kills':>5} {'inside a write':>14} {'before a checkpoint':>19}  same")

    rows = []
    for trial in range(chosen.trials):
        # Seeded by its name, so that a single trial can be repeated.
        chance = random.Random(f"{chosen.seed} {variant} {trial}")
        out = folder / f"trial-{trial}"
        counts = attempt(variant, out, chosen.steps, seconds, trial < chosen.inside, chance)
        found = read_outcome(out)
        # Twenty runs with their checkpoints would fill a small disk.
        shutil.rmtree(out)
        # Every part is compared, so that a report says which one differs.
        differs = [name for name, value in expected.items() if found[name] != value]
        row = {"variant": variant, "trial": trial, "uninterrupted_seconds": seconds}
        rows.append(row | counts | {"differs": differs})
        print(format_trial(trial, counts, differs), flush=True)
    return rows


def format_trial(trial: int, counts: dict[str, int], differs: list[str]) -> str:
    """A trial as a line under the heading."""
    verdict = "yes"
    if differs:
        verdict = "differs: " + ", ".join(differs)
    return (
        f"{trial:5} {counts['kills']:5} {counts['inside_a_write']:14} "
        f"{counts['before_the_first_checkpoint']:19}  {verdict}"
    )


def main() -> int:
    """Run all trials; the exit status is 1 if a run differs or hardly any write was hit."""
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

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in chosen.variants:
            rows += measure(variant, Path(folder) / variant, chosen)
    kills = sum(row["kills"] for row in rows)
    inside = sum(row["inside_a_write"] for row in rows)
    wrong = sum(bool(row["differs"]) for row in rows)
    print(
        f"{len(rows)} trials, {kills} kills, {inside} of them inside a write; {wrong} runs differ"
    )
    if chosen.json:
        print(harness.write("kill", rows, chosen.json))
    # A benchmark of writes that hits none would pass whatever the code does.
    too_few_inside = inside < chosen.inside // 2
    return int(wrong > 0 or too_few_inside)


if __name__ == "__main__":
    sys.exit(main())
