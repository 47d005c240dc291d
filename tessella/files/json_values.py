"""The type of what a JSON file can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    JSONValue: TypeAlias = (
        bool | int | float | str | Sequence["JSONValue"] | Mapping[str, "JSONValue"] | None
    )
    """A value that JSON can hold, nested to any depth."""
else:
    # Checkers that run with the program, such as beartype, do not know recursive aliases.
    JSONValue = object
