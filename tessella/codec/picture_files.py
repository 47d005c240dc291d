"""Image files as they are: what an archive keeps of them, what it cannot keep, and back."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tessella import files
from tessella.codec.archive_writer import CodedImage
from tessella.codec.image_modes import MODES, as_symbols
from tessella.data.decode import known_kinds, without_pillow_warnings
from tessella.data.pixel_conversion import with_channels
from tessella.errors import DataError, InputError

LOST = {
    "exif": "EXIF data",
    "icc_profile": "a colour profile",
    "xmp": "XMP data",
    "photoshop": "Photoshop data",
    "comment": "a comment",
    "transparency": "a transparent colour",
    "gamma": "a gamma value",
}
"""What an archive cannot keep, by the names that Pillow gives it."""

MODE_NUMBERS = {mode.name: number for number, mode in enumerate(MODES) if mode.name}

FORMATS = {
    ".png": ("PNG", ("1", "L", "P", "LA", "RGB", "RGBA")),
    ".tif": ("TIFF", ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK")),
    ".tiff": ("TIFF", ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK")),
    ".bmp": ("BMP", ("1", "L", "P", "RGB")),
    ".ppm": ("PPM", ("RGB",)),
    ".pgm": ("PPM", ("L",)),
}
"""Formats that keep all pixels, and the modes that they have."""

FEW = 5
"""Files that an error names."""

_WIDE = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_EXIF_TAG = 34665
_BITS_TAG = 258
_ORIENTATION_TAG = 274


@dataclass(frozen=True)
class PictureFile:
    """A file to be kept.

    Args:
        path: where it is.
        name: its name in the archive, with ``/`` between its parts.
        data: its content, where it is in memory already; ``path`` is then for messages only.
    """

    path: Path
    name: str
    data: bytes = field(default=b"", repr=False)


def find_pictures(paths: Sequence[str]) -> tuple[list[PictureFile], list[str]]:
    """The image files that paths name: files, or folders with everything below them.

    Returns:
        the files, those of a folder sorted by name; and what lies in the folders and is no image.

    Raises:
        DataError: when a path does not exist, or there is no image at all.
    """
    found: list[PictureFile] = []
    others: list[str] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            # The names of a single folder begin in it; of several, with the name of each.
            prefix = ""
            if len(paths) > 1:
                prefix = path.resolve().name + "/"
            _search(path, prefix, found, others)
        elif path.is_file():
            found.append(PictureFile(path, path.name))
        else:
            raise DataError(f"there is no file or folder {given}")
    if not found:
        raise DataError(f"there are no images in {', '.join(paths)}")
    return found, others


def _search(root: Path, prefix: str, found: list[PictureFile], others: list[str]) -> None:
    known = Image.registered_extensions()
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in sorted(names):
            path = Path(folder, name)
            relative = prefix + path.relative_to(root).as_posix()
            is_image = known.get(path.suffix.lower()) in known_kinds()
            if path.is_file() and is_image:
                found.append(PictureFile(path, relative))
            else:
                others.append(relative)


def what_is_lost(picture: PictureFile) -> list[str]:
    """What an archive cannot keep of a file, as phrases; the file is decoded.

    Raises:
        DataError: when it cannot be decoded.
    """
    with _opened(picture) as image:
        lost = [words for key, words in LOST.items() if image.info.get(key)]
        if image.format == "TIFF":
            # There, tags of the picture itself count as EXIF too.
            lost = [words for words in lost if words != LOST["exif"]]
            if _EXIF_TAG in image.getexif():
                lost.append(LOST["exif"])
        if _orientation(image) != 1:
            lost.append("an orientation (the image is turned upright)")
        if getattr(image, "text", None):
            lost.append("texts")
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            lost.append(f"{frames - 1} further frames")
        bits = _bits(image, picture)
        if bits > 8:
            lost.append(f"{bits} bits of each value (8 are kept)")
        elif image.mode not in MODE_NUMBERS:
            lost.append(f"the mode {image.mode} (it becomes {_kept_mode(image)})")
        elif image.mode == "P" and image.palette is not None and image.palette.mode != "RGB":
            lost.append("a palette with transparency")
    return lost


def check_losses(pictures: Sequence[PictureFile], drop: bool) -> list[str]:
    """Look at all files before anything is written.

    Args:
        pictures: the files.
        drop: go on where something cannot be kept.

    Returns:
        a line for each file that loses something.

    Raises:
        InputError: when something cannot be kept, unless ``drop``.
        DataError: when a file cannot be decoded.
    """
    lines = []
    for picture in pictures:
        lost = what_is_lost(picture)
        if lost:
            lines.append(f"{picture.name}: {', '.join(lost)}")
    if lines and not drop:
        shown = "; ".join(lines[:FEW])
        if len(lines) > FEW:
            shown += f"; and {len(lines) - FEW} more files"
        raise InputError(
            f"not everything in these files can be kept. {shown}. To leave it out, give"
            " --drop-metadata (in Python drop_metadata=True)"
        )
    return lines


def read_picture(picture: PictureFile, levels: int) -> CodedImage:
    """A file as symbols of a model.

    Raises:
        InputError: when the model has too few levels for its values.
        DataError: when it cannot be decoded.
    """
    with _opened(picture) as image:
        palette = b""
        if image.mode == "P" and image.palette is not None and image.palette.mode == "RGB":
            palette = bytes(image.getpalette("RGB") or [])
        elif image.mode not in MODE_NUMBERS or image.mode == "P":
            image = _reduced(image)
        # Without EXIF data nothing would say how to turn it.
        image = ImageOps.exif_transpose(image)
        mode = image.mode
        if mode == "1":
            image = image.convert("L")
        values = np.array(image)
    if values.ndim == 2:
        values = values[:, :, None]
    try:
        symbols, scaled = as_symbols(values, levels, prefer_scaled=mode != "P")
    except InputError as error:
        raise InputError(f"{picture.path}: {error}") from error
    return CodedImage(symbols, scaled, MODE_NUMBERS[mode], palette, picture.name)


def read_for_tokenizer(picture: PictureFile, channels: int) -> np.ndarray:
    """A file as a tokenizer takes it: upright, ``uint8 [height, width, channels]``.

    Raises:
        DataError: when it cannot be decoded.
    """
    with _opened(picture) as image:
        if image.mode in _WIDE:
            image = _reduced(image)
        values = np.array(with_channels(ImageOps.exif_transpose(image), channels))
    return values.reshape(values.shape[0], values.shape[1], channels)


def _opened(picture: PictureFile) -> Image.Image:
    """A decoded image.

    Raises:
        DataError: when that is not possible.
    """
    with without_pillow_warnings():
        try:
            source = io.BytesIO(picture.data) if picture.data else picture.path
            image = Image.open(source, formats=known_kinds())
            image.load()
        except Exception as error:  # decoders meet damaged bytes with errors of every class
            raise DataError(
                f"{picture.path} cannot be read as an image: {files.reason(error)}"
            ) from error
    return image


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    if value in range(2, 9):
        return int(value)
    return 1


def _bits(image: Image.Image, picture: PictureFile) -> int:
    """Bits of each value in the file."""
    if image.mode in _WIDE:
        return 32 if image.mode == "F" else 16
    # Pillow gives colours of 16 bits as 8 without a word.
    head = picture.data[:512] or files.read_beginning(picture.path, 512)
    if image.format == "PNG":
        return head[24]
    if image.format == "TIFF":
        bits = image.getexif().get(_BITS_TAG, 8)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    if image.format == "PPM":
        # P6, width, height and the largest value, with comments between them.
        words = re.sub(rb"#[^\n]*\n", b"", head).split(None, 4)
        if words[0] in (b"P2", b"P3", b"P5", b"P6") and words[3] != b"255":
            return max(9, int(words[3]).bit_length())
    return 8


def _kept_mode(image: Image.Image) -> str:
    """The mode that takes the place of one that is not kept."""
    if image.mode in _WIDE:
        return "L"
    if image.mode in ("PA", "RGBa") or image.mode == "P":
        return "RGBA"
    if image.mode == "La":
        return "LA"
    return "RGB"


def _reduced(image: Image.Image) -> Image.Image:
    """An image in a mode that is kept."""
    if image.mode in _WIDE:
        values = np.asarray(image)
        if image.mode != "F":
            values = values >> 8
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    return image.convert(_kept_mode(image))


def free_name(name: str, mode: str, taken: set[str]) -> str:
    """The name of a file that keeps all pixels: its own, or with another ending behind it.

    >>> free_name("a/photo.jpg", "RGB", set())
    'a/photo.jpg.png'
    """
    ending = Path(name).suffix.lower()
    if ending in FORMATS and mode in FORMATS[ending][1]:
        return name
    added = ".tif" if mode == "CMYK" else ".png"
    while True:
        name += added
        if name not in taken:
            return name


def as_picture(values: np.ndarray, mode: str, palette: bytes = b"") -> Image.Image:
    """An image of a mode from ``uint8 [height, width, channels]``."""
    height, width, _ = values.shape
    raw = "L" if mode == "1" else mode
    image = Image.frombytes(raw, (width, height), np.ascontiguousarray(values).tobytes())
    if mode == "1":
        image = image.convert("1", dither=Image.Dither.NONE)
    if mode == "P":
        image.putpalette(palette)
    return image


def write_picture(path: Path, image: Image.Image) -> None:
    """Write an image in the format that its name says; its folders are made.

    Raises:
        ArtifactError: when it cannot be written.
    """
    content = io.BytesIO()
    image.save(content, FORMATS[path.suffix.lower()][0])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content.getvalue())
