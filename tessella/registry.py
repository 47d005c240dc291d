"""Tables of classes by name, to which other packages and files can add.

A table is a :class:`Registry`: a read-only mapping to which a decorator adds entries::

    MODELS: Registry[type[DensityModel]] = Registry("density model")

    @MODELS.register("mine")
    class Mine(DensityModel): ...

Code outside Tessella can be loaded in two ways. Both run it with all rights of the user:

* an installed package names a module in the entry point group ``tessella.plugins``; the module is
  imported when somebody asks a table for a name that it does not know;
* a single Python file is run by :func:`load_plugin`.

This module does not import torch, so that the command line starts quickly.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from tessella.errors import ConfigError, unknown

PLUGIN_GROUP = "tessella.plugins"
"""Entry point group of installed plugins; each entry names a module that registers on import."""

Entry = TypeVar("Entry")
Registered = TypeVar("Registered")

# Each plugin is loaded at most once per process. Maps its name to an error message, empty if it
# loaded.
_installed: dict[str, str] = {}
_looked_for_plugins = False


class Registry(Mapping[str, Entry]):
    """A mapping from names to classes (or functions), in the order of their registration.

    Args:
        kind: kind of entry for error messages, such as ``"density model"``.
        base: class from which every entry must derive; None for no such requirement.

    >>> shapes: Registry[type] = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> list(shapes), shapes["square"] is Square
    (['square'], True)
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        self.kind = kind
        self.base = base
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that adds a class under a name, and sets the class attribute ``name``.

        A class may be registered again if it was redefined in the same module under the same class
        name, as when a notebook cell runs twice. It then replaces the old one.

        Raises:
            ConfigError: for a name that another class has, a class that does not derive from the
                table's base, or a class with abstract methods.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"a {self.kind} is registered under a name, got {name!r}")

        def decorate(entry: Registered) -> Registered:
            self._check(name, entry)
            if inspect.isclass(entry):
                # Saved configurations hold this attribute, so it must be the key of the table.
                entry.name = name  # type: ignore[attr-defined]
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return decorate

    def get_or_explain(self, name: str) -> Entry:
        """The entry of a name, with a helpful error if there is none.

        Raises:
            ConfigError: for an unknown name; the message lists the known names, the nearest match
                and the plugins that failed to load.
        """
        try:
            return self[name]
        except (KeyError, TypeError):  # TypeError: an unhashable name, such as a list
            message = unknown(self.kind, name, self._entries)
            for plugin, problem in _installed.items():
                if problem:
                    message += f"; the installed plugin {plugin!r} failed to load: {problem}"
            raise ConfigError(message) from None

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            load_installed_plugins()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Registry({self.kind!r}: {', '.join(self._entries)})"

    def _check(self, name: str, entry: object) -> None:
        if self.base is not None and not (inspect.isclass(entry) and issubclass(entry, self.base)):
            raise ConfigError(
                f"{self.kind} {name!r} must be a class that derives from {self.base.__name__}, "
                f"got {entry!r}"
            )
        if inspect.isabstract(entry):
            missing = ", ".join(sorted(getattr(entry, "__abstractmethods__", ())))
            raise ConfigError(f"{self.kind} {name!r} must define {missing} before it is registered")
        # Read the dictionary directly: a lookup would load plugins, and this may be one of them.
        known = self._entries.get(name)
        if known is not None and _place(known) != _place(entry):
            raise ConfigError(
                f"{self.kind} {name!r} exists already, as {_place(known)}: "
                f"register {_place(entry)} under another name"
            )


def load_installed_plugins() -> None:
    """Import the modules of installed plugins, at most once per process.

    A plugin that fails does not stop the others. Error messages about unknown names mention it.
    """
    global _looked_for_plugins
    if _looked_for_plugins:
        return
    # Set this first, because a plugin may itself look up an unknown name while it is imported.
    _looked_for_plugins = True
    from importlib.metadata import entry_points  # takes 20 ms, so only when it is needed

    for entry_point in entry_points(group=PLUGIN_GROUP):
        try:
            entry_point.load()
            _installed[entry_point.name] = ""
        except Exception as error:  # noqa: BLE001 - whatever a foreign module raises is reported
            _installed[entry_point.name] = f"{type(error).__name__}: {error}"


def load_plugin(path: str | Path) -> ModuleType:
    """Run a Python file that registers classes, at most once per process.

    Args:
        path: a ``.py`` file. It runs with all rights of the user.

    Returns:
        The module; a second call with the same file returns the same module.

    Raises:
        ConfigError: when there is no such file, or it raises an exception.
    """
    file = Path(path).expanduser().resolve()
    if file.suffix != ".py" or not file.is_file():
        raise ConfigError(f"a plugin is a Python file (.py) that exists, got {str(path)!r}")
    # Files of the same name in different folders must become different modules.
    digest = hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    name = f"tessella_plugin_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look up the module by name while it is still being executed.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(
            f"the plugin {file} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def _place(entry: object) -> str:
    """Full name of a class or function: ``module.Name``."""
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
