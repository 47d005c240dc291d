"""Completion of verbs, options and choices by the shell.

``tessella --print-completion SHELL`` prints a script of tyro's for the shell to load.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable

import tyro

from tessella.cli.parsing import ABOUT, CONFIG
from tessella.cli.verb_options import VERBS, Common
from tessella.errors import InputError, nearest

SHELLS = ("bash", "zsh", "fish")
"""Shells that there are scripts for."""


def script(shell: str) -> str:
    """The script that teaches a shell the verbs and options.

    Args:
        shell: one of ``SHELLS``.

    Raises:
        InputError: for another shell.
    """
    if shell not in SHELLS:
        near = nearest(shell, SHELLS) or "."
        raise InputError(
            f"--print-completion needs a shell, got {shell!r}{near} Shells: {', '.join(SHELLS)}"
        )
    verbs: dict[str, Callable[..., Common]] = dict(VERBS)
    printed = io.StringIO()
    # tyro prints the script and exits.
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            verbs,
            prog="tessella",
            description=ABOUT,
            config=CONFIG,
            args=["--tyro-print-completion", shell],
        )
    return _descriptions_in_one_line(printed.getvalue())


def _descriptions_in_one_line(text: str) -> str:
    """Take the line breaks out of the descriptions of options.

    The script prints an option and its description as a line, and would offer the rest of a
    description as one more option.
    """
    # The table of options is one line of Python, in which a line break is a backslash and an n.
    return re.sub(
        r"^COMPLETION_SPEC = .*$", lambda line: line[0].replace(r"\n", " "), text, flags=re.M
    )
