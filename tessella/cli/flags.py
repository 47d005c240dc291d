"""Flags made from the dataclasses that they set, and what the values of flags must be.

A flag is a field of the dataclass of its verb. Bounds of numbers and endings of output files stand
in the annotation of the field, so that one function checks them for all verbs (see
:mod:`tessella.cli.checks`)::

    n: Annotated[int, Within(1)] = 16
    out: Annotated[str, Output(".png")] = "completed.png"
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")

POSITIONAL = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]
COUNTER = tyro.conf.UseCounterAction[int].__metadata__[0]  # type: ignore[attr-defined]
"""Marks in annotations by which tyro knows a positional word, and a switch without a value."""

OPTIONAL = object()
"""The note of a flag that is None unless it is given."""


@dataclass(frozen=True)
class Within:
    """Bounds of a number: at least ``least`` (or above it), at most ``most``."""

    least: float
    most: float | None = None
    open_below: bool = False


@dataclass(frozen=True)
class Output:
    """A file that a verb writes, by its possible endings; ``/`` stands for a directory."""

    endings: tuple[str, ...]

    def __init__(self, *endings: str) -> None:
        object.__setattr__(self, "endings", endings)


@dataclass(frozen=True)
class Flag:
    """A field of the dataclass of a verb, or of a group of options inside it.

    Args:
        name: of the flag, ``--top-k``.
        hint: its annotation.
        notes: what else the annotation holds: :class:`Within`, :class:`Output`, tyro's markers.
        value: of an instance; None of a class.
    """

    name: str
    hint: object
    notes: tuple[object, ...]
    value: object = None

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place."""
        return any(note is POSITIONAL for note in self.notes)

    @property
    def takes_value(self) -> bool:
        """Whether a word follows it."""
        return not any(note is COUNTER for note in self.notes)

    def note(self, kind: type[T]) -> T | None:
        """The note of a kind, None where there is none."""
        for note in self.notes:
            if isinstance(note, kind):
                return note
        return None


def flags(verb: type | object) -> Iterator[Flag]:
    """The flags of a verb: the fields of its dataclass, and of the dataclasses in it.

    Args:
        verb: the dataclass, or an instance, whose values then come along.
    """
    instance = None if isinstance(verb, type) else verb
    cls = verb if isinstance(verb, type) else type(verb)
    # include_extras keeps Annotated, in which the bounds and endings stand.
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, notes = unwrapped(hints[field.name])
        value = None if instance is None else getattr(instance, field.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            # A group of options; on the command line its flags stand beside the others.
            yield from flags(hint if instance is None else value)
        else:
            yield Flag("--" + field.name.replace("_", "-"), hint, notes, value)


def unwrapped(hint: object) -> tuple[object, tuple[object, ...]]:
    """Take an annotation apart.

    Returns:
        The type, without ``Annotated`` and without the None of an optional one, and its notes.
    """
    notes: tuple[object, ...] = ()
    # Layers in any order, such as Annotated[Annotated[int, Within(1)] | None, arg(...)].
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            notes += tuple(more)
            continue
        options = [option for option in get_args(hint) if option is not types.NoneType]
        # X | None is a UnionType, Optional[X] a Union.
        is_optional = get_origin(hint) in (Union, types.UnionType) and len(options) == 1
        if not is_optional:
            return hint, notes
        hint = options[0]
        notes += (OPTIONAL,)


def sets_fields_of(config: type, **narrowed: object) -> Callable[[type[T]], type[T]]:
    """Class decorator: add optional flags that set fields of a configuration.

    Each has the type and the help of the field, and is None where it was not given (0 of a switch).
    It stands under ``@dataclass``.

    Args:
        config: the dataclass that is set.
        narrowed: names of its fields; each with an annotation that narrows the type of the field,
            such as the choices that a string has, or with None.
    """
    hints = get_type_hints(config, include_extras=True)
    texts = field_texts(config)

    def add(cls: type[T]) -> type[T]:
        for name, narrower in narrowed.items():
            if narrower is not None:
                hints[name] = narrower
            hint = hints[name]
            if hint is bool:
                # A switch, which counts how often it was given; tyro reads the annotations.
                note = tyro.conf.arg(help=texts[name])
                cls.__annotations__[name] = Annotated[tyro.conf.UseCounterAction[int], note]
                setattr(cls, name, 0)
            else:
                # The default is that of the recipe, which is not known here.
                note = tyro.conf.arg(help=texts[name], help_behavior_hint="(default: the recipe's)")
                cls.__annotations__[name] = Annotated[hint | None, note]
                setattr(cls, name, None)
        return cls

    return add


def given_fields(verb: object, config: type) -> dict[str, object]:
    """The values that were given for fields of a configuration."""
    given: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(verb, field.name, None)
        # Of a switch that was left out nothing is known: it does not say False.
        is_switch = isinstance(field.default, bool)
        if is_switch and value:
            given[field.name] = True
        elif not is_switch and value is not None:
            given[field.name] = value
    return given


def field_texts(cls: type) -> dict[str, str]:
    """The strings under the fields of a dataclass, which document them."""
    # Python forgets strings that stand in a class body, so they are read from the source.
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    texts = {}
    # A field and the statement after it, which documents it where it is a string.
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts
