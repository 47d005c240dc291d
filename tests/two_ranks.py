"""What two processes do together, as a script: ``python tests/two_ranks.py FOLDER``.

``tests/unit/test_several_processes.py`` starts it once, and reads what each process has written to
``FOLDER/RANK.json``. One start for all of it, because a process that trains takes seconds to begin.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import several_processes  # noqa: E402

import tessella as ts  # noqa: E402
from tessella.errors import TrainingError  # noqa: E402
from tessella.training import loop, sharding, train_recipe  # noqa: E402
from tessella.training.tasks import DensityTask  # noqa: E402

BAD_STEP = 3
"""Steps taken before the one whose loss is no number, in the second process only."""


@contextmanager
def before_each_step(what: Callable[[loop.Session], None]) -> Iterator[None]:
    """Call ``what`` with the session before each step."""
    step = loop._step

    def watched(session: loop.Session, *rest: Any) -> dict[str, float]:
        what(session)
        return step(session, *rest)

    loop._step = watched
    try:
        yield
    finally:
        loop._step = step


def train(out: Path, **changes: object) -> Any:
    """A run of six steps, with a checkpoint after every second one."""
    settings = several_processes.TRAIN | {"steps": 6, "checkpoint_every": 2} | changes
    said: list[str] = []
    run = train_recipe(several_processes.recipe_of("density", settings), out, say=said.append)
    return run, said


def meet_a_bad_step(folder: Path, policy: str, rank: int) -> dict[str, object]:
    """Train with a loss that is no number at one step, in the second process."""
    at = [0]
    forward = DensityTask.forward

    def note(session: loop.Session) -> None:
        at[0] = session.progress.step

    def spoilt(task: DensityTask, *inputs: Any) -> dict[str, torch.Tensor]:
        figures = forward(task, *inputs)
        if rank == 1 and at[0] == BAD_STEP:
            figures["loss"] = figures["loss"] * torch.nan
        return figures

    DensityTask.forward = spoilt  # type: ignore[method-assign]
    try:
        with before_each_step(note):
            run, said = train(folder / policy, on_nonfinite=policy)
    except TrainingError as error:
        return {"error": str(error)}
    finally:
        DensityTask.forward = forward  # type: ignore[method-assign]
    return {"bad_steps": run.progress.bad_steps, "step": run.progress.step, "said": said}


def get_a_signal(folder: Path, rank: int) -> dict[str, object]:
    """Train until the second process gets a queue's signal."""

    def signalled(session: loop.Session) -> None:
        if rank == 1 and session.progress.step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    with before_each_step(signalled):
        run, _ = train(folder / "signalled")
    return {"status": run.status, "step": run.progress.step, "interrupted": run.interrupted}


def divide_models() -> dict[str, list[float]]:
    """Loss and gradient norm of every model as a whole, and divided among the processes."""
    found = {}
    x = torch.randint(0, 3, (4, 4, 4, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1])
    for name in ts.MODELS:
        task = DensityTask(ts.create(name, ts.Grid(4, 4, 2, 3), classes=2), None).train()
        figures = []
        for _ in range(2):
            # Equal numbers for the dropout of both passes, and of both processes.
            torch.manual_seed(0)
            task.zero_grad()
            loss = task(x, labels)["loss"]
            loss.backward()
            sharding.share_whole_gradients(task.parameters())
            figures += [float(loss.detach()), float(sharding.gradient_norm(task.parameters()))]
            if len(figures) == 2:
                sharding.divide(task)
        found[name] = figures
    return found


def work(folder: Path) -> None:
    """All of it, as one of the two processes."""
    rank = int(os.environ["RANK"])
    found = {}
    for policy in ("stop", "skip", "rollback"):
        found[policy] = meet_a_bad_step(folder, policy, rank)
    found["signal"] = get_a_signal(folder, rank)
    train(folder / "together")
    held = [1.0]

    def note(session: loop.Session) -> None:
        parts = sum(parameter.to_local().numel() for parameter in session.task.parameters())
        held[0] = parts / sum(parameter.numel() for parameter in session.task.parameters())

    with before_each_step(note):
        train(folder / "divided", sharding="full", learning_rate=3e-3)
    found["share_of_weights"] = held[0]
    found["models"] = divide_models()
    # The same two as two machines of one process each, as torchrun numbers them there.
    os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": str(rank)}
    train(folder / "machines")
    # And as the tasks of a job step, as Slurm numbers them.
    del os.environ["TORCHELASTIC_RUN_ID"]
    os.environ |= {"SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1", "SLURM_NODELIST": "127.0.0.1"}
    os.environ |= {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    os.environ |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
    train(folder / "tasks")
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    several_processes.in_processes(2, lambda: work(Path(sys.argv[1])))
