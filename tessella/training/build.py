"""From a recipe to the model it names, and from a model to the task that trains it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessella import data, files
from tessella.config import AdversarialConfig, Recipe, TrainConfig
from tessella.errors import ConfigError
from tessella.grid import Grid
from tessella.models import DensityModel, Hierarchy, create_prior
from tessella.nn.outline import machine_memory
from tessella.pipeline import Generator, load, locate, pixel_generator, read_run_record
from tessella.storage import code_store
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.training.adversarial import AdversarialTask
from tessella.training.prepare import Trainable, TrainingData
from tessella.training.tasks import DensityTask, Task, TokenizerTask
from tessella.training.vae_task import VAETask
from tessella.vae import VAE, create_vae


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that lacks what only its user can name.

    Raises:
        ConfigError: saying which option names it.
    """
    if recipe.prior_of == "TOKENIZER":
        raise ConfigError(
            "this recipe trains a prior on the codes of a tokenizer:"
            " name its run with --tokenizer RUN"
        )
    if recipe.data.source.endswith(":PATH"):
        raise ConfigError(f"this recipe needs images: name them with --data {recipe.data.source}")
    if recipe.prior_of and recipe.data.binarize == "dynamic":
        raise ConfigError('a prior trains on codes made once: take binarize = "fixed"')
    source, _ = data.find_source(recipe.data.source)
    if source.holds_codes and not recipe.prior_of:
        raise ConfigError(
            "codes are for a prior: name the tokenizer that made them with --tokenizer RUN"
        )


def check_sharding(config: TrainConfig) -> None:
    """Refuse what does not go with ``train.sharding=full``.

    Raises:
        ConfigError: naming it.
    """
    if config.sharding == "none":
        return
    if config.optimizer == "muon":
        raise ConfigError(
            "train.optimizer=muon needs whole matrices, which train.sharding=full divides: leave"
            " one of them out"
        )
    if config.compile:
        raise ConfigError("train.compile does not go with train.sharding=full: leave one out")


def load_split(recipe: Recipe, split: str) -> data.ImageSet:
    """The images of a split, or their codes where the source is codes on disk."""
    # Codes are no images, so that reading them is not the business of tessella.data.
    source, path = data.find_source(recipe.data.source)
    if source.holds_codes:
        return code_store.load_split(path, split)
    return data.load(recipe.data, split)


def load_tokenizer(run: str, recipe: Recipe) -> Tokenizer:
    """The trained tokenizer of a prior.

    Args:
        run: directory that it is read from: the recipe's, or of a resumed run the copy it holds.
        recipe: names the run in messages.

    Raises:
        ConfigError: for a run of something else, or one that does not take images of the size that
            the recipe asks for.
        ArtifactError: when it cannot be read.
    """
    loaded = load(run)
    if isinstance(loaded, Generator) and loaded.two_stage:
        raise ConfigError(
            f"--tokenizer (prior_of) must name the run of a tokenizer; {recipe.prior_of} is a"
            f" two-stage model: name the run of its tokenizer, {_tokenizer_run(run)}"
        )
    if not isinstance(loaded, Tokenizer):
        raise ConfigError(
            "--tokenizer (prior_of) must name the run of a tokenizer;"
            f" {recipe.prior_of} is a {loaded.kind.replace('-', ' ')}"
        )
    # Codes come in the size of their tokenizer; what images come in is known where it was asked.
    source, _ = data.find_source(recipe.data.source)
    asked = recipe.data.size.strip()
    if asked and not source.holds_codes and asked not in _sizes_as_text(loaded):
        raise ConfigError(
            f"the tokenizer {recipe.prior_of} was trained on images of {_shape_as_text(loaded)},"
            f" and data.size is {asked}: set data.size={_sizes_as_text(loaded)[0]}"
        )
    return loaded


def check_tokenizer(tokenizer: Tokenizer, recipe: Recipe, images: data.ImageSet) -> None:
    """Check that a prior's tokenizer takes the images.

    Raises:
        ConfigError: saying what to set.
    """
    # Its convolutions would take any size; the grid of its codes, and so the prior, would not.
    height, width, channels = images.images.shape[1:]
    size = (int(tokenizer.image_size[0]), int(tokenizer.image_size[1]))
    settings: list[str] = []
    if size != (height, width):
        settings.append(f"data.size={_sizes_as_text(tokenizer)[0]}")
    if tokenizer.channels != channels:
        settings.append(f"data.channels={tokenizer.channels}")
    if settings:
        raise ConfigError(
            f"the tokenizer {recipe.prior_of} was trained on images of"
            f" {_shape_as_text(tokenizer)}, the data has {height}x{width}x{channels}:"
            f" set {' '.join(settings)}"
        )


def _tokenizer_run(run: str) -> str:
    """The run of the tokenizer of a two-stage model; where it does not say, the copy it holds."""
    named = (read_run_record(locate(run)).get("recipe") or {}).get("prior_of")
    return named or str(Path(run) / "tokenizer")


def _sizes_as_text(tokenizer: Tokenizer) -> list[str]:
    """The values of ``data.size`` that give a tokenizer's images, the shortest first."""
    height, width = tokenizer.image_size
    sizes = [f"{height}x{width}"]
    if height == width:
        sizes.insert(0, str(height))
    return sizes


def _shape_as_text(tokenizer: Tokenizer) -> str:
    height, width = tokenizer.image_size
    return f"{height}x{width}x{tokenizer.channels}"


def build_model(recipe: Recipe, images: data.ImageSet, tokenizer: Tokenizer | None) -> Trainable:
    """The model of a recipe for these images, with fresh weights.

    Args:
        recipe: names it.
        images: their size, channels, levels and classes are the model's.
        tokenizer: of a prior.

    Raises:
        ConfigError: for an unknown name or size, or one that follows from the data.
    """
    # On the meta device tensors have shapes and take no memory. A class from outside may not be
    # able to live there; then nothing is known beforehand.
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        _check_memory(construct_model(recipe, images, tokenizer))
    return construct_model(recipe, images, tokenizer)


def construct_model(
    recipe: Recipe, images: data.ImageSet, tokenizer: Tokenizer | None
) -> Trainable:
    """:func:`build_model` without a look at this machine's memory."""
    construct: Callable[[Recipe, data.ImageSet, Tokenizer | None], Trainable]
    construct = _build_density_model
    if recipe.tokenizer:
        construct = _build_tokenizer
    if recipe.vae:
        construct = _build_vae
    return construct(recipe, images, tokenizer)


def build_task(model: Trainable, tokenizer: Tokenizer | None, train: TrainingData) -> Task:
    """The task that trains a model: its ``kind`` chooses it.

    Args:
        model: to be trained.
        tokenizer: of a prior.
        train: the training images.

    Raises:
        ConfigError: for a model that cannot be trained by itself.
    """
    return TASKS[model.kind](model, tokenizer, train)


def build_adversarial_task(
    model: Trainable, terms: AdversarialConfig, config: TrainConfig, train: TrainingData
) -> Task:
    """The task of a tokenizer whose recipe has a table ``[adversarial]``.

    Raises:
        ConfigError: where the terms do not serve the model.
    """
    assert isinstance(model, Tokenizer)
    # The discriminator halves the sides and needs to know that they suffice.
    height, width = train.examples.example_shape[:2]
    return AdversarialTask(model, terms, config, len(train.examples), (height, width))


def _check_memory(outline: nn.Module) -> None:
    """Refuse a model that this machine cannot train.

    Args:
        outline: the model on the meta device.

    Raises:
        ConfigError: naming what it takes and what there is.
    """
    weights = sum(p.numel() * p.element_size() for p in outline.parameters())
    # Weights, gradient, two averages of the optimizer, averaged weights. With a GPU most of it lies
    # there, and only weights and their average are made here.
    copies = 2 if torch.cuda.is_available() else 5
    memory = machine_memory()
    if copies * weights > memory:
        raise ConfigError(
            f"the model of this recipe has {weights / 4e9:.3g} G parameters, which take"
            f" {files.byte_count(copies * weights)} to train, and this machine has"
            f" {files.byte_count(memory)}: take smaller sizes"
        )


def _density_task(model: Trainable, tokenizer: Tokenizer | None, train: TrainingData) -> Task:
    assert isinstance(model, (DensityModel, Hierarchy))
    if isinstance(model, DensityModel):
        if model.conditioning.codes is not None:
            raise ConfigError(
                "a model conditioned on codes trains beside the prior of those:"
                " give a ts.Hierarchy of both"
            )
        # Pixels are the symbols of the identity tokenizer.
        if tokenizer is None and train.examples.pixels:
            tokenizer = pixel_generator(model).tokenizer
    return DensityTask(model, tokenizer)


def _tokenizer_task(model: Trainable, tokenizer: Tokenizer | None, train: TrainingData) -> Task:
    assert isinstance(model, Tokenizer)
    return TokenizerTask(model)


def _vae_task(model: Trainable, tokenizer: Tokenizer | None, train: TrainingData) -> Task:
    assert isinstance(model, VAE)
    return VAETask(model)


TASKS: Mapping[str, Callable[[Trainable, Tokenizer | None, TrainingData], Task]] = {
    "density-model": _density_task,
    "tokenizer": _tokenizer_task,
    "vae": _vae_task,
}
"""The task of each kind of model: a function of the model, its tokenizer and the images."""


def _build_tokenizer(
    recipe: Recipe, images: data.ImageSet, tokenizer: Tokenizer | None
) -> Tokenizer:
    assert recipe.tokenizer is not None
    height, width, channels = images.images.shape[1:]
    sizes: dict[str, Any] = dict(recipe.tokenizer.sizes)
    _refuse_given("tokenizer", sizes, {"image_size": "data.size", "channels": "data.channels"})
    sizes |= {"image_size": (height, width), "channels": channels}
    return create_tokenizer(recipe.tokenizer.name, seed=recipe.tokenizer.seed, **sizes)


def _build_vae(recipe: Recipe, images: data.ImageSet, tokenizer: Tokenizer | None) -> VAE:
    assert recipe.vae is not None
    height, width, channels = images.images.shape[1:]
    sizes: dict[str, Any] = dict(recipe.vae.sizes)
    given_by_data = {
        "image_size": "data.size",
        "channels": "data.channels",
        "levels": "data.levels",
    }
    _refuse_given("vae", sizes, given_by_data)
    sizes |= {"image_size": (height, width), "channels": channels, "levels": images.levels}
    return create_vae(seed=recipe.vae.seed, **sizes)


def _build_density_model(
    recipe: Recipe, images: data.ImageSet, tokenizer: Tokenizer | None
) -> DensityModel | Hierarchy:
    named = recipe.model
    assert named is not None
    # Which sizes there are, and of which types, is for the constructor of the model to say.
    sizes: dict[str, Any] = dict(named.sizes)
    for name in ("classes", "codes", "grid", "grids"):
        if name in sizes:
            raise ConfigError(
                f"model.{name} follows from the data: leave it out"
                " (model.conditional = true uses labels)"
            )
    # A pixel model describes the image itself, a prior the codes of its tokenizer, coarse to fine.
    if tokenizer is None:
        height, width, channels = images.images.shape[1:]
        grids: tuple[Grid, ...] = (Grid(height, width, channels, images.levels),)
    else:
        grids = tokenizer.grids()
    # Labels alone do not make a model conditional: the recipe asks for it.
    classes = 0
    if named.conditional:
        classes = images.classes
        if not classes:
            raise ConfigError(f"model.conditional needs labels, and {recipe.data.source} has none")
    return create_prior(
        named.name,
        grids,
        named.head,
        classes,
        seed=named.seed,
        finer=named.finer,
        **sizes,
    )


def _refuse_given(table: str, sizes: Mapping[str, object], given_by: Mapping[str, str]) -> None:
    """Refuse sizes that the images decide."""
    for name, key in given_by.items():
        if name in sizes:
            raise ConfigError(f"{table}.{name} follows from the data: set {key} in its place")


def held_tokenizer(out: Path, resume: bool) -> str | None:
    """The tokenizer that a resumed run of a prior holds, once it is whole; else None."""
    # config.json is written last, so with it the tokenizer is whole.
    held = out / "tokenizer"
    if resume and (held / "config.json").exists():
        return str(held)
    return None
