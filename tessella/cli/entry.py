"""The command line.

Help answers without importing torch; a mistake is one line and a non-zero exit status.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from tessella import __version__
from tessella.cli import terminal
from tessella.errors import TessellaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: its words; those of the process unless given.

    Returns:
        The exit status: 0, 1 when a check failed, 2 after a mistake of the caller, 130 when
        interrupted, 75 when a queue ended a training.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"tessella {__version__}")
        return 0
    with terminal.escapes_what_cannot_be_shown(), terminal.warnings_in_one_line():
        try:
            return _run(words)
        except TessellaError as error:
            terminal.complain(str(error))
            return 2
        except BrokenPipeError:
            # Whoever read the output has gone; a second failure at exit would print a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            terminal.complain(str(error))
            return 2
        except (MemoryError, RuntimeError) as error:
            # Any other RuntimeError is a fault of ours and keeps its traceback.
            if not _is_out_of_memory(error):
                raise
            terminal.complain(
                "there is not enough memory for that: ask for fewer images at a time (--batch,"
                " train.batch=, train.accumulate=), or for a smaller model"
            )
            return 2
        except KeyboardInterrupt:
            terminal.complain("interrupted")
            return 130


def _run(words: list[str]) -> int:
    """Read a command, check it, load its plugins, and run its verb."""
    try:
        # Imported here, so that a missing tyro gets a sentence and --version stays fast.
        from tessella.cli import checks, parsing
    except ImportError as error:
        if error.name not in (None, "tyro"):
            raise
        terminal.complain('the command line needs tyro: pip install "tyro>=1.0,<2"')
        return 2
    if words[:1] == ["--print-completion"]:
        from tessella.cli import completion

        terminal.answer(completion.script(" ".join(words[1:])))
        return 0
    # From the cheapest check to the dearest: words, numbers and outputs, names, then the work.
    command = parsing.parse(words)
    checks.check_values(command)
    # Plugins come before the names, some of which they may define.
    if command.plugin:
        from tessella.registry import load_plugin

        for path in command.plugin:
            load_plugin(path)
    checks.check_names(command)
    # torch is imported with the module of the verb, not before.
    verb = importlib.import_module(f"tessella.cli.verbs.{type(command).__name__.lower()}")
    with terminal.quiet() if command.quiet else contextlib.nullcontext():
        status: int = verb.run(command)
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """Whether numpy or torch could not allocate what was asked for.

    torch has a class of its own for devices; its allocator on the CPU raises a RuntimeError.
    """
    is_from_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(
        error
    )
    return isinstance(error, MemoryError) or is_from_torch


if __name__ == "__main__":
    sys.exit(main())
