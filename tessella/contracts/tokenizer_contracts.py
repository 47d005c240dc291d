"""The promises of every tokenizer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tessella.contracts.contract import Contract, Options, require, require_close
from tessella.grid import Grid
from tessella.pipeline import load_model, save_model
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.tokenizers.tokenizer import Symbols, as_tuple

SIZES = ((8, 8), (12, 8), (9, 7), (1, 1))
"""Heights and widths of the images; not all are multiples of what a network halves."""


@dataclass(frozen=True)
class TokenizerCase:
    """A tokenizer and its options.

    Args:
        name: registered name.
        options: arguments that differ from the defaults.
    """

    name: str
    options: Options = field(default_factory=dict)

    def build(self) -> Tokenizer:
        """A fresh tokenizer of 8x8 images with three channels, in evaluation mode."""
        options: Options = {"image_size": (8, 8), "channels": 3, **self.options}
        return create_tokenizer(self.name, seed=1, **options)


def random_images(tokenizer: Tokenizer, n: int, size: tuple[int, int]) -> torch.Tensor:
    """Random images, ``uint8 [n, height, width, channels]``."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, *size, tokenizer.channels)
    return torch.randint(256, shape, generator=generator).to(torch.uint8)


def symbols_fit_their_grids(case: TokenizerCase) -> None:
    """Encode images of several sizes, and decode the symbols."""
    tokenizer = case.build()
    for size in SIZES:
        images = random_images(tokenizer, 3, size)
        symbols = as_tuple(tokenizer.encode(images))
        grids = tokenizer.grids(*size)
        require(
            len(symbols) == len(grids), f"encode gives {len(symbols)} grids, grids() {len(grids)}"
        )
        for part, grid in zip(symbols, grids, strict=True):
            check_symbols(part, grid)
        # One grid is a tensor, several are a tuple.
        given: Symbols = symbols[0]
        if len(symbols) > 1:
            given = symbols
        # Cropped to the size of the images: the stride need not divide it.
        decoded = tokenizer.decode(given, size)
        require(
            decoded.dtype == torch.uint8 and decoded.shape == images.shape,
            f"decode gives {decoded.dtype} {list(decoded.shape)} for images of {size}",
        )


def check_symbols(symbols: torch.Tensor, grid: Grid) -> None:
    """Require symbols of three images to be of a grid."""
    require(
        symbols.dtype == torch.int64 and symbols.shape == (3, *grid.shape),
        f"symbols are {symbols.dtype} {list(symbols.shape)}, the grid says {grid}",
    )
    require(
        symbols.min() >= 0 and symbols.max() < grid.levels,
        f"symbols lie in {int(symbols.min())}..{int(symbols.max())}, the grid says {grid}",
    )


def an_image_is_encoded_alone(case: TokenizerCase) -> None:
    """Encode images together and one by one."""
    tokenizer = case.build()
    images = random_images(tokenizer, 5, (8, 8))
    # Codes are stored batch by batch and looked up one by one.
    together = as_tuple(tokenizer.encode(images))
    for index in range(len(images)):
        alone = as_tuple(tokenizer.encode(images[index : index + 1]))
        for part, single in zip(together, alone, strict=True):
            require(
                torch.equal(part[index : index + 1], single),
                f"image {index} has other symbols alone than in a batch",
            )


def lossless_means_lossless(case: TokenizerCase) -> None:
    """Encode and decode; a tokenizer that calls itself lossless must return every image."""
    tokenizer = case.build()
    images = random_images(tokenizer, 4, (8, 8))
    if tokenizer.lossless:
        back = tokenizer.decode(tokenizer.encode(images))
        require(torch.equal(back, images), "it calls itself lossless and changes images")


def a_gradient_reaches_the_encoder(case: TokenizerCase) -> None:
    """Take the gradient of a reconstruction; tokenizers without parameters have none."""
    tokenizer = case.build().train()
    parameters = [p for p in tokenizer.parameters() if p.requires_grad]
    if not parameters:
        return
    images = random_images(tokenizer, 4, (8, 8)).float() / 255
    output = tokenizer(images)
    require(output.losses["loss"].isfinite(), "the loss of a batch is not finite")
    # Codes that no vector was nearest to get none, so one parameter with a gradient suffices.
    output.losses["loss"].backward()
    reached = 0
    for parameter in parameters:
        if parameter.grad is not None:
            require(parameter.grad.isfinite().all(), "a gradient is not finite")
            reached += int(parameter.grad.abs().sum() > 0)
    require(reached > 0, "no parameter has a gradient")


def saving_keeps_symbols(case: TokenizerCase) -> None:
    """Save to a directory, load again, and encode the same images."""
    tokenizer = case.build()
    images = random_images(tokenizer, 3, (8, 8))
    with tempfile.TemporaryDirectory() as folder:
        save_model(tokenizer, Path(folder))
        loaded = load_model(Path(folder))
    require(isinstance(loaded, Tokenizer), f"what was loaded is a {type(loaded).__name__}")
    assert isinstance(loaded, Tokenizer)
    # Exactly: stored codes must mean what they meant.
    symbols = tokenizer.encode(images)
    for one, other in zip(as_tuple(symbols), as_tuple(loaded.encode(images)), strict=True):
        require(torch.equal(one, other), "the loaded tokenizer gives other symbols")
    require_close(loaded.decode(symbols), tokenizer.decode(symbols), 0.0, "decoded images")


def configurations_rebuild(case: TokenizerCase) -> None:
    """Build a second tokenizer of the first one's configuration."""
    tokenizer = case.build()
    again = create_tokenizer(case.name, **tokenizer.config())
    require(again.config() == tokenizer.config(), "the rebuilt one has another configuration")
    # Which raises unless all names and shapes agree.
    again.load_state_dict(tokenizer.state_dict())


CONTRACTS: tuple[Contract[TokenizerCase], ...] = (
    Contract("symbols fit the grids, images come back in their size", symbols_fit_their_grids),
    Contract("an image has the same symbols alone and in a batch", an_image_is_encoded_alone),
    Contract("a lossless tokenizer returns every image", lossless_means_lossless),
    Contract("training reaches the parameters", a_gradient_reaches_the_encoder),
    Contract("saving and loading keep symbols and images", saving_keeps_symbols),
    Contract("a configuration rebuilds the tokenizer", configurations_rebuild),
)
