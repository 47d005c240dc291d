"""Saved models from the Hugging Face Hub, and to it.

A saved model is a folder as the Hub expects it, ``config.json``, ``model.safetensors`` and
``README.md``, so a repository is a saved model and a local folder needs no Hub. Downloads go
through huggingface_hub (the extra ``hub``), which keeps its cache, its tokens and ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

import torch
from torch import nn

import tessella
from tessella import files
from tessella.errors import ArtifactError, ConfigError, InputError
from tessella.models import DensityModel, Hierarchy
from tessella.pipeline import Component, Generator, load_model, load_saved, read_config
from tessella.pipeline.saving import save_model, save_prior
from tessella.tokenizers import Tokenizer

MISSING = 'the Hub needs huggingface_hub: pip install "tessella[hub]"'

FILES = ("*.json", "*.safetensors", "*.md")
"""What is downloaded: nothing that could be executed."""

M = TypeVar("M")


@dataclass(frozen=True)
class Place:
    """Where and how a repository is looked for; see :meth:`Pretrained.from_pretrained`."""

    revision: str | None = None
    local_files_only: bool = False
    cache_dir: Path | str | None = None
    token: str | bool | None = None


@dataclass(frozen=True)
class Upload:
    """Where and how a model is published; see :meth:`Pretrained.push_to_hub`."""

    repository: str
    private: bool | None = None
    revision: str | None = None
    message: str = ""
    token: str | bool | None = None


def load_as(cls: type[M], name: Path | str, place: Place, device: torch.device | str = "cpu") -> M:
    """Load a saved model that must be of a class; see :meth:`Pretrained.from_pretrained`."""
    folder = folder_of(name, place)
    found = _load(cls, folder)
    if not isinstance(found, cls):
        raise InputError(
            f"{name} is a {type(found).__name__}, not a {cls.__name__}: load it with "
            f"{type(found).__name__}.from_pretrained"
        )
    return cast("M", cast(nn.Module, found).to(device))


def folder_of(name: Path | str, place: Place) -> Path:
    """The local folder of a saved model, downloaded where it is not one.

    Raises:
        InputError: when it is neither a folder nor the name of a repository.
        ArtifactError: when it cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    text = str(name)
    # A path that does not exist is no repository, and asking the Hub for it would only confuse.
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise InputError(
            f"there is no folder {name}, and a repository of the Hub is named OWNER/NAME"
        )
    library = huggingface_hub()
    try:
        folder = library.snapshot_download(
            text,
            revision=place.revision,
            cache_dir=place.cache_dir,
            local_files_only=place.local_files_only,
            token=place.token,
            allow_patterns=list(FILES),
            endpoint=os.environ.get("HF_ENDPOINT"),
            library_name="tessella",
            library_version=tessella.__version__,
        )
    except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
        at = f" at {place.revision}" if place.revision else ""
        only = ", and no more than the cache was looked at" if place.local_files_only else ""
        raise ArtifactError(
            f"{text}{at} cannot be had from the Hub{only}: {_first_line(error)}"
        ) from error
    return Path(folder)


def save(
    model: object,
    directory: Path | str,
    figures: Mapping[str, object] | None = None,
    force: bool = False,
) -> None:
    """Save a model to a folder; see :meth:`Pretrained.save_pretrained`."""
    if isinstance(model, Generator):
        model.save(directory, figures, force)
        return
    # Before the first file is written: a model that is refused leaves the directory as it was.
    files.check_replaceable(directory, force)
    if isinstance(model, Hierarchy):
        save_prior(model, directory)
        return
    if not isinstance(model, Component):
        raise InputError(f"a {type(model).__name__} is no model that can be saved")
    save_model(model, directory, figures)


def push(model: object, upload: Upload, figures: Mapping[str, object] | None = None) -> str:
    """Publish a model; see :meth:`Pretrained.push_to_hub`."""
    library = huggingface_hub()
    api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=upload.token)
    with tempfile.TemporaryDirectory(prefix="tessella-hub-") as folder:
        # Whatever is wrong with the model shows before anything is created there.
        save(model, folder, figures)
        try:
            api.create_repo(upload.repository, private=upload.private, exist_ok=True)
            if upload.revision is not None:
                api.create_branch(upload.repository, branch=upload.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=upload.repository,
                folder_path=folder,
                revision=upload.revision,
                commit_message=upload.message,
            )
        except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
            raise ArtifactError(
                f"the Hub did not take {upload.repository}: {_first_line(error)}"
            ) from error
    return str(commit.commit_url)


def huggingface_hub() -> ModuleType:
    """The library of the Hub.

    Raises:
        InputError: when it is not installed, with the line that installs it.
    """
    try:
        import huggingface_hub as library
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError(MISSING) from error
    assert huggingface_hub.errors
    return library


def _load(cls: type, folder: Path) -> object:
    """What a folder holds, as far as a class is concerned."""
    kind = read_config(folder)["kind"]
    try:
        if kind != "generator":
            # A pixel model is a generator too; alone it is a density model, a prior a network.
            return load_saved(folder) if issubclass(cls, Generator) else load_model(folder)
        if issubclass(cls, Tokenizer):
            return load_model(folder / "tokenizer")
        if issubclass(cls, (DensityModel, Hierarchy)):
            return load_model(folder / "prior")
        return load_saved(folder)
    except ConfigError as error:
        raise ArtifactError(f"{folder}: {error}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.split("\n", 1)[0].rstrip(".")
