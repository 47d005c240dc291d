"""Checkpoints: everything that a run needs to go on as if it had not stopped.

A checkpoint is the directory ``checkpoints/step-00001234`` with ``state.safetensors``,
``state.json`` and ``manifest.json``, the sizes and SHA-256 of the two. It appears under its name
only when it is whole; the newest two that are whole are kept. All of it is safetensors and JSON,
never pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessella import files
from tessella.errors import ArtifactError
from tessella.training.progress import Progress
from tessella.training.sharding import as_held, as_whole

KEEP = 2
"""Checkpoints that are kept."""

TENSORS = "state.safetensors"
STATE = "state.json"
PARTS = (TENSORS, STATE)
MANIFEST = "manifest.json"


def save(
    out: Path,
    step: int,
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, object],
    writes: bool = True,
) -> None:
    """Write a checkpoint.

    Args:
        out: the run directory.
        step: optimizer steps done.
        module: the trained module.
        average: its averaged copy.
        optimizer: its state is kept under the numbers of its parameters.
        state: JSON values: the progress, the task, the memory of validations.
        writes: whether this process is the one that writes. Where weights are divided among several
            processes, all must call this, and the tensors are put together one by one.

    Raises:
        ArtifactError: when it cannot be written; earlier ones are untouched.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        tensors[f"module/{name}"] = _gathered(tensor, writes)
    # Buffers of the average are copies of the trained ones: only parameters differ.
    for name, tensor in average.named_parameters():
        tensors[f"average/{name}"] = tensor
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimizer/{number}/{key}"] = _gathered(torch.as_tensor(value), writes)
    if not writes:
        return
    with files.atomic_directory(out / "checkpoints" / f"step-{step:08d}") as path:
        files.write_tensors(path / TENSORS, tensors)
        files.write_json(path / STATE, state)
        # The manifest comes last: it vouches for the other two.
        files.write_json(path / MANIFEST, {name: _entry(path / name) for name in PARTS})


def drop(out: Path, whole: Sequence[int]) -> None:
    """Remove what is older than the newest checkpoints that are known to be whole.

    Args:
        out: the run directory.
        whole: steps of the checkpoints written, or resumed from, by this process, oldest first.
    """
    for path in found(out):
        # A checkpoint of a later step is none of ours: another --resume may have left it.
        if _step(path) < whole[-1] and _step(path) not in whole[-KEEP:]:
            files.remove_directory(path)


def found(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    paths: list[Path] = []
    for path in (out / "checkpoints").glob("step-*"):
        if path.name.removeprefix("step-").isdecimal():
            paths.append(path)
    return sorted(paths, key=_step)


def newest(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """Read the newest checkpoint that is whole.

    Returns:
        Its tensors, its state, and what was wrong with newer ones.

    Raises:
        ArtifactError: when there is none.
    """
    # From the newest on: a damaged one must not cost more than the steps after the one before.
    problems: list[str] = []
    for path in reversed(found(out)):
        try:
            verify(path)
            state = read_state(path / STATE)
            return files.read_tensors(path / TENSORS), state, problems
        except ArtifactError as error:
            problems.append(str(error))
    why = "none of its checkpoints is whole" if problems else "it has no checkpoint"
    raise ArtifactError(f"{out} has nothing to go on from: {'; '.join([why, *problems])}")


def read_step(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Read the tensors of the checkpoint of a step.

    Raises:
        ArtifactError: when it is not there, or damaged.
    """
    path = out / "checkpoints" / f"step-{step:08d}"
    verify(path)
    return files.read_tensors(path / TENSORS)


def verify(path: Path) -> None:
    """Compare a checkpoint with its manifest.

    Raises:
        ArtifactError: naming the file that is missing or damaged.
    """
    # Sizes and hashes of both files, as they were when everything was on disk.
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


def read_state(path: Path) -> dict[str, Any]:
    """Read the JSON part of a checkpoint and check the types of its entries.

    Raises:
        ArtifactError: naming the entry that is wrong.
    """
    state = files.read_json(path)
    if not isinstance(state, dict):
        raise ArtifactError(f"{path} must hold a JSON object: it is damaged, or not ours")
    Progress.from_json(state.get("progress"), str(path))
    for name in ("task", "memory"):
        if not isinstance(state.get(name, {}), dict):
            raise ArtifactError(f"{path}: {name} must be an object, got {state[name]!r}")
    return state


@torch.no_grad()
def restore(
    tensors: dict[str, torch.Tensor],
    module: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put a checkpoint's tensors back in place.

    Raises:
        ArtifactError: when they do not fit.
    """
    try:
        current = module.state_dict()
        trained = _under("module/", tensors)
        for name in current.keys() & trained.keys():
            trained[name] = as_held(trained[name], current[name])
        module.load_state_dict(trained)
        # Buffers of the average are those of the trained module.
        averaged = {**module.state_dict(), **_under("average/", tensors)}
        missing = average.load_state_dict(averaged)
    except RuntimeError as error:
        raise ArtifactError(f"the checkpoint is of another model: {error}") from error
    assert not missing.missing_keys
    # The optimizer numbers its parameters through its groups.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        number, key = _optimizer_entry(name, len(parameters))
        parameter = parameters[number]
        # The fused optimizer walks memory: its averages must lie as the parameter does. What was
        # read may lie in the file, which would stay open.
        like = parameter if tensor.shape == parameter.shape else tensor
        held = as_held(tensor, like)
        state.setdefault(number, {})[key] = torch.empty_like(like).copy_(held)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _gathered(tensor: torch.Tensor, keeps: bool) -> torch.Tensor:
    """A tensor with the parts of all processes, on the CPU where it had to be put together."""
    whole = as_whole(tensor)
    if whole is tensor:
        return tensor
    # Whole tensors of a model that was divided may be too many for a device.
    return whole.cpu() if keeps else whole.new_empty(0)


def _optimizer_entry(name: str, count: int) -> tuple[int, str]:
    """Number of the parameter and name of the average in ``NUMBER/NAME``."""
    number, _, key = name.partition("/")
    if not number.isdecimal() or int(number) >= count or not key:
        raise ArtifactError(f"the checkpoint is of another model: it has optimizer/{name}")
    return int(number), key


def _entry(part: Path) -> dict[str, object]:
    """Size and hash of a file, as the manifest has them."""
    return {"bytes": part.stat().st_size, "sha256": files.sha256(part)}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    found_tensors: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            found_tensors[name.removeprefix(prefix)] = tensor
    return found_tensors
