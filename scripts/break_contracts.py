"""Show that the tests can fail: break the code in a copy, one way at a time, and see who notices.

    python scripts/break_contracts.py                  # every mutation of scripts/mutations.toml
    python scripts/break_contracts.py mixture noise    # those whose description holds a word
    python scripts/break_contracts.py --check          # only whether each still matches the source
    python scripts/break_contracts.py --missing        # those without a result that still holds

Each mutation names a file, the code to break and what stands in its place, and the tests that are
expected to notice. A mutation counts as noticed when at least one of these tests fails, and as
stale when its code no longer occurs exactly once; both an unnoticed and a stale mutation end the
script with exit status 1. Results are written after every mutation, so an interrupted run loses
nothing. Each row of ``results/contracts.json`` names the commit it was measured at; it holds as
long as neither the broken file nor the tests named have changed since.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MUTATIONS = ROOT / "scripts" / "mutations.toml"
RESULTS = ROOT / "results" / "contracts.json"

ENOUGH_FAILURES = 2
"""Failing tests after which a mutation counts as noticed and its tests are stopped."""

FORKS = multiprocessing.get_context("forkserver")
"""Makes a process for the tests of each mutation, in which torch and others are imported already:
that takes as long as many of the tests."""

FORKS.set_forkserver_preload(["torch", "pytest", "lightning_fabric"])

TIME_LIMIT = 600
"""Seconds for the tests of one mutation. A mutation that makes them hang counts as noticed."""


@dataclass(frozen=True)
class Mutation:
    """One way to break the code.

    Args:
        breaks: what is wrong afterwards, in a few words.
        file: the file to change, relative to the package.
        code: the code that is replaced; it must occur exactly once.
        becomes: what stands there instead.
        tests: arguments of pytest: the tests that should notice.
    """

    breaks: str
    file: str
    code: str
    becomes: str
    tests: tuple[str, ...]

    def problem(self, package: Path) -> str:
        """Why the mutation no longer fits the source; empty if it does."""
        path = package / self.file
        if not path.is_file():
            return f"there is no file {self.file}"
        count = path.read_text(encoding="utf-8").count(self.code)
        if count == 1:
            return ""
        return f"its code occurs {count} times in {self.file}"

    def apply(self, package: Path) -> None:
        """Break the code of a package in place."""
        path = package / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.code, self.becomes), encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """How the tests took a mutation.

    Args:
        mutation: what was broken, and the tests that ran.
        noticed: whether a test failed, or the tests hung.
        examples: the first tests that failed.
        commit: commit of the code, with ``+`` where the working tree differed from it.
        date: day of the measurement.
    """

    mutation: Mutation
    noticed: bool
    examples: tuple[str, ...]
    commit: str
    date: str


def mutation_of(table: Mapping[str, Any]) -> Mutation:
    """A mutation as TOML or JSON has it."""
    return Mutation(**{**table, "tests": tuple(table["tests"])})


def load_mutations(path: Path = MUTATIONS) -> list[Mutation]:
    """All mutations, in the order of the file.

    Raises:
        ValueError: when two of them have one description, or one changes nothing.
    """
    mutations = []
    names = set()
    for table in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]:
        mutation = mutation_of(table)
        if mutation.breaks in names:
            raise ValueError(f"two mutations are called {mutation.breaks!r}")
        if mutation.code == mutation.becomes:
            raise ValueError(f"the mutation {mutation.breaks!r} changes nothing")
        names.add(mutation.breaks)
        mutations.append(mutation)
    return mutations


def stale(mutations: list[Mutation], package: Path = ROOT / "tessella") -> list[str]:
    """A line for each mutation that no longer fits the source."""
    lines = []
    for mutation in mutations:
        problem = mutation.problem(package)
        if problem:
            lines.append(f"{mutation.breaks}: {problem}")
    return lines


def measure(mutation: Mutation, commit: str, original: Path) -> Result:
    """Break a copy of the project and run the tests that should notice.

    Args:
        mutation: what to break.
        commit: of the project.
        original: what is copied, see :func:`take_original`.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(original, copy)
        mutation.apply(copy / "tessella")
        examples = failing_tests(copy, mutation.tests)
    today = datetime.date.today().isoformat()
    return Result(mutation, bool(examples), examples, commit, today)


def failing_tests(copy: Path, tests: tuple[str, ...]) -> tuple[str, ...]:
    """The first tests that fail in a copy of the project; none if all pass."""
    output = copy / "output.txt"
    process = FORKS.Process(target=run_tests, args=(copy, tests, output))
    process.start()
    process.join(TIME_LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return (f"the tests hung for {TIME_LIMIT} s",)
    text = output.read_text(encoding="utf-8", errors="replace")
    # Anything but failures (1) and success (0) means that the tests themselves could not be run,
    # which proves nothing: the mutation counts as unnoticed, and the others are still measured.
    if process.exitcode not in (0, 1):
        print(f"pytest ended with {process.exitcode}:\n{text[-2000:]}", flush=True)
        return ()
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    return tuple(sorted(set(failed))[:ENOUGH_FAILURES])


def run_tests(copy: Path, tests: tuple[str, ...], output: Path) -> None:
    """Run tests in a copy of the project, and end this process with the status of pytest."""
    import pytest

    with output.open("wb") as file:
        # Also what native code and the processes of tests write.
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    # The copy must come before an installed package, and what it builds must not enter the cache
    # of the user. Tests that start Python get both from the environment.
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["TESSELLA_TEST_CACHE"] = str(copy / "cache")
    options = ["-q", "-p", "no:cacheprovider", "--maxfail", str(ENOUGH_FAILURES)]
    sys.exit(pytest.main([*options, *tests]))


def take_original(folder: Path) -> None:
    """Copy the project as it is now to a folder, so that it may be worked on meanwhile.

    Its compiled kernel comes with it, which most mutations leave alone. A kernel that is broken has
    another name in the cache, and is built.
    """
    ignored = shutil.ignore_patterns("__pycache__", "*.png")
    for part in ("tessella", "tests", "scripts", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    cache = folder / "cache"
    cache.mkdir()
    command = [sys.executable, "-c", "from tessella import kernel; kernel.available()"]
    environment = {**os.environ, "TESSELLA_CACHE": str(cache), "PYTHONPATH": str(folder)}
    subprocess.run(command, cwd=folder, env=environment, check=True)


def measure_all(mutations: list[Mutation], commit: str, jobs: int) -> Iterator[Result]:
    """Measure mutations, so many at a time; yields each as it is done."""
    # Read by torch when it is imported, which the server of the forks does.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        original = Path(folder)
        take_original(original)
        running = [pool.submit(measure, mutation, commit, original) for mutation in mutations]
        for done in as_completed(running):
            yield done.result()


def still_holds(result: Result, mutation: Mutation) -> bool:
    """Whether a mutation was noticed, and neither its file nor its tests have changed since."""
    if result.mutation != mutation or not result.noticed or result.commit.endswith("+"):
        return False
    places = [f"tessella/{mutation.file}", "tests/conftest.py"]
    for place in mutation.tests:
        if place.startswith("tests/"):
            places.append(place.partition("::")[0])
    unchanged = ["git", "diff", "--quiet", result.commit, "--", *places]
    return subprocess.run(unchanged, cwd=ROOT, check=False).returncode == 0


def current_commit() -> str:
    """The short hash of the checked-out commit, with ``+`` where tracked files were changed."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return described.stdout.strip()


def read_results() -> dict[str, Result]:
    """The results so far by mutation; none where there is no file yet."""
    if not RESULTS.is_file():
        return {}
    results = {}
    for row in json.loads(RESULTS.read_text(encoding="utf-8")):
        mutation = mutation_of(row["mutation"])
        result = Result(**{**row, "mutation": mutation, "examples": tuple(row["examples"])})
        results[mutation.breaks] = result
    return results


def write_results(results: dict[str, Result], mutations: list[Mutation]) -> None:
    """Write what is known of the present mutations, in their order; the rest is dropped."""
    rows = []
    for mutation in mutations:
        if mutation.breaks in results:
            rows.append(asdict(results[mutation.breaks]))
    unfinished = RESULTS.with_suffix(".part")
    unfinished.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(RESULTS)


def choose(mutations: list[Mutation], words: list[str]) -> list[Mutation]:
    """The mutations whose description or file holds one of the words; all of them without words."""
    if not words:
        return mutations
    chosen = []
    for mutation in mutations:
        place = f"{mutation.breaks} {mutation.file}"
        if any(word in place for word in words):
            chosen.append(mutation)
    return chosen


def main() -> int:
    """Run the mutations that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description="Show that the tests notice broken code.")
    parser.add_argument("words", nargs="*", help="only mutations whose description holds one")
    parser.add_argument("--check", action="store_true", help="only check that each still fits")
    parser.add_argument(
        "--missing", action="store_true", help="skip those that were noticed and have not changed"
    )
    parser.add_argument("--jobs", type=int, default=2, help="mutations measured at a time (2)")
    arguments = parser.parse_args()

    mutations = load_mutations()
    problems = stale(mutations)
    for line in problems:
        print(f"stale: {line}", flush=True)
    if arguments.check:
        return int(bool(problems))

    results = read_results()
    first = []
    later = []
    for mutation in choose(mutations, arguments.words):
        known = results.get(mutation.breaks)
        if mutation.problem(ROOT / "tessella"):
            continue
        if arguments.missing and known is not None and still_holds(known, mutation):
            continue
        # Those that nothing is known of come first: a run may be interrupted.
        if known is not None and known.noticed:
            later.append(mutation)
        else:
            first.append(mutation)

    unnoticed = 0
    for result in measure_all([*first, *later], current_commit(), arguments.jobs):
        breaks = result.mutation.breaks
        results[breaks] = result
        write_results(results, mutations)
        if not result.noticed:
            unnoticed += 1
        print(f"{'noticed  ' if result.noticed else 'UNNOTICED'} {breaks}", flush=True)
    return int(bool(problems) or unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
