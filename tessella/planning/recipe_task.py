"""From a recipe to the task that it trains, without its images.

A plan needs the shape of the images, not the images: they may lie on another machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from tessella import config, data
from tessella.config import DataConfig, Recipe
from tessella.data.transform import parse_size
from tessella.errors import ConfigError
from tessella.models import DensityModel
from tessella.tokenizers import Tokenizer
from tessella.training import build
from tessella.training.adversarial import AdversarialTask
from tessella.training.examples import Examples
from tessella.training.prepare import Trainable, TrainingData
from tessella.training.tasks import DensityTask, Task

KNOWN_SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
"""Height, width and channels of the images of sources that have one size."""

KNOWN_LEVELS = {"digits": 17}
"""Values of a pixel where they are not 256."""

ASSUMED_CLASSES = 10
"""Classes of a conditional model whose data is not looked at: those of CIFAR-10 and of digits. The
embedding of a class is small beside the rest."""


@dataclass(frozen=True)
class PlannedTask:
    """What a recipe trains, and zeros in the shape of its images.

    Args:
        recipe: the run.
        tokenizer: of a prior.
    """

    recipe: Recipe
    tokenizer: Tokenizer | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images.

        Raises:
            ConfigError: where the recipe does not say, with the keys that do.
        """
        if self.tokenizer is not None:
            height, width = self.tokenizer.image_size
            return (int(height), int(width), self.tokenizer.channels)
        return image_shape(self.recipe.data)

    def build(self) -> Task:
        """The task, with fresh weights, wherever tensors are made just now."""
        model = build.construct_model(self.recipe, self._zeros(), self.tokenizer)
        if self.recipe.adversarial is not None:
            return self._adversarial_task(model)
        # A density model is given symbols, so that no tokenizer is looked for.
        x, _ = self.examples(1)
        return build.build_task(model, None, TrainingData(Examples([x]), {}, None))

    def examples(self, images: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Zeros in the shape of a batch, ``[images, ...]``, and labels for a conditional model."""
        labels = None
        if self.recipe.model is not None and self.recipe.model.conditional:
            labels = torch.zeros(images, dtype=torch.int64)
        if self.recipe.model is None:
            return torch.zeros(images, *self.image_shape, dtype=torch.uint8), labels
        shapes = self.symbol_shapes()
        if len(shapes) == 1:
            return torch.zeros(images, *shapes[0], dtype=torch.int64), labels
        # The symbols of several grids travel packed.
        symbols = sum(math.prod(shape) for shape in shapes)
        return torch.zeros(images, symbols, dtype=torch.int64), labels

    def symbol_shapes(self) -> Sequence[tuple[int, ...]]:
        """Height, width and channels of the grids that a density model describes."""
        if self.tokenizer is None:
            return [self.image_shape]
        return [grid.shape for grid in self.tokenizer.grids()]

    def density_models(self, task: nn.Module) -> list[nn.Module]:
        """The density models of a task; none of a tokenizer or a VAE."""
        if not isinstance(task, DensityTask):
            return []
        return [model for model in task.networks() if isinstance(model, DensityModel)]

    def rough_flops(self) -> float:
        """Operations of an image, roughly: six for each weight at each place."""
        with torch.device("meta"):
            try:
                model = build.construct_model(self.recipe, self._zeros(), self.tokenizer)
            except RuntimeError:
                # Not every class can live without memory; such a model is run.
                return 0.0
        weights = sum(parameter.numel() for parameter in model.parameters())
        places = max(math.prod(shape[:2]) for shape in self._place_shapes())
        return 6.0 * weights * places

    def _place_shapes(self) -> Sequence[tuple[int, ...]]:
        if self.recipe.model is None:
            return [self.image_shape]
        return self.symbol_shapes()

    def _zeros(self) -> data.ImageSet:
        """One black image, with the facts of the set that the recipe names."""
        config_of_data = self.recipe.data
        levels = KNOWN_LEVELS.get(source_name(config_of_data), 256)
        if config_of_data.binarize or config_of_data.bits:
            levels = 2
        images = np.zeros((1, *self.image_shape), dtype=np.uint8)
        names = tuple(str(number) for number in range(ASSUMED_CLASSES))
        return data.ImageSet(
            images,
            labels=np.zeros(1, dtype=np.int64),
            label_names=names,
            levels=config_of_data.levels or levels,
            name=config_of_data.source,
        )

    def _adversarial_task(self, model: Trainable) -> AdversarialTask:
        """The task of a VQGAN, with its discriminator in the game from the first step."""
        terms = self.recipe.adversarial
        assert terms is not None
        assert isinstance(model, Tokenizer)
        # The weights of the perceptual distance need not be on this machine.
        terms = replace(terms, start=0.0, perceptual="")
        height, width, _ = self.image_shape
        return AdversarialTask(model, terms, self.recipe.train, 1, (height, width))


def planned_task(recipe: Recipe, tokenizer: str = "") -> PlannedTask:
    """What a recipe trains.

    Args:
        recipe: the run.
        tokenizer: for a prior: the run of its tokenizer, or the recipe of one, whose weights are
            not needed; empty takes ``prior_of``.

    Raises:
        ConfigError: where the shape of the images or the tokenizer of a prior is not known.
    """
    named = tokenizer or recipe.prior_of
    if not named:
        planned = PlannedTask(recipe)
    elif named == "TOKENIZER":
        raise ConfigError(
            "this recipe trains a prior on the codes of a tokenizer: name it with --tokenizer, the"
            " run of a tokenizer or the recipe of one, such as --tokenizer cifar10-vqvae"
        )
    else:
        planned = PlannedTask(replace(recipe, prior_of=named), tokenizer_named(named, recipe))
    assert planned.image_shape
    return planned


def tokenizer_named(name: str, recipe: Recipe) -> Tokenizer:
    """The tokenizer of a run, or one with fresh weights of a recipe.

    Raises:
        ConfigError: for a recipe of something else.
    """
    if name not in config.recipe_names() and not name.endswith(".toml"):
        return build.load_tokenizer(name, recipe)
    of_tokenizer = config.load_recipe(name)
    if of_tokenizer.tokenizer is None:
        raise ConfigError(
            f"--tokenizer must name the run or the recipe of a tokenizer; {name} trains another"
            " kind of model"
        )
    # The images are those of the prior, where its recipe knows more of them.
    if recipe.data.size:
        of_tokenizer = replace(of_tokenizer, data=recipe.data)
    planned = PlannedTask(of_tokenizer)
    model = build.construct_model(of_tokenizer, planned._zeros(), None)
    assert isinstance(model, Tokenizer)
    return model


def source_name(config_of_data: DataConfig) -> str:
    """The kind of the source, without its path."""
    return config_of_data.source.partition(":")[0]


def image_shape(config_of_data: DataConfig) -> tuple[int, int, int]:
    """Height, width and channels of the images that a recipe names.

    Raises:
        ConfigError: where it does not say.
    """
    data.find_source(config_of_data.source)
    known = KNOWN_SHAPES.get(source_name(config_of_data))
    packed = parse_size(config_of_data.bits, "bits")
    if packed is not None:
        known = (*packed, 1)
    size = parse_size(config_of_data.size, "size")
    if size is None and known is None:
        raise ConfigError(
            f"a plan does not read the images of {config_of_data.source}: say how large they are,"
            " for example data.size=64 data.channels=3"
        )
    if known is None:
        # Folders give colours unless they are asked for something else.
        known = (0, 0, 3)
    height, width = size or known[:2]
    return (height, width, config_of_data.channels or known[2])
