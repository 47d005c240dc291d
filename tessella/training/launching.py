"""How many processes a run has, who starts them, and that none is left behind.

A run on several devices starts its processes itself, through the engine; ``torchrun`` and Slurm's
``srun`` start them for it, on one machine or on several, and say so in the environment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tessella.errors import ConfigError
from tessella.training.engine import Fabric


@dataclass(frozen=True)
class ProcessLayout:
    """The processes of a run.

    Args:
        devices: processes on each machine, each with a device.
        nodes: machines.
        launcher: who starts them; empty where the run does.
    """

    devices: int
    nodes: int = 1
    launcher: str = ""

    @property
    def processes(self) -> int:
        """Processes on all machines together."""
        return self.devices * self.nodes


def layout_of(devices: int) -> ProcessLayout:
    """The processes of a run that asks for so many devices, and that somebody may have started.

    Args:
        devices: ``train.devices``; 1 also stands for what the launcher says.

    Raises:
        ConfigError: when the launcher has started another number, or does not say how many there
            are on each machine.
    """
    found = _launched()
    if found is None:
        return ProcessLayout(devices)
    if devices not in (1, found.devices):
        raise ConfigError(
            f"devices={devices}, but {found.launcher} started {found.devices} processes on each"
            " machine: leave devices out, or give that number"
        )
    return found


def goes_on_by_itself(out: Path) -> bool:
    """Whether a launcher has started a run again that it is to go on with.

    ``torchrun --max-restarts`` starts all processes anew, with the same command, after one of them
    has failed.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return restarts.isdecimal() and int(restarts) > 0 and (out / "run.json").exists()


def is_started_by_us(fabric: Fabric) -> bool:
    """Whether the engine in another process of this run has started this one.

    The exit status of such a process is read by the engine alone, which takes any but 0 as a reason
    to kill the process that started it.
    """
    return _launched() is None and fabric.world_size > 1 and fabric.local_rank > 0


@contextlib.contextmanager
def ending_together(fabric: Fabric) -> Iterator[None]:
    """End the processes that the engine has started, if the block fails.

    They would wait for this one, up to half an hour where it has not met them yet.
    """
    try:
        yield
    except BaseException:
        launcher = fabric.strategy.launcher
        for process in getattr(launcher, "procs", []):
            process.kill()
        raise


def _launched() -> ProcessLayout | None:
    """The processes that a launcher has started; None where there is none."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return ProcessLayout(local, int(os.environ["WORLD_SIZE"]) // local, "torchrun")
    # Set in the steps that srun starts; the script of a batch job itself is one process.
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        # Without it Slurm may place different numbers on the machines.
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError(
                f"srun started {tasks} tasks on {nodes} machines: say with --ntasks-per-node how"
                " many each has"
            )
        return ProcessLayout(int(tasks) // nodes, nodes, "srun")
    return None
