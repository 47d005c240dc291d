"""The base class of data sources, and :data:`SOURCES`, the table of all that there are.

A source is one class: how it is written, what it reads, what it allows, and the reader. Code
outside the package adds one with :func:`register_source`::

    @ts.register_source("mine")
    class Mine(ts.Source):
        about = "images in my format"

        def read(self, path, split, config):
            return images, labels  # uint8 [n, height, width, channels], integers [n]

and ``--data mine:PATH`` then works wherever a source is named.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from tessella.config import DataConfig
from tessella.data.paths import existing
from tessella.data.transform import Part
from tessella.errors import ConfigError, DataError
from tessella.registry import Registry

SourceImages = Part | np.ndarray | tuple[np.ndarray, np.ndarray | None]
"""Result of a reader: a :class:`~tessella.data.transform.Part`, images, or images and labels."""

Reader = Callable[[str, str, DataConfig], SourceImages]


class Source(ABC):
    """A kind of data source, written ``NAME`` or ``NAME:PATH``."""

    name: ClassVar[str] = ""
    """Set by :func:`register_source`, as is :attr:`form`."""
    form: ClassVar[str] = ""
    """How the source is written: ``digits``, ``npz:PATH``."""
    about: ClassVar[str] = ""
    """The data it reads, in a few words, for help texts and error messages."""
    argument: ClassVar[str] = "PATH"
    """Name of the part after the colon in help texts; empty for a source that takes nothing."""
    allows_all: ClassVar[bool] = False
    """Whether the split ``all`` (every image, however it is divided) can be asked for."""
    takes_bits: ClassVar[bool] = False
    """Whether ``data.bits`` has a meaning for it."""
    sizes_may_differ: ClassVar[bool] = False
    """Whether its images can differ in size, so that ``data.size`` may be needed."""
    holds_codes: ClassVar[bool] = False
    """Whether it holds a tokenizer's codes and no images; :func:`tessella.data.load` refuses it."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether an existing file or folder looks like one that this source reads.

        Asked of every source when another one was named by mistake; a guess from names and the
        first bytes is enough.
        """
        return False

    @classmethod
    def locate(cls, path: str) -> Path:
        """The existing file or folder that the user named.

        Raises:
            DataError: when the path is missing from the source, or nothing is there.
        """
        return existing(path, cls.form)

    @abstractmethod
    def read(self, path: str, split: str, config: DataConfig) -> SourceImages:
        """One split of the source.

        Args:
            path: what followed the colon; empty if nothing did.
            split: ``train``, ``valid`` or ``test``; ``all`` only where :attr:`allows_all`.
            config: what was asked for. Size, channels and limit are applied by the reader where
                it returns a :class:`~tessella.data.transform.Part`, and else afterwards.

        Raises:
            DataError: when the source is missing, damaged, or lacks this split.
            InputError: when its images do not fit what is asked.
        """


SOURCES: Registry[type[Source]] = Registry("data source", base=Source)

Registered = TypeVar("Registered", type[Source], Reader)


def register_source(name: str) -> Callable[[Registered], Registered]:
    """Decorator that adds a data source under a name, from inside or outside the package.

    Takes a class derived from :class:`Source`, or a function ``read(path, split, config)``, whose
    first line of documentation becomes the source's description.

    Raises:
        ConfigError: for a name that is taken or cannot stand before a colon, or another object.
    """
    if not isinstance(name, str) or not name or ":" in name or name != name.strip():
        raise ConfigError(f"a data source is registered under a name without ':', got {name!r}")

    def decorate(entry: Registered) -> Registered:
        if isinstance(entry, type) and issubclass(entry, Source):
            source: type[Source] = entry
        elif callable(entry) and not isinstance(entry, type):
            source = _from_function(entry)
        else:
            raise ConfigError(
                f"data source {name!r} must be a class derived from Source or a function "
                f"read(path, split, config), got {entry!r}"
            )
        # Registered first, which refuses a name that is taken before anything is changed.
        SOURCES.register(name)(source)
        source.form = f"{name}:{source.argument}" if source.argument else name
        return entry

    return decorate


def _from_function(reader: Reader) -> type[Source]:
    # A function has no attributes to ask for, so its source allows what all sources allow.
    description = inspect.getdoc(reader) or "images from a plugin"

    class FunctionSource(Source):
        about = description.splitlines()[0].rstrip(".")

        def read(self, path: str, split: str, config: DataConfig) -> SourceImages:
            return reader(path, split, config)

    # The registry tells two sources of one name apart by the place where they were defined.
    FunctionSource.__module__ = reader.__module__
    FunctionSource.__qualname__ = reader.__qualname__
    return FunctionSource


def source_forms(conjunction: str = "or") -> str:
    """All ways of naming a data source, in words, for help texts."""
    forms = []
    for source in SOURCES.values():
        forms.append(source.form)
    return f"{', '.join(forms[:-1])} {conjunction} {forms[-1]}"


def refuse_other_kind(path: Path, given: type[Source]) -> None:
    """Raise :class:`DataError` where a path is recognized by another source than the one named.

    Readers call it when what they found is not theirs, before they complain about details.
    """
    source = source_recognizing(path)
    if source is not None and source is not given:
        raise DataError(
            f"{given.name}: {path} is for the source {source.name} ({source.about}): "
            f"--data {source.name}:{path}"
        )


def source_recognizing(path: Path) -> type[Source] | None:
    """The source that recognizes a path, the first in the order of registration; None if none
    does."""
    for source in SOURCES.values():
        try:
            if source.recognizes(path):
                return source
        except OSError:
            # A folder that may not be looked into is nobody's.
            continue
    return None
