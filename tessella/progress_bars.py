"""Progress bars on standard error, or in the notebook that runs the code.

They are tqdm's. One function decides where a bar is shown: on a terminal and in a notebook, not in
a file or a pipe, and nowhere inside of :func:`hidden`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]


class ProgressBar(tqdm):
    """tqdm's bar for where the code runs: a line of the terminal, or an element of a notebook."""


_hidden = False


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no progress inside of the block, neither bars nor the lines that stand in for them."""
    global _hidden
    before = _hidden
    _hidden = True
    try:
        yield
    finally:
        _hidden = before


def are_hidden() -> bool:
    """Whether the caller is inside of :func:`hidden`."""
    return _hidden


def create(**options: Any) -> ProgressBar:
    """A bar of tqdm, which shows nothing where nobody watches.

    Args:
        options: those of tqdm; ``disable=True`` hides this bar in any case.
    """
    disable = bool(options.pop("disable", False)) or _hidden or not _is_watched()
    return ProgressBar(disable=disable, **options)


def _is_watched() -> bool:
    # In a notebook the bar is an element of the page, and standard error is no terminal.
    return sys.stderr.isatty() or _is_in_notebook()


def _is_in_notebook() -> bool:
    # tqdm.auto looks at the running IPython when it is imported, and derives its class from the
    # bar for notebooks where it finds one.
    return any(base.__name__ == "tqdm_notebook" for base in ProgressBar.__mro__)
