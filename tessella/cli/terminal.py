"""Printing: results on standard output, everything else on standard error.

Of several processes that work together, only the first prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from tessella import progress_bars
from tessella.errors import TessellaWarning

_quiet = False


def answer(line: str) -> None:
    """Print a line of what was asked for on standard output, quiet or not."""
    if _is_first_process():
        print(line, flush=True)


def say(line: str) -> None:
    """Print a line about what is done on standard output, unless it should be quiet."""
    if not _quiet:
        answer(line)


def is_quiet() -> bool:
    """Whether the caller is inside of :func:`quiet`."""
    return _quiet


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print only answers, warnings and errors inside of the block, and no progress."""
    global _quiet
    before = _quiet
    _quiet = True
    try:
        with progress_bars.hidden():
            yield
    finally:
        _quiet = before


def complain(message: str) -> None:
    """Print a message as one line on standard error."""
    if _is_first_process():
        print(f"tessella: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def escapes_what_cannot_be_shown() -> Iterator[None]:
    """Print escapes in place of characters that the terminal's encoding lacks.

    This covers every print and progress bar of the block, and file names that are not UTF-8.
    """
    # A test or a notebook may have put another kind of stream in their place.
    both = (sys.stdout, sys.stderr)
    streams = [stream for stream in both if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show each of our warnings once, without its place in the source; others as they are."""
    shown: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, TessellaWarning):
            show_others(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            complain(f"warning: {message}")

    with warnings.catch_warnings():
        show_others = warnings.showwarning
        # Python would show a warning once for each place; here it is once for each message.
        warnings.simplefilter("always", TessellaWarning)
        warnings.showwarning = show  # put back at the end, with the filters
        yield


def _is_first_process() -> bool:
    # Launchers number the processes: on all machines together (torchrun, Slurm), or on this one.
    numbers = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return all(os.environ.get(name, "0") == "0" for name in numbers)
