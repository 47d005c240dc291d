"""The measures of ``scripts/house.py``: small sources that break each rule, and one that breaks
none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # scripts are no package, and import one another by name

import house  # noqa: E402

DENSE = "ternaries and comprehensions per 1,000 statements"
TUPLES = "tuple assignments per 1,000 statements"
COMMENTS = "comment lines per 100 lines"
MODULES = "module names given twice"
STEPPING = "stepping code in a family's file, %"
PUBLIC = "public class names given twice"
PRIVATE = "private class names given twice"

CLEAN = '''"""A module that keeps every limit."""


def area(width: float, height: float) -> float:
    """Area of a rectangle."""
    # Negative sides are mirrored, which leaves the area as it is.
    return abs(width * height)
'''


def package(root: Path, files: dict[str, str]) -> house.Report:
    """What is measured of a package that has these files."""
    for name, text in files.items():
        path = root / "tessella" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return house.survey(root, recipe=False)["tessella"]


def lines_of(report: house.Report, figure: str) -> list[int]:
    """Line numbers of the places of a figure."""
    return [place.line for place in report.places[figure]]


def broken(report: house.Report) -> list[str]:
    """Names of the limits that a report breaks."""
    return [paragraph.partition(":")[0] for paragraph in house.broken_limits(report)]


def test_clean_package_keeps_every_limit(tmp_path: Path) -> None:
    report = package(tmp_path, {"__init__.py": CLEAN, "shapes/plane.py": CLEAN})
    assert broken(report) == []
    assert report.figures["files"] == 2
    assert report.figures["lines"] == 10
    assert report.figures["statements"] == 8
    assert report.figures["annotated slots, %"] == 100
    assert report.figures["function lines, median"] == 4
    assert report.figures["function statements, median"] == 2


@pytest.mark.parametrize(
    "expression",
    [
        "1 if x else 2",
        "[y for y in x]",
        "{y for y in x}",
        "{y: y for y in x}",
        "sum(y for y in x)",
    ],
)
def test_dense_expressions(tmp_path: Path, expression: str) -> None:
    report = package(tmp_path, {"a.py": f"# Why.\nx = [1]\nz = {expression}\n"})
    assert report.figures[DENSE] == 500
    assert lines_of(report, DENSE) == [3]
    assert broken(report) == [DENSE]


def test_tuple_assignments(tmp_path: Path) -> None:
    source = "# Why.\na, b = 1, 2\nc, d = divmod(5, 2)\npair = 1, 2\na = b\n"
    report = package(tmp_path, {"a.py": source})
    assert report.figures[TUPLES] == 250
    assert lines_of(report, TUPLES) == [2]
    assert broken(report) == [TUPLES]


def test_comments_are_for_readers(tmp_path: Path) -> None:
    source = """x = 1  # in metres
y = 2  # noqa: E501
z = 3  # type: ignore[assignment]
# fmt: off
# --------
text = "# no comment"
v = 4  # noqa: E501  # a table of code
"""
    report = package(tmp_path, {"a.py": source})
    assert report.figures[COMMENTS] == pytest.approx(200 / 7)


def test_a_file_without_comments_is_named(tmp_path: Path) -> None:
    report = package(tmp_path, {"a.py": "x = 1\n", "b.py": "x = 1\ny = 2\n"})
    assert broken(report) == [COMMENTS]
    paths = [place.path for place in report.places[COMMENTS]]
    assert paths == ["tessella/b.py", "tessella/a.py"]


def test_long_lines(tmp_path: Path) -> None:
    fits = "# " + "é" * 98
    report = package(tmp_path, {"a.py": f"{fits}\n{fits}é\n"})
    assert lines_of(report, "lines over 100 columns") == [2]
    assert broken(report) == ["lines over 100 columns"]


def test_semicolons(tmp_path: Path) -> None:
    report = package(tmp_path, {"a.py": '# Why; how.\nx = ";"\ny = 1; z = 2\n'})
    assert lines_of(report, "statements packed with semicolons") == [3]
    assert broken(report) == ["statements packed with semicolons"]


def test_loose_modules(tmp_path: Path) -> None:
    files = {"__init__.py": CLEAN, "__main__.py": CLEAN, "room/inner.py": CLEAN}
    for number in range(8):
        files[f"module_{number}.py"] = CLEAN
    assert broken(package(tmp_path, files)) == []
    assert broken(package(tmp_path, {"module_8.py": CLEAN})) == ["loose modules at the root"]


def test_module_names(tmp_path: Path) -> None:
    files = {
        "one/__init__.py": CLEAN,
        "two/__init__.py": CLEAN,
        "one/base.py": CLEAN,
        "two/base.py": CLEAN,
        "two/one.py": CLEAN,
    }
    report = package(tmp_path, files)
    assert broken(report) == [MODULES]
    assert report.figures[MODULES] == 2
    named = {place.what for place in report.places[MODULES]}
    assert named == {"module base", "module one", "folder one"}


def test_class_names(tmp_path: Path) -> None:
    source = """# Why.
class Block:
    class Config: ...

class _Walk: ...

def make() -> type:
    class Config: ...
    return Config
"""
    guarded = "# Why.\ntry:\n    class Block: ...\nfinally:\n    pass\nclass _Walk: ...\n"
    report = package(tmp_path, {"a.py": source, "b.py": guarded})
    assert broken(report) == [PUBLIC, PRIVATE]
    assert lines_of(report, PUBLIC) == [2, 3]
    assert lines_of(report, PRIVATE) == [5, 6]


FAMILY = """# Why.
from tessella.models import base
from tessella.nn.stepping.program import Program as Work

class MineState(Memory):
    x: int

class Mine({base}):
    name = "mine"

    def forward(self, x):
        y = self.shared(x)
        y = self.layer(y)
        y = self.layer(y)
        return y

    def init_state(self) -> MineState:
        return MineState(helper())

    def write(self, work: list[Work]):
        return self.only(self.shared(work))

    def only(self, x):

        return self.only(x)

    def shared(self, x):
        return x

def helper():
    return 1
"""


def test_stepping_code(tmp_path: Path) -> None:
    text = FAMILY.format(base="PixelBase")
    base = "# Why.\nclass PixelBase(ProgramModel):\n    def step(self, state: State): ...\n"
    report = package(tmp_path, {"models/mine.py": text, "models/base.py": base})
    # MineState, init_state, write and, used by nothing else, only and helper; not shared.
    share = 100 * 10 / 22
    assert report.figures[STEPPING] == pytest.approx(share)
    assert [place.path for place in report.places[STEPPING]] == ["tessella/models/mine.py"]
    assert broken(report) == [STEPPING]


def test_stepping_code_within_the_limit(tmp_path: Path) -> None:
    # 18 more lines: 10 in 40 are a quarter.
    more = "def more(x):\n" + "    x = 1  # Why.\n" * 17
    text = FAMILY.format(base="ProgramModel") + more
    assert broken(package(tmp_path, {"models/mine.py": text})) == []
    fewer = text.removesuffix("    x = 1  # Why.\n")
    assert broken(package(tmp_path, {"models/mine.py": fewer})) == [STEPPING]


@pytest.mark.parametrize(
    ("file", "base"), [("models/mine.py", "Model[MineState]"), ("nn/mine.py", "ProgramModel")]
)
def test_stepping_code_without_a_limit(tmp_path: Path, file: str, base: str) -> None:
    report = package(tmp_path, {file: FAMILY.format(base=base)})
    assert report.figures[STEPPING] == 0
    assert report.places[STEPPING] == []
    assert broken(report) == []


def test_uses_of_any(tmp_path: Path) -> None:
    source = """import typing
from typing import Any
# Any of these.
Table = dict[str, Any]
def f(x: Any, y: list[Any]) -> "Any": ...
z: typing.Any = "Any"
"""
    report = package(tmp_path, {"a.py": source})
    assert lines_of(report, "uses of Any") == [4, 5, 5, 5, 6]
    assert broken(report) == []
    many = "# Why.\nfrom typing import Any\n" + "x: Any\n" * 146
    crowded = package(tmp_path, {"b.py": many})
    assert "uses of Any" in broken(crowded)


def test_functions(tmp_path: Path) -> None:
    source = """# Why.
@property
def outer(self, a: int, b, *rest, **more: int):
    def inner() -> None:
        pass
    return inner
"""
    figures = package(tmp_path, {"a.py": source}).figures
    assert figures["function lines, most"] == 4
    assert figures["function statements, most"] == 3
    assert figures["functions within a function, most"] == 1
    assert figures["annotated slots, %"] == 50


def test_broken_limits_name_the_first_places(tmp_path: Path) -> None:
    source = "# Why.\n# How.\n" + "x = 1; y = 2\n" * 25
    (paragraph,) = house.broken_limits(package(tmp_path, {"a.py": source}))
    lines = paragraph.splitlines()
    assert lines[0] == "statements packed with semicolons: 25, at most 0"
    assert lines[1] == "  tessella/a.py:3"
    assert lines[20:] == ["  tessella/a.py:22", "  and 5 more"]


def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, {"a.py": "x = 1; y = 2\n"})
    file = tmp_path / "house.json"
    assert house.main(["--root", str(tmp_path), "--json", str(file)]) == 0
    assert "statements packed with semicolons" in capsys.readouterr().out
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["folders"]["tessella"]["figures"]["uses of Any"] == 0
    assert len(written["broken"]) == 2


def test_check_includes_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, {"a.py": CLEAN})
    stop = {"file": "tessella/a.py", "line": 4, "function": "area", "module": "tessella.a"}
    journey = {"stops": [stop] * 30, "names": ["recipe"], "visits": 40, "wrapped": []}
    report = house.recipe_report(journey)
    monkeypatch.setattr(house, "measure_recipe", lambda root: report)
    assert house.main(["--root", str(tmp_path), "--check"]) == 0

    longer = house.recipe_report({**journey, "stops": [stop] * 31})
    monkeypatch.setattr(house, "measure_recipe", lambda root: longer)
    assert house.main(["--root", str(tmp_path), "--check"]) == 1
    assert "stops of the recipe: 31, at most 30\n  tessella/a.py:4 area" in capsys.readouterr().out


TINY_CONFIG = """
from dataclasses import dataclass

@dataclass
class TrainConfig:
    steps: int = 1

@dataclass
class Recipe:
    train: TrainConfig | None = None
"""

TINY_COMMANDS = """
from tessella.config import Recipe, TrainConfig
from tessella.training.loop import setup

class Run:
    def __init__(self, recipe):
        self.recipe = recipe

def read():
    return Recipe(TrainConfig()), "name"

def table(*parts, **more):
    return {"train": vars(more["plan"].train)}

def splits(images):
    return images

def start(run):
    setup(run)

def main(arguments):
    recipe, name = read()
    table(recipe, plan=recipe)
    table(plan=recipe)
    splits({"train": [1, 2]})
    start(Run(recipe))
"""

TINY_LOOP = """
def setup(run):
    late(run.recipe)

def late(recipe):
    raise AssertionError("the loop has begun")
"""

FOLLOW = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
sys.modules["torch"] = sys
import recipe_stops
print(json.dumps(recipe_stops.follow(Path("run")).summary()))
"""


def test_stops_of_a_recipe(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "config.py": TINY_CONFIG,
        "cli.py": TINY_COMMANDS,
        "training/__init__.py": "",
        "training/loop.py": TINY_LOOP,
    }
    package(tmp_path, files)
    command = [sys.executable, "-c", FOLLOW, str(tmp_path), str(SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    journey = json.loads(done.stdout)

    stops = {stop["function"]: stop for stop in journey["stops"]}
    assert list(stops) == ["read", "table", "Run.__init__"]
    assert stops["read"]["returns"]
    assert stops["table"]["names"] == ["parts", "plan"]
    assert stops["table"]["visits"] == 2
    assert journey["modules"] == ["tessella.cli"]
    assert journey["names"] == ["parts", "plan", "recipe"]
    assert journey["visits"] == 3
    wrapped = [stop["function"] for stop in journey["wrapped"]]
    assert wrapped == ["start", "setup"]


@pytest.mark.parametrize("name", ["house", "house_places", "house_stepping", "recipe_stops"])
def test_the_scripts_keep_their_own_limits(name: str) -> None:
    sources = house.read_sources(SCRIPTS.parent, "scripts")
    (own,) = (source for source in sources if Path(source.path).stem == name)
    assert house.broken_limits(house.measure([own])) == []
