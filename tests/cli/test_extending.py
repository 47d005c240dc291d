"""Things added from a file outside the package, through the command line: the examples of the docs.

Each example of ``docs/extending.md`` is written to a file of its own and used as its readers would.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = dict(
    re.findall(
        r"```python\n# (\w+\.py)\n(.*?)```",
        (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
)
QUICK = "train.batch=16 --steps 4 --threads 1"

RUN_COMMANDS = """
import sys
from tessella.cli import main
for line in sys.stdin.read().splitlines():
    status = main(line.split())
    if status:
        sys.exit(status)
"""
"""Runs commands in one process, since each would import torch for three seconds."""


def run(folder: Path, commands: str) -> str:
    """Run commands, one a line, in a process that nothing was registered in; what they print."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS],
        input=commands,
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            # The kernel is compiled there already, or once for all of these.
            "TESSELLA_CACHE": os.environ["TESSELLA_CACHE"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with one example in it."""
    (tmp_path / request.param).write_text(EXAMPLES[request.param], encoding="utf-8")
    return tmp_path


def test_the_page_has_an_example_of_each() -> None:
    assert list(EXAMPLES) == ["markov.py", "binomial.py", "signs.py", "stripes.py"]


@pytest.mark.parametrize("folder", ["markov.py"], indirect=True)
def test_a_model_from_outside(folder: Path) -> None:
    shown = run(
        folder,
        f"""check markov --plugin markov.py hidden=8
        train digits --plugin markov.py --model markov model.hidden=8 --out run {QUICK}
        sample run --plugin markov.py --n 4 --out samples.png
        eval run --plugin markov.py""",
    )
    assert "BROKEN" not in shown
    assert "markov with head logistic-mixture: the probabilities of all grids sum to one" in shown
    assert (folder / "samples.png").exists()
    assert "bits/dim" in shown


@pytest.mark.parametrize("folder", ["binomial.py"], indirect=True)
def test_a_head_from_outside(folder: Path) -> None:
    small = "model.head=binomial model.layers=1 model.hidden=8"
    shown = run(
        folder,
        f"""check binomial --plugin binomial.py
        train digits --plugin binomial.py {small} --out run {QUICK}
        sample run --plugin binomial.py --n 4 --out samples.png
        eval run --plugin binomial.py""",
    )
    assert "BROKEN" not in shown
    assert "bits/dim" in shown


@pytest.mark.parametrize("folder", ["signs.py"], indirect=True)
def test_a_quantizer_from_outside(folder: Path) -> None:
    use = "--plugin signs.py"
    tokenizer = "tokenizer.quantizer=signs tokenizer.code_dim=6 tokenizer.hidden=8"
    prior = "model.layers=1 model.hidden=8"
    shown = run(
        folder,
        f"""check signs {use}
        train digits-vqvae {use} {tokenizer} --out vqvae {QUICK}
        train digits-prior {use} --tokenizer vqvae {prior} --out run {QUICK}
        sample run {use} --n 4 --out samples.npz
        eval run {use}""",
    )
    assert "BROKEN" not in shown
    assert (folder / "samples.npz").exists()


@pytest.mark.parametrize("folder", ["stripes.py"], indirect=True)
def test_a_source_from_outside(folder: Path) -> None:
    use = "--plugin stripes.py"
    small = "data.levels=4 model.layers=1 model.hidden=8 model.conditional=true"
    shown = run(
        folder,
        f"""check stripes {use}
        train digits {use} --data stripes {small} --out run {QUICK}
        sample run {use} --n 4 --class-label 1 --out samples.png
        eval run {use}""",
    )
    assert "BROKEN" not in shown
    assert "bits/dim" in shown
