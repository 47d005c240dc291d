"""Find the places that ``scripts/house.py`` counts: in one source, or among those of a package.

Nothing here counts or judges. What each kind of place is exactly, the other script says.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 100

INSTRUCTION = re.compile(
    r"(noqa|type:|fmt:|ruff:|mypy:|pylint:|pyright:|isort:|pragma:|nosec|!|.*-\*-)", re.IGNORECASE
)
"""How a comment begins that speaks to a tool."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UNNAMED_MODULES = ("__init__", "__main__")


@dataclass(frozen=True)
class Place:
    """A line that counts towards a figure."""

    path: str
    line: int
    what: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.what}".rstrip()


@dataclass(frozen=True)
class Source:
    """A file of Python, read and parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        """Its lines, blank ones too."""
        return self.text.splitlines()

    def count_lines(self) -> int:
        """How many lines are not blank."""
        # Blank lines are left out, so that more of them make no figure better.
        return sum(1 for line in self.lines if line.strip())


def read_sources(root: Path, folder: str) -> list[Source]:
    """All files of Python under a folder, in order of their paths."""
    sources = []
    for path in sorted((root / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        sources.append(Source(path.relative_to(root).as_posix(), text, ast.parse(text)))
    return sources


def dense_expressions(source: Source) -> Iterator[Place]:
    """Ternaries and comprehensions."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.IfExp):
            yield Place(source.path, node.lineno, "ternary")
        elif isinstance(node, COMPREHENSIONS):
            yield Place(source.path, node.lineno, "comprehension")


def tuple_assignments(source: Source) -> Iterator[Place]:
    """Assignments of a tuple to a tuple."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        if any(isinstance(target, ast.Tuple) for target in node.targets):
            yield Place(source.path, node.lineno)


def comments(source: Source) -> Iterator[Place]:
    """Comments that say something to a reader."""
    for token in tokens(source):
        if token.type == tokenize.COMMENT and speaks_to_reader(token.string):
            yield Place(source.path, token.start[0])


def speaks_to_reader(comment: str) -> bool:
    """Whether a comment has words that are no instruction to a tool."""
    # An instruction may be followed by its reason: "noqa: E501  # a table of code".
    for part in comment.split("#"):
        words = part.strip()
        if re.search(r"[^\W\d_]", words) and not INSTRUCTION.match(words):
            return True
    return False


def long_lines(source: Source) -> Iterator[Place]:
    """Lines of more columns than fit."""
    for number, line in enumerate(source.lines, start=1):
        if len(line) > COLUMNS:
            yield Place(source.path, number, f"({len(line)} columns)")


def semicolons(source: Source) -> Iterator[Place]:
    """Semicolons that part statements."""
    for token in tokens(source):
        # A semicolon in a string or a comment is a part of that token.
        if token.type == tokenize.OP and token.string == ";":
            yield Place(source.path, token.start[0])


def tokens(source: Source) -> Iterator[tokenize.TokenInfo]:
    """A source as Python's own tokens."""
    return tokenize.generate_tokens(io.StringIO(source.text).readline)


def uses_of_any(source: Source) -> Iterator[Place]:
    """Every ``Any`` of the code, that in quoted annotations too."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and last_name(node) == "Any":
            yield Place(source.path, node.lineno)

    # An annotation in quotes is a string to the parser.
    for hint in hints(source.tree):
        for part in ast.walk(hint):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                for _ in re.findall(r"\bAny\b", part.value):
                    yield Place(source.path, part.lineno, "in quotes")


def last_name(node: ast.Name | ast.Attribute) -> str:
    """The name itself, or what comes after the last dot."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr


def hints(tree: ast.AST) -> Iterator[ast.expr]:
    """Annotations of parameters, return values and variables."""
    for node in ast.walk(tree):
        found = None
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            found = node.annotation
        elif isinstance(node, FUNCTIONS):
            found = node.returns
        if found is not None:
            yield found


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions, methods and functions within functions."""
    for node in ast.walk(source.tree):
        if isinstance(node, FUNCTIONS):
            yield node


def classes(source: Source) -> Iterator[ast.ClassDef]:
    """Classes of a module, those under an ``if`` or a ``try`` of the module too."""
    # ast.walk would go into classes and functions as well, so this walk has its own list.
    waiting: list[ast.AST] = [source.tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop(0)):
            if isinstance(node, ast.ClassDef):
                yield node
            elif not isinstance(node, FUNCTIONS):
                waiting.append(node)


def count_statements(tree: ast.AST) -> int:
    """Statements within a node, which itself does not count."""
    return sum(isinstance(node, ast.stmt) and node is not tree for node in ast.walk(tree))


def count_functions(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Functions within a function."""
    # ast.walk begins with the function itself.
    return sum(isinstance(node, FUNCTIONS) for node in ast.walk(function)) - 1


def annotated_slots(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[bool]:
    """Of each parameter, and of what is returned, whether it has an annotation."""
    given = function.args
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    for rest in (given.vararg, given.kwarg):
        if rest is not None:
            parameters.append(rest)
    for parameter in parameters:
        if parameter.arg not in ("self", "cls"):
            yield parameter.annotation is not None
    yield function.returns is not None


def collect(find: Callable[[Source], Iterator[Place]], sources: Iterable[Source]) -> list[Place]:
    """What one finder finds in all sources, files with the most of it first."""
    places: list[Place] = []
    for source in sources:
        places.extend(find(source))

    # Only the first places are printed, and they should be where there is most to do.
    per_file = Counter(place.path for place in places)
    places.sort(key=lambda place: (-per_file[place.path], place.path, place.line))
    return places


def loose_modules(sources: Iterable[Source]) -> list[Place]:
    """Modules right under the package."""
    places = []
    for source in sources:
        path = Path(source.path)
        # One part is the package, the other one the file.
        if len(path.parts) == 2 and path.stem not in UNNAMED_MODULES:
            places.append(Place(source.path, 1))
    return places


def named_modules(sources: Iterable[Source]) -> dict[str, list[Place]]:
    """Modules and folders of a package by their names."""
    modules: dict[str, list[Place]] = defaultdict(list)
    folders: set[Path] = set()
    for source in sources:
        path = Path(source.path)
        folders.update(path.parents)
        if path.stem not in UNNAMED_MODULES:
            modules[path.stem].append(Place(source.path, 1, f"module {path.stem}"))

    for folder in sorted(folders):
        # The last parent of a relative path is ".", and its name is empty.
        if folder.name:
            place = Place(f"{folder.as_posix()}/__init__.py", 1, f"folder {folder.name}")
            modules[folder.name].append(place)
    return modules
