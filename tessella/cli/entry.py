"""The command line. Help answers without importing torch; a mistake is one line and a non-zero
exit."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tessella import __version__
from tessella.errors import TessellaError, TessellaWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 after a mistake of the caller, 130 when
    interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"tessella {__version__}")
        return 0
    try:
        from tessella.cli.options import parse
    except ImportError:
        print('tessella: the command line needs tyro: pip install "tyro>=1.0,<2"', file=sys.stderr)
        return 2
    try:
        command = parse(words)
        from tessella.cli import commands

        act: Callable[[Any], int] = commands.ACTIONS[type(command).__name__.lower()]
        with _warnings_in_one_line():
            return act(command)
    except TessellaError as error:
        _tell(str(error))
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return 1
        print(f"tessella: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tessella: interrupted", file=sys.stderr)
        return 130


def _tell(message: str) -> None:
    """One line on standard error; of several processes, the first one tells."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        told = " ".join(message.split()).encode(errors="backslashreplace").decode()
        print(f"tessella: {told}", file=sys.stderr)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Each of our warnings once and without a place in the source; those of others as they are."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if not issubclass(category, TessellaWarning):
            others(message, category, *rest, **more)
        elif str(message) not in told:
            told.add(str(message))
            _tell(f"warning: {message}")

    with warnings.catch_warnings():
        others = warnings.showwarning
        warnings.simplefilter("always", TessellaWarning)
        warnings.showwarning = show  # put back at the end, with the filters
        yield


if __name__ == "__main__":
    sys.exit(main())
