"""The tutorial runs from top to bottom, with three steps of training instead of hundreds.

Two kinds of cells are for the build of the page alone. Those tagged ``page`` prepare the notebook.
Those tagged ``story`` assert what the text says of trained models, which no three steps can make
true.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path

import pytest
import torch

from tessella.cli.parsing import parse
from tessella.cli.verb_options import Train
from tessella.config import load_recipe

matplotlib = pytest.importorskip("matplotlib")

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
CELL = re.compile(r"```\{code-cell\} ipython3\n(?::tags: \[(.*?)\]\n)?(.*?)```", re.DOTALL)


def cells() -> list[tuple[set[str], str]]:
    """The tags and the code of each cell."""
    found = []
    for tags, code in CELL.findall(TEXT):
        found.append((set(tags.split(", ")), code))
    # None is written in a way that the pattern above does not know.
    assert len(found) == TEXT.count("{code-cell}")
    return found


def test_every_training_has_a_fixed_number_of_steps() -> None:
    code = "\n".join(code for _, code in cells())
    calls = re.findall(r"^ *learn\((.*)\)$", code, re.MULTILINE)
    assert len(calls) >= 6
    for call in calls:
        assert re.search(r"\bsteps=\d+", call), call


@pytest.mark.slow
def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    elsewhere = tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    scope: dict[str, object] = {}
    with matplotlib.rc_context({"backend": "Agg", "figure.max_open_warning": 0}):
        for number, (tags, code) in enumerate(cells()):
            if tags & {"story", "page"}:
                continue
            few_steps = re.sub(r"\bsteps=\d+", "steps=3", code)
            exec(compile(few_steps, f"cell {number} of {PAGE.name}", "exec"), scope)
        matplotlib.pyplot.close("all")
    scope["runs"].cleanup()  # type: ignore[attr-defined]
    # The page leaves nothing where it runs.
    assert list(here.iterdir()) == []
    # The last model stands on all that came before it.
    images = scope["two_stage"].sample(2, seed=0)  # type: ignore[attr-defined]
    assert images.shape == torch.Size([2, 8, 8, 1])


def test_its_commands_parse_and_its_links_lead_somewhere() -> None:
    commands = re.findall(r"^tessella (.*)$", TEXT, re.MULTILINE)
    assert commands
    for line in commands:
        command = parse(shlex.split(line))
        if isinstance(command, Train):
            load_recipe(command.recipe, command.overrides)
    pages = re.findall(r"\]\(([a-z]+\.md)\)", TEXT)
    assert len(pages) >= 5
    for page in pages:
        assert (PAGE.parent / page).is_file(), page
