"""Saving models: a directory each, see the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import tessella
from tessella import files
from tessella.errors import ArtifactError, unknown
from tessella.models import Prior
from tessella.pipeline.model_card import TITLES, card
from tessella.pipeline.saved_model import Component
from tessella.tokenizers import Tokenizer

FORMAT = 1
"""Version of the layout of saved models and run directories."""

ROLES = ("tokenizer", "prior")
"""Networks of a two-stage model, in directories of these names."""


class SavedConfig(TypedDict):
    """The entries of a ``config.json`` that are read."""

    kind: str
    """A key of :data:`~tessella.pipeline.model_card.TITLES`."""
    model: object
    """Name and sizes of the network, still to be checked; None of a two-stage model."""


def save_generator(
    tokenizer: Tokenizer,
    prior: Prior,
    directory: Path | str,
    figures: Mapping[str, object] | None = None,
) -> None:
    """Save the two networks of a generator; see :meth:`Generator.save`.

    Raises:
        ArtifactError: when they cannot be written.
    """
    path = files.make_directory(directory)
    # A pixel model is saved as its prior alone: the identity has no weights, and its configuration
    # follows from the prior's grid.
    if tokenizer.of_pixels:
        _save_component(prior, path, prior.kind, figures)
        return
    _save_component(tokenizer, path / "tokenizer", tokenizer.kind, None)
    _save_component(prior, path / "prior", "prior", None)
    # Written last: a directory without it does not count as a saved model.
    config = _header("generator") | {"parts": list(ROLES)}
    files.write_json(path / "config.json", config)
    parts = {"tokenizer": tokenizer.config(), "prior": prior.config()}
    files.write_text(path / "README.md", card("generator", parts, figures))


def save_model(
    model: Component, directory: Path | str, figures: Mapping[str, object] | None = None
) -> None:
    """Save one tokenizer, one VAE, or one density model without a tokenizer.

    Raises:
        ArtifactError: when it cannot be written.
    """
    _save_component(model, files.make_directory(directory), model.kind, figures)


def save_prior(prior: Prior, directory: Path | str) -> None:
    """Save a prior on codes whose tokenizer is not at hand.

    It is one half of a two-stage model: :func:`~tessella.pipeline.load_model` loads it, the rest of
    the package wants the other half beside it.

    Raises:
        ArtifactError: when it cannot be written.
    """
    _save_component(prior, files.make_directory(directory), "prior", None)


def write_card(
    path: Path, figures: Mapping[str, object], sections: Mapping[str, str] | None = None
) -> None:
    """Rewrite the card of a saved model with these figures.

    Args:
        path: the saved model.
        figures: see :func:`~tessella.pipeline.model_card.card`.
        sections: further sections, Markdown by heading.

    Raises:
        ArtifactError: when it cannot be read or written.
    """
    config = read_config(path)
    shown = config["model"]
    # The parts of a two-stage model have their configurations in their directories.
    if config["kind"] == "generator":
        shown = {role: read_config(path / role)["model"] for role in ROLES}
    files.write_text(path / "README.md", card(config["kind"], shown, figures, sections))


def read_config(path: Path) -> SavedConfig:
    """The ``config.json`` of a saved model, its format and kind checked.

    Raises:
        ArtifactError: when it is missing, not ours, or of another version.
    """
    if not (path / "config.json").exists():
        hint = ""
        # A run that trains has checkpoints before it has a model.
        if (path / "checkpoints").exists():
            hint = "; training has not saved a model yet"
        raise ArtifactError(f"{path} is not a saved model: it has no config.json{hint}")
    config = files.read_json_object(path / "config.json")
    if "format" not in config or "kind" not in config:
        raise ArtifactError(
            f"{path}/config.json was not written by tessella: it has no format and kind"
        )
    if config["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {config['format']!r:.40}; "
            f"tessella {tessella.__version__} reads format {FORMAT}"
        )
    if not isinstance(config["kind"], str) or config["kind"] not in TITLES:
        raise ArtifactError(f"{path}/config.json: " + unknown("kind", config["kind"], TITLES))
    return {"kind": config["kind"], "model": config.get("model")}


def _header(kind: str) -> dict[str, object]:
    """The entries that every ``config.json`` begins with."""
    return {"format": FORMAT, "kind": kind, "tessella": tessella.__version__}


def _save_component(
    component: Component, path: Path, kind: str, figures: Mapping[str, object] | None
) -> None:
    """Write a network: its weights, its configuration and its card."""
    config = {"name": component.name, **component.config()}
    files.write_tensors(path / "model.safetensors", component.state_dict())
    # The configuration comes last of the two: a directory without one is not a saved model.
    files.write_json(path / "config.json", _header(kind) | {"model": config})
    files.write_text(path / "README.md", card(kind, config, figures))
