"""Values of recipes checked against the annotations of the configuration they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from tessella.errors import ConfigError, unknown

C = TypeVar("C")


def from_dict(cls: type[C], values: object, where: str = "") -> C:
    """Build a configuration dataclass from plain values, refusing unknown keys and wrong types.

    Args:
        cls: a dataclass of this module.
        values: a table, as TOML or JSON gives it.
        where: name of the table, for messages.

    Raises:
        ConfigError: naming the key, its place, what is allowed there and the nearest match.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the recipe'} must be a table, got {values!r}")
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    # The tables of models and tokenizers take the sizes of the class they name, which stand beside
    # the other keys and are gathered in the field ``sizes``.
    open_ended = "sizes" in known
    built: dict[str, object] = {}
    sizes: dict[str, object] = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        if key == "sizes" and open_ended:
            # Saved records hold the sizes gathered, recipes beside the other keys.
            if not isinstance(value, Mapping):
                raise ConfigError(f"{place} must be a table, got {value!r}")
            sizes |= value
        elif key in known:
            built[key] = _convert(hints[key], value, place)
        elif open_ended:
            sizes[key] = value
        else:
            raise ConfigError(unknown(f"key in {where or 'the recipe'}:", key, known))
    if open_ended:
        built["sizes"] = sizes
    return cls(**built)


def _convert(hint: object, value: object, place: str) -> object:
    """Check one value against its annotation."""
    if type(None) in get_args(hint):
        # TABLE | None
        inner = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _convert(inner[0], value, place)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, place)
    origin = get_origin(hint)
    if origin is Literal:
        allowed = get_args(hint)
        if value not in allowed:
            raise ConfigError(
                f"{place} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
            )
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} must be a table, got {value!r}")
        return dict(value)
    if origin is tuple:
        return _convert_list(get_args(hint), value, place)
    assert isinstance(hint, type)
    return _plain(hint, value, place)


def _convert_list(kinds: tuple[object, ...], value: object, place: str) -> tuple[object, ...]:
    """Check a list against the annotation of a tuple."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{place} must be a list, got {value!r}")
    # tuple[int, ...]: as many as there are.
    if kinds[-1] is Ellipsis:
        return tuple(_convert(kinds[0], item, place) for item in value)
    if len(value) != len(kinds):
        raise ConfigError(f"{place} must be a list of {len(kinds)} values, got {value!r}")
    converted: list[object] = []
    for kind, item in zip(kinds, value, strict=True):
        converted.append(_convert(kind, item, place))
    return tuple(converted)


def _plain(hint: type, value: object, place: str) -> object:
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
