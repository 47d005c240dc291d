"""Names and sizes that a recipe may use, checked without importing torch.

Importing the models takes seconds, most of them torch's. A misspelt name should not wait for that,
so it is looked for in the syntax of the modules: the classes with a ``name``, and the parameters of
their constructors. Classes registered from outside are not seen here; where there may be some,
nothing is refused and the registry decides later.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path

from tessella.errors import ConfigError, unknown
from tessella.registry import PLUGIN_GROUP

LARGEST_SIZE = 1 << 20
"""Largest number that a size of a model or tokenizer may be."""

MOST_LAYERS = 1000
"""Most layers, blocks, stages or the like of a model or tokenizer."""

REPEATED = ("layers", "blocks", "residual_blocks", "depth", "downsample", "stages", "masks")
"""Sizes that count parts of a network, each of which takes time and memory to build."""

LARGEST_SEED = 2**63 - 1

PLACES = {
    "model": "models",
    "head": "heads",
    "tokenizer": "tokenizers",
    "quantizer": "tokenizers/quantizers",
    "vae": "vae",
    "source": "data",
}
"""Folder or module of the classes of each kind."""

NOT_CHOSEN = {"hierarchy", "scale"}
"""Names of classes that recipes do not name: they come about by themselves."""

TABLES = {
    "model": ("tessella.models", "MODELS"),
    "head": ("tessella.heads", "HEADS"),
    "tokenizer": ("tessella.tokenizers", "TOKENIZERS"),
    "quantizer": ("tessella.tokenizers.quantizers", "QUANTIZERS"),
    "source": ("tessella.data.source_kinds", "SOURCES"),
}
"""Tables of the classes of each kind, once they are imported."""

FROM_DATA = {
    "self",
    "grid",
    "grids",
    "head",
    "conditioning",
    "classes",
    "image_size",
    "channels",
    "levels",
}
"""Parameters that a recipe does not set: they follow from the images or their codes."""

FROM_TOKENIZER = {"codes"}
"""Keywords of models that a recipe does not set either: they follow from the tokenizer."""


def check(kind: str, name: str, sizes: Iterable[str], head: str | None = None) -> None:
    """Check the name of a class and the names of its sizes.

    Args:
        kind: a key of ``PLACES``.
        name: of the class.
        sizes: names of the sizes that are given.
        head: of a density model.

    Raises:
        ConfigError: for a name that nothing has, with the nearest match.
    """
    if _plugins_possible():
        return
    classes = known(kind)
    if name not in classes and not _registered(kind, name):
        raise ConfigError(unknown(kind, name, classes))
    allowed = classes.get(name)
    if head is not None:
        heads = known("head")
        if head not in heads and not _registered("head", head):
            raise ConfigError(unknown("head", head, heads))
        of_head = heads.get(head)
        allowed = None if allowed is None or of_head is None else allowed | of_head
    if allowed is None:
        return  # a class whose parameters cannot be read, or one registered from outside
    for size in sizes:
        # A size that follows from the data is refused with that reason, later.
        if size not in allowed | FROM_DATA | FROM_TOKENIZER:
            with_head = f" with head {head}" if head else ""
            raise ConfigError(unknown(f"size of {name}{with_head}:", size, allowed))


def check_sizes(where: str, sizes: Mapping[str, object]) -> None:
    """Refuse sizes that no machine can hold, before anything is built.

    Args:
        where: the table of a recipe that they stand in; empty for arguments of a function.
        sizes: by name.

    Raises:
        ConfigError: naming the size and the limit.
    """
    for name, value in sizes.items():
        place = f"{where}.{name}" if where else name
        # A table of options, such as those of a quantizer.
        if isinstance(value, Mapping):
            check_sizes(place, value)
            continue
        most = LARGEST_SIZE
        if name in REPEATED:
            most = MOST_LAYERS
        elif name in ("seed", "mask_seed"):
            most = LARGEST_SEED
        items = value if isinstance(value, (list, tuple)) else [value]
        if len(items) > MOST_LAYERS:
            raise ConfigError(f"{place} must have at most {MOST_LAYERS} values")
        for item in items:
            if isinstance(item, (int, float)) and not -most <= item <= most:
                raise ConfigError(f"{place} must be at most {most}, got {item}")


def default(kind: str, name: str, size: str) -> str | None:
    """The text that a size of a class is by default; None where it is no text, or not known.

    Args:
        kind: a key of ``PLACES``.
        name: of the class.
        size: a field of one of the objects of options that its constructor takes.
    """
    bodies = _classes(PLACES[kind])
    for body in bodies.values():
        if (_registered_as(body) or _constant(body, "name")) != name:
            continue
        for options in _option_classes(body, bodies):
            text = _constant(options, size)
            if text is not None:
                return text
    return None


def check_registered(name: str, kind: str = "") -> None:
    """Check that something is registered under a name.

    Args:
        name: of a class; that of a data source may carry its path.
        kind: the key of ``TABLES`` that it must be in; empty for any.

    Raises:
        ConfigError: with the nearest match.
    """
    if _plugins_possible():
        return
    candidates: list[str] = []
    for one in [kind] if kind else TABLES:
        # Only sources carry something behind their name.
        key = name.partition(":")[0] if one == "source" else name
        if key in known(one) or _registered(one, key):
            return
        candidates += known(one)
    raise ConfigError(unknown(kind or "registered name", name, candidates))


@functools.cache
def known(kind: str) -> Mapping[str, frozenset[str] | None]:
    """Names of the classes of a kind, and the sizes each takes; None where any may be taken."""
    bodies = _classes(PLACES[kind])
    found: dict[str, frozenset[str] | None] = {}
    for body in bodies.values():
        name = _registered_as(body)
        # Every source is registered by a decorator; other classes beside them have names too.
        if name is None and kind != "source":
            name = _constant(body, "name")
        if name and name not in NOT_CHOSEN:
            found[name] = _parameters(body, bodies)
    return found


def _classes(place: str) -> dict[str, ast.ClassDef]:
    """The classes of a folder or module of the package, by the name in the source."""
    root = Path(str(resources.files("tessella"))) / place
    paths = sorted(root.glob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
    bodies: dict[str, ast.ClassDef] = {}
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bodies[node.name] = node
    return bodies


def _registered_as(body: ast.ClassDef) -> str | None:
    """The name in a decorator such as ``@MODELS.register("mine")``."""
    for decorator in body.decorator_list:
        if isinstance(decorator, ast.Call) and "register" in ast.dump(decorator.func):
            for argument in decorator.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    return argument.value
    return None


def _constant(body: ast.ClassDef, attribute: str) -> str | None:
    """The text that a class attribute is set to."""
    for node in body.body:
        targets: list[ast.expr] = []
        value = None
        # name = "x", or name: str = "x"
        if isinstance(node, ast.Assign):
            targets = node.targets
            value = node.value
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
            value = node.value
        for target in targets:
            named = isinstance(target, ast.Name) and target.id == attribute
            if named and isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    return None


def _parameters(body: ast.ClassDef, bodies: Mapping[str, ast.ClassDef]) -> frozenset[str] | None:
    """Parameters of the constructor, or of the base class's; None where there may be others."""
    for node in body.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            if node.args.kwarg is not None:
                return None  # **options: any name may be taken
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names: set[str] = set()
            for argument in every:
                if argument.arg in FROM_DATA:
                    continue
                # The fields of an object of options are given as sizes of their own.
                names |= _fields(argument.annotation, bodies) or {argument.arg}
            return frozenset(names)
    # No constructor here: the first base class in the folder has it.
    for base in body.bases:
        inherited = bodies.get(base.id) if isinstance(base, ast.Name) else None
        if inherited is not None:
            return _parameters(inherited, bodies)
    return None


def _option_classes(
    body: ast.ClassDef, bodies: Mapping[str, ast.ClassDef]
) -> Iterator[ast.ClassDef]:
    """The classes of the folder that the annotations of a constructor name."""
    for node in body.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for part in ast.walk(node.args):
                if isinstance(part, ast.Name) and part.id in bodies:
                    yield bodies[part.id]


def _fields(annotation: ast.expr | None, bodies: Mapping[str, ast.ClassDef]) -> set[str]:
    """Fields of the class that an annotation names; empty where it names none of the folder."""
    fields: set[str] = set()
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name) and node.id in bodies:
            for item in bodies[node.id].body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    fields.add(item.target.id)
    return fields


def _registered(kind: str, name: str) -> bool:
    """Whether a class of this name was registered in this process."""
    # A table that is not imported yet has registered nothing.
    module, table = TABLES.get(kind, ("", ""))
    return name in getattr(sys.modules.get(module), table, ())


def _plugins_possible() -> bool:
    """Whether names may come from outside the package: only the registries know those."""
    # load_plugin() gives the modules it runs such a name.
    if any(name.startswith("tessella_plugin_") for name in sys.modules):
        return True
    return len(entry_points(group=PLUGIN_GROUP)) > 0
