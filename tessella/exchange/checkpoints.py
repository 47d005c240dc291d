"""Checkpoints of other projects as named tensors.

A ``.safetensors`` file is read as it is. Any other file is taken for one that torch wrote, which is
read in a process of its own (:mod:`tessella.exchange.unpickling`). What the tensors do not show,
such as a number of heads, stands in the metadata of the file, in a ``config.json`` beside it, or in
settings that a training script saved with the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tessella import files
from tessella.errors import ArtifactError, ConfigError
from tessella.exchange import unpickling

Facts = dict[str, object]
"""What a project built its model with, under the names that it uses."""

SECONDS = 120
"""Seconds that reading a pickle may take, beyond a second for so many bytes:"""
BYTES_PER_SECOND = 5_000_000

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of all names, which come from how a model was trained and not from the model."""

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""Endings of the files with weights that are looked for in a folder."""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of another project.

    Args:
        path: the file.
        tensors: by the names they have there.
        facts: what it says about its model.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    facts: Facts = field(default_factory=dict)

    def below(self, prefix: str) -> ForeignCheckpoint:
        """The part of the tensors whose names begin with a prefix, without it.

        Raises:
            ConfigError: when there are none.
        """
        if not prefix:
            return self
        part: dict[str, torch.Tensor] = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefix):
                part[name.removeprefix(prefix)] = tensor
        if not part:
            shown = ", ".join(sorted(self.tensors)[:3])
            raise ConfigError(
                f"no tensor of {self.path} has a name that begins with {prefix!r}; "
                f"its {len(self.tensors)} tensors are {shown}, ..."
            )
        return ForeignCheckpoint(self.path, part, self.facts)


def read_checkpoint(path: Path | str) -> ForeignCheckpoint:
    """Read a checkpoint file, or a folder with one file of weights and a ``config.json``.

    Raises:
        ArtifactError: when it is missing, damaged, or asks for anything but tensors.
    """
    file = _weights_file(Path(path))
    if file.suffix == ".safetensors":
        # The header is checked against the bytes of the file before any tensor is read.
        header = files.read_tensors_header(file)
        tensors = files.read_tensors(file)
        facts = _facts_of(header.metadata, file)
    else:
        tensors, facts = _read_pickled(file)
    beside = file.parent / "config.json"
    if beside.is_file():
        facts = {**facts, **flattened(files.read_json_object(beside))}
    return ForeignCheckpoint(file, _unwrapped(tensors), facts)


def flattened(values: Mapping[str, object]) -> Facts:
    """Plain values by their last name: those of inner objects stand beside the outer ones."""
    flat: Facts = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            # Outer values come first: inner ones of the same name may be about other parts.
            flat = {**flattened(value), **flat}
        else:
            flat[name] = value
    return flat


def _weights_file(path: Path) -> Path:
    """The file with weights that a path means."""
    if not path.exists():
        raise ArtifactError(f"there is no checkpoint {path}")
    if not path.is_dir():
        return path
    for ending in WEIGHTS:
        found = sorted(path.glob(f"*{ending}"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ArtifactError(f"{path} holds several checkpoints, {names}: name one of them")
        if found:
            return found[0]
    raise ArtifactError(f"{path} holds no checkpoint ({', '.join(WEIGHTS)})")


def _facts_of(metadata: Mapping[str, str], file: Path) -> Facts:
    """The facts in the metadata of a safetensors file, under ``config``."""
    text = metadata.get("config")
    if not isinstance(text, str):
        return {}
    values = files.parse_json(text.encode(), f"the config in the metadata of {file}")
    return flattened(values) if isinstance(values, Mapping) else {}


def _unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without the prefixes that wrappers of the training gave to all of them."""
    for wrapper in WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            bare = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
            return _unwrapped(bare)
    return tensors


def _read_pickled(file: Path) -> tuple[dict[str, torch.Tensor], Facts]:
    """Have another process read a file that torch wrote."""
    files.read_beginning(file, 0)  # refuses devices and pipes, which might never end
    seconds = SECONDS + file.stat().st_size // BYTES_PER_SECOND
    with tempfile.TemporaryDirectory(prefix="tessella-import-") as folder:
        target = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-m", unpickling.__name__, str(file.absolute()), str(target)]
        # The process finds this package wherever it is run from.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                env=environment,
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ArtifactError(f"{file} was not read within {seconds} s: it is damaged") from None
        if done.returncode:
            raise ArtifactError(_refusal(file, done))
        header = files.read_tensors_header(target)
        return files.read_tensors(target), _facts_of(header.metadata, target)


def _refusal(file: Path, done: subprocess.CompletedProcess[str]) -> str:
    """Why another process did not read a file."""
    reason = f"the process that reads it ended with status {done.returncode}"
    if done.returncode == unpickling.STATUS_REFUSED:
        # Libraries may print something before the last line.
        reason = json.loads(done.stdout.strip().splitlines()[-1])["refused"]
    return (
        f"{file} is not read: {reason}. If you trust its origin, write its tensors to a "
        ".safetensors file with safetensors.torch.save_file, and import that"
    )
