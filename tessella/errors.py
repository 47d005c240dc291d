"""Errors a caller can act on.

Every message says what was given, what is allowed, and how to fix it. The command line prints the
message of a :class:`TessellaError` as one line and exits with status 2; anything else is a defect
of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TessellaError(Exception):
    """Base of every error that is the caller's to fix."""


class InputError(TessellaError, ValueError):
    """An argument, an array or an image does not fit what was asked of it."""


class ConfigError(TessellaError, ValueError):
    """A recipe, an override or a saved configuration is not valid."""


class DataError(TessellaError):
    """A data source is missing, empty or cannot be read."""


class ArtifactError(TessellaError):
    """A saved model or run directory is missing, damaged, or of another version."""


class TrainingError(TessellaError):
    """Training cannot start or go on: the loss is not finite, or a resume does not fit."""


class TessellaWarning(UserWarning):
    """Something that works, and that the caller will hardly want. The command line prints it as one
    line."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not in a table: what was given, what there is, the nearest
    match.

    >>> unknown("head", "categorial", ["categorical", "logistic-mixture"])
    "unknown head 'categorial'; did you mean 'categorical'? Known: categorical, logistic-mixture"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"
