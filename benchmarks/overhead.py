"""The cost of a run beyond its arithmetic: the training loop against a bare one, step by step.

    python benchmarks/overhead.py --out results/overhead.json
    python benchmarks/overhead.py --rounds 1 --steps 5 --layers 2 --hidden 8 --out tiny.json

Both loops train a gated PixelCNN of 6 layers of 48 features on equal random binary 28x28 images,
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
from typing import ParamSpec, TypeVar

import harness
import torch

import tessella as ts
from tessella.config import TrainConfig
from tessella.pipeline import pixel_generator
from tessella.training import checkpoint, loop, schedule
from tessella.training.averaging import Average
from tessella.training.engine import create_fabric
from tessella.training.examples import Examples, Order
from tessella.training.run_directory import RunDirectory
from tessella.training.tasks import DensityTask

GRID = ts.Grid(28, 28, 1, 2)
CONFIG = TrainConfig(steps=1, batch=16, learning_rate=3e-3, device="cpu", checkpoint_every=100)
TRAINING_IMAGES = 1000
WARM_UP = 3
"""Steps before the first round, in which memory is allocated and the moments are made."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Clock:
    """Adds up the seconds that functions take, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Wrap a function so that its time is added up under ``name``."""

        def timed(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds = time.perf_counter() - started
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds

        return timed


class BareLoop:
    """The arithmetic of a training step with nothing around it."""

    def __init__(self, task: DensityTask, examples: Examples) -> None:
        self.task = task.train()
        self.examples = examples
        self.steps = 0
        self.parameters = list(task.parameters())
        self.average = Average(task.module, CONFIG.average)
        self.order = Order(len(examples), CONFIG.batch, 0)
        self.generator = torch.Generator().manual_seed(0)

        # Biases and scales do not decay, as in the training loop.
        matrices = [parameter for parameter in self.parameters if parameter.dim() > 1]
        others = [parameter for parameter in self.parameters if parameter.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": CONFIG.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=CONFIG.learning_rate, betas=CONFIG.betas, fused=True
        )

    def step(self) -> None:
        """Take one step."""
        indices = self.order.at(self.steps)
        x, labels = self.examples.batch(indices, self.generator, torch.device("cpu"))
        # The order of the calls is that of the training loop.
        self.task(x, labels)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CONFIG.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.task.module, self.steps)
        self.steps += 1


def followed_by(
    function: Callable[Arguments, Result], next_function: Callable[[], object]
) -> Callable[Arguments, Result]:
    """Wrap a function so that another one runs after it."""

    def both(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        result = function(*arguments, **options)
        next_function()
        return result

    return both


def create_task(layers: int, hidden: int) -> DensityTask:
    """The task of training a fresh model."""
    model = ts.create("gated-pixelcnn", GRID, layers=layers, hidden=hidden)
    return DensityTask(model, pixel_generator(model).tokenizer)


def random_images(n: int, seed: int) -> Examples:
    """``n`` random black and white images."""
    x = torch.randint(0, 2, (n, 28, 28, 1), generator=torch.Generator().manual_seed(seed))
    return Examples([(x * 255).to(torch.uint8)])


def train_on(session: loop.Session, steps: int) -> None:
    """Take so many more steps.

    The last one validates and writes a checkpoint, as every hundredth of a long run does.
    """
    session.config = replace(session.config, steps=session.progress.step + steps)
    # Limits are computed once for a session, from the steps of its configuration.
    session.limits = schedule.limits_of(session.config, len(session.examples))
    # Without a rank the next validation is the best so far, so that each round saves the model.
    session.progress.rank = None
    loop.fit(session)


def measure(chosen: argparse.Namespace, folder: Path) -> harness.Row:
    """Train with both loops in turn, and compare their times."""
    # Two models of equal weights, one for each loop, learn from equal images.
    task = create_task(chosen.layers, chosen.hidden)
    examples = random_images(TRAINING_IMAGES, seed=0)
    held_out = random_images(chosen.valid, seed=1)
    run = RunDirectory(folder / "run")
    session = loop.setup(create_fabric("cpu"), task, examples, held_out, CONFIG, run)
    run.start({})
    bare = BareLoop(create_task(chosen.layers, chosen.hidden), examples)

    clock = Clock()
    task.validate = clock.time("evaluation", task.validate)  # type: ignore[method-assign]
    run.log = clock.time("log", run.log)  # type: ignore[method-assign]
    checkpoint.save = clock.time("checkpoint", checkpoint.save)
    loop.keep = clock.time("best model", loop.keep)
    # The update of the average is the last thing in a step of ours, so the bare loop's step comes
    # after it. Its time is subtracted below.
    bare_step = clock.time("bare", bare.step)
    average = session.average
    average.update = followed_by(average.update, bare_step)  # type: ignore[method-assign]
    train_on(session, WARM_UP)

    rounds: list[dict[str, float]] = []
    other_load = harness.gauge_other_load()
    for _ in range(chosen.rounds):
        clock.seconds.clear()
        clock.time("ours", train_on)(session, chosen.steps)
        clock.seconds["ours"] -= clock.seconds["bare"]
        rounds.append(dict(clock.seconds))

    # Found oldest first.
    newest = checkpoint.found(run.path)[-1]
    return {
        "model": "gated-pixelcnn",
        "sizes": {"layers": chosen.layers, "hidden": chosen.hidden},
        "grid": str(GRID),
        "parameters": harness.count_parameters(task),
        "batch": CONFIG.batch,
        "steps_a_round": chosen.steps,
        "rounds": chosen.rounds,
        "validation_images": chosen.valid,
        **compare(rounds, chosen.steps),
        "checkpoint_bytes": sum(path.stat().st_size for path in newest.iterdir()),
        "processors_busy_with_others": other_load(),
    }


def compare(rounds: list[dict[str, float]], steps: int) -> harness.Row:
    """Both loops' times of a step, and the share that ours takes more."""
    without_evaluation = []
    overheads = []
    overheads_with_validation = []
    for seconds in rounds:
        ours = seconds["ours"] - seconds["evaluation"]
        without_evaluation.append(ours)
        # Ratios within a round: both loops met the same noise there.
        overheads.append(ours / seconds["bare"] - 1)
        overheads_with_validation.append(seconds["ours"] / seconds["bare"] - 1)

    middle = {}
    for name in rounds[0]:
        middle[name] = statistics.median(seconds[name] for seconds in rounds)
    return {
        "bare_ms_a_step": 1e3 * middle["bare"] / steps,
        "ours_ms_a_step": 1e3 * statistics.median(without_evaluation) / steps,
        "overhead": statistics.median(overheads),
        "overhead_with_validation": statistics.median(overheads_with_validation),
        "overhead_of_each_round": overheads,
        "ms_a_round": {name: 1e3 * value for name, value in middle.items()},
    }


def main() -> None:
    """Measure, print and write one row."""
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
    parts = [f"{name} {value:.1f} ms" for name, value in row["ms_a_round"].items()]
    print(", ".join(parts), "a round")
    print(harness.write("overhead", [row], chosen.out))


if __name__ == "__main__":
    main()
