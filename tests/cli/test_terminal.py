"""What a person sees in a terminal: previews, progress, completion; and --quiet, which is less."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

from tessella import progress_bars
from tessella.cli import completion, preview
from tessella.cli.entry import main

HALF_BLOCK = "▀"
COLUMNS = 80
LINES = 24


def in_terminal(words: list[str]) -> str:
    """What a command prints on a terminal of 80 columns that knows no protocol for pictures."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (LINES, COLUMNS))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tessella", *words],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    printed = b""
    while True:
        try:
            part = os.read(controller, 1 << 16)
        except OSError:  # Linux: the process has closed its end
            break
        if not part:
            break
        printed += part
    os.close(controller)
    assert process.wait() == 0, printed.decode()
    return printed.decode()


def test_a_sheet_is_shown_in_a_terminal(tmp_path: Path) -> None:
    words = ["sample", "digits", "--n", "4", "--out", str(tmp_path / "four.png")]
    shown = in_terminal(words)
    assert HALF_BLOCK in shown
    assert "4 images of 8x8" in shown
    # Digits are drawn in more than one colour.
    colours = set(re.findall(r"\x1b\[38;2;(\d+);", shown))
    assert len(colours) > 3
    plain = in_terminal([*words, "--no-preview"])
    assert HALF_BLOCK not in plain
    assert "4 images of 8x8" in plain


def test_nothing_is_shown_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preview, "_renderable", lambda *_: pytest.fail("a picture in a pipe"))
    preview.show(np.zeros((4, 4, 1), np.uint8))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "sheets"),
    [
        ("sample digits --n 2 --out {out}/x.png", 1),
        ("sample digits --n 2 --out {out}/x.npz", 0),
        ("complete digits --n 2 --variants 1 --out {out}/x.png", 1),
        ("eval digits-vqvae data.limit=20", 1),
        ("eval digits-codes data.limit=20", 1),
        ("eval digits data.limit=20", 0),
    ],
)
def test_verbs_show_their_pictures(
    words: str, sheets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []
    monkeypatch.setattr(preview, "show", shown.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    # There is no terminal to be asked for its size.
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    monkeypatch.setenv("LINES", str(LINES))
    command = words.format(out=tmp_path).split()
    assert main(command) == 0
    assert len(shown) == sheets
    assert all(sheet.dtype == np.uint8 and sheet.ndim == 3 for sheet in shown)
    assert main([*command, "--no-preview"]) == 0
    assert len(shown) == sheets


def test_a_preview_keeps_its_shape_and_fits() -> None:
    # A cell is twice as high as wide, so 20 lines are as high as 40 columns are wide.
    assert preview.size_in_cells(100, 100, columns=80) == (40, 20)
    assert preview.size_in_cells(100, 100, columns=10) == (10, 5)
    assert preview.size_in_cells(1000, 10, columns=80) == (80, 1)
    assert preview.size_in_cells(10, 10000, columns=80) == (1, 20)


def test_quiet_leaves_answers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.png"
    assert main(["sample", "digits", "--n", "1", "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert out.exists()
    # Figures are what eval is asked for.
    assert main(["eval", "digits", "data.limit=20", "--quiet"]) == 0
    assert "bits/dim" in capsys.readouterr().out
    # Errors come in any case, and the next command is as loud as ever.
    assert main(["sample", "digitz", "--quiet"]) == 2
    assert "digits" in capsys.readouterr().err
    assert main(["sample", "digits", "--n", "1", "--out", str(out)]) == 0
    assert "1 images" in capsys.readouterr().out


def test_quiet_training_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "digits", "--steps", "2", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, "model.layers=1", "model.hidden=4"]) == 0
    assert capsys.readouterr().out == ""


def test_bars_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bars.create(total=1).disable, "the tests have no terminal"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not progress_bars.create(total=1).disable
    assert progress_bars.create(total=1, disable=True).disable
    with progress_bars.hidden():
        assert progress_bars.create(total=1).disable
    assert not progress_bars.create(total=1).disable


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    class tqdm_notebook:  # the name that is looked for
        pass

    assert not progress_bars._is_in_notebook()
    monkeypatch.setattr(progress_bars, "ProgressBar", type("Auto", (tqdm_notebook,), {}))
    assert progress_bars._is_in_notebook()


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_knows_verbs_options_and_choices(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("detokenize", "--temperature", "parallel", "--no-preview"):
        assert word in script


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _tyro_tessella"
        tell = 'printf "%s\\n" "${COMPREPLY[@]}"'
        run = subprocess.run(
            ["bash"], input=f"{script}\n{ask}\n{tell}\n", capture_output=True, text=True, check=True
        )
        return run.stdout.split()

    assert completed("tessella", "samp") == ["sample"]
    assert completed("tessella", "sample", "digits", "--me") == ["--method"]
    assert completed("tessella", "sample", "--method", "p") == ["parallel"]
    assert completed("tessella", "sample", "--weights", "i") == ["int8"]


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bsh"]) == 2
    assert "'bash'" in capsys.readouterr().err
