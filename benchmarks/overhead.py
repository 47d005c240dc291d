"""What a run costs beyond its arithmetic: the training loop against a bare one, step by step.

    python benchmarks/overhead.py --out results/overhead.json python benchmarks/overhead.py --rounds
    1 --steps 5 --layers 2 --hidden 8 --out /tmp/overhead.json

Both loops train a gated PixelCNN of 6 layers of 48 features on the same random binary 28x28 images,
in batches of 16, in turn, a step of one after a step of the other (a machine's speed drifts by more
than what is measured): batch, forward, backward, clipping, optimizer step, average. Ours is
``loop.fit`` as a run has it: seeds of each step, checks, a line of log every 10 steps and, once a
round of ``--steps`` (100) steps, a validation, a checkpoint and the saved best model. The model's
evaluation of the held-out images, whose cost is the user's choice of how often, is timed apart:
``overhead`` is without it, ``overhead_with_validation`` with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch

import tessella as ts
from tessella.config import TrainConfig
from tessella.pipeline import pixel_generator
from tessella.training import checkpoint, loop
from tessella.training.averaging import Average
from tessella.training.examples import Examples, Order
from tessella.training.run_directory import RunDirectory
from tessella.training.tasks import DensityTask

GRID = ts.Grid(28, 28, 1, 2)
CONFIG = TrainConfig(steps=1, batch=16, learning_rate=3e-3, device="cpu", checkpoint_every=100)


class Clock:
    """Adds up the time spent in functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return act(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return timed


class Bare:
    """The same steps with nothing around them."""

    def __init__(self, task: DensityTask, examples: Examples) -> None:
        self.task, self.examples, self.steps = task.train(), examples, 0
        self.parameters = list(task.parameters())
        self.average, self.order = (
            Average(task.module, CONFIG.average),
            Order(len(examples), CONFIG.batch, 0),
        )
        matrices = [p for p in task.parameters() if p.dim() > 1]
        others = [p for p in task.parameters() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": CONFIG.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=CONFIG.learning_rate, betas=CONFIG.betas, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> None:
        x, labels = self.examples.batch(
            self.order.at(self.steps), self.generator, torch.device("cpu")
        )
        self.task(x, labels)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CONFIG.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.task.module, self.steps)
        self.steps += 1


def followed(act: Callable[..., Any], then: Callable[[], Any]) -> Callable[..., Any]:
    """A function that does ``then`` after itself."""

    def both(*arguments: Any, **options: Any) -> Any:
        result = act(*arguments, **options)
        then()
        return result

    return both


def task(sizes: dict[str, int]) -> DensityTask:
    model = ts.create("gated-pixelcnn", GRID, **sizes)
    return DensityTask(model, pixel_generator(model).tokenizer)


def images(n: int, seed: int) -> Examples:
    x = torch.randint(0, 2, (n, 28, 28, 1), generator=torch.Generator().manual_seed(seed))
    return Examples([(x * 255).to(torch.uint8)])


def ours(session: loop.Session, steps: int) -> None:
    """So many more steps; the last one validates and writes a checkpoint, as every hundredth of a
    long run does."""
    session.config = replace(session.config, steps=session.progress.step + steps)
    session.progress.best = float("inf")  # the best model is saved each round
    loop.fit(session)


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes, clock = {"layers": chosen.layers, "hidden": chosen.hidden}, Clock()
    trained, learned = task(sizes), images(1000, 0)
    run = RunDirectory(folder / "run")
    session = loop.setup(
        loop.create_fabric(CONFIG), trained, learned, images(chosen.valid, 1), CONFIG, run
    )
    run.start({})
    bare = Bare(task(sizes), learned)
    trained.validate = clock("evaluation", trained.validate)  # type: ignore[method-assign]
    run.log = clock("log", run.log)  # type: ignore[method-assign]
    checkpoint.save = clock("checkpoint", checkpoint.save)
    loop.keep = clock("best model", loop.keep)
    session.average.update = followed(session.average.update, clock("bare", bare.step))  # type: ignore[method-assign]
    ours(session, 3)
    rounds: list[dict[str, float]] = []
    gauge = harness.others()
    for _ in range(chosen.rounds):
        clock.seconds.clear()
        clock("ours", ours)(session, chosen.steps)
        clock.seconds["ours"] -= clock.seconds["bare"]
        rounds.append(dict(clock.seconds))
    middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    without = [r["ours"] - r["evaluation"] for r in rounds]
    newest = checkpoint.found(run.path)[-1]
    return {
        "model": "gated-pixelcnn",
        "sizes": sizes,
        "grid": str(GRID),
        "parameters": sum(p.numel() for p in trained.parameters()),
        "batch": CONFIG.batch,
        "steps_a_round": chosen.steps,
        "rounds": chosen.rounds,
        "validation_images": chosen.valid,
        "bare_ms_a_step": 1e3 * middle["bare"] / chosen.steps,
        "ours_ms_a_step": 1e3 * statistics.median(without) / chosen.steps,
        "overhead": statistics.median(
            w / r["bare"] - 1 for w, r in zip(without, rounds, strict=True)
        ),
        "overhead_with_validation": statistics.median(r["ours"] / r["bare"] - 1 for r in rounds),
        "overhead_of_each_round": [w / r["bare"] - 1 for w, r in zip(without, rounds, strict=True)],
        "ms_a_round": {name: 1e3 * value for name, value in middle.items()},
        "checkpoint_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "processors_busy_with_others": gauge(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="of a round")
    parser.add_argument("--valid", type=int, default=200, help="images of a validation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--out", default="")
    parser.add_argument(
        "--folder", default=str(harness.ROOT / "runs"), help="where the run is written: a real disk"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    Path(chosen.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        row = measure(chosen, Path(folder))
    print(
        f"bare {row['bare_ms_a_step']:.2f} ms a step, ours {row['ours_ms_a_step']:.2f} ms: "
        f"overhead {row['overhead']:+.2%}, with the validation's evaluation "
        f"{row['overhead_with_validation']:+.2%}"
    )
    print(
        ", ".join(f"{name} {value:.1f} ms" for name, value in row["ms_a_round"].items()), "a round"
    )
    print(harness.write("overhead", [row], chosen.out))


if __name__ == "__main__":
    main()
