"""Errors a caller can act on.

Every message says what was given, what is allowed, and how to fix it. The command line prints the
message of a :class:`TessellaError` as one line and exits with status 2; anything else is a defect
of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import math
import operator
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


class NumericalError(TessellaError, ArithmeticError):
    """A model's parameters are NaN or infinite, so that it gives no probabilities."""


class TessellaWarning(UserWarning):
    """Something that works, but probably not as the caller wants.

    The command line prints it as one line.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not in a table: what was given, what there is, the nearest
    match.

    >>> unknown("head", "categorial", ["categorical", "logistic-mixture"])
    "unknown head 'categorial'; did you mean 'categorical'? Known: categorical, logistic-mixture"
    """
    names = sorted(known)
    return f"unknown {kind} {name!r}{nearest(name, names) or '.'} Known: {', '.join(names)}"


def nearest(name: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """The words that offer the nearest of some names; empty where none is near.

    Args:
        likeness: least share of letters in common, 0..1.

    >>> nearest("sampel", ["train", "sample"])
    "; did you mean 'sample'?"
    """
    # Close enough to be a slip of the fingers, or nothing.
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_integer(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """Return an argument as an int, or refuse it.

    Args:
        name: of the argument, as the caller wrote it (``batch``, ``--batch``).
        value: an int, or an integer of numpy; booleans are refused.
        least, most: bounds, both allowed.

    Raises:
        InputError: naming the argument, its value and the bounds.

    >>> check_integer("batch", 0, least=1)
    Traceback (most recent call last):
    tessella.errors.InputError: batch must be an integer of at least 1, got 0
    """
    if type(value).__name__ not in ("bool", "bool_"):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass  # a float, a string, an array of several values
        else:
            if number >= least and (most is None or number <= most):
                return number
    allowed = f"of at least {least}" if most is None else f"in {least}..{most}"
    raise InputError(f"{name} must be an integer {allowed}, got {value!r}")


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return an argument as a finite float, or refuse it.

    Args:
        name: of the argument, as the caller wrote it.
        value: an int, a float, or a scalar of numpy; booleans are refused.
        least, most: bounds, both allowed.

    Raises:
        InputError: naming the argument, its value and the bounds.
    """
    is_number = hasattr(value, "__float__") and type(value).__name__ not in ("bool", "bool_")
    if is_number:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan  # an array of several values, an integer beyond floats
        if math.isfinite(number) and least <= number <= most:
            return number
    bounds = []
    if least > -math.inf:
        bounds.append(f"at least {least:g}")
    if most < math.inf:
        bounds.append(f"at most {most:g}")
    allowed = " and ".join(bounds)
    raise InputError(f"{name} must be a finite number {allowed}".rstrip() + f", got {value!r}")
