"""Runs on several processes against the run of one: the largest difference of their curves.

    python benchmarks/several_processes.py --json results/several_processes.json
    python benchmarks/several_processes.py --ranks 2 --kinds density vqgan --steps 8

Each kind of model is trained on one process and on several (Gloo, on the CPU) with the same batch,
and the loss of every step is compared. Images are mirrored and labels dropped on the way, which
must not depend on the number of processes; there is no dropout, which does. What remains is the
order in which float32 sums are taken. A kind whose name ends in ``-sharded`` is trained with
``train.sharding=full`` on the several processes.

Then a run that is divided among processes is saved, loaded and saved again on fewer and fewer of
them, which must change no bit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

import tessella as ts
from tessella import files
from tessella.config import Recipe, from_dict
from tessella.training import checkpoint, loop, train_recipe

TOLERANCE = 1e-3
"""Largest relative difference of a loss that passes.

Sums in another order differ by some 1e-7. Adam divides a gradient by its own size, so a gradient
near zero turns such a difference into one of the rate, and a vector between two codes may choose
the other one: the differences grow from step to step. A wrong mean or another batch shows at the
first step.
"""

TRAIN = {
    "batch": 8,
    "warmup": 2,
    "validate_every": 1000,
    "learning_rate": 1e-3,
    "device": "cpu",
    "threads": 1,
    "board": "none",
}
DATA = {"source": "digits", "limit": 64, "flip": True}
NETWORK = {"hidden": 8, "residual_blocks": 1, "code_dim": 4, "codebook_size": 16}
EMA_QUANTIZERS = ("vq-ema", "residual-vq", "rotation")
GAN = {"hidden": 8, "multipliers": [1, 1], "residual_blocks": 1, "latent": 4, "code_dim": 4}


def recipe_of(kind: str, train: dict[str, object]) -> Recipe:
    """The recipe of a small run."""
    values: dict[str, object] = {"data": DATA, "train": train}
    if kind == "density":
        values["model"] = {"layers": 1, "hidden": 8, "conditional": True}
    elif kind == "vqgan":
        values["tokenizer"] = {"name": "vqgan", "codebook_size": 16, **GAN}
        values["adversarial"] = {"start": 3, "layers": 1, "hidden": 8}
    elif kind == "transformer":
        values["model"] = {"name": "transformer", "layers": 2, "width": 16, "heads": 2}
    else:
        values["tokenizer"] = {"name": "vqvae", "quantizer": kind, **NETWORK}
    return from_dict(Recipe, values)


def train_kind(kind: str, out: Path, **train: object) -> None:
    """Train a kind of model, on as many processes as there are."""
    settings = TRAIN | train
    if kind != "hierarchy":
        train_recipe(recipe_of(kind, settings), out, say=lambda line: None)
        return
    # Codes of two grids, coarse to fine, the finer ones near the coarser.
    chance = np.random.default_rng(0)
    top = chance.integers(0, 6, (64, 2, 2, 1))
    bottom = (top.repeat(2, 1).repeat(2, 2) + chance.integers(0, 2, (64, 4, 4, 1))) % 6
    grids = (ts.Grid(2, 2, 1, 6), ts.Grid(4, 4, 1, 6))
    prior = ts.create_prior("gated-pixelcnn", grids, layers=1, hidden=8)
    images: Any = (top[:56], bottom[:56])
    held_out: Any = (top[56:], bottom[56:])
    options: Any = settings
    ts.train(prior, images, valid=held_out, out=out, say=lambda line: None, **options)


def in_processes(ranks: int, work: Callable[[], None]) -> None:
    """Call ``work`` in so many processes, which find each other as those of torchrun do.

    They are forked, so that nothing is imported twice.

    Raises:
        SystemExit: when one of them fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked = multiprocessing.get_context("fork")
    children = []
    for rank in range(ranks):
        child = forked.Process(target=_as_rank, args=(rank, ranks, port, work))
        child.start()
        children.append(child)
    for child in children:
        child.join()
    failed = [child for child in children if child.exitcode]
    if failed:
        raise SystemExit(f"{len(failed)} of {ranks} processes failed")


def _as_rank(rank: int, ranks: int, port: int, work: Callable[[], None]) -> None:
    """Work as one of several processes."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    place |= {"MASTER_PORT": port, "GROUP_RANK": 0}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "forked"}
    work()


def train_all(kinds: Sequence[str], folder: Path, steps: int) -> None:
    """Train all kinds one after the other, with a line of the log for each step."""
    loop.LOG_EVERY = 1
    warnings.simplefilter("ignore")
    for kind in kinds:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        name = kind.removesuffix("-sharded")
        changes: dict[str, object] = {"steps": steps}
        if name != kind and several:
            changes["sharding"] = "full"
        train_kind(name, folder / kind, **changes)


def read_curve(run: Path) -> list[float]:
    """The losses of all steps of a run."""
    losses = []
    for text in (run / "log.jsonl").read_text().splitlines():
        entry = json.loads(text)
        if "loss" in entry:
            losses.append(entry["loss"])
    return losses


def compare(kinds: Sequence[str], ranks: int, folder: Path, steps: int) -> list[harness.Row]:
    """Train on several processes, and compare with the runs of one in ``folder / "one"``."""
    several = folder / str(ranks)
    in_processes(ranks, lambda: train_all(kinds, several, steps))
    rows = []
    for kind in kinds:
        alone = read_curve(folder / "one" / kind)
        together = read_curve(several / kind)
        assert len(alone) == len(together) == steps
        differences = []
        for loss, other in zip(alone, together, strict=True):
            differences.append(abs(other - loss) / abs(loss))
        rows.append(
            {
                "kind": kind,
                "ranks": ranks,
                "steps": steps,
                "first_loss": alone[0],
                "last_loss": alone[-1],
                "difference_of_first_loss": differences[0],
                "largest_difference": max(differences),
                "tolerance": TOLERANCE,
            }
        )
    return rows


def keep_state(out: Path, steps: int) -> None:
    """Begin or resume a run in parts, and end it before its next step, with a checkpoint."""
    fit = loop.fit

    def stopped_at_once(session: loop.Session) -> None:
        # The first sitting takes its steps; those that resume only load and save.
        if session.progress.step:
            session.stop.set()
        fit(session)

    loop.fit = stopped_at_once
    warnings.simplefilter("ignore")
    resume = (out / "run.json").exists()
    more = 1 if resume else 0
    settings = TRAIN | {"steps": steps + more, "sharding": "full", "batch": 8}
    train_recipe(recipe_of("transformer", settings), out, resume=resume, say=lambda line: None)
    loop.fit = fit


def hand_on(folder: Path, chain: Sequence[int], steps: int) -> harness.Row:
    """Save a run in parts on some processes, and load and save it on others, in turn."""
    out = folder / "handed-on"
    states = []
    for ranks in chain:
        if ranks > 1:
            in_processes(ranks, lambda: keep_state(out, steps))
        else:
            keep_state(out, steps)
        tensors, _, problems = checkpoint.newest(out)
        assert not problems
        # Read into memory, as the next one writes a file of the same name.
        states.append({name: tensor.clone() for name, tensor in tensors.items()})
    different = 0
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        different += sum(not torch.equal(tensor, state[name]) for name, tensor in states[0].items())
    model = files.read_tensors(out / "model.safetensors")
    averages = {}
    for name, tensor in states[-1].items():
        if name.startswith("average/"):
            averages[name.removeprefix("average/")] = tensor
    unlike = [name for name, tensor in averages.items() if not torch.equal(tensor, model[name])]
    return {
        "kind": "handed on",
        "chain": list(chain),
        "tensors": len(states[0]),
        "tensors_that_differ": different,
        "weights_of_the_model_that_differ": len(unlike),
    }


KINDS = (
    "density",
    *EMA_QUANTIZERS,
    "vqgan",
    "hierarchy",
    "density-sharded",
    "transformer-sharded",
    "vq-sharded",
    "hierarchy-sharded",
)


def main() -> int:
    """Compare all kinds; the exit status is 1 if one differs by more than the tolerance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--chain",
        nargs="*",
        type=int,
        default=[4, 2, 1],
        help="processes that a run in parts is handed on to; bit for bit nothing may change",
    )
    parser.add_argument("--json", default="", help="file to write the rows to")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_all(chosen.kinds, folder / "one", chosen.steps)
        for ranks in chosen.ranks:
            rows += compare(chosen.kinds, ranks, folder, chosen.steps)
        if chosen.chain:
            rows.append(hand_on(folder, chosen.chain, chosen.steps))
            print(rows[-1])
    curves = [row for row in rows if "largest_difference" in row]
    for row in curves:
        print(
            f"{row['kind']:20} {row['ranks']} processes: first loss differs by"
            f" {row['difference_of_first_loss']:.1e}, any by {row['largest_difference']:.1e}"
        )
    if chosen.json:
        print(harness.write("several_processes", rows, chosen.json))
    differs = any(row["largest_difference"] > TOLERANCE for row in curves)
    return int(differs or any(row.get("tensors_that_differ") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
