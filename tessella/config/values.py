"""Numbers, flags and texts of recipes."""

from __future__ import annotations

from tessella.errors import ConfigError


def plain_value(hint: type, value: object, place: str) -> object:
    """Check a number, a flag or a text against its type."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    # 1 is as good as 1.0.
    if hint is float and isinstance(value, int) and whole:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(
                f"{place} must be a finite number, got {str(value)[:20]}..."
            ) from None
    if hint is str and whole:
        return str(value)  # size = 64
    # True and False are ints to Python, and none to a recipe.
    if (hint is int and not whole) or not isinstance(value, hint):
        raise ConfigError(f"{place} must be of type {hint.__name__}, got {value!r}")
    return value
