"""Checkpoints: everything a run needs to go on as if it had not stopped, as safetensors and JSON,
never pickle.

A checkpoint is the directory ``checkpoints/step-00001234`` with ``state.safetensors``,
``state.json`` and ``manifest.json``, the sizes and SHA-256 of the two. It appears under its name
only when it is whole; the newest two that are whole are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessella import files
from tessella.errors import ArtifactError

KEEP = 2
"""Checkpoints that are kept."""

PARTS = ("state.safetensors", "state.json")
MANIFEST = "manifest.json"


def save(
    out: Path,
    step: int,
    module: nn.Module,
    average: nn.Module,
    optimizer: Any,
    state: dict[str, Any],
) -> None:
    """Write a checkpoint.

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
        tensors |= {
            f"optimizer/{number}/{key}": torch.as_tensor(value) for key, value in values.items()
        }
    with files.directory(out / "checkpoints" / f"step-{step:08d}") as path:
        files.write_tensors(path / PARTS[0], tensors)
        files.write_json(path / PARTS[1], state)
        files.write_json(path / MANIFEST, {name: _entry(path / name) for name in PARTS})


def drop(out: Path, whole: Sequence[int]) -> None:
    """Remove what is older than the newest checkpoints that are known to be whole.

    Args:
        out: the run directory.
        whole: steps of the checkpoints written, or resumed from, by this process, oldest first.
    """
    for path in found(out):
        if _step(path) < whole[-1] and _step(path) not in whole[-KEEP:]:
            files.remove_directory(path)


def found(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    paths = [
        path
        for path in (out / "checkpoints").glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(paths, key=_step)


def newest(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """The newest checkpoint that is whole: its tensors, its state, and what was wrong with newer
    ones.

    Raises:
        ArtifactError: when there is none.
    """
    problems: list[str] = []
    for path in reversed(found(out)):
        try:
            verify(path)
            return files.read_tensors(path / PARTS[0]), files.read_json(path / PARTS[1]), problems
        except ArtifactError as error:
            problems.append(str(error))
    why = "none of its checkpoints is whole" if problems else "it has no checkpoint"
    raise ArtifactError(f"{out} has nothing to go on from: {'; '.join([why, *problems])}")


def verify(path: Path) -> None:
    """Compare a checkpoint with its manifest.

    Raises:
        ArtifactError: naming the file that is missing or damaged.
    """
    manifest = files.read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or sorted(manifest) != sorted(PARTS):
        raise ArtifactError(f"{path / MANIFEST} is damaged: it does not list {' and '.join(PARTS)}")
    for name in PARTS:
        try:
            entry = _entry(path / name)
        except OSError as error:
            raise ArtifactError(
                f"{path / name} cannot be read: {error.strerror or error}"
            ) from error
        if entry != manifest[name]:
            raise ArtifactError(
                f"{path / name} is damaged: it is not what the manifest says was written"
            )


@torch.no_grad()
def restore(
    tensors: dict[str, torch.Tensor], module: nn.Module, average: nn.Module, optimizer: Any
) -> None:
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
        # The fused optimizer walks memory: its averages must lie as the parameter does. What was
        # read may lie in the file, which would stay open.
        own = (
            torch.empty_like(parameter)
            if tensor.shape == parameter.shape
            else torch.empty_like(tensor)
        )
        state.setdefault(int(number), {})[key] = own.copy_(tensor)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _entry(part: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": part.stat().st_size, "sha256": files.sha256(part)}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
