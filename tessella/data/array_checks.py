"""Checks that an array really holds images: ``[n, height, width, channels]``, 0..255.

An array does not say which axis counts the images or which value is white. After a wrong guess,
training runs without complaint and its figures mean nothing. So an ambiguous array is refused, with
a line of numpy that makes it unambiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tessella.data.caller_warning import warn_caller
from tessella.errors import InputError

CHANNELS = (1, 3, 4)
SMALL_RANGES = (1, 3, 7, 15, 16, 31, 63)
"""Largest values of images of 1 to 6 bits, and of the 17 shades of the UCI digits."""
SURELY_SMALL = 16
"""Two or more images without a value above this are not images of 0..255."""
USUAL_SHARE = 0.9
"""If this share of the images is dark, brighter ones are taken for exceptions."""
LEAST_IMAGES = 10
"""Fewest images of which a share says anything."""
SLIVER = 8
"""Ratio of height to width from which the axes are probably in the wrong order."""


def as_uint8(array: np.ndarray, title: str, levels: int = 0) -> tuple[np.ndarray, int]:
    """Check an array and convert it to images with 8 bits per channel.

    Args:
        array: bool or integers ``[n, height, width]`` or ``[n, height, width, channels]``.
        title: what the array is called in messages.
        levels: ``data.levels``; 256 declares that small values are meant literally.

    Returns:
        the images ``uint8 [n, height, width, channels]``, and the number of values that a pixel
        takes: 2 for bool (stored as 0 and 255), else 256.

    Raises:
        InputError: for any other type, shape or range of values.
    """
    check_shape(array.shape, title)
    check_values(array, title, levels)
    images = array if array.ndim == 4 else array[..., None]
    # Public images always span 0..255, so the two colours become its ends.
    if array.dtype == np.bool_:
        return images.astype(np.uint8) * np.uint8(255), 2
    return np.ascontiguousarray(images, dtype=np.uint8), 256


def check_shape(shape: Sequence[int], title: str) -> None:
    """Raise :class:`InputError` unless a shape can only be that of images."""
    shape = list(shape)
    if len(shape) > 1 and shape[0] == 0:
        raise InputError(f"{title} has the shape {shape}: there are no images in it")
    # An axis of length 0 leaves no pixels, and falls through to the last line.
    if len(shape) == 3 and 0 not in shape:
        _check_three_axes(shape, title)
        return
    if len(shape) == 4 and 0 not in shape:
        _check_four_axes(shape, title)
        return
    if len(shape) == 2:
        raise InputError(
            f"{title} has the shape {shape}, not [n, height, width, channels]"
            f"{_hint_for_rows(shape[0], shape[1])}"
        )
    raise InputError(f"{title} has the shape {shape}; {_ALLOWED}")


_ALLOWED = "images are [n, height, width] or [n, height, width, channels] with 1, 3 or 4 channels"


def _check_three_axes(shape: list[int], title: str) -> None:
    first, middle, last = shape
    grey = f"If they are {first} grey images of {middle}x{last}, store x[..., None]"
    # Images 3 or 4 pixels wide exist only in tests, where they are square.
    if last in (3, 4) and middle != last:
        raise InputError(
            f"{title} has the shape {shape}, which looks like one colour picture "
            f"[height, width, channels]; {_ALLOWED}. {grey}; for one picture {_save('x[None]')}"
        )
    # Images 1 or 2 pixels wide are as rare; only a single row of pixels may be that short.
    if last in (1, 2) and middle > last and first > 1:
        pictures = "2 grey pictures" if last == 2 else "one grey picture"
        raise InputError(
            f"{title} has the shape {shape}, which looks like {pictures} of {first}x{middle} with "
            f"the number or the channels last; {_ALLOWED}. {grey}; to put the last axis first, "
            f"{_save('x.transpose(2, 0, 1)')}"
        )
    # Three grey images are possible too, so this only warns.
    if first in (3, 4) and middle > first and last > first:
        warn_caller(
            f"{title} has the shape {shape} and is taken for {first} grey images of "
            f"{middle}x{last}; if it is one colour picture with its channels first, store "
            "x.transpose(1, 2, 0)[None]"
        )
    # There are usually far more images than pixels along a side, and square images have two equal
    # sides: both show which axis counts the images.
    counted_last = first == middle and last != middle
    far_more_last = middle > 1 and last > 4 * first and last >= SLIVER * middle
    if first > 1 and (counted_last or far_more_last):
        raise InputError(
            f"{title} has the shape {shape}, which looks like {last} images of {first}x{middle} "
            f"with their number last, as MATLAB writes them; {_ALLOWED}. {grey}; to put the "
            f"number first, {_save('x.transpose(2, 0, 1)')}"
        )
    if first > 1 and middle > 1 and last >= 2 * max(first, middle):
        warn_caller(
            f"{title} has the shape {shape} and is taken for {first} grey images of "
            f"{middle}x{last}; if it holds {last} images of {first}x{middle}, store "
            "x.transpose(2, 0, 1)"
        )


def _check_four_axes(shape: list[int], title: str) -> None:
    first, second, third, last = shape
    number_last = (
        f"{title} has the shape {shape}, which looks like {last} images of "
        f"{first}x{second}x{third} with their number last, as MATLAB writes them; {_ALLOWED}. "
        f"Put it first with {_save('x.transpose(3, 0, 1, 2)')}"
    )
    channels_first = (
        f"{title} has the shape {shape}, which looks like images with their channels first, as "
        f"PyTorch has them; {_ALLOWED}; np.moveaxis(x, 1, -1) puts the channels last"
    )
    # The last axis cannot be channels, so another one must be.
    if last not in CHANNELS:
        if third in CHANNELS and first >= second // SLIVER and second not in CHANNELS:
            raise InputError(number_last)
        if second in CHANNELS:
            raise InputError(channels_first)
        raise InputError(f"{title} has the shape {shape}; {_ALLOWED}")
    # From here on the last axis can be channels, or else a small number of images or columns.
    sliver = second >= SLIVER * third
    if third in CHANNELS and second != third and (first == second or sliver):
        # A last axis of 1 marks grey images, and the messages above ask for just that.
        if last > 1:
            raise InputError(number_last)
        warn_caller(
            f"{title} has the shape {shape} and is taken for {first} grey images of "
            f"{second}x{third}; if it is one picture, store x[..., 0][None]"
        )
    if second in CHANNELS and third == last and second != third:
        raise InputError(channels_first)


def _hint_for_rows(count: int, length: int) -> str:
    """A guess at what each row holds, with the line of numpy that makes images of it."""
    # The side of a square image that one row could hold as packed bits, grey values or colours.
    packed = math.isqrt(8 * length)
    flat = math.isqrt(length)
    colour = math.isqrt(length // 3)
    if packed and math.ceil(packed**2 / 8) == length:
        return f"; if a row is an image of packed bits, set data.bits={packed}x{packed}"
    if flat and flat**2 == length:
        return (
            f"; if a row is an image of {flat}x{flat} pixels, store x.reshape(-1, {flat}, {flat})"
        )
    if colour and 3 * colour**2 == length:
        return (
            f"; if a row is an image of {colour}x{colour} pixels, store "
            f"x.reshape(-1, 3, {colour}, {colour}).transpose(0, 2, 3, 1) where all red values come "
            f"first, x.reshape(-1, {colour}, {colour}, 3) where red, green and blue alternate"
        )
    if count > 1:
        return (
            "; if a row is an image of packed bits, set data.bits=HEIGHTxWIDTH; if it is one grey "
            "picture, store x[None]"
        )
    return "; if a row is an image of packed bits, set data.bits=HEIGHTxWIDTH"


def check_values(array: np.ndarray, title: str, levels: int = 0) -> None:
    """Raise :class:`InputError` unless the values of an array are those of 8-bit or bool images.

    All images are judged together, so that all splits of a file get the same verdict, and one dark
    image among others is harmless. One bright image among many dark ones leads to a warning.

    Args:
        array: ``[n, height, width(, channels)]``, of any type.
        title: what the array is called in messages.
        levels: ``data.levels``; 256 declares that small values are meant literally.
    """
    kind = array.dtype.kind
    if kind not in "biuf":
        raise InputError(f"{title} is of type {array.dtype}; images are uint8 of 0..255")
    if not array.size:
        return
    # As Python numbers, which do not overflow in the comparisons below.
    low = array.min().item()
    high = array.max().item()
    if kind == "f":
        raise InputError(_about_floats(array, low, high, title))
    if low < 0 or high > 255:
        raise InputError(
            f"{title} is {array.dtype} with values {low}..{high}; images are uint8 of 0..255. "
            f"{_line_for_wide(low, high)}"
        )
    if low == high:
        warn_if_constant(array, title)
        return
    # The type bool, or data.levels=256, already says how small values are meant.
    if kind == "b" or levels == 256:
        return
    if high == 1:
        raise InputError(
            f"{title} is {array.dtype} with values 0..1, which are nearly black among 0..255. "
            "If they are meant as they are, set data.levels=256; if they are two colours, store "
            f"x * 255, or say so by {_save('x.astype(bool)')}"
        )
    _check_small_range(array, high, title)


def check_scale(images: object, levels: int, title: str = "images", sure: bool = False) -> None:
    """Refuse an array given in Python whose values cannot be meant as those of 0..255.

    Its values would all become the darkest symbols, and nothing would show it. Other things than
    arrays of uint8 are left to other checks.

    Args:
        images: uint8 ``[n, height, width, channels]``, a numpy array or a tensor.
        levels: of the model; 0 where it has none. A model of 256 takes all values as they are.
        title: what the array is called in messages.
        sure: refuse only values 0 and 1, or exactly as many values as the model has levels, of
            several images; warn of others that are as small, and of a single image.

    Raises:
        InputError: with the line that converts the images.
    """
    # A tensor is told by its methods: nothing here imports torch.
    to_cpu = getattr(images, "cpu", None)
    of_torch = to_cpu is not None
    array = images
    if to_cpu is not None:
        array = to_cpu().numpy()
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or levels == 256:
        return
    # Plain pictures have no scale.
    if not array.size or array.min() == array.max():
        return
    high = int(array.max())
    as_levels = high == levels - 1 and high <= SMALL_RANGES[-1]
    certain = high == 1 or as_levels
    # A single picture may well be as dark as this.
    if len(array) > 1 and (certain or (high <= SURELY_SMALL and not sure)):
        raise InputError(_about_scale(high, levels, title, of_torch) + _DARK)
    # Nothing else would show that the symbols of a whole picture are the darkest ones.
    if sure and (high <= SURELY_SMALL or high < levels <= SMALL_RANGES[-1] + 1):
        warn_caller(_about_scale(high, levels, title, of_torch))


def _about_scale(high: int, levels: int, title: str, of_torch: bool) -> str:
    """The message for values of ``0..high``, with the line that converts them."""
    if high == 1:
        return (
            f"no value of {title} is above 1, which is nearly black among 0..255: if they are two "
            f"colours, give {title} * 255"
        )
    # The levels of the model say how many shades are meant; else the usual numbers of shades do.
    largest = levels - 1
    if not high < levels <= SMALL_RANGES[-1] + 1:
        largest = next(limit for limit in SMALL_RANGES if high <= limit)
    line = f"np.round({title} * (255 / {largest})).astype(np.uint8)"
    if of_torch:
        line = f"({title} * (255 / {largest})).round().to(torch.uint8)"
    return (
        f"no value of {title} is above {high}, and images are uint8 of 0..255: if they have "
        f"{largest + 1} shades, give {line}"
    )


_DARK = "; if they really are this dark, give them as tessella.data.ImageSet(images), or singly"


def warn_if_constant(array: np.ndarray, title: str) -> None:
    """Warn of an array that has the same value everywhere."""
    if array.size and array.min() == array.max():
        value = array.flat[0]
        warn_caller(
            f"every pixel of {title} has the value {value}: there is nothing to learn from it"
        )


def _check_small_range(array: np.ndarray, high: int, title: str) -> None:
    """Refuse images whose values end at 16 or below; warn if most end at 63 or below."""
    # A single picture may well be as dark as this; a data set hardly ever is.
    if len(array) < 2:
        return
    who = f"no value of {title} ({len(array)} images, {array.dtype}) is above {high}"
    bright = high > SMALL_RANGES[-1]
    if bright:
        high = _usual_maximum(array)
        who = f"few of the {len(array)} images of {title} ({array.dtype}) have a value above {high}"
    if high > SMALL_RANGES[-1]:
        return
    largest = next(limit for limit in SMALL_RANGES if high <= limit)
    line = _save(f"np.round(x * (255 / {largest})).astype(np.uint8)")
    message = (
        f"{who}; images are uint8 of 0..255. If they really are this dark, set data.levels=256; "
        f"if they have {largest + 1} shades, set data.levels={largest + 1} and convert them with "
        f"{line}"
    )
    # Bright images among them may mean that the others are as dark as they seem.
    if high <= SURELY_SMALL and not bright:
        raise InputError(message)
    warn_caller(message)


def _usual_maximum(array: np.ndarray) -> int:
    """The value that nine in ten images do not exceed; 255 if nearly all images are blank."""
    # Over axes, not over a reshaped array, which may be a copy as large as the data set.
    maxima = array.max(axis=tuple(range(1, array.ndim)))  # [n]
    # Empty masks and frames say nothing about the range of the others.
    maxima = np.sort(maxima[maxima > 0])
    if len(maxima) < LEAST_IMAGES:
        return 255
    return int(maxima[math.ceil(USUAL_SHARE * len(maxima)) - 1])


def _line_for_wide(low: int, high: int) -> str:
    """The line of numpy that converts integers outside 0..255 to 8 bits."""
    if low == -1 and high <= 1:
        line = _save("np.round(127.5 * (x + 1)).astype(np.uint8)")
        return f"If -1 is black and 1 is white, convert them with {line}"
    if -128 <= low < 0 and high <= 127:
        line = _save("(x.astype(np.int16) + 128).astype(np.uint8)")
        return f"If they are signed bytes, convert them with {line}"
    if -32_768 <= low < 0 and high <= 32_767:
        line = _save("((x.astype(np.int64) + 32768) >> 8).astype(np.uint8)")
        return f"If they are signed values of 16 bits, convert them with {line}"
    if low >= 0 and high <= 65_535:
        # Cameras and scanners give 10, 12 or 14 bits in 16; the largest value tells which.
        bits = next(bits for bits in (9, 10, 12, 14, 16) if high < 1 << bits)
        line = _save(f"(x >> {bits - 8}).astype(np.uint8)")
        return f"If they are values of {bits} bits, convert them with {line}"
    line = _save("np.round((x - x.min()) * (255 / (x.max() - x.min()))).astype(np.uint8)")
    return f"Say what is black and what is white, for example by {line}"


def _about_floats(array: np.ndarray, low: float, high: float, title: str) -> str:
    """The message for floating-point images, with the line that converts them."""
    if not math.isfinite(low) or not math.isfinite(high):
        return (
            f"{title} is {array.dtype} and holds values that are not finite (NaN or infinity); "
            "images are uint8 of 0..255"
        )
    says = f"{title} is {array.dtype} with values {low:g}..{high:g}; images are uint8 of 0..255. "
    # Outside both usual ranges, 0..255 and -1..1, even with a little overshoot.
    if low < -1 or high > 256:
        return says + (
            "Undo what was done to them first (x * std + mean for a normalization), then "
            + _save("np.round(255 * x).astype(np.uint8)")
        )
    scaled = "127.5 * (x + 1)"
    if high > 1:
        scaled = "x"
    elif low >= 0:
        scaled = "255 * x"
    return f"{says}Convert them with {_save(f'np.round({scaled}).astype(np.uint8)')}"


def _save(expression: str) -> str:
    return f'np.savez_compressed("new.npz", images={expression})'
