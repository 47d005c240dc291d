"""What every tokenizer does: images to symbols and back, in pieces that keep memory bounded.

Images at this boundary are ``uint8 [batch, height, width, channels]``, always 0..255; symbols are
``int64`` grids as :class:`~tessella.grid.Grid` describes them. Floats live inside:
:meth:`Tokenizer.encode_float` and :meth:`Tokenizer.decode_float` are the networks' halves, on
images in 0..1, with gradients.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar, get_type_hints

import numpy as np
import torch
from torch import nn

from tessella.config import from_dict
from tessella.errors import ConfigError, InputError, unknown
from tessella.grid import Grid

PIXELS_AT_ONCE = 2**18
"""Pixels that pass through a network at once: 256 images of 32x32, four of 256x256."""

Symbols = torch.Tensor | tuple[torch.Tensor, ...]
"""The symbols of images, ``int64 [n, h', w', depth]``; of a tokenizer with several grids, one
tensor for each, coarse to fine."""

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TokenizerOutput:
    """What a pass of a trainable tokenizer over a batch gives.

    Args:
        reconstruction: float images ``[n, h, w, c]`` on the scale 0..1, not clamped.
        symbols: see :data:`Symbols`.
        losses: scalars; ``loss`` is the sum to optimize, the others are its parts and figures to
            log.
        stats: scalars without gradient, about the codebook, to log.
    """

    reconstruction: torch.Tensor
    symbols: Symbols
    losses: dict[str, torch.Tensor]
    stats: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


class Tokenizer(nn.Module, ABC):
    """Images to grids of symbols and back.

    A subclass supplies ``_encode``, ``_decode``, the float halves, :meth:`grids` and
    :meth:`config`; this class checks, cuts into pieces, and crops. It must own a parameter or a
    buffer, which tells the device that work happens on.

    Args:
        image_size: height and width of the images that :meth:`grids` describes when it is not told
            a size. Other sizes are encoded and decoded too.
        channels: colour channels, 1 to 4.

    Raises:
        ConfigError: when a size is below 1 or there are more than four channels.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "tokenizer"
    """What a saved tokenizer's ``config.json`` says it is."""

    def __init__(self, image_size: tuple[int, int], channels: int) -> None:
        super().__init__()
        if min(image_size) < 1:
            raise ConfigError(
                f"image_size must be a height and a width of at least 1, got {tuple(image_size)}"
            )
        if not 1 <= channels <= 4:
            raise ConfigError(f"channels must be 1 (grey) to 4 (RGBA), got {channels}")
        self.image_size: tuple[int, int] = (image_size[0], image_size[1])
        self.channels = channels

    of_pixels: ClassVar[bool] = False
    """Whether the symbols are the pixels themselves, at some number of levels."""

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether ``decode(encode(images)) == images`` for all uint8 images."""

    @abstractmethod
    def grids(self, height: int | None = None, width: int | None = None) -> tuple[Grid, ...]:
        """The grids of the symbols of an image of this size (default: ``image_size``), coarse to
        fine."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: ``create_tokenizer(name, **config)`` rebuilds
        it."""

    @abstractmethod
    def encode_float(self, images: torch.Tensor) -> Any:
        """Float images ``[n, h, w, channels]`` in 0..1 to what is discretized:
        ``[n, h', w', features]``, one such tensor for each grid where there are several."""

    @abstractmethod
    def decode_float(self, features: Any) -> torch.Tensor:
        """Features, as :meth:`encode_float` gives them, to float images on the scale 0..1, not
        clamped and not cropped."""

    @abstractmethod
    def _encode(self, images: torch.Tensor) -> Symbols:
        """Symbols of a piece of checked uint8 images."""

    @abstractmethod
    def _decode(self, symbols: Any) -> torch.Tensor:
        """Uint8 images of a piece of checked symbols, not cropped."""

    def grid(self, height: int | None = None, width: int | None = None) -> Grid:
        """The one grid of the symbols of an image.

        Raises:
            InputError: when this tokenizer makes several grids.
        """
        grids = self.grids(height, width)
        if len(grids) != 1:
            raise InputError(
                f"tokenizer {self.name!r} makes {len(grids)} grids of an image; ask for them with grids()"
            )
        return grids[0]

    @property
    def tokenizer(self) -> Tokenizer:
        """Itself: every model that a run can hold has the tokenizer that makes its symbols."""
        return self

    @property
    def image_grid(self) -> Grid:
        """Images of ``image_size`` as a grid of pixels with 256 levels."""
        height, width = self.image_size
        return Grid(height, width, self.channels, 256)

    def components(self) -> dict[str, nn.Module]:
        """The networks to save, by role."""
        return {"tokenizer": self}

    @property
    def device(self) -> torch.device:
        """Where this tokenizer's tensors are, and its work happens."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @torch.no_grad()
    def encode(self, images: Any) -> Any:
        """Images to symbols.

        Args:
            images: uint8 ``[n, h, w, channels]`` of any size from 1x1 up, numpy or torch.

        Returns:
            ``int64 [n, h', w', depth]`` as ``grid(h, w)`` says, on this tokenizer's device; of a
            tokenizer with several grids a tuple of such tensors, as ``grids(h, w)`` says.

        Raises:
            InputError: when the images are not of this type and shape.
        """
        checked = check_images(images, self.channels)
        pieces = checked.split(images_at_once(checked.shape[1] * checked.shape[2]))
        with evaluating(self):
            encoded = [parts(self._encode(piece.to(self.device))) for piece in pieces]
        whole = tuple(torch.cat(part) for part in zip(*encoded, strict=True))
        return whole if len(self.grids()) > 1 else whole[0]

    @torch.no_grad()
    def decode(self, symbols: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Symbols to images.

        Args:
            symbols: integers ``[n, h', w', depth]``, numpy or torch; of a tokenizer with several
                grids, one for each.
            size: height and width of the images. Without it, images are of ``image_size`` when the
                symbols are of its grid, and as large as the symbols allow otherwise.

        Returns:
            ``uint8 [n, h, w, channels]`` on this tokenizer's device.

        Raises:
            InputError: when symbols are not integers of this tokenizer's grids, or do not fit each
                other or ``size``.
        """
        checked = self._check_symbols(symbols)
        height, width = self._size_of(checked, size)
        pieces = zip(*(part.split(images_at_once(height * width)) for part in checked), strict=True)
        with evaluating(self):
            images = []
            for piece in pieces:
                here = tuple(part.to(self.device) for part in piece)
                images.append(self._decode(here if len(here) > 1 else here[0])[:, :height, :width])
        return torch.cat(images)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        return self.image_size[0] if height is None else height, self.image_size[
            1
        ] if width is None else width

    def _check_symbols(self, symbols: Any) -> tuple[torch.Tensor, ...]:
        grids = self.grids()
        given = symbols if len(grids) > 1 else (symbols,)
        if not isinstance(given, (tuple, list)) or len(given) != len(grids):
            raise InputError(
                f"tokenizer {self.name!r} makes {len(grids)} grids: give a tuple of {len(grids)} tensors"
            )
        checked = []
        for part, grid in zip(given, grids, strict=True):
            shape = tuple(getattr(part, "shape", ()))
            if (
                len(shape) == 4 and min(shape[1:3]) >= 1
            ):  # any height and width; other shapes fail the check
                grid = Grid(int(shape[1]), int(shape[2]), grid.channels, grid.levels)
            checked.append(grid.check(part))
        if len({len(part) for part in checked}) > 1:
            raise InputError(
                f"all grids must hold as many images, got {[len(part) for part in checked]}"
            )
        return tuple(checked)

    def _size_of(
        self, symbols: tuple[torch.Tensor, ...], size: tuple[int, int] | None
    ) -> tuple[int, int]:
        """Height and width of the images that symbols stand for."""
        given = [tuple(part.shape[1:3]) for part in symbols]
        if size is None:
            own = given == [grid.shape[:2] for grid in self.grids()]
            size = (
                self.image_size if own else (given[-1][0] * self.stride, given[-1][1] * self.stride)
            )
        wanted = [grid.shape[:2] for grid in self.grids(*size)]
        if given != wanted:
            told = [" and ".join(f"{h}x{w}" for h, w in sides) for sides in (wanted, given)]
            raise InputError(
                f"images of {size[0]}x{size[1]} have symbols of {told[0]}, got {told[1]}"
            )
        return size

    @property
    def stride(self) -> int:
        """Pixels along each side of an image that one place of the grid (of several, the finest)
        stands for."""
        return 1


def parts(symbols: Symbols) -> tuple[torch.Tensor, ...]:
    """The grids of :data:`Symbols`, also where there is one."""
    return symbols if isinstance(symbols, tuple) else (symbols,)


def channels(symbols: Symbols) -> Iterator[torch.Tensor]:
    """The symbols ``[n, h, w]`` of each channel of each grid, coarse to fine: one codebook each."""
    for part in parts(symbols):
        yield from part.unbind(-1)


def check_images(images: Any, channels: int | None = None) -> torch.Tensor:
    """Images at the public boundary, as a tensor ``uint8 [n, h, w, c]``.

    Args:
        images: numpy array or tensor.
        channels: how many channels they must have; None allows 1 to 4.

    Raises:
        InputError: for another type (with the line that converts it), rank or number of channels.
    """
    if not isinstance(images, torch.Tensor):
        images = _as_tensor(images)
    if images.dtype != torch.uint8:
        raise InputError(
            f"images must be uint8 with values 0..255, got {images.dtype}; {_conversion(images)}"
        )
    if images.dim() != 4:
        hint = "; add the channel with images[..., None]" if images.dim() == 3 else ""
        raise InputError(
            f"images must have shape [batch, height, width, channels], got {list(images.shape)}{hint}"
        )
    if min(images.shape[1:3]) < 1:
        raise InputError(f"images must be at least 1x1, got {images.shape[1]}x{images.shape[2]}")
    given, allowed = images.shape[3], (channels,) if channels else (1, 2, 3, 4)
    if given not in allowed:
        hint = (
            "; the channels come last: images.transpose(0, 2, 3, 1)"
            if images.shape[1] in allowed
            else ""
        )
        raise InputError(
            f"images must have {' to '.join(str(c) for c in sorted({allowed[0], allowed[-1]}))} channels, "
            f"got {given} in shape {list(images.shape)}{hint}"
        )
    return images


def _as_tensor(images: Any) -> torch.Tensor:
    array = np.asarray(images)
    if array.dtype.kind not in "buif":
        raise InputError(
            f"images must be a uint8 array or tensor, got {type(images).__name__} of {array.dtype}"
        )
    # Torch takes neither read-only memory without a warning nor negative strides.
    plain = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if plain else array.copy())


def _conversion(images: torch.Tensor) -> str:
    if images.is_floating_point():
        return "for values in 0..1 convert them with np.round(images * 255).astype(np.uint8)"
    if images.dtype == torch.bool:
        return "convert them with images.astype(np.uint8) * 255"
    return "if all values lie in 0..255 convert them with images.astype(np.uint8)"


def images_at_once(pixels: int) -> int:
    """Images of so many pixels that pass through a network together."""
    return max(1, min(1024, PIXELS_AT_ONCE // pixels))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def construct(
    kind: str, table: Mapping[str, type[T]], name: str, arguments: Mapping[str, Any]
) -> T:
    """Build a registered class from plain values, checked against its constructor's annotations.

    Raises:
        ConfigError: for a name that is not in the table, or an argument that is unknown or of
            another type.
    """
    if name not in table:
        raise ConfigError(unknown(kind, name, table))
    parameters = inspect.signature(table[name]).parameters
    hints = get_type_hints(table[name].__init__)
    fields = [
        (key, hints[key])
        if parameter.default is parameter.empty
        else (key, hints[key], dataclasses.field(default=parameter.default))
        for key, parameter in parameters.items()
    ]
    missing = [field[0] for field in fields if len(field) == 2 and field[0] not in arguments]
    if missing:
        raise ConfigError(f"{kind} {name!r} needs {', '.join(missing)}")
    checked = from_dict(
        dataclasses.make_dataclass("Arguments", fields), arguments, f"{kind} {name}"
    )
    return table[name](**vars(checked))
