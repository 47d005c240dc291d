"""Checkpoints: everything a run needs to go on as if it had not stopped, as safetensors and JSON, never pickle.

A checkpoint is the directory ``checkpoints/step-00001234`` with ``state.safetensors``, ``state.json`` and
``manifest.json``, the sizes and SHA-256 of the two. It appears under its name only when it is whole; the newest two
are kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessella import files
from tessella.errors import ArtifactError

KEEP = 2
"""Checkpoints that are kept."""


def save(out: Path, step: int, module: nn.Module, average: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Write a checkpoint and drop the oldest.

    Args:
        out: the run directory.
        step: optimizer steps done.
        module, average: the trained module and its average.
        optimizer: its state is kept under the numbers of its parameters.
        state: what else must be known, as JSON values.

    Raises:
        ArtifactError: when it cannot be written; earlier ones are untouched.
    """
    tensors = {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    # Only what differs from the trained module: a buffer of the average is a copy.
    tensors |= {f"average/{name}": tensor for name, tensor in average.named_parameters()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": torch.as_tensor(value) for key, value in values.items()}
    with files.directory(out / "checkpoints" / f"step-{step:08d}") as path:
        files.write_tensors(path / "state.safetensors", tensors)
        files.write_json(path / "state.json", state)
        parts = [path / "state.safetensors", path / "state.json"]
        manifest = {part.name: {"bytes": part.stat().st_size, "sha256": files.sha256(part)} for part in parts}
        files.write_json(path / "manifest.json", manifest)
    for old in found(out)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def found(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("step-*"))


def newest(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its tensors, its state, and what was wrong with newer ones.

    Raises:
        ArtifactError: when there is none.
    """
    problems: list[str] = []
    for path in reversed(found(out)):
        try:
            verify(path)
            return files.read_tensors(path / "state.safetensors"), files.read_json(path / "state.json"), problems
        except ArtifactError as error:
            problems.append(str(error))
    raise ArtifactError(f"{out} has no checkpoint to resume from" + "".join(f"; {problem}" for problem in problems))


def verify(path: Path) -> None:
    """Compare a checkpoint with its manifest.

    Raises:
        ArtifactError: naming the file that is missing or damaged.
    """
    for name, expected in files.read_json(path / "manifest.json").items():
        part = path / name
        if not part.exists() or part.stat().st_size != expected["bytes"] or files.sha256(part) != expected["sha256"]:
            raise ArtifactError(f"{part} is damaged: it is not what the manifest says was written")


@torch.no_grad()
def restore(tensors: dict[str, torch.Tensor], module: nn.Module, average: nn.Module, optimizer: Any) -> None:
    """Put a checkpoint's tensors back in place.

    Raises:
        ArtifactError: when they do not fit.
    """
    try:
        module.load_state_dict(_under("module/", tensors))
        missing = average.load_state_dict({**module.state_dict(), **_under("average/", tensors)})
    except RuntimeError as error:
        raise ArtifactError(f"the checkpoint is of another model: {error}") from error
    assert not missing.missing_keys
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        number, key = name.split("/")
        parameter = parameters[int(number)]
        if tensor.shape == parameter.shape:
            # The fused optimizer walks memory: its averages must lie as the parameter does.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
