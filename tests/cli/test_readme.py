"""The README does what it says: its commands parse, its Python runs (with three steps in place of a
minute)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tessella.cli.entry import main
from tessella.cli.options import Train, parse
from tessella.config import load_recipe
from tessella.pipeline import bundled

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tessella ")]


def test_every_command_parses_and_names_what_exists() -> None:
    assert len(commands()) >= 8
    assert not re.search(r"@[A-Z]+@", README), "a place is still to be filled"
    for words in commands():
        command = parse(words)
        if isinstance(command, Train):
            load_recipe(command.recipe, command.overrides)
        elif not getattr(command, "models", 0):
            assert command.run in bundled() or command.run.startswith("runs/")


@pytest.mark.parametrize(
    "words", [words for words in commands() if words[1] in bundled()], ids=" ".join
)
def test_commands_on_bundled_models_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks("python")
    assert "minutes=1," in block
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(block.replace("minutes=1,", "steps=3,"), scope)
    assert tuple(scope["completed"].shape) == (16, 8, 8, 1)  # type: ignore[attr-defined]


def test_pictures_and_pages_it_shows_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
