"""Find the code of cached steps among the files of models, for ``scripts/house.py``.

A layer owns how its part of a step is written, as it owns ``forward``, and a family composes
layers. So of a family's file only a small part should be about steps. This script finds the part by
what the code says of itself, its annotations and names, so that it need not be run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from house_places import FUNCTIONS, Place, Source, classes, last_name

STEPPING_NAME = re.compile(r"Stepped\w*|\w*(State|Step|Programs)")
"""How types of a cached step are named."""

PROGRAM_BASE = "ProgramModel"
"""The class from which all families derive that step through programs."""

USES = (ast.Name, ast.Attribute)
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Family:
    """A file of models that holds at least one family."""

    source: Source
    has_programs: bool
    """Whether one of its families derives from :data:`PROGRAM_BASE`, be it through others."""
    stepping: int
    """Lines of the cached step."""

    @property
    def percent(self) -> float:
        """Share of the stepping lines among all lines."""
        return 100 * self.stepping / max(1, self.source.count_lines())

    @property
    def place(self) -> Place:
        """The file and its share."""
        return Place(self.source.path, 1, f"({self.percent:.1f} % for the step)")


def families(sources: Iterable[Source]) -> list[Family]:
    """The families of a package, that with the largest share of stepping code first."""
    models = []
    # The bases of each class. Some lie between a family and the base that tells of programs.
    bases: dict[str, set[str]] = {}
    for source in sources:
        if Path(source.path).parts[1:-1] != ("models",):
            continue
        models.append(source)
        for node in classes(source):
            bases[node.name] = set(base_names(node))
    found = []
    for source in models:
        named = [node.name for node in classes(source) if has_name(node)]
        if named:
            has_programs = any(PROGRAM_BASE in ancestors(name, bases) for name in named)
            found.append(Family(source, has_programs, len(stepping_lines(source))))
    found.sort(key=lambda family: (-family.percent, family.source.path))
    return found


def has_name(node: ast.ClassDef) -> bool:
    """Whether a class sets an attribute ``name`` to a string, as everything in a table does."""
    for statement in node.body:
        match statement:
            case ast.Assign([ast.Name("name")], ast.Constant(str())):
                return True
    return False


def ancestors(name: str, bases: dict[str, set[str]]) -> set[str]:
    """A class and all from which it derives, by name."""
    known = {name}
    waiting = [name]
    while waiting:
        more = bases.get(waiting.pop(), set()) - known
        known |= more
        waiting.extend(more)
    return known


def stepping_lines(source: Source) -> set[int]:
    """Numbers of the lines that belong to the cached step, blank ones left out."""
    found = list(definitions(source))
    types = stepping_imports(source)
    lines: set[int] = set()
    for node, _ in found:
        if speaks_of_stepping(node, types):
            lines.update(span(node))

    # A definition that only stepping code uses belongs to it. That can be true of others in turn,
    # so this goes on until no line is new.
    count = -1
    while count != len(lines):
        count = len(lines)
        for node, is_method in found:
            uses = used_in(source, node, is_method)
            # Without a use in this file it is for others to call, and they say what it is for.
            if uses and uses <= lines:
                lines.update(span(node))
    return {number for number in lines if source.lines[number - 1].strip()}


def definitions(source: Source) -> Iterator[tuple[Definition, bool]]:
    """Functions and classes of a module and its methods, each with whether it is a method."""
    for node in source.tree.body:
        if isinstance(node, Definition):
            yield node, False
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, FUNCTIONS):
                    yield inner, True


def stepping_imports(source: Source) -> set[str]:
    """Names that a module imports from a package ``stepping``."""
    names = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and "stepping" in (node.module or "").split("."):
            for alias in node.names:
                # Its annotations have the name that the module gave it.
                names.add(alias.asname or alias.name)
    return names


def speaks_of_stepping(node: Definition, types: set[str]) -> bool:
    """Whether the header of a function or class names a type of the step.

    The header of a class is its name and its bases, that of a function its annotations.
    """
    named: set[str] = set()
    if isinstance(node, ast.ClassDef):
        named.add(node.name)
        named.update(base_names(node))
    else:
        for hint in header_hints(node):
            named.update(names_in(hint))
    return any(name in types or STEPPING_NAME.fullmatch(name) for name in named)


def base_names(node: ast.ClassDef) -> Iterator[str]:
    """Names of the classes from which a class derives."""
    for base in node.bases:
        # What stands in brackets is an argument: Model[State] is a model.
        if isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, USES):
            yield last_name(base)


def header_hints(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.expr]:
    """Annotations of a function's parameters and of what it returns."""
    if function.returns is not None:
        yield function.returns
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation


def names_in(tree: ast.AST) -> Iterator[str]:
    """All names within an expression, of an attribute the last one."""
    for node in ast.walk(tree):
        if isinstance(node, USES):
            yield last_name(node)


def used_in(source: Source, definition: Definition, is_method: bool) -> set[int]:
    """Numbers of the lines that use a definition, its own lines left out."""
    # A method is used as an attribute, anything else by its bare name.
    kind: type[ast.Name | ast.Attribute] = ast.Name
    if is_method:
        kind = ast.Attribute
    lines = set()
    for node in ast.walk(source.tree):
        if isinstance(node, kind) and last_name(node) == definition.name:
            lines.add(node.lineno)
    # A function that calls itself says nothing about who needs it.
    return lines - set(span(definition))


def span(node: Definition) -> range:
    """Numbers of the lines of a function or class, from its first decorator."""
    first = node.lineno
    for decorator in node.decorator_list:
        first = min(first, decorator.lineno)
    return range(first, int(node.end_lineno or first) + 1)
