"""Weights: which they are, and putting them into a module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tessella.errors import ArtifactError


def fingerprint(model: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all weights: says which model made a
    file."""
    parts = [model] if isinstance(model, nn.Module) else [model.tokenizer, model.prior]
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights into a module; every name and shape must fit.

    Raises:
        ArtifactError: naming what is missing, left over, or of another shape.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    kinds = [
        f"{name} is {weights[name].dtype} instead of {own[name].dtype}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].dtype != weights[name].dtype
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing tensors", missing),
            ("unknown tensors", extra),
            ("tensors of a wrong shape", shapes),
            ("tensors of a wrong type", kinds),
        )
        if names
    ]
    if problems:
        raise ArtifactError(f"{where} does not fit its configuration: {'; '.join(problems)}")
    module.load_state_dict(dict(weights))
