"""Count the stops of a recipe on its way from the command line to the training loop.

    python scripts/recipe_stops.py FILE      # writes what it found to FILE, as JSON

The script trains the bundled digits with a very small model in a temporary folder and watches every
function of the package that is entered, from ``tessella.cli.main`` until the loop takes over: the
first call of ``setup`` in ``tessella.training.loop``, where the run is cut off.
``scripts/house.py`` calls it and holds the figures against its limits.

Recipe
    An instance of ``tessella.config.Recipe`` or of one of the dataclasses among its fields; or a
    dictionary whose key ``train`` holds a table or a ``TrainConfig``, which is how a recipe looks
    when it has been read from a file or is about to be written to one.
Stop
    A function of the package that was given a recipe as an argument, or returned or yielded one.
    ``self`` is an argument; so is every member of ``*args`` and ``**kwargs``, and a returned tuple
    counts as all its members. However often a function is called, it is one stop. Lambdas count;
    comprehensions and the bodies of modules do not.
Visit
    A call of a stop with a recipe among its arguments.
Module
    One that holds a stop.
Name
    A name of an argument under which a recipe came.
Wrapped stop
    A function that is no stop, but was given or returned an object that holds a recipe in an
    attribute or as a member, or uses a recipe from the function around it. These stand beside the
    stops, so that hiding a recipe in another object shows.

One path is followed, that of a density model that starts afresh: what only resuming a run or
training a tokenizer passes is not seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, get_args, get_type_hints

RECIPE = ("digits", "model.layers=1", "model.hidden=8", "train.batch=8", "train.steps=1")
LOOP_MODULE = "tessella.training.loop"
LOOP_FUNCTION = "setup"


class LoopReachedError(BaseException):
    """The loop begins: raised to end the run, past every ``except Exception``."""


@dataclass
class Stop:
    """A function that the recipe came to."""

    function: str
    module: str
    file: str
    line: int
    names: list[str] = field(default_factory=list)
    """Arguments that were a recipe, in order of appearance."""
    returns: bool = False
    visits: int = 0
    """Calls with a recipe among the arguments."""


@dataclass
class Journey:
    """The stops of a recipe, in the order in which it came to them."""

    stops: dict[CodeType, Stop] = field(default_factory=dict)
    wrapped: dict[CodeType, Stop] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The journey as plain values."""
        modules: list[str] = []
        names: list[str] = []
        visits = 0
        stops = []
        # Dictionaries keep their order, so the stops come out as a travel diary.
        for stop in self.stops.values():
            visits += stop.visits
            stops.append(dataclasses.asdict(stop))
            modules.append(stop.module)
            names.extend(stop.names)

        wrapped = []
        # A function may get a wrapped recipe in one call and a plain one in another.
        for code, stop in self.wrapped.items():
            if code not in self.stops:
                wrapped.append(dataclasses.asdict(stop))

        return {
            "stops": stops,
            "modules": sorted(set(modules)),
            "names": sorted(set(names)),
            "visits": visits,
            "wrapped": wrapped,
        }


class Watcher:
    """A profile function, for ``sys.setprofile``, that notes where the recipe comes.

    Args:
        package: folder of the package, outside which nothing is watched.
        kinds: the dataclasses that a recipe is made of.
    """

    def __init__(self, package: Path, kinds: tuple[type, ...]) -> None:
        self.folder = str(package)
        self.kinds = kinds
        self.journey = Journey()

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not self._is_watched(code):
            return
        if event == "return":
            self._note_return(frame, value)
            return

        self._note_arguments(frame)
        # A profile function may raise; the error appears in the function that was called.
        is_loop = code.co_name == LOOP_FUNCTION and frame.f_globals["__name__"] == LOOP_MODULE
        if is_loop:
            raise LoopReachedError

    def _is_watched(self, code: CodeType) -> bool:
        # Comprehensions and module bodies are frames too, with names such as <listcomp>.
        is_function = not code.co_name.startswith("<") or code.co_name == "<lambda>"
        return is_function and code.co_filename.startswith(self.folder)

    def _note_arguments(self, frame: FrameType) -> None:
        came_under = []
        for name, value in arguments(frame):
            if self.is_recipe(value):
                came_under.append(name)
            elif self.holds_recipe(value):
                self._stop(self.journey.wrapped, frame)

        if came_under:
            stop = self._stop(self.journey.stops, frame)
            stop.visits += 1
            stop.names = list(dict.fromkeys(stop.names + came_under))

        # What a nested function uses of the one around it is no argument, but it came along.
        for name in frame.f_code.co_freevars:
            if self.is_recipe(frame.f_locals.get(name)):
                self._stop(self.journey.wrapped, frame)

    def _note_return(self, frame: FrameType, value: object) -> None:
        # A function that is left by an error "returns" None here, which is no recipe.
        returned = value if isinstance(value, tuple) else (value,)
        for part in returned:
            if self.is_recipe(part):
                self._stop(self.journey.stops, frame).returns = True
            elif self.holds_recipe(part):
                self._stop(self.journey.wrapped, frame)

    def _stop(self, found: dict[CodeType, Stop], frame: FrameType) -> Stop:
        """The entry of this function, made when the recipe comes there first."""
        code = frame.f_code
        if code not in found:
            file = Path(code.co_filename).relative_to(Path(self.folder).parent).as_posix()
            module = frame.f_globals["__name__"]
            found[code] = Stop(code.co_qualname, module, file, code.co_firstlineno)
        return found[code]

    def is_recipe(self, value: object) -> bool:
        """Whether a value is a recipe, a part of one, or a dictionary that spells one out."""
        if isinstance(value, self.kinds):
            return True
        # A dictionary of splits has a key "train" as well, but images under it.
        return isinstance(value, dict) and isinstance(value.get("train"), (Mapping, *self.kinds))

    def holds_recipe(self, value: object) -> bool:
        """Whether a recipe is an attribute or a member of a value."""
        if isinstance(value, dict):
            members = list(value.values())
        elif isinstance(value, (list, tuple)):
            members = list(value)
        else:
            members = list(getattr(value, "__dict__", {}).values())
        return any(map(self.is_recipe, members))


def arguments(frame: FrameType) -> Iterator[tuple[str, object]]:
    """Names and values of the arguments that a function was just called with."""
    code = frame.f_code
    plain = code.co_argcount + code.co_kwonlyargcount
    for name in code.co_varnames[:plain]:
        yield name, frame.f_locals.get(name)

    # The names of *args and **kwargs follow those of the other arguments, in this order.
    position = plain
    if code.co_flags & CO_VARARGS:
        name = code.co_varnames[position]
        for value in frame.f_locals.get(name, ()):
            yield name, value
        position += 1
    if code.co_flags & CO_VARKEYWORDS:
        yield from frame.f_locals.get(code.co_varnames[position], {}).items()


def recipe_kinds(recipe: type) -> tuple[type, ...]:
    """A dataclass and all dataclasses that its fields are made of."""
    kinds = [recipe]
    for hint in get_type_hints(recipe).values():
        # The hint of an optional table is a union with None.
        for option in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                kinds.append(option)
    return tuple(kinds)


def follow(run_directory: Path) -> Journey:
    """Train in a run directory until the loop begins, and return what was seen on the way.

    Raises:
        SystemExit: where the command ends without reaching the loop.
    """
    # Imported beforehand, so that the profile function does not slow its import down.
    importlib.import_module("torch")
    package = importlib.import_module("tessella")
    command_line = importlib.import_module("tessella.cli")
    config = importlib.import_module("tessella.config")

    watcher = Watcher(Path(str(package.__file__)).parent, recipe_kinds(config.Recipe))
    command = ["train", *RECIPE, "--device", "cpu", "--threads", "1", "--out", str(run_directory)]
    # A profile function watches one thread; this one is also for threads that the run starts.
    threading.setprofile(watcher)
    sys.setprofile(watcher)
    try:
        status = command_line.main(command)
    except LoopReachedError:
        return watcher.journey
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    raise SystemExit(f"tessella train ended with status {status} before the loop began")


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the stops of a recipe.")
    parser.add_argument("file", type=Path, help="where to write what was found, as JSON")
    chosen = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        journey = follow(Path(folder) / "run")
    chosen.file.write_text(json.dumps(journey.summary(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
