"""The optimizers of a run: AdamW for all, or Muon for hidden matrices and AdamW for the rest.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces the
averaged gradient of a matrix by the nearest matrix whose singular values are all equal, so that a
step moves all directions of the matrix alike. It makes no sense for vectors, for tables of
embeddings, of which a step sees few rows, and for the last layer, whose outputs are the
parameters of distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tessella.config import TrainConfig
from tessella.training.tasks import Task

MOMENTUM = 0.95
"""Decay of Muon's averaged gradient, as Jordan et al. have it."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial of an iteration: the steepest at zero that stays bounded."""

ITERATIONS = 5
"""Applications of the polynomial. Singular values end within about 0.7 and 1.2, which serves as
well as 1."""

ADAM_RMS = 0.2
"""Root mean square of an update, as a share of the rate. It is that of AdamW's updates in practice
(Liu et al. 2025, "Muon is scalable for LLM training", eq. 4), so that one rate serves both."""

LARGEST_STACK = 1 << 22
"""Elements of matrices that are worked on together."""


def create_optimizer(task: Task, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that ``train.optimizer`` names, for the parameters that are trained.

    Raises:
        ConfigError: for Muon where there are no hidden matrices.
    """
    if config.optimizer == "adamw":
        return _adamw(task, config, parameter_groups(task))
    matrices = task.hidden_matrices()
    muon = Muon(matrices, config.learning_rate, config.weight_decay)
    taken = set(matrices)
    rest = [[p for p in group if p not in taken] for group in parameter_groups(task)]
    return Together(muon, _adamw(task, config, rest))


def add_penalty(optimizer: torch.optim.Optimizer, l2: float) -> None:
    """Add the gradient of half the sum of squares of all matrices' elements, times ``l2``."""
    for group in optimizer.param_groups:
        if not group["penalized"]:
            continue
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            penalty = parameter.detach()
            if group["orthogonal"]:
                # Elements under a mask must stay zero in what Muon orthogonalizes.
                penalty = penalty * (parameter.grad != 0)
            parameter.grad.add_(penalty, alpha=l2)


class Muon(torch.optim.Optimizer):
    r"""Momentum with orthogonalized updates, for matrices.

    A step with gradient :math:`G` makes

    .. math::
        M &\leftarrow 0.95 M + 0.05 G \\
        W &\leftarrow (1 - \eta \lambda) W
            - 0.2 \eta \sqrt{\max(m, n)}\, O(0.95 M + 0.05 G)

    where :math:`O` maps :math:`U S V^T` to about :math:`U V^T`. It is ``torch.optim.Muon`` with
    ``adjust_lr_fn="match_rms_adamw"``, but for three things.

    - It takes convolution kernels ``[outputs, inputs, height, width]`` as matrices ``[outputs,
      inputs * height * width]``, and stacks of matrices ``[n, rows, columns]`` as so many.
    - Elements whose gradient has always been zero, such as those under a mask, are left alone, and
      do not count in the length of the update.
    - Matrices of one shape are orthogonalized together, on a CPU in float32. In torch's optimizer
      each matrix takes 15 small products by itself, in bfloat16, for which not all processors have
      instructions. On one core of an EPYC, which has them, a 32 x 32 matrix takes 0.32 ms there and
      0.02 ms as one of eight here.

    Args:
        params: matrices, kernels and stacks of matrices.
        lr: the rate that AdamW would have.
        weight_decay: AdamW's.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "penalized": True, "orthogonal": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        assert closure is None, "the loop computes the gradient once"
        for group in self.param_groups:
            stacks: dict[tuple[int, int, torch.device], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                _, rows, columns = _as_matrices(parameter).shape
                # A matrix and its transpose have the same singular values.
                shape = (min(rows, columns), max(rows, columns), parameter.device)
                stacks.setdefault(shape, []).append(parameter)
            for (rows, columns, _), parameters in stacks.items():
                count = max(1, LARGEST_STACK // (rows * columns))
                for start in range(0, len(parameters), count):
                    self._update(parameters[start : start + count], group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters whose matrices are of one shape, or its transpose."""
        wide = [self._direction(parameter) for parameter in parameters]  # each [n, rows, columns]
        stack = torch.cat(wide)
        live = stack != 0
        update = orthogonalized(stack).mul_(live)
        # An orthogonal matrix has min(rows, columns) of squares in all its live elements together.
        lengths = live.sum((1, 2), dtype=torch.float32) / stack.shape[1]
        update *= ADAM_RMS * lengths.sqrt()[:, None, None]
        parts = update.split([len(matrices) for matrices in wide])
        for parameter, part in zip(parameters, parts, strict=True):
            shape = _as_matrices(parameter).shape
            part = part if part.shape == shape else part.mT
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(part.reshape(parameter.shape), alpha=-group["lr"])

    def _direction(self, parameter: nn.Parameter) -> torch.Tensor:
        """Update the averaged gradient. Returns what to orthogonalize, as wide matrices."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        # Nesterov's momentum: a step further along the gradient.
        matrices = _as_matrices(gradient.lerp(average, MOMENTUM)).float()
        return matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices


class Together(torch.optim.Optimizer):
    """Several optimizers that act as one: one list of groups, one state.

    Args:
        parts: the optimizers, which share no parameter.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        # The groups of the parts themselves, so that a rate set here is set there.
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict, which makes new groups and a new state.
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        start = 0
        for part in self.parts:
            stop = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:stop]
            part.state = self.state
            start = stop

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step with each."""
        assert closure is None, "the loop computes the gradient once"
        for part in self.parts:
            part.step()


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices with the singular vectors of the given ones, and singular values of about 1.

    This is the Newton-Schulz iteration of Jordan et al. 2024. Zero stays zero.

    Args:
        matrices: ``[n, rows, columns]``, with no more rows than columns.
    """
    # Tensor cores are made for bfloat16, and the iteration is known to bear its errors.
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    x = matrices.to(dtype)
    # The largest singular value is at most the norm of the elements.
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        # x <- a x + (b g + c g g) x, where g = x x^T
        gram = torch.bmm(x, x.mT)
        mixed = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, mixed, x, beta=a)
    return x.to(matrices.dtype)


def _as_matrices(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter, or what has its shape, as ``[n, rows, columns]``."""
    if tensor.dim() == 3:
        return tensor
    # The order of the columns does not matter: it permutes those of the update alike.
    return tensor.flatten(1)[None]


def _adamw(
    task: Task, config: TrainConfig, groups: Iterable[list[nn.Parameter]]
) -> torch.optim.AdamW:
    """AdamW for the parameters that weight decay shrinks, and those that it leaves alone."""
    decayed, undecayed = groups
    device = next(task.parameters()).device
    # One call for all tensors does not take those that are divided among processes (see
    # tessella.training.sharding) together with those that are not.
    kinds = {isinstance(parameter, DTensor) for parameter in task.parameters()}
    one_by_one = len(kinds) > 1
    shared = {"orthogonal": False}
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay, "penalized": True} | shared,
            {"params": undecayed, "weight_decay": 0.0, "penalized": False} | shared,
        ],
        lr=config.learning_rate,
        betas=config.betas,
        foreach=False if one_by_one else None,
        fused=device.type in ("cpu", "cuda") and not one_by_one,
    )


def parameter_groups(task: Task) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that weight decay shrinks, and those that it leaves alone.

    Vectors and numbers (biases, gains of norms) are left alone, and what a module lists in its
    attribute ``undecayed``, because its bias has a row for each class, for instance.
    """
    spared: set[nn.Parameter] = set()
    for part in task.modules():
        for name in getattr(part, "undecayed", ()):
            parameter = getattr(part, name)
            if parameter is not None:
                spared.add(parameter)
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in task.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() > 1 and parameter not in spared:
            decayed.append(parameter)
        else:
            undecayed.append(parameter)
    return decayed, undecayed
