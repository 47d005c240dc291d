"""Lossy files: codes of a tokenizer, coded without loss by the exact twin of the prior on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tessella.codec.archive_writer import CodedImage
from tessella.codec.container import Contents
from tessella.codec.image_modes import MODES_OF_ARRAYS
from tessella.codec.picture_files import MODE_NUMBERS
from tessella.errors import BitstreamError, InputError
from tessella.tokenizers.tokenizer import Tokenizer


def as_codes(picture: np.ndarray, tokenizer: Tokenizer, name: str = "") -> CodedImage:
    """The codes of a picture.

    Args:
        picture: ``uint8 [height, width, channels]``, with the channels of the tokenizer.
        tokenizer: makes one grid of codes.
        name: of the file.

    Raises:
        InputError: when the picture or the tokenizer does not fit.
    """
    height, width, channels = picture.shape
    if len(tokenizer.grids()) != 1:
        raise InputError(
            f"the tokenizer {tokenizer.name} makes several grids of codes, and files hold one: take"
            " a tokenizer of one grid"
        )
    codes = tokenizer.encode(picture[None])[0].cpu().numpy()
    mode = MODE_NUMBERS[MODES_OF_ARRAYS[channels]]
    return CodedImage(codes, mode=mode, name=name, picture=(height, width))


def decoded_pictures(
    images: Iterator[np.ndarray], contents: Contents, tokenizer: Tokenizer
) -> Iterator[np.ndarray]:
    """The pictures that codes stand for.

    Args:
        images: the codes of all images, ``int64 [h', w', depth]``.
        contents: of the archive.
        tokenizer: the one that made them.

    Yields:
        ``uint8 [height, width, channels]``.

    Raises:
        BitstreamError: when the sizes of codes and pictures do not fit.
    """
    for number, codes in enumerate(images):
        size = contents.run_of(number).picture
        try:
            decoded = tokenizer.decode(codes[None], size)
        except InputError as error:
            raise BitstreamError(f"the file is damaged: {error}") from error
        yield decoded[0].cpu().numpy()
