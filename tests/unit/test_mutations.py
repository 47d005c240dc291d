"""The mutations of scripts/mutations.toml fit the source, and those that do not are told."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "break_contracts.py"

if not SCRIPT.exists():
    pytest.skip("the scripts are not installed with the package", allow_module_level=True)


def load_script() -> ModuleType:
    """The script as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("break_contracts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
MUTATIONS = script.load_mutations()


def mutation(**changes: object) -> Any:
    """A mutation that fits the tree of :func:`package`, but for some changes."""
    values = {
        "breaks": "the sum is a difference",
        "file": "sums.py",
        "code": "a + b",
        "becomes": "a - b",
        "tests": ("tests",),
    }
    return script.Mutation(**(values | changes))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one file."""
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n", encoding="utf-8")
    return tmp_path


def write_table(path: Path, *codes: tuple[str, str, str]) -> Path:
    """A table of mutations, each given by what it breaks, its code and what that becomes."""
    text = ""
    for breaks, code, becomes in codes:
        text += textwrap.dedent(
            f"""
            [[mutation]]
            breaks = "{breaks}"
            file = "sums.py"
            code = "{code}"
            becomes = "{becomes}"
            tests = ["tests"]
            """
        )
    path.write_text(text, encoding="utf-8")
    return path


def test_every_mutation_fits_the_source() -> None:
    assert script.stale(MUTATIONS) == []


def test_there_are_mutations_of_every_part() -> None:
    parts = {Path(one.file).parts[0] for one in MUTATIONS if "/" in one.file}
    assert len(MUTATIONS) >= 80
    assert parts >= {
        "contracts",
        "data",
        "evaluation",
        "files",
        "heads",
        "kernel",
        "models",
        "nn",
        "pipeline",
        "sampling",
        "storage",
        "tokenizers",
        "training",
    }


FILES = sorted({one.file for one in MUTATIONS if one.file.endswith(".py")})


@pytest.mark.parametrize("file", FILES)
def test_what_a_mutation_makes_of_the_code_is_python(file: str) -> None:
    source = (ROOT / "tessella" / file).read_text(encoding="utf-8")
    for one in MUTATIONS:
        if one.file == file:
            # Code that cannot be imported would fail any test, and prove nothing.
            ast.parse(source.replace(one.code, one.becomes), one.breaks)


def test_mutations_name_tests_that_exist() -> None:
    for one in MUTATIONS:
        for place in one.tests[: one.tests.index("-k")] if "-k" in one.tests else one.tests:
            file, _, name = place.partition("::")
            content = (ROOT / file).read_text(encoding="utf-8")
            assert not name or re.search(rf"^def {name}\b", content, re.MULTILINE), place


def test_code_that_has_gone_or_stands_twice_is_stale(package: Path) -> None:
    assert script.stale([mutation()], package) == []
    gone = mutation(code="a * b")
    assert script.stale([gone], package) == [f"{gone.breaks}: its code occurs 0 times in sums.py"]
    twice = mutation(code="a")
    assert script.stale([twice], package) == [f"{twice.breaks}: its code occurs 3 times in sums.py"]
    moved = mutation(file="more.py")
    assert script.stale([moved], package) == [f"{moved.breaks}: there is no file more.py"]


def test_a_mutation_changes_its_code_and_nothing_else(package: Path) -> None:
    mutation().apply(package)
    assert (package / "sums.py").read_text() == "def add(a, b):\n    return a - b\n"


def test_two_mutations_of_one_name_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "m.toml", ("same", "a", "b"), ("same", "c", "d"))
    with pytest.raises(ValueError, match="two mutations are called 'same'"):
        script.load_mutations(table)


def test_a_mutation_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "m.toml", ("nothing", "a", "a"))
    with pytest.raises(ValueError, match="'nothing' changes nothing"):
        script.load_mutations(table)


def test_results_come_back_in_the_order_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path / "contracts.json")
    assert script.read_results() == {}
    first = mutation(breaks="first")
    second = mutation(breaks="second")
    results = {}
    for one in (second, mutation(breaks="gone"), first):
        results[one.breaks] = script.Result(one, True, ("tests::a",), "abc", "2026-01-01")
    script.write_results(results, [first, second])
    # What is no longer in the table has no result either.
    assert list(script.read_results().values()) == [results["first"], results["second"]]


def test_mutations_are_chosen_by_words_of_their_description_or_file() -> None:
    sums = mutation()
    noise = mutation(breaks="noise is shared", file="noise.py")
    assert script.choose([sums, noise], []) == [sums, noise]
    assert script.choose([sums, noise], ["noise"]) == [noise]
    assert script.choose([sums, noise], ["sums.py", "shared"]) == [sums, noise]


def test_a_result_holds_until_its_file_or_its_tests_change() -> None:
    one = MUTATIONS[0]
    head = script.current_commit()
    if head.endswith("+"):
        pytest.skip("the working tree differs from its commit")
    good = script.Result(one, True, (), head, "2026-01-01")
    assert script.still_holds(good, one)
    assert not script.still_holds(dataclasses.replace(good, noticed=False), one)
    assert not script.still_holds(dataclasses.replace(good, commit=f"{head}+"), one)
    assert not script.still_holds(good, dataclasses.replace(one, becomes="another"))
