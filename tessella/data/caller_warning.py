"""Warnings that point at a line of the caller, not of this package."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from tessella.errors import TessellaWarning

_PACKAGE = str(Path(__file__).resolve().parents[1])


def warn_caller(message: str) -> None:
    """Issue a :class:`TessellaWarning` for the first line outside of the package."""
    level = 1
    frame = sys._getframe()
    # Generated code, such as that of dataclasses, has a file name in angle brackets.
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<")):
        frame = frame.f_back
        level += 1
    warnings.warn(message, TessellaWarning, stacklevel=level)
