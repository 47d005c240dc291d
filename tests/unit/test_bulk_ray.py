"""Bulk work on Ray: the same stages, units and bytes, also after an actor was killed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella import bulk
from tessella.bulk.engines import LocalEngine
from tessella.bulk.items import PictureItems
from tessella.bulk.packing import TablePacking
from tessella.bulk.ray_engine import RayEngine
from tessella.bulk.unit_folder import make_folder
from tessella.bulk.units import StageUnits
from tessella.cli.entry import main
from tessella.errors import DataError
from tessella.files import pictures

ray: Any = pytest.importorskip("ray")
pytest.importorskip("ray.data")

STORE = 100 << 20
"""Bytes of the object store; little is enough."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its workers would yield to every other process.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        # Workers cannot import a test, so its classes travel with their code.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        # The environment stays: what Ray Data collects, it would go on collecting in a thread.
        yield
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        ray.shutdown()


def digits(n: int) -> np.ndarray:
    """Images that a model of the digits can code, ``uint8 [n, 8, 8, 1]``."""
    symbols = np.random.default_rng(0).integers(0, 17, (n, 8, 8, 1))
    return ((510 * symbols + 16) // 32).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of image files."""
    path = tmp_path / "digits"
    path.mkdir()
    for number, image in enumerate(digits(10)):
        (path / f"{number:02d}.png").write_bytes(pictures.png(image))
    return path


def contents(out: Path) -> dict[str, bytes]:
    """The files below a folder by name."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("as_class", [True, False])
def test_ray_data_takes_a_stage_as_it_is(as_class: bool) -> None:
    images = digits(10)
    rows = [{"key": f"{number}", "image": image} for number, image in enumerate(images)]
    dataset = ray.data.from_items(rows, override_num_blocks=2)
    if as_class:
        pool = ray.data.ActorPoolStrategy(size=2)
        made = dataset.map_batches(
            bulk.Tokenize, fn_constructor_args=("digits-codes",), compute=pool, batch_size=3
        )
    else:
        made = dataset.map_batches(bulk.Tokenize("digits-codes"), batch_size=4)
    codes = {row["key"]: row["codes"] for row in made.iter_rows()}
    keys = np.array([row["key"] for row in rows])
    expected = bulk.Tokenize("digits-codes")({"key": keys, "image": images})
    assert len(codes) == 10
    for key, wanted in zip(keys, expected["codes"], strict=True):
        assert np.array_equal(codes[key], wanted)


class DyingUnits(StageUnits):
    """Units of which the first process that makes number 1 is killed."""

    def __init__(self, folder: Path, mark: Path) -> None:
        super().__init__(
            bulk.Score("digits"), PictureItems([str(folder)]), TablePacking("scores"), 2
        )
        self.mark = mark

    def make(self, number: int) -> bytes:
        if number == 1 and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return super().make(number)


def test_a_killed_actor_leaves_no_trace(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    make_folder(tmp_path / "ray", "scores", {}, DyingUnits(folder, mark), RayEngine(actors=2))
    assert mark.exists()
    make_folder(tmp_path / "local", "scores", {}, DyingUnits(folder, mark), LocalEngine(1))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_an_error_of_a_unit_is_ours(folder: Path, tmp_path: Path) -> None:
    (folder / "05.png").write_bytes(b"\x89PNG no image")
    units = StageUnits(bulk.Score("digits"), PictureItems([str(folder)]), TablePacking("scores"), 2)
    with pytest.raises(DataError, match=r"05\.png"):
        make_folder(tmp_path / "out", "scores", {}, units, RayEngine(actors=1))
    # What was made before stays, for the next try.
    assert (tmp_path / "out" / "made.json").exists()


@pytest.mark.slow
def test_commands_write_the_same_with_both_engines(folder: Path, tmp_path: Path) -> None:
    commands = {
        "score": ["score", "digits", str(folder), "--units", "4"],
        "tokenize": ["tokenize", "digits-codes", "--data", "digits", "--split", "test"],
        "sample": ["sample", "digits", "--n", "6", "--units", "4"],
    }
    for name, words in commands.items():
        here = tmp_path / "here" / name
        there = tmp_path / "there" / name
        more = ["--engine", "ray", "--actors", "1", "--out", f"{there}/"]
        assert main([*words, "--out", f"{here}/"]) == 0
        assert main([*words, *more]) == 0
        assert contents(here) == contents(there)
        assert contents(here)


def test_nothing_is_collected_about_the_work() -> None:
    ray.data.range(2).map_batches(lambda batch: batch).materialize()
    names = {thread.name for thread in threading.enumerate()}
    assert "data-usage-metrics-poller" not in names
