"""Fully sharded training: of every large tensor each process holds a part.

It is FSDP2 (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, "PyTorch FSDP"): weights,
gradients and the optimizer's averages are divided among the processes, and the weights of a block
are put together while it computes. Blocks are what activation checkpointing computes again, then
the rest of the model. Buffers, such as codebooks, are whole and equal everywhere, and so are the
parameters of quantizers, which write to them while they are passed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tessella.distributed import mean_over_processes
from tessella.tokenizers.quantizers import Quantizer
from tessella.training.averaging import Average, learned_buffers
from tessella.training.tasks import Task

try:
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.strategy import _BackwardSyncControl
except ImportError:  # the same engine as a part of the lightning package
    from lightning.fabric.strategies.ddp import DDPStrategy  # type: ignore[no-redef]
    from lightning.fabric.strategies.strategy import (  # type: ignore[no-redef]
        _BackwardSyncControl,
    )


class ShardedStrategy(DDPStrategy):
    """The engine's several processes, which share a model as :func:`fully_shard` divides it."""

    def __init__(self) -> None:
        super().__init__()
        self._backward_sync_control = _LateGradients()

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        assert isinstance(module, Task)
        divide(module)
        return module


class _LateGradients(_BackwardSyncControl):
    """Keeps gradients unshared in all but the last of several passes."""

    def no_backward_sync(
        self, module: nn.Module, enabled: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Share gradients after the next backward pass, unless ``enabled``."""
        assert isinstance(module, FSDPModule)
        module.set_requires_gradient_sync(not enabled)
        return contextlib.nullcontext()


class ShardedAverage(Average):
    """The average of a divided module: each process follows the parts that it holds.

    ``module`` is a whole copy, in which :meth:`gather` puts the parts together for validations and
    checkpoints. It is up to date in the first process only.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, decay)
        self.parts: list[torch.Tensor] = []

    @torch.no_grad()
    def take_parts(self, module: nn.Module) -> None:
        """Take from the whole copy what this process holds of ``module``, which is divided."""
        self.parts = []
        for averaged, trained in zip(self.module.parameters(), module.parameters(), strict=True):
            held = as_held(averaged.detach(), trained)
            self.parts.append(_local(held).clone())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        trained = [_local(parameter.detach()) for parameter in module.parameters()]
        torch._foreach_lerp_(self.parts, trained, 1 - decay)
        buffers = zip(learned_buffers(self.module), learned_buffers(module), strict=True)
        for averaged, buffer in buffers:
            averaged.copy_(buffer)

    @torch.no_grad()
    def gather(self, module: nn.Module) -> None:
        whole = zip(self.module.parameters(), self.parts, module.parameters(), strict=True)
        for averaged, part, trained in whole:
            averaged.copy_(_put_together(part, trained))


@contextlib.contextmanager
def without_warnings_of_views() -> Iterator[None]:
    """Leave out a warning of FSDP2 until the end of the block.

    It says that a layer returned a view, which must not be changed in place. Ours never are.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        yield


def divide(task: Task) -> None:
    """Divide a task, whose weights and buffers become those of the first process.

    Args:
        task: on the device of its process, and equal in shape everywhere.
    """
    for parameter in task.parameters():
        # Kernels may lie channels last, which cannot be divided.
        parameter.data = parameter.data.contiguous()
    for tensor in [*task.parameters(), *learned_buffers(task)]:
        dist.broadcast(tensor.detach(), 0)
    device = next(task.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = set(whole_parameters(task))
    # The outermost comes last: it takes what no block has taken.
    for part in [*task.blocks(), task]:
        fully_shard(part, mesh=mesh, ignored_params=whole)


def whole_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that each process holds as a whole.

    They are those of quantizers, those that are not trained, and single numbers.
    """
    found: dict[nn.Parameter, None] = {}
    for part in module.modules():
        if isinstance(part, Quantizer):
            found.update(dict.fromkeys(part.parameters()))
    for parameter in module.parameters():
        if parameter.dim() == 0 or not parameter.requires_grad:
            found[parameter] = None
    return list(found)


def share_whole_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of the parameters that are held as a whole over all processes."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            mean_over_processes(parameter.grad)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of the whole gradient, of which each process holds a part."""
    divided: list[torch.Tensor] = []
    whole: list[torch.Tensor] = []
    for parameter in parameters:
        if isinstance(parameter.grad, DTensor):
            divided.append(parameter.grad)
        elif parameter.grad is not None:
            whole.append(parameter.grad)
    norms: list[torch.Tensor] = []
    # A sum over both kinds would be refused.
    for gradients in (divided, whole):
        if gradients:
            norms.append(as_whole(nn.utils.get_total_norm(gradients)))
    return torch.stack(norms).norm()


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> torch.Tensor:
    """Scale the gradient down to the largest norm that is allowed. Returns the norm before."""
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    # As torch.nn.utils.clip_grad_norm_ has it.
    factor = min(1.0, largest / (float(norm) + 1e-6))
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    return norm


def as_whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts of all processes, which must all call this."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def as_held(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, divided as ``like`` is, without communication."""
    if not isinstance(like, DTensor):
        return tensor
    here = tensor.to(like.device).contiguous()
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor


def _put_together(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The whole tensor whose parts are divided as ``like`` is."""
    if not isinstance(like, DTensor):
        return part
    divided = DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return divided.full_tensor()
