"""The interface of tokenizers: images to symbols and back, in pieces that keep memory bounded.

Images in this interface are ``uint8 [batch, height, width, channels]``, always 0..255; symbols are
``int64`` grids as :class:`~tessella.grid.Grid` describes them. Floats are internal:
:meth:`Tokenizer.encode_float` and :meth:`Tokenizer.decode_float` are the two halves of the network,
on images in 0..1, with gradients.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tessella.errors import ConfigError, InputError
from tessella.grid import Grid
from tessella.nn.pretrained import Pretrained
from tessella.tokenizers.construction import PlainValues
from tessella.tokenizers.images import Images

PIXELS_AT_ONCE = 2**18
"""Pixels that a network processes at once: 256 images of 32x32, or four of 256x256."""

IMAGES_AT_ONCE = 1024
"""Most images that a network processes at once, however small they are."""

MAX_SIDE = 2**16
"""Longest side of an image, in pixels."""

Symbols = torch.Tensor | tuple[torch.Tensor, ...]
"""The symbols of images, ``int64 [n, h', w', depth]``; for a tokenizer with several grids, a tuple
of such tensors, coarse to fine."""


@dataclasses.dataclass(frozen=True)
class TokenizerOutput:
    """What a trainable tokenizer returns for a batch.

    Args:
        reconstruction: float images ``[n, h, w, c]`` on the scale 0..1, not clamped.
        symbols: the symbols of the images; see :data:`Symbols`.
        losses: scalars; ``loss`` is the one to optimize, the others are its terms and figures to
            log.
        stats: scalars about the codebook, without gradient, to log.
    """

    reconstruction: torch.Tensor
    symbols: Symbols
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Tokenizer(Pretrained, nn.Module, ABC):
    """Images to grids of symbols and back.

    A subclass supplies ``_encode``, ``_decode``, the float halves, :meth:`grids` and
    :meth:`config`; this class checks arguments, works in pieces, and crops. A subclass must have a
    parameter or a buffer, whose device is the one it works on.

    Args:
        image_size: height and width, in pixels, that :meth:`grids` assumes if it is given no size.
            Images of other sizes can be encoded and decoded too.
        channels: colour channels, 1 to 4.

    Raises:
        ConfigError: when a side is out of range or there are more than four channels.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "tokenizer"
    """Kind of a saved model in its ``config.json``."""

    of_pixels: ClassVar[bool] = False
    """Whether the symbols are the pixels themselves, at some number of levels."""

    def __init__(self, image_size: tuple[int, int], channels: int) -> None:
        super().__init__()
        # A large grid costs nothing here, but a model that is built for it takes memory.
        if not 1 <= min(image_size) <= max(image_size) <= MAX_SIDE:
            raise ConfigError(
                f"image_size must be a height and a width in 1..{MAX_SIDE}, got {tuple(image_size)}"
            )
        if not 1 <= channels <= 4:
            raise ConfigError(f"channels must be 1 (grey) to 4 (RGBA), got {channels}")
        self.image_size: tuple[int, int] = (image_size[0], image_size[1])
        self.channels = channels

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether ``decode(encode(images)) == images`` for all uint8 images."""

    @abstractmethod
    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """The grids of the symbols of an image, coarse to fine.

        Args:
            height, width: size of the image in pixels; by default ``image_size``.
        """

    @abstractmethod
    def config(self) -> PlainValues:
        """JSON values from which ``create_tokenizer(name, **config)`` builds this tokenizer."""

    @abstractmethod
    def encode_float(self, images: torch.Tensor) -> Any:
        """Features of float images ``[n, h, w, channels]`` in 0..1, before they are discretized.

        Returns:
            ``[n, h', w', features]``, or one such tensor for each grid if there are several.
        """

    @abstractmethod
    def decode_float(self, features: Any) -> torch.Tensor:
        """Float images on the scale 0..1, not clamped and not cropped.

        Args:
            features: as :meth:`encode_float` gives them.
        """

    @abstractmethod
    def _encode(self, images: torch.Tensor) -> Symbols:
        """Symbols of a few uint8 images ``[n, h, w, channels]``, already checked."""

    @abstractmethod
    def _decode(self, symbols: Any) -> torch.Tensor:
        """Uint8 images of a few symbols, already checked; not cropped."""

    @property
    def stride(self) -> int:
        """Pixels along each side that one symbol of the finest grid stands for."""
        return 1

    def grid(self, height: int | None = None, width: int | None = None) -> Grid:
        """The one grid of the symbols of an image.

        Raises:
            InputError: when this tokenizer makes several grids.
        """
        grids = self.grids(height, width)
        if len(grids) != 1:
            raise InputError(
                f"tokenizer {self.name!r} makes {len(grids)} grids of an image; "
                "ask for them with grids()"
            )
        return grids[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """This tokenizer itself; every model in a run has its tokenizer under this name."""
        return self

    @property
    def image_grid(self) -> Grid:
        """Images of ``image_size`` as a grid of pixels with 256 levels."""
        height, width = self.image_size
        return Grid(height, width, self.channels, 256)

    def components(self) -> dict[str, nn.Module]:
        """The networks to save, by their names in a run."""
        return {"tokenizer": self}

    @property
    def device(self) -> torch.device:
        """The device of this tokenizer's tensors, on which it works."""
        # The identity has buffers only.
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @torch.no_grad()
    def encode(self, images: object) -> Any:
        """Images to symbols.

        Args:
            images: uint8 ``[n, h, w, channels]`` of any size from 1x1 up, numpy or torch.

        Returns:
            ``int64 [n, h', w', depth]``, as described by ``grid(h, w)``, on this tokenizer's
            device; for a tokenizer with several grids a tuple of such tensors, as described by
            ``grids(h, w)``.

        Raises:
            InputError: when the images are not of this type and shape.
        """
        checked = check_images(images, self.channels)
        # In pieces, so that the memory for activations does not grow with the number of images.
        pieces = checked.split(images_at_once(checked.shape[1] * checked.shape[2]))
        encoded: list[tuple[torch.Tensor, ...]] = []
        with eval_mode(self):
            for piece in pieces:
                # Only a piece at a time is on the device.
                encoded.append(as_tuple(self._encode(piece.to(self.device))))
        # From one tuple of grids per piece to one tensor per grid.
        whole = tuple(torch.cat(pieces_of_grid) for pieces_of_grid in zip(*encoded, strict=True))
        return whole if len(self.grids()) > 1 else whole[0]

    @torch.no_grad()
    def decode(self, symbols: object, size: tuple[int, int] | None = None) -> Images:
        """Symbols to images.

        Args:
            symbols: integers ``[n, h', w', depth]``, numpy or torch; for a tokenizer with several
                grids, a tuple of them.
            size: height and width of the images. By default it is ``image_size`` if the symbols
                have that grid, and otherwise as large as the symbols allow.

        Returns:
            ``uint8 [n, h, w, channels]`` on this tokenizer's device.

        Raises:
            InputError: when symbols are not integers in this tokenizer's grids, or do not match
                each other or ``size``.
        """
        checked = self._check_symbols(symbols)
        height, width = self._size_of(checked, size)
        images: list[torch.Tensor] = []
        with eval_mode(self):
            for piece in self._pieces(checked, images_at_once(height * width)):
                # A grid has whole cells, which may extend beyond the image.
                images.append(self._decode(piece)[:, :height, :width])
        return Images.of(torch.cat(images))

    def __repr__(self) -> str:
        height, width = self.image_size
        grids = " and ".join(
            f"{grid.height}x{grid.width}x{grid.channels} of {grid.levels}" for grid in self.grids()
        )
        weights = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{type(self).__name__}({height}x{width}x{self.channels} images to symbols {grids}, "
            f"parameters={weights:,}, device={self.device})"
        )

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width, by default those of ``image_size``."""
        if height is None:
            height = self.image_size[0]
        if width is None:
            width = self.image_size[1]
        return height, width

    def _pieces(self, symbols: tuple[torch.Tensor, ...], images: int) -> Iterator[Symbols]:
        """The symbols in pieces of ``images`` images each, on this tokenizer's device."""
        # All grids are split alike: the first piece of each belongs to the same images.
        split = [part.split(images) for part in symbols]
        for pieces in zip(*split, strict=True):
            moved = tuple(piece.to(self.device) for piece in pieces)
            yield moved if len(moved) > 1 else moved[0]

    def _check_symbols(self, symbols: object) -> tuple[torch.Tensor, ...]:
        """The symbols of each grid as tensors, of any height and width."""
        grids = self.grids()
        given = symbols if len(grids) > 1 else (symbols,)
        if not isinstance(given, (tuple, list)) or len(given) != len(grids):
            raise InputError(
                f"tokenizer {self.name!r} makes {len(grids)} grids: "
                f"give a tuple of {len(grids)} tensors, got {type(symbols).__name__}"
            )
        checked: list[torch.Tensor] = []
        for part, grid in zip(given, grids, strict=True):
            shape = tuple(getattr(part, "shape", ()))
            # Height and width may differ; any other difference fails the check of the grid.
            if len(shape) == 4 and min(shape[1:3]) >= 1:
                grid = Grid(int(shape[1]), int(shape[2]), grid.channels, grid.levels)
            checked.append(grid.check(part))
        counts = [len(part) for part in checked]
        if len(set(counts)) > 1:
            raise InputError(f"all grids must hold the same number of images, got {counts}")
        return tuple(checked)

    def _size_of(
        self, symbols: tuple[torch.Tensor, ...], size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Height and width of the images that symbols stand for."""
        given = [tuple(part.shape[1:3]) for part in symbols]
        if size is None:
            # With the grid of image_size, the image may end within the last cells.
            if given == _sides(self.grids()):
                size = self.image_size
            else:
                size = (given[-1][0] * self.stride, given[-1][1] * self.stride)
        wanted = _sides(self.grids(*size))
        if given != wanted:
            raise InputError(
                f"images of {size[0]}x{size[1]} have symbols of {_in_words(wanted)}, "
                f"got {_in_words(given)}"
            )
        return size


def _sides(grids: Sequence[Grid]) -> list[tuple[int, ...]]:
    """Height and width of each grid."""
    return [grid.shape[:2] for grid in grids]


def _in_words(sides: Sequence[tuple[int, ...]]) -> str:
    """Sides as text, such as ``2x3 and 4x6``."""
    return " and ".join(f"{height}x{width}" for height, width in sides)


def as_tuple(symbols: Symbols) -> tuple[torch.Tensor, ...]:
    """The grids of :data:`Symbols` as a tuple, even if there is only one."""
    return symbols if isinstance(symbols, tuple) else (symbols,)


def channels(symbols: Symbols) -> Iterator[torch.Tensor]:
    """The symbols ``[n, h, w]`` of each channel of each grid, coarse to fine.

    Each channel has its codebook.
    """
    for part in as_tuple(symbols):
        yield from part.unbind(-1)


def check_images(images: object, channels: int | None = None) -> torch.Tensor:
    """Check images given by a caller; returns a tensor ``uint8 [n, h, w, c]``.

    Args:
        images: numpy array or tensor.
        channels: how many channels they must have; None allows 1 to 4.

    Raises:
        InputError: for any other type (with the code that converts it), rank or number of channels.
    """
    was_tensor = isinstance(images, torch.Tensor)
    if not isinstance(images, torch.Tensor):
        images = _as_tensor(images)
    if images.dtype != torch.uint8:
        raise InputError(
            f"images must be uint8 with values 0..255, got {images.dtype}; "
            f"{_conversion(images, was_tensor)}"
        )
    # Checked before the shape is used: grey images often come without a channel axis.
    if images.dim() != 4:
        hint = "; add the channel with images[..., None]" if images.dim() == 3 else ""
        raise InputError(
            "images must have shape [batch, height, width, channels], "
            f"got {list(images.shape)}{hint}"
        )
    if min(images.shape[1:3]) < 1:
        raise InputError(f"images must be at least 1x1, got {images.shape[1]}x{images.shape[2]}")
    _check_channels(images, (channels,) if channels else (1, 2, 3, 4), was_tensor)
    return images


def _check_channels(images: torch.Tensor, allowed: tuple[int, ...], was_tensor: bool) -> None:
    given = images.shape[3]
    if given in allowed:
        return
    wanted = str(allowed[0])
    if len(allowed) > 1:
        wanted = f"{allowed[0]} to {allowed[-1]}"
    hint = ""
    # The most likely mistake is torch's order of axes.
    if images.shape[1] in allowed:
        hint = "; the channels come last: np.moveaxis(images, 1, -1)"
        if was_tensor:
            hint = "; the channels come last: images.movedim(1, -1)"
    raise InputError(
        f"images must have {wanted} channels, got {given} in shape {list(images.shape)}{hint}"
    )


def _as_tensor(images: object) -> torch.Tensor:
    array = np.asarray(images)
    # Other numbers pass this check; check_images refuses them with the code that converts them.
    if array.dtype.kind not in "buif":
        raise InputError(
            f"images must be a uint8 array or tensor, got {type(images).__name__} of {array.dtype}"
        )
    # Torch warns of read-only memory, and refuses negative strides.
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def _conversion(images: torch.Tensor, was_tensor: bool) -> str:
    """The code that converts images of another type, for an error message.

    Args:
        was_tensor: whether the caller gave a tensor, which has no ``astype``.
    """
    if images.is_floating_point():
        line = "np.round(images * 255).astype(np.uint8)"
        if was_tensor:
            line = "(images * 255).round().to(torch.uint8)"
        return f"for values in 0..1, convert them with {line}"
    line = "images.astype(np.uint8)"
    if was_tensor:
        line = "images.to(torch.uint8)"
    if images.dtype == torch.bool:
        return f"convert them with {line} * 255"
    return f"if all values are in 0..255, convert them with {line}"


def images_at_once(pixels: int) -> int:
    """Number of images, of ``pixels`` pixels each, that a network processes at once."""
    # At least one, even if a single image exceeds the bound.
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // pixels))


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every part is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        # Parts may have been in different modes, so each is put back by itself.
        for part in training:
            part.training = True
