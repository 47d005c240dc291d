"""Errors that a caller can act on, and checks that raise them.

Every message says what was given, what is allowed, and how to fix it. The command line prints the
message of a :class:`TessellaError` as one line and exits with status 2. Any other exception is a
bug in Tessella and keeps its traceback.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable


class TessellaError(Exception):
    """Base of the errors that a caller can fix."""


class InputError(TessellaError, ValueError):
    """An argument, an array or an image is not what a function accepts."""


class ConfigError(TessellaError, ValueError):
    """A recipe, an override or a saved configuration is not valid."""


class DataError(TessellaError):
    """A data source is missing, empty or unreadable."""


class ArtifactError(TessellaError):
    """A saved model or run directory is missing, damaged, or from an incompatible version."""


class BitstreamError(TessellaError, ValueError):
    """A compressed file is damaged, cut short, of another model, or no such file at all."""


class TrainingError(TessellaError):
    """Training cannot start or continue: the loss is not finite, or a run cannot be resumed."""


class NumericalError(TessellaError, ArithmeticError):
    """A model returns NaN or infinity instead of probabilities, usually because of its weights."""


class TessellaWarning(UserWarning):
    """A warning about something that works, but probably not as the caller intends.

    The command line prints it as one line.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest match and all known names.

    Args:
        kind: kind of thing that is named, for the message.
        name: the unknown name.
        known: all known names.

    >>> unknown("head", "categorial", ["categorical", "logistic-mixture"])
    "unknown head 'categorial'; did you mean 'categorical'? Known: categorical, logistic-mixture"
    """
    # Without a near match, the sentence ends after the name.
    names = sorted(known)
    return f"unknown {kind} {name!r}{nearest(name, names) or '.'} Known: {', '.join(names)}"


def nearest(name: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """The words that suggest the nearest of the known names; empty if none is near.

    Args:
        name: the unknown name.
        known: all known names.
        likeness: minimum similarity, 0..1, as :mod:`difflib` measures it.

    >>> nearest("sampel", ["train", "sample"])
    "; did you mean 'sample'?"
    """
    # Suggest only what is close enough to be a typo.
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_integer(name: str, value: object, least: int = 0, most: int | None = None) -> int:
    """Check an integer argument, and return it as an int.

    Args:
        name: name of the argument as the caller knows it (``batch``, ``--batch``).
        value: an int or a numpy integer; booleans are not allowed.
        least, most: inclusive bounds; None for no upper bound.

    Raises:
        InputError: when ``value`` is not an integer within the bounds.

    >>> check_integer("batch", 0, least=1)
    Traceback (most recent call last):
    tessella.errors.InputError: batch must be an integer of at least 1, got 0
    """
    # True and numpy's bool_ count as integers in Python, but are surely mistakes here.
    if type(value).__name__ not in ("bool", "bool_"):
        try:
            # Unlike int(), index() rejects floats and strings.
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
    """Check a numeric argument, and return it as a finite float.

    Args:
        name: name of the argument as the caller knows it.
        value: an int, a float, or a numpy scalar; booleans are not allowed.
        least, most: inclusive bounds.

    Raises:
        InputError: when ``value`` is not a finite number within the bounds.
    """
    # Strings have no __float__, although float() would parse them.
    is_number = hasattr(value, "__float__") and type(value).__name__ not in ("bool", "bool_")
    if is_number:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan  # an array of several values, an integer beyond floats
        if math.isfinite(number) and least <= number <= most:
            return number
    # Name only the bounds that there are.
    bounds = []
    if least > -math.inf:
        bounds.append(f"at least {least:g}")
    if most < math.inf:
        bounds.append(f"at most {most:g}")
    allowed = " and ".join(bounds)
    raise InputError(f"{name} must be a finite number {allowed}".rstrip() + f", got {value!r}")
