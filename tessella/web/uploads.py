"""Bodies within limits, and pictures of files within the limits of the folder source.

Sizes are checked while bytes arrive, for each body and for all of them together, so that memory
stays bounded however many clients send at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator

import numpy as np
from fastapi import Request
from PIL import Image

from tessella.data.decode import decode_pixels, open_image
from tessella.data.transform import cut
from tessella.data.unusable_image import UnusableImage
from tessella.errors import DataError, InputError
from tessella.web.page_requests import check_tiles
from tessella.web.refusals import Busy, TooLarge, TooSlow
from tessella.web.served_models import ServedModel

MOST_BYTES = 20 << 20
"""Bytes of a body, at most."""

MOST_BYTES_TOGETHER = 64 << 20
"""Bytes of all bodies that are held at a time."""

SECONDS = 30
"""In which a body must arrive."""

RETRY = 5
"""Seconds after which a client may ask again where too many bytes are held."""

MOST_PIXELS = 40_000_000
"""Pixels of a picture, at most: it is decoded while others wait."""


class Uploads:
    """Bodies of requests, counted together."""

    def __init__(self) -> None:
        self.held = 0
        """Bytes of all bodies that are held now."""

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request; its bytes count until the block is left.

        Raises:
            TooLarge: when it is longer than a body may be.
            TooSlow: when it does not arrive in time.
            Busy: when all bodies together are too long.
            ClientDisconnect: when the client leaves before its end.
        """
        _check_length(int(request.headers.get("content-length") or 0))
        received = bytearray()
        try:
            await self._receive(request, received)
            yield bytes(received)
        finally:
            self.held -= len(received)

    async def _receive(self, request: Request, received: bytearray) -> None:
        """Append what arrives to ``received``."""
        try:
            async with asyncio.timeout(SECONDS):
                async for chunk in request.stream():
                    self.held += len(chunk)
                    received += chunk
                    _check_length(len(received))
                    if self.held > MOST_BYTES_TOGETHER:
                        raise Busy("other uploads take all the memory that there is", RETRY)
        except TimeoutError:
            raise TooSlow(f"the request did not arrive within {SECONDS} s") from None


def _check_length(length: int) -> None:
    if length > MOST_BYTES:
        raise TooLarge(f"the request is larger than {MOST_BYTES >> 20} MiB: send a smaller picture")


def picture_from(data: bytes, channels: int) -> Image.Image:
    """The picture in the bytes of a file, with all checks of the folder source.

    Args:
        data: the whole file.
        channels: 1, 3 or 4; 0 keeps grey grey and makes everything else RGB.

    Returns:
        An upright picture of 8 bits.

    Raises:
        DataError: when it is no image, damaged, or too large.
    """
    try:
        opened = open_image(io.BytesIO(data))
        width, height = opened.image.size
        if width * height > MOST_PIXELS:
            raise UnusableImage(
                f"it has {width * height:,} pixels, and at most {MOST_PIXELS:,} are decoded"
            )
        return decode_pixels(opened, channels)
    except UnusableImage as error:
        raise DataError(f"this file cannot be used: {error}") from None


def fitted_picture(data: bytes, served: ServedModel, tiles: int) -> np.ndarray:
    """A picture as a model takes it: scaled to cover its size, the centre cut out.

    Args:
        data: the bytes of a file.
        served: the model.
        tiles: images of the model's size along each side.

    Returns:
        ``uint8 [tiles * height, tiles * width, channels]``, at the levels of a pixel model.

    Raises:
        DataError: when the file cannot be used.
    """
    tiles = check_tiles(tiles)
    height, width, channels = served.size
    if height * width * tiles**2 > MOST_PIXELS:
        raise InputError(
            f"a picture of {height * tiles}x{width * tiles} pixels is more than the"
            f" {MOST_PIXELS:,} that are decoded here: choose less detail, or take the command line"
        )
    if channels == 2:
        raise InputError("pictures have 1, 3 or 4 channels, and this model has 2")
    picture = picture_from(data, channels)
    ((_, values),) = cut(picture, (tiles * height, tiles * width), "center")
    return as_modelled(values, served)


def as_modelled(values: np.ndarray, served: ServedModel) -> np.ndarray:
    """A picture as a pixel model sees it, at its levels; other models take it as it is.

    Args:
        values: ``uint8 [height, width, channels]``.
        served: the model.
    """
    tokenizer = served.model.tokenizer
    if not tokenizer.of_pixels:
        return values
    decoded = tokenizer.decode(tokenizer.encode(values[None]), values.shape[:2])
    seen: np.ndarray = decoded[0].cpu().numpy()
    return seen
