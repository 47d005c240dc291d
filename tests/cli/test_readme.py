"""README and guide do what they say: commands parse, the Python runs (three steps for a minute)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tessella.cli.entry import main
from tessella.cli.parsing import parse
from tessella.cli.verb_options import Serve, Train
from tessella.config import load_recipe
from tessella.pipeline import bundled

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/guide.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                if line.startswith("tessella "):
                    found.append(shlex.split(line, comments=True)[1:])
    return found


def test_every_command_parses_and_names_what_exists() -> None:
    assert len(commands()) >= 20
    for words in commands():
        command = parse(words)
        if command.plugin:
            continue  # names that a file of the reader's registers
        if isinstance(command, Train) and command.resume:
            assert command.resume.startswith("runs/")
        elif isinstance(command, Train):
            load_recipe(command.recipe, command.overrides)
        elif not getattr(command, "models", 0):
            for run in command.runs if isinstance(command, Serve) else [command.run]:
                assert run in bundled() or run.startswith("runs/")


@pytest.mark.parametrize(
    "words",
    # A server would go on for ever; tests/web starts one.
    [
        words
        for words in commands()
        if words[1] in bundled() and words[0] != "serve" and "--plugin" not in words
    ],
    ids=" ".join,
)
def test_commands_on_bundled_models_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A few steps show that a command trains; its minutes are for readers.
    line = " ".join(words).replace("--minutes 1", "--steps 3")
    # Boards are extras.
    line = re.sub(r"--board \w+", "", line)
    if words[0] == "train" and "--steps" not in line:
        # Without a limit of its own it would train for the minutes of its recipe.
        line += " --steps 3"
    assert main(line.split()) == 0


@pytest.mark.parametrize("page", PAGES)
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(page, "python")
    assert "minutes=1," in block
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(block.replace("minutes=1,", "steps=3,"), scope)
    assert tuple(scope["images"].shape) == (16, 8, 8, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", [*PAGES, "docs/results.md"])
def test_pictures_and_pages_it_shows_are_there(page: str) -> None:
    folder = (ROOT / page).parent
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", text):
        assert (folder / target).exists(), target
