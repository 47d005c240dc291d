"""Things added from a file outside the package, through the command line: the examples of the docs.

Each example of ``docs/extending.md`` is written to a file of its own and used as its readers would.
"""

from __future__ import annotations

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
QUICK = ["train.batch=16", "--steps", "4", "--threads", "1"]


def tessella(folder: Path, *words: str) -> str:
    """Run the command in a process of its own, as the registrations of a process are for good."""
    done = subprocess.run(
        [sys.executable, "-m", "tessella", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def plugin(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with one example in it."""
    (tmp_path / request.param).write_text(EXAMPLES[request.param], encoding="utf-8")
    return tmp_path


def test_the_page_has_an_example_of_each() -> None:
    assert list(EXAMPLES) == ["markov.py", "binomial.py", "signs.py", "stripes.py"]


@pytest.mark.parametrize("plugin", ["markov.py"], indirect=True)
def test_a_model_from_outside(plugin: Path) -> None:
    use = ["--plugin", "markov.py"]
    shown = tessella(plugin, "check", "markov", *use, "hidden=8")
    assert "BROKEN" not in shown
    assert "markov with head logistic-mixture: the probabilities of all grids sum to one" in shown
    run = ["--model", "markov", "model.hidden=8", "--out", "run"]
    tessella(plugin, "train", "digits", *use, *run, *QUICK)
    tessella(plugin, "sample", "run", *use, "--n", "4", "--out", "samples.png")
    assert (plugin / "samples.png").exists()
    assert "bits/dim" in tessella(plugin, "eval", "run", *use)


@pytest.mark.parametrize("plugin", ["binomial.py"], indirect=True)
def test_a_head_from_outside(plugin: Path) -> None:
    use = ["--plugin", "binomial.py"]
    assert "BROKEN" not in tessella(plugin, "check", "binomial", *use)
    small = ["model.head=binomial", "model.layers=1", "model.hidden=8", "--out", "run"]
    tessella(plugin, "train", "digits", *use, *small, *QUICK)
    assert "bits/dim" in tessella(plugin, "eval", "run", *use)


@pytest.mark.parametrize("plugin", ["signs.py"], indirect=True)
def test_a_quantizer_from_outside(plugin: Path) -> None:
    use = ["--plugin", "signs.py"]
    assert "BROKEN" not in tessella(plugin, "check", "signs", *use)
    small = ["tokenizer.quantizer=signs", "tokenizer.code_dim=6", "tokenizer.hidden=8"]
    tessella(plugin, "train", "digits-vqvae", *use, *small, "--out", "vqvae", *QUICK)
    prior = ["--tokenizer", "vqvae", "model.layers=1", "model.hidden=8", "--out", "run"]
    tessella(plugin, "train", "digits-prior", *use, *prior, *QUICK)
    tessella(plugin, "sample", "run", *use, "--n", "4", "--out", "samples.npz")
    assert "bits" in tessella(plugin, "eval", "run", *use)


@pytest.mark.parametrize("plugin", ["stripes.py"], indirect=True)
def test_a_source_from_outside(plugin: Path) -> None:
    use = ["--plugin", "stripes.py"]
    assert "BROKEN" not in tessella(plugin, "check", "stripes", *use)
    small = ["data.levels=4", "model.layers=1", "model.hidden=8", "model.conditional=true"]
    run = ["train", "digits", *use, "--data", "stripes", *small, "--out", "run", *QUICK]
    tessella(plugin, *run)
    assert "bits/dim" in tessella(plugin, "eval", "run", *use)
