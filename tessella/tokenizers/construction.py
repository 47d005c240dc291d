"""Build registered classes from plain values, such as those of a recipe or a saved configuration.

The values are checked against the annotations of the class's constructor. A constructor may take
some of its arguments together, in an options object (a frozen dataclass with a default): plain
values name the fields of that object directly, so ``codebook_size = 512`` in a recipe reaches
``codes.codebook_size``.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from tessella.config import from_dict
from tessella.errors import ConfigError, InputError, check_integer, unknown
from tessella.registry import Registry

T = TypeVar("T")

PlainValues = dict[str, Any]
"""Values that JSON and TOML can represent, by name."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One plain value that a class can be built with.

    Args:
        name: what recipes and configurations call it.
        hint: its type annotation.
        default: its default; ``inspect.Parameter.empty`` if it is required.
        parameter: the constructor's parameter that receives it.
        grouped: whether that parameter is an options object, of which this is a field.
    """

    name: str
    hint: object
    default: object
    parameter: str
    grouped: bool

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        return self.name if self.required else f"{self.name}={self.default!r}"


def check_count(name: str, value: object, least: int, most: int) -> int:
    """Check a size in a constructor, before any memory is allocated for it.

    Raises:
        ConfigError: when it is not an integer in ``least..most``.
    """
    try:
        return check_integer(name, value, least, most)
    except InputError as error:
        raise ConfigError(str(error)) from None


def arguments_of(cls: type) -> list[Argument]:
    """The plain values that a class can be built with, in the order of its constructor."""
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    found: list[Argument] = []
    for name, parameter in inspect.signature(cls).parameters.items():
        hint = hints[name]
        if not dataclasses.is_dataclass(hint):
            found.append(Argument(name, hint, parameter.default, name, grouped=False))
            continue
        field_hints = get_type_hints(hint)
        for field in dataclasses.fields(hint):
            # The defaults are those of the default object, not of its type: a vqgan and a vqvae
            # have options of the same type, but a vqgan has more codes by default.
            default = getattr(parameter.default, field.name)
            found.append(Argument(field.name, field_hints[field.name], default, name, grouped=True))
    return found


def construct(
    kind: str, table: Mapping[str, type[T]], name: str, arguments: Mapping[str, object]
) -> T:
    """Build a registered class from plain values.

    Args:
        kind: what the table holds, such as ``tokenizer``, for messages.
        table: classes by name, such as a :class:`~tessella.registry.Registry`.
        name: name of the class in the table.
        arguments: plain values by name; those left out have the class's defaults.

    Raises:
        ConfigError: for a name that is not in the table, or an argument that is unknown, missing,
            of another type or out of range.
    """
    if name not in table:
        if isinstance(table, Registry):
            table.get_or_explain(name)  # raises, and knows which plugins failed to load
        raise ConfigError(unknown(kind, name, table))
    cls = table[name]
    known = arguments_of(cls)
    values = _checked(known, arguments, f"{kind} {name}")
    given: PlainValues = {}
    fields: dict[str, PlainValues] = {}
    # A plain value goes to its parameter directly, or into an options object.
    for argument in known:
        value = values[argument.name]
        if argument.grouped:
            fields.setdefault(argument.parameter, {})[argument.name] = value
        else:
            given[argument.parameter] = value
    # Fields that were not given keep the values of the class's default object.
    parameters = inspect.signature(cls).parameters
    for parameter, options in fields.items():
        given[parameter] = dataclasses.replace(parameters[parameter].default, **options)
    return cls(**given)


def describe_arguments(table: Mapping[str, type]) -> str:
    """The plain values of every class in a table, with defaults, one paragraph per class."""
    paragraphs = []
    for name, cls in table.items():
        listed = ", ".join(str(argument) for argument in arguments_of(cls))
        paragraphs.append(textwrap.fill(f"{name}: {listed}", width=90, subsequent_indent="    "))
    return "\n".join(paragraphs)


def _checked(known: list[Argument], arguments: Mapping[str, object], where: str) -> PlainValues:
    """All values for a class, with defaults filled in and types checked."""
    missing = [part.name for part in known if part.required and part.name not in arguments]
    if missing:
        raise ConfigError(f"{where} needs {', '.join(missing)}")
    # In the form that make_dataclass takes: (name, type) or (name, type, field).
    fields: list[Any] = []
    for argument in known:
        if argument.required:
            fields.append((argument.name, argument.hint))
        else:
            fields.append((argument.name, argument.hint, _field_with(argument.default)))
    # The function that checks recipes also checks these values, given a dataclass.
    checker = dataclasses.make_dataclass("Arguments", fields)
    return dict(vars(from_dict(checker, arguments, where)))


def _field_with(default: object) -> Any:
    """A dataclass field with a default of any type, also a mutable one."""
    return dataclasses.field(default_factory=lambda: default)
