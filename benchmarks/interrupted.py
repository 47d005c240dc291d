"""Runs on one or two processes that are killed, told to stop, or lose a process: all end alike.

    python benchmarks/interrupted.py --json results/interrupted.json
    python benchmarks/interrupted.py --kinds signal --trials 2

Three kinds of trials, each on a small run whose outcome is compared, bit for bit, with that of a
run that nothing happened to (logged losses, checkpoint and weights):

- ``kill``: all processes of a run get SIGKILL at a random time, and the run is resumed;
- ``signal``: its first process gets SIGTERM or SIGUSR1 at a random time once it has begun. The
  command must end within five minutes, with status 75, and the run is resumed;
- ``rank``: ``torchrun --max-restarts`` runs two processes, a random one of which gets SIGKILL at a
  random time. Nobody resumes the run: it must go on by itself.

World sizes, sources of images and settings are taken in turn.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import harness
import kill
import numpy as np
from PIL import Image

from tessella.config import DataConfig
from tessella.data import load

SETTINGS = [*kill.SHARED, "model.layers=1", "model.hidden=8", "--threads", "1", "--device", "cpu"]
TRY_AGAIN = 75
PATIENCE = 300
"""Seconds after which a command counts as one that hangs."""


@dataclass(frozen=True)
class Case:
    """What a trial trains: on how many processes, on which images, with which further settings."""

    ranks: int
    source: str
    settings: tuple[str, ...] = ()

    def words(self, out: Path, steps: int) -> list[str]:
        """The words after ``tessella``."""
        words = ["train", "digits", "--data", self.source, *SETTINGS, *self.settings]
        words += ["data.size=8", "data.channels=1", "data.levels=17"]
        return [*words, "--steps", str(steps), "--out", str(out), "--start-or-resume"]


def write_sources(folder: Path) -> dict[str, str]:
    """The bundled digits as a folder of PNGs and as an npz; the names of the sources."""
    digits = load(DataConfig("digits", limit=200), "train").images
    pictures = np.asarray(digits)
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture[..., 0]).save(folder / "pictures" / f"{number:04}.png")
    np.savez(folder / "digits.npz", train=pictures[:160], valid=pictures[160:])
    return {"folder": f"folder:{folder / 'pictures'}", "npz": f"npz:{folder / 'digits.npz'}"}


def start(case: Case, out: Path, steps: int, restarts: int = 0) -> subprocess.Popen[str]:
    """Begin a run, or go on with it: the same command does both."""
    words = ["-m", "tessella", *case.words(out, steps)]
    if restarts:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", str(restarts)]
        words = [*launcher, "--nproc-per-node", str(case.ranks), *words]
        # There the flag is not needed: torchrun says that it has started the command again.
        words.remove("--start-or-resume")
    elif case.ranks > 1:
        words += ["--devices", str(case.ranks)]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=harness.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, so that all of its processes can be killed.
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    """Wait for a command. Returns its status, None where it hangs, and what it printed."""
    try:
        printed, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None, "it hangs"
    return process.returncode, printed


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a process has started (Linux)."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        return [int(word) for word in path.read_text().split()]
    except OSError:
        return []


def wait_until_begun(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a run has written its record, or has ended."""
    while process.poll() is None and not (out / "run.json").exists():
        time.sleep(0.01)


Outcome = tuple[bool, list[str]]
"""Whether a trial hit a run that was still going on, and what went wrong."""


def try_kill(case: Case, out: Path, steps: int, seconds: float, chance: random.Random) -> Outcome:
    """Kill all processes of a run, and resume it."""
    process = start(case, out, steps)
    hit = False
    try:
        process.communicate(timeout=seconds * chance.random())
    except subprocess.TimeoutExpired:
        hit = True
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return hit, finish(case, out, steps)


def try_signal(case: Case, out: Path, steps: int, seconds: float, chance: random.Random) -> Outcome:
    """Tell a run to make way, and resume it."""
    process = start(case, out, steps)
    wait_until_begun(process, out)
    time.sleep(seconds / 2 * chance.random())
    os.kill(process.pid, chance.choice([signal.SIGTERM, signal.SIGUSR1]))
    status, printed = end(process)
    # A run that was faster than the signal has ended well.
    if status not in (0, TRY_AGAIN):
        return True, [f"status {status}: {printed[-500:]}"]
    return status == TRY_AGAIN, finish(case, out, steps)


def try_rank(case: Case, out: Path, steps: int, seconds: float, chance: random.Random) -> Outcome:
    """Kill one process of a run under torchrun, which starts it again."""
    process = start(case, out, steps, restarts=3)
    wait_until_begun(process, out)
    time.sleep(seconds / 2 * chance.random())
    ranks = children_of(process)
    hit = process.poll() is None and bool(ranks)
    if hit:
        os.kill(chance.choice(ranks), signal.SIGKILL)
    status, printed = end(process)
    wrong = [] if status == 0 else [f"status {status}: {printed[-500:]}"]
    return hit, wrong


def finish(case: Case, out: Path, steps: int) -> list[str]:
    """Go on with a run until its end. Returns what went wrong."""
    status, printed = end(start(case, out, steps))
    return [] if status == 0 else [f"resumed, status {status}: {printed[-500:]}"]


TRIALS = {"kill": try_kill, "signal": try_signal, "rank": try_rank}


def measure(
    kind: str, cases: list[Case], folder: Path, chosen: argparse.Namespace
) -> list[harness.Row]:
    """The trials of one kind, over the cases in turn."""
    expected: dict[Case, harness.Row] = {}
    lengths: dict[Case, float] = {}
    rows = []
    for trial, case in zip(range(chosen.trials), itertools.cycle(cases)):
        straight = folder / f"straight-{kind}-{len(expected)}"
        if case not in expected:
            started = time.perf_counter()
            wrong = finish(case, straight, chosen.steps)
            assert not wrong, wrong
            lengths[case] = time.perf_counter() - started
            expected[case] = kill.read_outcome(straight)
        chance = random.Random(f"{chosen.seed} {kind} {trial}")
        out = folder / f"{kind}-{trial}"
        hit, wrong = TRIALS[kind](case, out, chosen.steps, lengths[case], chance)
        if not wrong:
            found = kill.read_outcome(out)
            wrong = [name for name, value in expected[case].items() if found[name] != value]
        shutil.rmtree(out, ignore_errors=True)
        source = case.source.partition(":")[0]
        row = {"kind": kind, "trial": trial, "ranks": case.ranks, "source": source}
        rows.append(row | {"settings": list(case.settings), "hit": hit, "wrong": wrong})
        verdict = "; ".join(wrong) or "same"
        missed = "" if hit else " (it was over before)"
        print(f"{kind} {trial}: {case.ranks} of {source}: {verdict}{missed}", flush=True)
    return rows


def cases_of(chosen: argparse.Namespace, kind: str, sources: dict[str, str]) -> list[Case]:
    """All combinations of world sizes, sources and settings."""
    settings = [tuple(words.split()) for words in chosen.settings]
    ranks = [2] if kind == "rank" else chosen.ranks
    cases = []
    for number, source, words in itertools.product(ranks, chosen.sources, settings):
        cases.append(Case(number, sources.get(source, source), words))
    return cases


def main() -> int:
    """Run all trials; the exit status is 1 if one went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--trials", type=int, default=50, help="of each kind")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--sources", nargs="+", default=["folder", "npz"], help="folder, npz, or NAME:PATH"
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[""],
        help='further words of the command, taken in turn, such as "" "train.workers=2"',
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="file whose rows of these kinds are replaced")
    chosen = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_sources(folder)
        for kind in chosen.kinds:
            rows += measure(kind, cases_of(chosen, kind, sources), folder, chosen)
    wrong = sum(bool(row["wrong"]) for row in rows)
    hits = sum(row["hit"] for row in rows)
    print(f"{len(rows)} trials, {hits} hit a run that was going on; {wrong} went wrong")
    if chosen.json:
        others = []
        for row in harness.read_rows(harness.results_path("interrupted", chosen.json)):
            if row["kind"] not in chosen.kinds:
                others.append(row)
        print(harness.write("interrupted", [*others, *rows], chosen.json))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
