"""The base class of data sources, and :data:`SOURCES`, the table of all of them.

A source is a class that says how it is written, what it reads and what it allows, and that has a
method to read. Code outside the package adds one with :func:`register_source`::

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
"""A function of path, split and config; see :meth:`Source.read`."""


class Source(ABC):
    """A kind of data source, written ``NAME`` or ``NAME:PATH``."""

    name: ClassVar[str] = ""
    """Set by :func:`register_source`, as is :attr:`form`."""
    form: ClassVar[str] = ""
    """How the source is written: ``digits``, ``npz:PATH``."""
    about: ClassVar[str] = ""
    """What it reads, in a few words, for help texts and error messages."""
    argument: ClassVar[str] = "PATH"
    """Name of the part after the colon in help texts; empty for a source that takes nothing."""
    allows_all: ClassVar[bool] = False
    """Whether it can read the split ``all``: every image, however they are divided."""
    takes_bits: ClassVar[bool] = False
    """Whether it supports ``data.bits``, for images packed as bits."""
    sizes_may_differ: ClassVar[bool] = False
    """Whether its images can differ in size, so that ``data.size`` may be needed."""
    streams: ClassVar[bool] = False
    """Whether it supports ``data.stream``: images that are decoded when they are needed."""
    takes_columns: ClassVar[bool] = False
    """Whether it supports ``data.columns``, for tables."""
    holds_codes: ClassVar[bool] = False
    """Whether it holds a tokenizer's codes and no images; :func:`tessella.data.load` refuses it."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether an existing file or folder looks like one that this source reads.

        Every source is asked this if the user named the wrong one; a guess from names and the first
        bytes is good enough.
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
            config: size, channels and limit, among others. A reader that returns a
                :class:`~tessella.data.transform.Part` must apply these; otherwise they are applied
                to the arrays that it returns.

        Raises:
            DataError: when the source is missing, damaged, or lacks this split.
            InputError: when its images do not fit what is asked.
        """


SOURCES: Registry[type[Source]] = Registry("data source", base=Source)
"""Every data source by name, in the order in which help texts list them."""

Registered = TypeVar("Registered", type[Source], Reader)


def register_source(name: str) -> Callable[[Registered], Registered]:
    """Decorator that registers a data source under a name.

    It takes a class derived from :class:`Source`, or a function ``read(path, split, config)``; the
    first line of the function's docstring becomes the description of the source.

    Raises:
        ConfigError: when the name is taken, is empty or contains a colon, or when the decorated
            object is neither of the two.
    """
    if not isinstance(name, str) or not name or ":" in name or name != name.strip():
        raise ConfigError(
            f"a data source must be registered under a name without ':', got {name!r}"
        )

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
        # Registered first: a name that is taken is refused before the class is changed.
        SOURCES.register(name)(source)
        source.form = f"{name}:{source.argument}" if source.argument else name
        return entry

    return decorate


def _from_function(reader: Reader) -> type[Source]:
    # A function cannot declare attributes, so its source has the defaults.
    description = inspect.getdoc(reader) or "images from a plugin"

    class FunctionSource(Source):
        about = description.splitlines()[0].rstrip(".")

        def read(self, path: str, split: str, config: DataConfig) -> SourceImages:
            return reader(path, split, config)

    # The registry distinguishes sources of the same name by where they were defined.
    FunctionSource.__module__ = reader.__module__
    FunctionSource.__qualname__ = reader.__qualname__
    return FunctionSource


def source_forms(conjunction: str = "or") -> str:
    """All ways to write a data source, as one phrase, for help texts."""
    # In the order of registration, with the bundled source first.
    forms = []
    for source in SOURCES.values():
        forms.append(source.form)
    return f"{', '.join(forms[:-1])} {conjunction} {forms[-1]}"


def refuse_other_kind(path: Path, given: type[Source]) -> None:
    """Raise :class:`DataError` if another source than the one named recognizes a path.

    Readers call this before they complain about details of files that are not theirs.
    """
    source = source_recognizing(path)
    if source is not None and source is not given:
        raise DataError(
            f"{given.name}: {path} is for the source {source.name} ({source.about}): "
            f"--data {source.name}:{path}"
        )


def source_recognizing(path: Path) -> type[Source] | None:
    """The first registered source that recognizes a path; None if none does."""
    for source in SOURCES.values():
        try:
            if source.recognizes(path):
                return source
        except OSError:
            # No source can recognize a folder without permission to read it.
            continue
    return None
