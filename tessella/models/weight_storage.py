"""Models whose weights are few bits wide, which draw faster where weights come from memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from tessella.errors import ConfigError, unknown
from tessella.models.density_model import DensityModel
from tessella.models.hierarchy import Hierarchy
from tessella.nn.shifted_convolution import Normed
from tessella.nn.stepping.compact import LARGEST

WeightKind = Literal["int8", "bfloat16"]
"""``"int8"``: integers times a scale for each output. ``"bfloat16"``: numbers of 8 digits."""

AnyPrior = TypeVar("AnyPrior", bound=DensityModel | Hierarchy)


@torch.no_grad()
def quantize_weights(model: AnyPrior, kind: WeightKind = "int8") -> AnyPrior:
    """A copy of a model whose hidden matrices are rounded, so that they can be stored in few bits.

    It is another model: all that is said of it, its likelihoods, its samples and their replay, is
    exact for the rounded weights. Its parameters hold these as ordinary numbers, so it is saved and
    loaded like any model, in files of the same size. While it draws images on a CPU, the compiled
    kernel keeps its large matrices as ``int8`` or ``bfloat16``, a quarter or a half of what
    ``float32`` takes: at a small batch, a model that does not fit into the caches is that much
    faster. What else it computes takes as long as before.

    Rounded are the matrices and convolution kernels between embeddings and last layers
    (:meth:`DensityModel.hidden_matrices`) of linear, convolutional and LSTM layers. For ``int8``,
    the weights of an output become multiples of a 127th of the largest of them.

    Args:
        model: a density model or a hierarchy; it stays as it is.
        kind: ``"int8"`` or ``"bfloat16"``.

    Raises:
        ConfigError: for an unknown kind, and for a model without such matrices. ``fvsbn`` and
            ``nade`` have none, and layers with normalized weights (``pixelcnn++``, ``pixelsnail``)
            take ``int8`` only.

    >>> import tessella as ts
    >>> model = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=2, hidden=16)
    >>> smaller = quantize_weights(model)
    >>> bool(ts.replay(smaller, ts.sample(smaller, n=2)).differs.any())
    False
    """
    if kind not in get_args(WeightKind):
        raise ConfigError(unknown("kind of weights", kind, get_args(WeightKind)))
    changed = copy.deepcopy(model)
    models = changed.priors if isinstance(changed, Hierarchy) else [changed]
    for density_model in models:
        assert isinstance(density_model, DensityModel)
        _round_model(density_model, kind)
    return changed


def _round_model(model: DensityModel, kind: WeightKind) -> None:
    """Round the hidden matrices of a model in place."""
    hidden = set(model.hidden_matrices())
    count = 0
    for module in model.modules():
        if isinstance(module, Normed):
            if kind != "int8":
                raise ConfigError(
                    f"the weights of this {model.name} are normalized, which gives other numbers "
                    f"than {kind} has: take int8"
                )
            _round_normed(module)
            count += 1
            continue
        matrices = _matrices(module, hidden)
        count += len(matrices)
        if kind == "int8" and matrices:
            _round_to_integers(matrices)
        elif kind == "bfloat16":
            for matrix in matrices:
                matrix.copy_(matrix.bfloat16())
    if not count:
        raise ConfigError(
            f"this {model.name} has no weights to keep as {kind}: take a model with linear or "
            "convolutional layers between its embedding and its last layer"
        )


def _matrices(module: nn.Module, hidden: set[nn.Parameter]) -> list[nn.Parameter]:
    """The hidden matrices of a layer whose first dimension is that of the outputs."""
    names = ["weight"]
    if isinstance(module, nn.LSTM):
        # Their products are summed, so that they share the scale of each output.
        names = ["weight_ih_l0", "weight_hh_l0"]
    found = []
    for name in names:
        parameter = getattr(module, name, None)
        if isinstance(parameter, nn.Parameter) and parameter in hidden:
            found.append(parameter)
    return found


def _round_to_integers(matrices: Sequence[torch.Tensor]) -> None:
    """Round matrices ``[outputs, ...]`` to multiples of one scale for each output."""
    rows = torch.cat([matrix.flatten(1) for matrix in matrices], dim=1)
    scales = rows.abs().amax(dim=1) / LARGEST
    # An output without weights has any scale.
    scales = torch.where(scales > 0, scales, 1)
    for matrix in matrices:
        scale = scales.view(-1, *(1 for _ in matrix.shape[1:]))
        matrix.copy_((matrix / scale).round() * scale)


def _round_normed(layer: Normed) -> None:
    """Round the weights of a layer that normalizes them."""
    weight = layer.weight()
    scales = weight.flatten(1).abs().amax(dim=1) / LARGEST
    scales = torch.where(scales > 0, scales, 1).view_as(layer.gain)
    integers = (weight / scales).round()
    # The layer divides by the length of the direction, which is made to be the same.
    lengths = torch.linalg.vector_norm(integers.flatten(1), dim=1).view_as(layer.gain)
    layer.direction.copy_(torch.where(lengths > 0, integers, layer.direction))
    layer.gain.copy_(torch.where(lengths > 0, scales * lengths, 0))
