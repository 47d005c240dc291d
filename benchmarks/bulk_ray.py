"""Tokenize and score many images on a cluster of Ray that loses a node.

    python benchmarks/bulk_ray.py --json results/bulk_ray.json
    python benchmarks/bulk_ray.py --n 4000 --shards 2 --unit 512

Small images are generated and written as shards. Each of the two jobs is then done by processes of
this machine, by as many actors of Ray on one node, and by actors on a local cluster of two nodes of
which one is killed after a third of the units. The outputs are compared byte for byte, and every
image must be in them once. Speeds are those between the first unit and the last, so that neither
side pays for its start.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import sys
import tarfile
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np

from tessella import data
from tessella.bulk.code_units import shards_made_by
from tessella.bulk.coding_stages import ScoreStage
from tessella.bulk.engines import Engine, LocalEngine
from tessella.bulk.items import ShardedItems
from tessella.bulk.packing import TablePacking
from tessella.bulk.ray_engine import RayEngine
from tessella.bulk.stages import TokenizeStage
from tessella.bulk.unit_folder import make_folder
from tessella.bulk.units import StageUnits
from tessella.cli.score_table import lines_in
from tessella.config import DataConfig
from tessella.data.shards import open_shards
from tessella.files import pictures
from tessella.storage import code_store
from tessella.storage.code_store import open_codes

MODEL = "digits"
TOKENIZER = "digits-codes"
"""Models that ship."""

LEVELS = 17
"""Levels of the bundled models of the digits."""

STORE = 200 << 20
"""Bytes of the object store of a node."""


def write_shards(folder: Path, n: int, shards: int) -> None:
    """Write images that a model of the digits can code, ``n`` in all."""
    random = np.random.default_rng(0)
    values = (510 * np.arange(LEVELS) + LEVELS - 1) // (2 * (LEVELS - 1))
    for shard, numbers in enumerate(np.array_split(np.arange(n), shards)):
        with tarfile.open(folder / f"digits-{shard:06d}.tar", "w") as archive:
            symbols = random.integers(0, LEVELS, (len(numbers), 8, 8, 1))
            for number, image in zip(
                numbers.tolist(), values[symbols].astype(np.uint8), strict=True
            ):
                data = pictures.png(image)
                member = tarfile.TarInfo(f"{number:08d}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


class Clock:
    """Takes the time between the first unit and the last."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def __call__(self, done: float) -> None:
        self.seen.append((time.perf_counter(), done))

    def images_a_second(self) -> float:
        """Images between the first unit and the last, by the seconds between them."""
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return (last - first) / (ended - began)


class Job(ABC):
    """Something that is done to all images.

    Args:
        shards: the folder of the images.
        chosen: the options of the command.
    """

    name: str

    def __init__(self, shards: Path, chosen: argparse.Namespace) -> None:
        self.shards = shards
        self.images = chosen.n
        self.unit = chosen.unit

    @abstractmethod
    def run(self, out: Path, engine: Engine, watch: Callable[[float], object]) -> None:
        """Do it in a new folder."""

    @abstractmethod
    def done(self, out: Path) -> list[str]:
        """What stands for each image that is in the output."""

    @abstractmethod
    def wanted(self) -> list[str]:
        """What stands for each image that has to be there."""


class Tokenizing(Job):
    """Images to a set of codes, as ``tessella tokenize`` makes it."""

    name = "tokenize"

    def run(self, out: Path, engine: Engine, watch: Callable[[float], object]) -> None:
        stage = TokenizeStage(TOKENIZER)
        elsewhere = shards_made_by(engine, stage, self._source(), "all")
        images = data.load(self._source(), "all")
        code_store.SHARD_IMAGES = self.unit
        code_store.tokenize(stage.loaded(), images, out, watch=watch, elsewhere=elsewhere)

    def done(self, out: Path) -> list[str]:
        return [str(value) for value in open_codes(out).hashes()]

    def wanted(self) -> list[str]:
        return [str(value) for value in data.load(self._source(), "all").hashes()]

    def _source(self) -> DataConfig:
        return DataConfig(source=f"shards:{self.shards}", size="8", channels=1)


class Scoring(Job):
    """Images to a table of their bits, as ``tessella score --units`` makes it."""

    name = "score"

    def run(self, out: Path, engine: Engine, watch: Callable[[float], object]) -> None:
        items = ShardedItems(str(self.shards))
        units = StageUnits(ScoreStage(MODEL), items, TablePacking("scores"), self.unit)
        make_folder(out, "scores", {}, units, engine, watch)

    def done(self, out: Path) -> list[str]:
        return [line.name for line in lines_in(sorted(out.glob("*.jsonl")))]

    def wanted(self) -> list[str]:
        shards = open_shards(str(self.shards))
        return [shards.name(number) for number in range(len(shards))]


@contextlib.contextmanager
def cluster(nodes: Sequence[int]) -> Iterator[Any]:
    """A local cluster of Ray, with so many processors in each node, and this process in it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Workers of Ray yield to all other processes, which those they are compared with do not.
    os.environ.update(RAY_worker_niceness="0")
    import ray
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": STORE, "include_dashboard": False}
    local = Cluster(initialize_head=True, head_node_args={"num_cpus": nodes[0], **options})
    for processors in nodes[1:]:
        local.add_node(num_cpus=processors, object_store_memory=STORE)
    local.wait_for_nodes()
    ray.init(address=local.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield local
    finally:
        ray.shutdown()
        local.shutdown()


class NodeKiller:
    """Kills the last node of a cluster, once, when a third of the images is done."""

    def __init__(self, local: Any, images: int) -> None:
        self.local = local
        self.images = images
        self.killed_at = 0.0

    def __call__(self, done: float) -> None:
        if self.killed_at or done < self.images / 3:
            return
        self.killed_at = done
        node = list(self.local.worker_nodes)[-1]
        self.local.remove_node(node, allow_graceful=False)


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def measure(job: Job, folder: Path, actors: int) -> harness.Row:
    """One job, by processes, by Ray, and by a cluster that loses a node."""
    by_processes = Clock()
    job.run(folder / "processes", LocalEngine(actors), by_processes)
    by_ray = Clock()
    with cluster([actors]):
        job.run(folder / "ray", RayEngine(actors=actors), by_ray)
    # One more processor than actors: there the actor of the lost node begins again.
    with cluster([actors, 1]) as local:
        killer = NodeKiller(local, job.images)
        job.run(folder / "killed", RayEngine(actors=actors), killer)
    expected = hashes_of(folder / "processes")
    done = job.done(folder / "killed")
    wanted = job.wanted()
    speeds = {"processes": by_processes.images_a_second(), "ray": by_ray.images_a_second()}
    return {
        "task": job.name,
        "images": job.images,
        "unit": job.unit,
        "actors": actors,
        "images_a_second": speeds,
        "ray_to_processes": speeds["ray"] / speeds["processes"],
        "ray_equals_processes": hashes_of(folder / "ray") == expected,
        "node_killed_after_images": killer.killed_at,
        "killed_equals_processes": hashes_of(folder / "killed") == expected,
        "twice": sum((Counter(done) - Counter(wanted)).values()),
        "missing": sum((Counter(wanted) - Counter(done)).values()),
    }


def main() -> int:
    """Measure; the exit status is 1 if outputs differ, or an image is missing or there twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=100_000, help="images")
    parser.add_argument("--shards", type=int, default=10, help="tar files that they come in")
    parser.add_argument("--unit", type=int, default=1024, help="images of a unit")
    parser.add_argument("--actors", type=int, default=2, help="processes, and actors")
    parser.add_argument("--json", default="", help="file to write the rows to")
    chosen = parser.parse_args()

    rows = []
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        shards.mkdir()
        write_shards(shards, chosen.n, chosen.shards)
        for job in (Tokenizing(shards, chosen), Scoring(shards, chosen)):
            row = measure(job, Path(folder) / job.name, chosen.actors)
            rows.append(row)
            same = row["ray_equals_processes"] and row["killed_equals_processes"]
            failed |= not same or bool(row["twice"] or row["missing"])
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.json:
        print(harness.write("bulk_ray", rows, chosen.json))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
