"""``tessella serve`` as a person starts and ends it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util

import httpx
import pytest

from tessella.cli.entry import main

SECONDS = 120
"""A process that imports torch takes its time on a busy machine."""


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tessella", "serve", *words, "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_a_free_port_is_found_and_ctrl_c_ends_it() -> None:
    with started("digits", "digits-vqvae", "--port", "0") as (process, line):
        found = re.fullmatch(r"digits, digits-vqvae: (http://127\.0\.0\.1:\d+/) \(.*\)\n", line)
        assert found, line
        names = [model["name"] for model in httpx.get(found[1] + "api/models").json()["models"]]
        assert names == ["digits", "digits-vqvae"]
        # A connection that stays open, as a browser keeps it, holds nothing up.
        with httpx.Client() as browser:
            assert browser.get(found[1]).status_code == 200
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert out == "stopped\n"
        assert err == ""


def test_an_address_that_others_reach_is_warned_of() -> None:
    with started("digits", "--port", "0", "--host", "0.0.0.0") as (process, line):
        port = int(re.search(r":(\d+)/", line)[1])  # type: ignore[index]
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=SECONDS)
        assert "warning: 0.0.0.0 can be reached from other machines" in err
        assert "Traceback" not in err


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that fails."""
    assert main(["serve", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("tessella: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_port_that_is_taken_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = mistake(capsys, "digits", "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in line
    assert "--port 0" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the runs to serve"),
        (["digit"], "did you mean 'digits'?"),
        (["digits", "--port", "70000"], "--port must lie in 0..65535"),
        (["digits", "--host", "no.such.host.invalid"], "there is no address no.such.host.invalid"),
        (["digits", "--queue", "0"], "--queue must lie in 1..4096"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in mistake(capsys, *words)


def test_a_missing_extra_is_told_with_the_line_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == "fastapi" else find(name, *rest)
    )
    line = mistake(capsys, "digits")
    assert 'the page needs fastapi: pip install "tessella[web]"' in line
