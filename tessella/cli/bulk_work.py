"""Work of a verb that is divided into units, with a line of progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tessella.bulk.engines import Engine, LocalEngine
from tessella.bulk.ray_engine import RayEngine
from tessella.bulk.unit_folder import UnitFile, make_folder
from tessella.bulk.units import Units
from tessella.cli.engine_options import EngineOptions, UnitOptions
from tessella.errors import InputError
from tessella.storage import image_writer

UNIT_IMAGES = 1024
"""Images of a unit where nobody said how many."""


def engine_of(options: EngineOptions) -> Engine:
    """The engine that the options name.

    Raises:
        InputError: for options of another engine.
        ConfigError: when its library is not installed.
    """
    if options.engine == "ray":
        return RayEngine(options.address, options.actors, options.gpus_per_actor)
    for name in ("address", "gpus_per_actor"):
        if getattr(options, name):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} is for --engine ray: give both, or leave it out")
    return LocalEngine(options.actors)


def uses_units(options: UnitOptions, out: str) -> bool:
    """Whether the work is divided into units, which are files of a folder.

    Raises:
        InputError: when the output, or another option, does not go with that.
    """
    if options.units or options.engine == "ray":
        if not out.endswith("/"):
            raise InputError(
                f"units of work are files of a folder, and --out is {out!r}: name a folder with a"
                " / at its end"
            )
        return True
    if options != UnitOptions():
        raise InputError("--actors is for work in units: give --units, or --engine ray")
    return False


def check_is_file(out: str) -> None:
    """Refuse a folder as the output of work without units.

    Raises:
        InputError: saying what makes a folder.
    """
    if out.endswith("/"):
        raise InputError(f"{out} is a folder, for --units: name a file, or give --units")


def unit_images(options: UnitOptions) -> int:
    """Images of a unit."""
    return options.units or UNIT_IMAGES


def make_units(
    out: str, kind: str, made: Mapping[str, object], units: Units, options: UnitOptions
) -> list[UnitFile]:
    """Make the units of a folder with a line of progress; see :func:`make_folder`."""
    with image_writer.progress(units.images) as watch:
        return make_folder(Path(out), kind, made, units, engine_of(options), watch)
