"""The command line. Help answers without importing torch; a mistake is one line and a non-zero exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tessella import __version__
from tessella.errors import TessellaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 after a mistake of the caller, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"tessella {__version__}")
        return 0
    try:
        from tessella.options import parse
    except ImportError:
        print('tessella: the command line needs tyro: pip install "tyro>=1.0,<2"', file=sys.stderr)
        return 2
    try:
        command = parse(words)
        from tessella import commands

        act: Callable[[Any], int] = commands.ACTIONS[type(command).__name__.lower()]
        return act(command)
    except TessellaError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes, the first one tells
            told = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
            print(f"tessella: {told}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return 1
        print(f"tessella: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tessella: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
