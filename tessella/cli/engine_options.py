"""Options of verbs whose work can be divided: who does it, and in which units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tessella.cli.flags import Within


@dataclass(frozen=True)
class EngineOptions:
    """Who does the work."""

    engine: Literal["inprocess", "ray"] = "inprocess"
    """This machine alone, or actors of Ray Data, here or on a cluster (needs the extra ray). Both
    write the same bytes."""
    address: str = ""
    """Address of the Ray cluster; without one Ray is started on this machine for the command."""
    actors: Annotated[int, Within(0, 1 << 16)] = 0
    """Processes that each load the model; 0 for as many as there are processors (or GPUs, with
    --gpus-per-actor). Without --engine ray, tokenize starts processes only above 1."""
    gpus_per_actor: Annotated[float, Within(0, 64)] = 0.0
    """With --engine ray, GPUs (or a part of one) that each actor takes."""


@dataclass(frozen=True)
class UnitOptions(EngineOptions):
    """Who does the work, and in which units."""

    units: Annotated[int, Within(0, 1 << 20)] = 0
    """Images of a unit of work. Each unit makes one file in a folder --out (name ending in /), and
    the same command goes on after a stop; --batch, --threads and --group then have no effect. 0
    works without units, or with 1024 under --engine ray."""
