"""What a run holds for its weights, counted on the task itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tessella.config import TrainConfig
from tessella.training.averaging import learned_buffers
from tessella.training.tasks import Task


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of what a run holds for its weights alone, on a device that holds all of it."""

    parameters: int
    """Number of weights that are trained."""
    weights: int
    """Weights, masks and codebooks."""
    gradients: int
    moments: int
    """What the optimizer remembers of earlier gradients."""
    average: int
    """The averaged copy of weights and codebooks."""
    spare: int
    """Copies of codebooks, kept through a step to undo it."""
    largest_block: int
    """The weights of the largest block, which ``train.sharding=full`` gathers at a time."""


def weight_bytes(task: Task, config: TrainConfig) -> WeightBytes:
    """Count what a run holds for its weights.

    AdamW keeps two numbers for each weight, Muon one for each of its matrices.
    """
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    moments = 2 * gradients
    if config.optimizer == "muon":
        moments -= sum(matrix.nbytes for matrix in task.hidden_matrices())
    weights = sum(tensor.nbytes for tensor in [*task.parameters(), *task.buffers()])
    return WeightBytes(
        parameters=sum(parameter.numel() for parameter in trained),
        weights=weights,
        gradients=gradients,
        moments=moments,
        average=weights,
        spare=sum(buffer.nbytes for buffer in learned_buffers(task.module)),
        largest_block=_largest_block(task),
    )


def _largest_block(task: Task) -> int:
    """Bytes of the largest block of a list of blocks; of everything where there is no list."""
    largest = 0
    for module in task.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            for block in module:
                size = sum(parameter.nbytes for parameter in block.parameters())
                largest = max(largest, size)
    return largest or sum(parameter.nbytes for parameter in task.parameters())
