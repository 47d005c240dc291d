"""The parts of the set-up that decide; what they decide is done by venv and pip, which the tests
leave alone."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bootstrap.py"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module of its own for each test, with a ``.venv`` in a temporary folder."""
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, place in {
        "VENV": "",
        "PYTHON": "bin/python",
        "STAMP": ".stamp",
        "UNFINISHED": ".unfinished",
    }.items():
        monkeypatch.setattr(module, name, venv / place)
    return module


def made(bootstrap: ModuleType) -> None:
    """A ``.venv`` whose Python is there, though not a real one."""
    bootstrap.PYTHON.parent.mkdir(parents=True)
    bootstrap.PYTHON.touch()


def found(
    torch: str, home: str = "/caller", version: str = sys.version, error: str = ""
) -> dict[str, Any]:
    """What probing a Python would have said."""
    return {
        "version": version,
        "torch": torch,
        "home": home,
        "folders": ["/caller", "/user"],
        "error": error,
    }


def test_an_old_python_can_read_the_script() -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_only_the_standard_library_is_imported() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 11, 7), (3, 12, 1), (4, 0, 0)])
def test_a_new_python_is_taken(bootstrap: ModuleType, version: tuple[int, ...]) -> None:
    assert bootstrap.python_problem(version) == ""


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 2), (3, 10, 13)])
def test_an_old_python_is_refused_in_one_line(
    bootstrap: ModuleType, version: tuple[int, ...]
) -> None:
    problem = bootstrap.python_problem(version)
    assert "3.11" in problem
    assert ".".join(map(str, version)) in problem
    assert "\n" not in problem


def test_the_script_and_the_package_ask_for_the_same(bootstrap: ModuleType) -> None:
    assert PYPROJECT["project"]["requires-python"] == ">={}.{}".format(*bootstrap.LEAST_PYTHON)
    assert "torch>={}.{}".format(*bootstrap.LEAST_TORCH) in PYPROJECT["project"]["dependencies"]
    assert bootstrap.recent_enough(bootstrap.TORCH)


@pytest.mark.parametrize(
    "version",
    ["2.11.0", "2.11", "2.11.0+cu128", "2.11.1rc1", "2.13.0+cpu", "2.12.0a0+git1", "3.0.0"],
)
def test_a_recent_torch_is_reused(bootstrap: ModuleType, version: str) -> None:
    assert bootstrap.recent_enough(version)
    assert bootstrap.borrowed_folders(found(version)) == ["/caller", "/user"]
    assert bootstrap.borrowed_folders(found(version, home="/elsewhere")) == [
        "/caller",
        "/user",
        "/elsewhere",
    ]


@pytest.mark.parametrize(
    "version",
    ["", "2.10.1+cu128", "2.9.0", "2.11.0a0+git123", "2.11.0rc2", "2.11.0.dev2026", "1.13"],
)
def test_an_old_torch_is_not(bootstrap: ModuleType, version: str) -> None:
    assert not bootstrap.recent_enough(version)
    assert bootstrap.borrowed_folders(found(version)) == []


def test_the_stamp_changes_with_each_of_its_parts(bootstrap: ModuleType) -> None:
    parts = [
        (b"a", b"b", "c"),
        (b"x", b"b", "c"),
        (b"a", b"x", "c"),
        (b"a", b"b", "x"),
        (b"ab", b"", "c"),
        (b"", b"ab", "c"),
    ]
    keys = [bootstrap.stamp_key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert keys == [bootstrap.stamp_key(*part) for part in parts]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"key": "k"}', '{"key": "other", "groups": ["run"]}']
)
def test_a_stamp_that_does_not_fit_is_none(bootstrap: ModuleType, text: str) -> None:
    assert not bootstrap.stamped(text, "k", "run")


def test_a_stamp_names_its_groups(bootstrap: ModuleType) -> None:
    text = '{"key": "k", "groups": ["run"]}'
    assert bootstrap.stamped(text, "k", "run")
    assert not bootstrap.stamped(text, "k", "test")
    assert not bootstrap.stamped(text, "k", "docs")


def test_each_group_contains_the_one_before(bootstrap: ModuleType) -> None:
    groups = ("run", "test", "docs")
    run, test, docs = (bootstrap.requirements(PYPROJECT, group) for group in groups)
    assert set(PYPROJECT["project"]["dependencies"]) < set(run) < set(test) < set(docs)
    assert any(line.startswith("pytest") for line in test)
    assert any(line.startswith("sphinx") for line in docs)


def test_a_finished_set_up_is_not_done_again(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(bootstrap)
    done: list[str] = []
    monkeypatch.setattr(bootstrap, "usable", lambda: True)
    monkeypatch.setattr(bootstrap, "install", done.append)
    assert [bootstrap.main([group]) for group in ("run", "run", "test", "run", "test")] == [0] * 5
    assert done == ["run", "test"]
    assert not bootstrap.UNFINISHED.exists()
    bootstrap.STAMP.write_text("damaged", encoding="utf-8")
    assert bootstrap.main([]) == 0
    assert done == ["run", "test", "run"]


def test_a_failure_leaves_no_stamp_and_keeps_what_there_is(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(bootstrap)
    bootstrap.STAMP.write_text("of another state", encoding="utf-8")

    def fail(group: str) -> None:
        assert bootstrap.UNFINISHED.exists()
        raise bootstrap.SetupError("no index")

    monkeypatch.setattr(bootstrap, "usable", lambda: True)
    monkeypatch.setattr(bootstrap, "install", fail)
    assert bootstrap.main(["run"]) == 1
    assert "set-up failed: no index" in capsys.readouterr().err
    assert not bootstrap.STAMP.exists()
    assert not bootstrap.UNFINISHED.exists()


def test_an_interrupted_set_up_starts_over(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(bootstrap)
    events: list[str] = []

    def interrupt(group: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "usable", lambda: True)
    monkeypatch.setattr(bootstrap, "create", lambda: events.append("create"))
    monkeypatch.setattr(bootstrap, "install", interrupt)
    assert bootstrap.main(["run"]) == 130
    assert events == []
    assert not bootstrap.STAMP.exists()
    monkeypatch.setattr(bootstrap, "install", events.append)
    assert bootstrap.main(["run"]) == 0
    assert events == ["create", "run"]
    assert bootstrap.STAMP.exists()


@pytest.mark.parametrize(
    "now",
    [found("2.12.0"), found("2.13.0", home="/elsewhere"), found("", error="ImportError: gone")],
)
def test_a_torch_that_changed_is_an_error(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, now: dict[str, Any]
) -> None:
    made(bootstrap)
    commands: list[tuple[str, ...]] = []
    probes = iter([found("2.13.0"), now])
    monkeypatch.setattr(bootstrap, "probe", lambda python: next(probes))
    monkeypatch.setattr(bootstrap, "pip", lambda what, *arguments: commands.append(arguments))
    with pytest.raises(bootstrap.SetupError, match="changed torch from 2.13.0 in /caller to"):
        bootstrap.install("run")
    constraints = bootstrap.VENV / "constraints.txt"
    assert commands[0][:2] == ("-c", str(constraints))
    assert constraints.read_text(encoding="utf-8") == "torch==2.13.0\n"


@pytest.mark.parametrize("index", ["", "https://example.org/whl/cpu"])
def test_torch_is_installed_alone_and_first(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    made(bootstrap)
    commands: list[tuple[str, ...]] = []
    probes = iter([found("2.10.0"), found("2.13.0"), found("2.13.0")])
    monkeypatch.setenv("TESSELLA_TORCH_INDEX", index)
    monkeypatch.setattr(bootstrap, "probe", lambda python: next(probes))
    monkeypatch.setattr(bootstrap, "pip", lambda what, *arguments: commands.append(arguments))
    bootstrap.install("run")
    assert commands[0] == (*(("--extra-index-url", index) if index else ()), "torch==2.13.0")
    assert commands[-1] == ("--no-deps", "--editable", str(ROOT))


def test_a_failing_command_shows_its_last_lines(bootstrap: ModuleType) -> None:
    code = "print('first'); [print('line', i) for i in range(20)]; raise SystemExit('the reason')"
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.run([sys.executable, "-c", code], "could not do it", "try this")
    message = str(caught.value)
    assert message.startswith("could not do it")
    assert "the reason" in message
    assert "first" not in message
    assert message.endswith("try this")


def test_probing_tells_the_version_and_the_torch_of_a_python(bootstrap: ModuleType) -> None:
    import torch

    here = bootstrap.probe(Path(sys.executable))
    assert (here["version"], here["torch"], here["error"]) == (sys.version, torch.__version__, "")
    assert Path(here["home"]) == Path(torch.__file__).parents[1]
    with pytest.raises(bootstrap.SetupError, match="does not run"):
        bootstrap.probe(bootstrap.PYTHON)


def test_an_unknown_group_is_refused() -> None:
    command = [sys.executable, str(SCRIPT), "everything"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "usage: python3 scripts/bootstrap.py [run|test|docs]\n",
    )
