"""README and documentation do what they say: commands parse, the Python runs (three steps for a
minute)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from tessella.cli.entry import main
from tessella.cli.parsing import parse
from tessella.cli.verb_options import Common, Serve, Train
from tessella.config import load_recipe
from tessella.pipeline import bundled

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")))
WITH_A_MINUTE = ("README.md", "docs/reference/python/index.md")
"""Pages whose Python trains for a minute."""
WITH_A_TWIN = ("docs/howto/archive.md", "docs/howto/bulk.md", "docs/howto/many-images.md")
"""Pages whose Python works with a model that ships."""
RUNNING = ("README.md", "docs/index.md", "docs/howto/watch.md", "docs/reference/bundled-models.md")
"""Pages whose commands on models that ship need no files of the reader."""


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(pages: Sequence[str]) -> list[list[str]]:
    """The commands in the pages, each once."""
    found: list[list[str]] = []
    for page in pages:
        for block in blocks(page, "bash"):
            # A backslash at the end of a line goes on with the command.
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["tessella"] and words[1:] not in found:
                    found.append(words[1:])
    return found


def runs_of(command: Common) -> Sequence[str]:
    """The runs that a command names."""
    if isinstance(command, Serve):
        return command.runs
    run = getattr(command, "run", "")
    return [run] if run else []


def test_every_command_parses_and_names_what_exists() -> None:
    assert len(commands(PAGES)) >= 60
    for words in commands(PAGES):
        command = parse(words)
        if command.plugin:
            continue  # names that a file of the reader's registers
        if isinstance(command, Train) and command.resume:
            assert command.resume.startswith("runs/")
        elif isinstance(command, Train):
            model = [f"model.name={command.model}"] if command.model else []
            if not Path(command.recipe).suffix:  # a file of the reader's, or of the benchmarks
                load_recipe(command.recipe, [*model, *command.overrides])
        for run in runs_of(command):
            assert run in bundled() or run.startswith("runs/")


@pytest.mark.parametrize(
    "words",
    # A server would go on for ever; tests/web starts one.
    [
        words
        for words in commands(RUNNING)
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


@pytest.mark.parametrize("page", WITH_A_MINUTE)
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(page, "python")
    assert "minutes=1," in block
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(block.replace("minutes=1,", "steps=3,"), scope)
    assert tuple(scope["images"].shape) == (16, 8, 8, 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", WITH_A_TWIN)
def test_the_python_of_the_guides_runs(page: str) -> None:
    pytest.importorskip("constriction")
    (block,) = blocks(page, "python")
    exec(block, {})


@pytest.mark.parametrize("page", PAGES[1:])
def test_pages_link_to_files(page: str) -> None:
    """Sphinx says so of a file that is missing, and nothing of a folder, which is no page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^):\s]*)?\)", text):
        assert ((ROOT / page).parent / target).is_file(), target


def anchors(page: Path) -> set[str]:
    """What a link can name behind the # of a page: its headings, in GitHub's way."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
def test_pages_that_are_no_part_of_the_site_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:\s]*)(?:#([^):\s]+))?\)", text)
    assert links
    for path, anchor in links:
        target = ROOT / (path or page)
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"
