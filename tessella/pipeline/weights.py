"""Weights: a fingerprint of them, and putting them into a module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from tessella.errors import ArtifactError
from tessella.pipeline.saved_model import SavedModel

NAMED = 3
"""Tensors that a message names of each kind of problem."""

FLOAT32 = (torch.float32, "F32")
HALF_TYPES = (torch.float16, torch.bfloat16, "F16", "BF16")
"""Types in which a file may store float32 weights in half the bytes, as torch and as headers of
safetensors files name them. float32 holds each of their numbers exactly."""


def fingerprint(model: SavedModel | nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all weights.

    It says which model made a file.
    """
    # Tokenizers and VAEs are modules themselves, generators hold two.
    if isinstance(model, nn.Module):
        modules = [model]
    else:
        modules = list(model.components().values())
    # Names in order and bytes on the CPU: the same weights have one fingerprint everywhere.
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights into a module; every name, shape and type must fit, every number be finite.

    A float32 weight may come in a type of half the bytes (:data:`HALF_TYPES`): its numbers are
    float32 from here on.

    Args:
        module: gets the weights.
        weights: by name.
        where: the place they come from, for the message.

    Raises:
        ArtifactError: naming what is missing, left over, of another shape or type, or not finite.
    """
    # All problems at once, or each attempt would show only the next one.
    problems = weight_problems(module.state_dict(), weights)
    if problems:
        raise ArtifactError(f"{where} does not fit its configuration: {'; '.join(problems)}")
    broken = not_finite(weights)
    if broken:
        names = _listed([f"{name} has {count:,}" for name, count in broken.items()])
        raise ArtifactError(
            f"the weights of {where} hold numbers that are not finite ({names}), and whatever it "
            "computes would be wrong: its training diverged, or the file is damaged; "
            "take an earlier model"
        )
    # Names and shapes are known to fit, so this copies, to the types of the module, and does not
    # fail.
    module.load_state_dict(dict(weights))


def not_finite(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many numbers are infinite or not a number, of each tensor that has some."""
    counts = {}
    for name, tensor in weights.items():
        # Integers are always finite.
        if tensor.is_floating_point():
            count = int((~torch.isfinite(tensor)).sum())
            if count:
                counts[name] = count
    return counts


@runtime_checkable
class _Described(Protocol):
    """A tensor, or its description in the header of a file."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> object: ...


def weight_problems(
    expected: Mapping[str, _Described], weights: Mapping[str, _Described]
) -> list[str]:
    """How weights differ from what a module expects, a line for each kind of difference."""
    shapes = []
    types = []
    # Tensors, or their descriptions in the header of a file, whose shapes are tuples.
    for name in sorted(expected.keys() & weights.keys()):
        found = weights[name]
        wanted = expected[name]
        if tuple(found.shape) != tuple(wanted.shape):
            shapes.append(f"{name} is {list(found.shape)} instead of {list(wanted.shape)}")
        is_half = wanted.dtype in FLOAT32 and found.dtype in HALF_TYPES
        if found.dtype != wanted.dtype and not is_half:
            types.append(f"{name} is {found.dtype} instead of {wanted.dtype}")
    differences = {
        "missing tensors": sorted(expected.keys() - weights.keys()),
        "unknown tensors": sorted(weights.keys() - expected.keys()),
        "tensors of a wrong shape": shapes,
        "tensors of a wrong type": types,
    }
    problems = []
    for label, names in differences.items():
        if names:
            problems.append(f"{len(names)} {label} ({_listed(names)})")
    return problems


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        text += ", ..."
    return text
