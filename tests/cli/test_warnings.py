"""Warnings as a user sees them: one line on standard error, once, and the command goes on."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tessella.cli.entry import main
from tessella.cli.verbs import info

SMALL = [
    "model.layers=1",
    "model.hidden=4",
    "train.validate_every=1",
    "train.batch=16",
    "--steps",
    "2",
]


def test_training_an_ordered_head_on_codes_is_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "digits-prior", "--tokenizer", "digits-vqvae", "model.head=ordinal", *SMALL]
    assert main([*words, "--out", f"{tmp_path}/run"]) == 0
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if "warning" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "tessella: warning: the prior's head 'ordinal' takes neighbouring levels to be alike"
    )
    assert 'head="categorical"' in told[0]
    assert ".py" not in told[0]
    code = [
        sys.executable,
        "-m",
        "tessella",
        "sample",
        f"{tmp_path}/run",
        "--n",
        "1",
        "--out",
        f"{tmp_path}/x.png",
    ]
    sampled = subprocess.run(code, capture_output=True, text=True, check=True)
    assert sampled.stderr.splitlines() == told


def test_the_warnings_of_others_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: object) -> int:
        warnings.warn("of others", stacklevel=1)
        return 0

    monkeypatch.setattr(info, "run", run)
    with pytest.warns(UserWarning, match="of others"):
        assert main(["info"]) == 0
