"""One interface for everything that a run can hold, and the capabilities in which they differ.

A run holds a pixel model, a two-stage model, a tokenizer or a VAE. All of them are
:class:`SavedModel`: a tokenizer that makes symbols of images, the networks to save, a device. What
only some of them can do is a *capability*, a small protocol that a class has by having its methods:
:class:`DrawsImages`, :class:`CompletesImages`, :class:`ScoresImages` and :class:`BoundsImages`.
Callers ask for the capability they need, never for a class::

    model = require(ts.load(run), CompletesImages, run)
    model.complete(images, known)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, Self, TypeVar, Unpack, cast, runtime_checkable

import torch
from torch import nn

from tessella.errors import InputError
from tessella.grid import Grid
from tessella.models.condition import Cond
from tessella.sampling import SamplingKeywords
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.tokenizer import Symbols

Watch = Callable[[float], object]
"""Called while images are drawn with the number of images done so far, in fractions."""


@runtime_checkable
class SavedModel(Protocol):
    """Any model that a run can hold: pixel and two-stage models, tokenizers, VAEs."""

    @property
    def kind(self) -> str:
        """``density-model``, ``generator`` (two stages), ``tokenizer`` or ``vae``."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the symbols that the model describes; the identity where these are pixels.

        A tokenizer's is the tokenizer itself.
        """

    @property
    def image_grid(self) -> Grid:
        """The images as a grid of pixels with 256 levels."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def components(self) -> Mapping[str, nn.Module]:
        """The networks to save, by role: ``tokenizer``, ``prior`` or ``model``.

        One network is saved in the directory itself, several in a sub-directory each.
        """

    def to(self, device: torch.device | str) -> Self:
        """Move all networks to a device."""


@runtime_checkable
class Component(Protocol):
    """A network that is saved in its own directory.

    It is rebuilt from a name and plain values.
    """

    @property
    def kind(self) -> str:
        """``density-model``, ``tokenizer`` or ``vae``."""

    @property
    def name(self) -> str:
        """Name of its class in the registry of its kind."""

    def config(self) -> Mapping[str, object]:
        """Plain values that rebuild it, without its weights."""

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        """Its weights, by name."""


@runtime_checkable
class DrawsImages(Protocol):
    """Draws images: pixel models, two-stage models, VAEs."""

    def sample(self, n: int = 16, seed: int = 0) -> torch.Tensor:
        """``uint8 [n, height, width, channels]``; image ``i`` depends on ``seed + i`` alone."""

    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = 64,
        start: int = 0,
        *,
        watch: Watch | None = None,
    ) -> Iterator[torch.Tensor]:
        """The images of :meth:`sample` from number ``start`` on, ``batch`` at a time."""


@runtime_checkable
class CompletesImages(Protocol):
    """Draws images symbol after symbol: pixel models and two-stage models.

    So known symbols can be kept, and rules of sampling apply.
    """

    @property
    def classes(self) -> int:
        """Classes that it is conditioned on; 0 for none."""

    @property
    def completes(self) -> bool:
        """Whether part of an image can be kept; otherwise only rules of sampling apply."""

    def check_condition(self, cond: Cond, n: int) -> None:
        """Refuse a condition that is not one of ``n`` images of this model."""

    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = 64,
        start: int = 0,
        *,
        cond: Cond = None,
        watch: Watch | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> Iterator[torch.Tensor]:
        """As of :class:`DrawsImages`, with a condition and the rules of sampling."""

    def complete(
        self,
        images: object,
        known: object,
        seed: int = 0,
        *,
        batch: int = 64,
        cond: Cond = None,
        watch: Watch | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> torch.Tensor:
        """Keep the known pixels of images and draw the rest."""


@runtime_checkable
class ScoresImages(Protocol):
    """Gives exact probabilities of images, or of their codes: pixel models, two-stage models."""

    @property
    def classes(self) -> int:
        """Classes that it is conditioned on; 0 for none."""

    @property
    def symbols(self) -> int:
        """Symbols of an image, of all grids together."""

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids whose symbols are scored, coarse to fine."""

    def grid_log_probs(self, symbols: Symbols, cond: Cond = None) -> list[torch.Tensor]:
        """Nats ``[n]`` of the symbols of each grid given the coarser grids."""

    def log_prob(self, images: object, cond: Cond = None) -> torch.Tensor:
        """Nats ``[n]`` of the symbols of each image."""


@runtime_checkable
class BoundsImages(Protocol):
    """Gives a lower bound on the log-probability of images: VAEs."""

    def bound(self, images: object, samples: int = 16, seed: int = 0) -> torch.Tensor:
        """Nats ``[n]``, at most the log-probability of each image."""

    def reconstruct(self, images: object) -> torch.Tensor:
        """Images through the latents and back."""


@runtime_checkable
class TakesClasses(Protocol):
    """Can be conditioned on classes: density models, and generators of images made of them."""

    @property
    def classes(self) -> int:
        """Classes that it is conditioned on; 0 for none."""


# Bound to the protocol that is asked for, so that the result has its methods.
Capability = TypeVar("Capability")

NOUNS = {
    "density-model": "a density model",
    "generator": "a two-stage model",
    "tokenizer": "a tokenizer",
    "vae": "a VAE",
}
"""Kinds of models, for sentences."""

LACKING: dict[type, str] = {
    DrawsImages: "draws no images",
    CompletesImages: "cannot keep known pixels and draw the rest",
    ScoresImages: "gives no exact probabilities",
    BoundsImages: "gives no bound on probabilities",
}
"""Capabilities, for sentences about a model that lacks one."""

ADVICE: dict[tuple[str, type], str] = {
    ("tokenizer", DrawsImages): "train a prior on its codes first",
    ("tokenizer", CompletesImages): "train a prior on its codes first",
    ("tokenizer", ScoresImages): "train a prior on its codes first",
    ("vae", CompletesImages): (
        "its pixels are drawn at once from latents of the whole image; "
        "complete with a density model, or with a prior on a tokenizer's codes"
    ),
}
"""What to do, by kind and capability."""


def require(model: SavedModel, capability: Callable[..., Capability], run: object) -> Capability:
    """The model, once it is certain that it has a capability.

    Args:
        model: what a run holds.
        capability: one of the protocols of this module. (To a type checker a callable, since
            protocols do not pass for ``type[...]``.)
        run: the run's name or path, for the message.

    Raises:
        InputError: saying what the run is, what it lacks and what to do.
    """
    # A protocol is a class at run time, whatever type checkers make of it.
    protocol = cast(type, capability)
    # Runtime protocols compare names of methods, which is enough for the classes of this package.
    if isinstance(model, protocol):
        return cast(Capability, model)
    message = f"{run} is {NOUNS[model.kind]}, which {LACKING[protocol]}"
    advice = ADVICE.get((model.kind, protocol))
    # Not every refusal has a way out.
    if advice:
        message += f": {advice}"
    raise InputError(message)


def states_bound(model: SavedModel) -> bool:
    """Whether a model of symbols states only a bound on their probabilities."""
    prior = model.components().get("prior", model.components().get("model"))
    return bool(getattr(prior, "states_bound", False))


def learned_tokenizer(model: SavedModel) -> Tokenizer | None:
    """The tokenizer that makes codes; None of a model that describes pixels."""
    # The identity is a tokenizer too, but one that learned nothing.
    if model.tokenizer.of_pixels:
        return None
    return model.tokenizer


def require_codes(model: SavedModel, run: object) -> Tokenizer:
    """The tokenizer that makes codes.

    Raises:
        InputError: when the model describes pixels.
    """
    tokenizer = learned_tokenizer(model)
    # Pixels are symbols as well, but there is nothing to store or to look at in them.
    if tokenizer is None:
        raise InputError(
            f"{run} is {NOUNS[model.kind]} on pixels, without a learned tokenizer, so it makes no "
            "codes: name the run of a tokenizer, or of a prior on one"
        )
    return tokenizer


def pixel_levels(model: SavedModel) -> int | None:
    """Levels of each sub-pixel that the model knows.

    None where images pass through a learned tokenizer, which takes pixels as they are.
    """
    # The prior of a two-stage model never sees levels of pixels.
    if not model.tokenizer.of_pixels:
        return None
    return model.tokenizer.grid().levels


def class_count(model: object) -> int:
    """Classes that a model is conditioned on; 0 also of models that have no use for classes."""
    # Training asks this of tokenizers too, which have no such attribute.
    if not isinstance(model, TakesClasses):
        return 0
    return model.classes
