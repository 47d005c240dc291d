"""Exact twins on disk: two files in the directory of a run, or in a directory of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from tessella import files
from tessella.errors import ArtifactError, ConfigError
from tessella.exact.exact_model import ARITHMETIC_VERSION, ExactModel
from tessella.models import from_config
from tessella.models.program_model import TwinModel
from tessella.nn.integer.constants import IntegerConstants
from tessella.nn.integer.matrix import IntegerMatrix

DESCRIPTION = "exact.json"
"""The file with the configuration and the id of a twin."""

TENSORS = "exact.safetensors"
"""The file with its integers."""


def save_twin(twin: ExactModel, directory: Path | str, source: str = "") -> None:
    """Write a twin to a directory, which is created if it does not exist.

    Args:
        twin: the twin.
        directory: where to write it.
        source: fingerprint of the weights it was made from, for :func:`source_of`.

    Raises:
        ArtifactError: naming the file and the reason.
    """
    folder = files.make_directory(directory)
    # The description is written last, and its id covers the tensors: a directory in which only one
    # of the files is new does not load.
    files.write_tensors(folder / TENSORS, dict(twin.constants.named_tensors()))
    files.write_json(folder / DESCRIPTION, {"id": twin.id, "source": source, **twin.config()})


def has_twin(directory: Path | str) -> bool:
    """Whether a directory holds a twin."""
    return (Path(directory) / DESCRIPTION).exists()


def source_of(directory: Path | str) -> str:
    """Fingerprint of the weights that the twin in a directory was made from.

    Raises:
        ArtifactError: when there is none, or its description is damaged.
    """
    return str(files.read_json_object(Path(directory) / DESCRIPTION).get("source", ""))


def load_twin(directory: Path | str) -> ExactModel:
    """Read a twin from a directory.

    Raises:
        ArtifactError: when there is none, or it is damaged or of another version.
    """
    path = Path(directory) / DESCRIPTION
    if not path.exists():
        raise ArtifactError(
            f"{directory} holds no exact twin: tessella compress makes the one of a run, "
            "model.exact() that of a model"
        )
    description = files.read_json_object(path)
    version = description.get("arithmetic")
    if version != ARITHMETIC_VERSION:
        raise ArtifactError(
            f"{path} is a twin of version {version!r} of the arithmetic, "
            f"and this version of Tessella knows version {ARITHMETIC_VERSION}"
        )
    tensors = files.read_tensors(Path(directory) / TENSORS)
    try:
        network = from_config(description["network"])
        assert isinstance(network, TwinModel)
        twin = ExactModel(network.eval(), _constants(tensors))
    except (AssertionError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged, or of another version: {error!r}") from error
    if twin.id != description.get("id"):
        raise ArtifactError(
            f"{path} and {TENSORS} beside it do not belong together, or are damaged"
        )
    return twin


def _constants(tensors: dict[str, torch.Tensor]) -> IntegerConstants:
    """The constants with the given names and values."""
    constants = IntegerConstants()
    while f"kept.{len(constants.kept)}" in tensors:
        constants.kept.append(tensors[f"kept.{len(constants.kept)}"])
    while f"tables.{len(constants.tables)}" in tensors:
        constants.tables.append(tensors[f"tables.{len(constants.tables)}"])
    while f"matrices.{len(constants.matrices)}.weight" in tensors:
        prefix = f"matrices.{len(constants.matrices)}"
        matrix = IntegerMatrix(
            tensors[f"{prefix}.weight"],
            int(tensors[f"{prefix}.input_shift"]),
            tensors[f"{prefix}.output_shift"],
        )
        constants.matrices.append(matrix)
    return constants
