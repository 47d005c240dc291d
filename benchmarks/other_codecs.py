"""The lossless image codecs of others, through imagecodecs and Pillow.

Each codec has several *forms*: ways to hand it the same image, or to set it. A benchmark takes
the form with the smallest files, so that no codec is held to a setting that does not suit it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image

AVIF_SPEED = 6
"""The slowest speed, 0, saves two hundredths and takes thirty times as long."""

PNG_FILTERS = ("NONE", "SUB", "UP", "AVG", "PAETH", "ALL")


@dataclass(frozen=True)
class Form:
    """One way to code an image.

    Attributes:
        name: what is particular about it.
        encode: a file from an image, uint8 ``[height, width]`` or ``[height, width, 3]``.
        decode: the image from a file.
    """

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def make_codecs(levels: int, channels: int) -> dict[str, list[Form]]:
    """All codecs, with the forms that images of so many levels and channels can take.

    Images of two levels consist of 0 and 1; the forms make of it what suits a codec.
    """
    codecs: dict[str, list[Form]] = {
        "PNG": png_forms(),
        "WebP": [Form("lossless, method 6", encode_webp, decode_webp)],
        "JPEG XL, effort 7": [jpeg_xl_form("eight bits", 7)],
        "JPEG XL, effort 9": [jpeg_xl_form("eight bits", 9)],
        "JPEG-LS": jpeg_ls_forms(channels),
        "AVIF": [Form(f"lossless, speed {AVIF_SPEED}", encode_avif, decode_avif)],
    }
    if levels == 2:
        for name, forms in codecs.items():
            codecs[name] = [*forms, *map(stretched, forms)]
        codecs["PNG"].append(Form("one bit", encode_png_of_bits, decode_png_of_bits))
        for effort in (7, 9):
            codecs[f"JPEG XL, effort {effort}"].append(jpeg_xl_form("one bit", effort, depth=1))
    return codecs


def stretched(form: Form) -> Form:
    """A form that gives its codec 255 for 1."""

    def encode(image: np.ndarray) -> bytes:
        return form.encode(image * np.uint8(255))

    def decode(contents: bytes) -> np.ndarray:
        return form.decode(contents) // np.uint8(255)

    return Form(f"{form.name}, 255 for 1", encode, decode)


def png_forms() -> list[Form]:
    """PNG with each filter."""
    forms = []
    for name in PNG_FILTERS:
        number = getattr(imagecodecs.PNG.FILTER, name)

        def encode(image: np.ndarray, number: int = number) -> bytes:
            return bytes(imagecodecs.png_encode(image, level=9, filter=number))

        forms.append(Form(f"level 9, filter {name.lower()}", encode, imagecodecs.png_decode))
    return forms


def encode_png_of_bits(image: np.ndarray) -> bytes:
    """A PNG with one bit a pixel."""
    out = io.BytesIO()
    # Any value but 0 is white.
    Image.fromarray(image.astype(bool)).save(out, "png", optimize=True)
    return out.getvalue()


def decode_png_of_bits(contents: bytes) -> np.ndarray:
    """The image of :func:`encode_png_of_bits`."""
    return np.asarray(Image.open(io.BytesIO(contents))).astype(np.uint8)


def encode_webp(image: np.ndarray) -> bytes:
    """A lossless WebP, which always has three channels."""
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    return bytes(imagecodecs.webp_encode(image, level=100, lossless=True, method=6, numthreads=1))


def decode_webp(contents: bytes) -> np.ndarray:
    """The image of :func:`encode_webp`."""
    return without_equal_channels(imagecodecs.webp_decode(contents))


def encode_avif(image: np.ndarray) -> bytes:
    """A lossless AVIF."""
    layout = "400" if image.ndim == 2 else "444"
    return bytes(
        imagecodecs.avif_encode(
            image, level=100, speed=AVIF_SPEED, pixelformat=layout, numthreads=1
        )
    )


def decode_avif(contents: bytes) -> np.ndarray:
    """The image of :func:`encode_avif`."""
    return without_equal_channels(imagecodecs.avif_decode(contents, numthreads=1))


def without_equal_channels(image: np.ndarray) -> np.ndarray:
    """One channel of a grey image that a codec returned as colour."""
    if image.ndim == 3 and (image == image[..., :1]).all():
        return image[..., 0]
    return image


def jpeg_xl_form(name: str, effort: int, depth: int | None = None) -> Form:
    """Lossless JPEG XL, with so many bits a sample; None takes those of the array's type."""

    def encode(image: np.ndarray) -> bytes:
        return bytes(
            imagecodecs.jpegxl_encode(
                image, lossless=True, effort=effort, bitspersample=depth, numthreads=1
            )
        )

    return Form(name, encode, imagecodecs.jpegxl_decode)


def jpeg_ls_forms(channels: int) -> list[Form]:
    """JPEG-LS, of colours also with green subtracted from the others, as some encoders do."""
    plain = Form("plain", encode_jpeg_ls, imagecodecs.jpegls_decode)
    if channels == 1:
        return [plain]

    green = np.array([1, 0, 1], dtype=np.uint8)

    def encode(image: np.ndarray) -> bytes:
        # Modulo 256, which unsigned bytes do by themselves.
        return encode_jpeg_ls(image - green * image[..., 1:2])

    def decode(contents: bytes) -> np.ndarray:
        differences = imagecodecs.jpegls_decode(contents)
        return differences + green * differences[..., 1:2]

    return [plain, Form("green subtracted", encode, decode)]


def encode_jpeg_ls(image: np.ndarray) -> bytes:
    """A JPEG-LS file."""
    return bytes(imagecodecs.jpegls_encode(image))
