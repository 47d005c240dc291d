"""Units made by actors of Ray Data, on this machine or on a cluster.

Ray starts the actors, gives them units, and gives those of a node that was lost to others. Its
dashboard and its usage statistics stay off.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from tessella import errors
from tessella.bulk.batches import Batch, column
from tessella.bulk.engines import Engine, processors
from tessella.bulk.units import MadeUnit, Units
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaError

MISSING = '--engine ray needs Ray Data: pip install "tessella[ray]"'

SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""What the environment holds while Ray that was started here runs: it reports nothing to anybody,
and its own core writes no lines between ours."""

LOGGERS = ("ray", "ray.data")
"""Names under which Ray tells of its progress; its errors are raised."""

MOST_BLOCKS = 10_000
"""Parts that the list of units is cut into, at most. A part is what a lost node repeats."""


@dataclass(frozen=True)
class RayEngine(Engine):
    """Actors of Ray Data, each with a model of its own.

    Args:
        address: of a cluster; empty for the one that is connected already, else a new one on this
            machine.
        actors: how many; 0 for as many as the cluster has processors, or GPUs if they take some.
        gpus_per_actor: GPUs, or a part of one, that an actor takes.

    Raises:
        ConfigError: when Ray is not installed.
    """

    address: str = ""
    actors: int = 0
    gpus_per_actor: float = 0.0

    def __post_init__(self) -> None:
        # Before anything is read or written.
        ray_library()

    def make(self, units: Units, numbers: Sequence[int]) -> Iterator[MadeUnit]:
        if not numbers:
            return
        ray = ray_library()
        with _quiet(ray), _connected(ray, self):
            rows = self._rows(ray, units, numbers)
            try:
                for row in rows.iter_rows():
                    yield _unit_of(row)
            except ray.exceptions.RayError as error:
                raise ArtifactError(
                    f"Ray could not go on ({_first_line(error)}): the same command goes on with the"
                    " units that are missing"
                ) from error

    def _rows(self, ray: ModuleType, units: Units, numbers: Sequence[int]) -> Any:
        """The data set of the units that are made, computed as it is read."""
        numbered = [{"unit": number} for number in numbers]
        blocks = min(len(numbers), MOST_BLOCKS)
        return ray.data.from_items(numbered, override_num_blocks=blocks).map_batches(
            UnitMaker,
            fn_constructor_args=(units,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self._actor_count(ray), len(numbers))),
            num_cpus=1,
            num_gpus=self.gpus_per_actor or None,
        )

    def _actor_count(self, ray: ModuleType) -> int:
        if self.actors:
            return self.actors
        resources = ray.cluster_resources()
        if not self.gpus_per_actor:
            return max(1, int(resources.get("CPU", 1)))
        fitting = int(resources.get("GPU", 0) / self.gpus_per_actor)
        if not fitting:
            raise InputError(
                f"an actor shall take {self.gpus_per_actor:g} GPUs, and the cluster has"
                f" {resources.get('GPU', 0):g}: leave out --gpus-per-actor"
            )
        return fitting


class UnitMaker:
    """An actor: it makes units, one after another.

    Args:
        units: of the job.
    """

    def __init__(self, units: Units) -> None:
        self.units = units

    def __call__(self, batch: Batch) -> Batch:
        """The columns ``file``, the contents of files, and ``error``, why there is none."""
        contents = []
        reasons = []
        for number in batch["unit"].tolist():
            data = b""
            reason = ""
            try:
                data = self.units.make(number)
            except TessellaError as error:
                # As a value: Ray would try again what fails each time, and wrap the error.
                reason = f"{type(error).__name__}:{error}"
            contents.append(data)
            reasons.append(reason)
        return {"unit": batch["unit"], "file": column(contents), "error": np.array(reasons)}


def ray_library() -> ModuleType:
    """Ray, with Ray Data.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(MISSING) from error
    return ray


def _unit_of(row: dict[str, Any]) -> MadeUnit:
    """A row of the data set as a unit; raises what making it raised."""
    name, _, message = str(row["error"]).partition(":")
    if name:
        kind = getattr(errors, name, TessellaError)
        raise kind(message)
    return MadeUnit(int(row["unit"]), bytes(row["file"]))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _connected(ray: ModuleType, engine: RayEngine) -> Iterator[None]:
    """Connect to the cluster of an engine, or start one here that ends with the block.

    A connection that is there already is used, and stays.
    """
    if ray.is_initialized():
        yield
        return
    with _environment(SILENT):
        try:
            if engine.address:
                ray.init(engine.address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                cpus = max(engine.actors, processors())
                ray.init(
                    "local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"there is no Ray cluster at {engine.address or 'this machine'}"
                f" ({_first_line(error)}): start one with ray start, or leave out --address"
            ) from error
        # Ray Data asks the environment again at each execution whether it may collect anything.
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, inside of the block only."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(ray: ModuleType) -> Iterator[None]:
    """No bars and no notes of Ray inside of the block: ours show the progress."""
    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    context.enable_progress_bars = False
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
