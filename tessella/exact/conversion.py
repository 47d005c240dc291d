"""Conversion of a trained model to integers (``docs/arithmetic.md``, "Matrices")."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F

from tessella.errors import ConfigError, NumericalError
from tessella.exact.integer_predictor import predictor_tables
from tessella.heads import CategoricalHead, LogisticMixtureHead, OrdinalHead
from tessella.models.condition import Cond
from tessella.models.density_model import DensityModel
from tessella.models.program_model import TwinModel
from tessella.nn.integer.constants import IntegerConstants
from tessella.nn.integer.functions import FRACTION_BITS, LIMIT
from tessella.nn.integer.matrix import INPUT_LIMIT, WEIGHT_LIMIT, IntegerMatrix
from tessella.nn.linear_predictor import LinearPredictor
from tessella.nn.stepping.operation import Matrix
from tessella.nn.stepping.state import State
from tessella.nn.stepping.step import StateMemory

INPUT_MARGIN = 2.0
"""How much larger than the inputs seen in calibration an input may be before it saturates."""

LARGEST_INPUT_SHIFT = 18
LARGEST_OUTPUT_SHIFT = 30


def convertible(model: DensityModel) -> TwinModel:
    """A copy of a model whose step consists of programs and whose head has an integer form.

    The matrix of an ordinal head becomes part of the last layer, and its head categorical.

    Raises:
        ConfigError: when the model has no exact twin, saying why.
    """
    if not isinstance(model, TwinModel):
        raise ConfigError(
            f"{model.name} has no exact twin: its steps are not made of operations with an "
            "integer form; "
            "take one of pixelcnn, gated-pixelcnn, pixelcnn++, pixelsnail, transformer, lstm, "
            "row-lstm and diagonal-bilstm"
        )
    if model.conditioning.codes is not None:
        raise ConfigError(
            f"this {model.name} is conditioned on a grid of codes, whose features come from "
            "convolutions in floating point; such a model has no exact twin"
        )
    if not isinstance(model.head, (CategoricalHead, LogisticMixtureHead)):
        raise ConfigError(
            f"the head {model.head.name!r} has no integer form, so the model has no exact twin: "
            "take categorical, ordinal or logistic-mixture"
        )
    copied = copy.deepcopy(model).float().eval()
    if isinstance(model.head, OrdinalHead):
        _fold(copied, model.head)
    return copied


@torch.no_grad()
def _fold(model: TwinModel, head: OrdinalHead) -> None:
    """Multiply the last layers by the matrix of an ordinal head."""
    plain = CategoricalHead(model.grid)
    for layer in model.last_layers():
        layer.weight.copy_(head.mix(layer.weight.double()))
        layer.bias.copy_(head.mix(layer.bias.double()))
        layer.mix = plain.mix
    model.head = plain


@torch.no_grad()
def integer_constants(model: TwinModel, images: torch.Tensor, cond: Cond) -> IntegerConstants:
    """The integers of a model's exact twin.

    Args:
        model: result of :func:`convertible`.
        images: images for calibration, ``int64 [n, height, width, channels]``.
        cond: their condition.

    Raises:
        ConfigError: naming a matrix whose outputs could be too large.
        NumericalError: when weights are NaN or infinite.
    """
    largest = _largest_inputs(model, images, cond)
    # One image of each class, and one without a class, whose label is `classes`.
    memory = StateMemory()
    rows = model.classes + 1
    labels = torch.arange(rows, device=model.device) if model.classes else None
    null_class = model.null_class
    model.null_class = True
    try:
        condition = model.condition(labels, rows)
    finally:
        model.null_class = null_class
    model.state_in(memory, condition, rows)
    constants = IntegerConstants()
    for index in memory.kept:
        constants.kept.append(_fixed_point(memory.tensors[index], f"kept vector {index}"))
    for index, table in enumerate(memory.tables):
        constants.tables.append(_fixed_point(table, f"table {index}"))
    for index, (matrix, most) in enumerate(zip(memory.matrices, largest, strict=True)):
        constants.matrices.append(integer_matrix(matrix.weight, most, f"matrix {index}"))
    if model.predictor is not None:
        _append_predictor(constants, model.predictor, images.to(model.device))
    return constants


def _append_predictor(
    constants: IntegerConstants, predictor: LinearPredictor, images: torch.Tensor
) -> None:
    """Append the constants of a predictor to those of the network's layers."""
    for index, table in enumerate(predictor_tables(predictor)):
        name = f"table {index} of the predictor"
        # The thresholds are whole numbers of their own; the others are limited like any number.
        limit = 2**31 - 1 if index == 0 else LIMIT
        constants.tables.append(_whole_numbers(table, limit, name))
    if not predictor.hidden:
        return
    known = predictor.neighbours(images)
    prediction = predictor.predictions(known, predictor.classes_of(known, predictor.kinds))
    inputs = predictor.network_inputs(known, predictor.exists, prediction)
    for index, layer in enumerate((predictor.first, predictor.second, predictor.last)):
        name = f"matrix {index} of the predictor"
        most = float(inputs.abs().max())
        constants.matrices.append(integer_matrix(layer.weight.T, most, name))
        constants.tables.append(_fixed_point(layer.bias, name))
        inputs = F.silu(layer(inputs))


def _largest_inputs(model: TwinModel, images: torch.Tensor, cond: Cond) -> list[float]:
    """Largest absolute input of each matrix while a model predicts images, symbol by symbol."""
    condition = model.condition(cond, len(images))
    memory = StateMemory()
    state: State = model.state_in(memory, condition, len(images))
    matrices = [matrix for matrix in memory.matrices if isinstance(matrix, Matrix)]
    for matrix in matrices:
        matrix.largest_input = 0.0
    symbols = images.flatten(1).to(model.device)
    previous = symbols[:, 0]
    for index in range(model.grid.symbols):
        _, state = model.step(previous, index, state)
        previous = symbols[:, index]
    return [matrix.largest_input or 0.0 for matrix in matrices]


def _fixed_point(value: torch.Tensor, name: str) -> torch.Tensor:
    """Real numbers as numbers in memory: ``int32`` of the same shape."""
    return _whole_numbers(value.detach().double() * 2.0**FRACTION_BITS, LIMIT, name)


def _whole_numbers(value: torch.Tensor, limit: int, name: str) -> torch.Tensor:
    """The nearest integers within a limit, halves up: ``int32`` of the same shape."""
    _check_finite(value, name)
    return torch.floor(value + 0.5).clamp(-limit, limit).to(torch.int32).contiguous()


def integer_matrix(weight: torch.Tensor, largest_input: float, name: str) -> IntegerMatrix:
    """The integer form of a matrix.

    Args:
        weight: ``[inputs, outputs]``.
        largest_input: largest absolute input in calibration.
        name: for messages.
    """
    wide = weight.detach().double()
    _check_finite(wide, name)
    input_shift = _input_shift(largest_input)
    outputs = wide.shape[1]
    # [outputs]: the weights of each output must fit into 16 bits, and their sum into 32.
    largest_weight = wide.abs().amax(0)
    total = wide.abs().sum(0)
    bits = torch.full((outputs,), float(input_shift + LARGEST_OUTPUT_SHIFT), dtype=torch.float64)
    some = largest_weight > 0
    bits[some] = torch.minimum(bits[some], torch.log2(WEIGHT_LIMIT / largest_weight[some]).floor())
    bits[some] = torch.minimum(bits[some], torch.log2(2.0**31 / INPUT_LIMIT / total[some]).floor())
    while True:
        integers = torch.floor(wide * torch.exp2(bits) + 0.5)
        half = torch.exp2(bits - input_shift - 1).clamp(min=0)
        too_large = integers.abs().amax(0) > WEIGHT_LIMIT
        too_large |= INPUT_LIMIT * integers.abs().sum(0) + half >= 2.0**31
        if not bool(too_large.any()):
            break
        # Rounding may push integers over a limit that the real numbers keep.
        bits = torch.where(too_large, bits - 1, bits)
    shift = (bits - input_shift).to(torch.int32)
    if outputs and int(shift.min()) < 1:
        output = int(shift.argmin())
        bound = float(total[output]) * INPUT_LIMIT * 2.0 ** (input_shift - FRACTION_BITS)
        raise ConfigError(
            f"this model has no exact twin: output {output} of {name} ({list(weight.shape)}) could "
            f"reach {bound:.3g}, and numbers above {LIMIT / 2**FRACTION_BITS:,.0f} overflow; its "
            "weights or its inputs are unusually large (weight decay in training keeps them small)"
        )
    return IntegerMatrix(integers.to(torch.int16).contiguous(), input_shift, shift)


def _input_shift(largest: float) -> int:
    """How many bits to drop from inputs of which the largest seen is ``largest``."""
    units = INPUT_MARGIN * largest * 2**FRACTION_BITS / INPUT_LIMIT
    if units <= 1:
        return 0
    return min(math.ceil(math.log2(units)), LARGEST_INPUT_SHIFT)


def _check_finite(value: torch.Tensor, name: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(
            f"{name} of the model holds NaN or infinity, which no integer stands for: "
            "take another checkpoint"
        )
