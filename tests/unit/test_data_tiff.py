"""TIFF files written tag by tag: missing strips, planes and tiles, depths, palettes, odd kinds."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.data import decode as decode_module
from tessella.data.decode import UnusableImage, decode
from tessella.data.formats import jpeg, tiff

RANDOM = np.random.default_rng(9)
GREY = RANDOM.integers(0, 256, (32, 32), dtype=np.uint8)
RGB = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
Tags = dict[int, int | Sequence[int]]


def tiff_of(
    tags: Tags,
    pieces: list[bytes],
    *,
    order: str = "<",
    tiled: bool = False,
    places: int | None = None,
    lengths: list[int] | None = None,
) -> bytes:
    """A TIFF file of the given tags whose pieces lie behind its directory.

    ``places`` names only so many pieces, ``lengths`` other lengths than they have.
    """
    named = pieces if places is None else pieces[:places]
    spoken = [len(piece) for piece in named] if lengths is None else lengths
    where = (324, 325) if tiled else (273, 279)
    fields: dict[int, list[int]] = {
        tag: list(value) if isinstance(value, Sequence) else [value] for tag, value in tags.items()
    }
    fields[where[0]] = [0] * len(named)
    fields[where[1]] = spoken
    start = 8 + 2 + 12 * len(fields) + 4
    offset = start + sum(4 * len(values) for values in fields.values() if len(values) > 1)
    for i, piece in enumerate(named):
        fields[where[0]][i] = offset
        offset += len(piece)
    entries = extra = b""
    for tag in sorted(fields):
        values = struct.pack(f"{order}{len(fields[tag])}I", *fields[tag])
        entries += struct.pack(f"{order}HHI", tag, 4, len(fields[tag]))
        if len(values) > 4:
            entries += struct.pack(f"{order}I", start + len(extra))
            extra += values
        else:
            entries += values
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(fields))
    return head + entries + bytes(4) + extra + b"".join(pieces)


def tags_of(
    bits: int | list[int] = 8, photometric: int = 1, compression: int = 1, **more: Any
) -> Tags:
    """Tags of an image of 8x8 pixels in one strip; ``more`` are others, as ``t278=4``."""
    samples = len(bits) if isinstance(bits, list) else 1
    tags: Tags = {256: 8, 257: 8, 258: bits, 259: compression, 262: photometric, 277: samples}
    tags[278] = 8
    return tags | {int(name[1:]): value for name, value in more.items()}


def pixels(content: bytes, channels: int = 1) -> np.ndarray:
    return np.asarray(decode(io.BytesIO(content), channels))


def packbits(data: bytes) -> bytes:
    return b"".join(bytes([7]) + data[i : i + 8] for i in range(0, len(data), 8))


PACKERS: dict[int, Any] = {1: bytes, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}
SMALL = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
COLOUR = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
REFUSED = r"damaged: (its strips|decoder error|image file is truncated)"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", PACKERS)
def test_missing_or_short_strips_are_refused(order: str, compression: int) -> None:
    pack = PACKERS[compression]
    strips = [pack(SMALL[i : i + 2].tobytes()) for i in range(0, 8, 2)]
    tags = tags_of(compression=compression, t278=2)
    np.testing.assert_array_equal(pixels(tiff_of(tags, strips, order=order)), SMALL)
    whole = [len(strip) for strip in strips]
    for wrong in (
        tiff_of(tags, strips, order=order, places=3),
        tiff_of(tags, strips, order=order, places=1),
        tiff_of(tags, strips, order=order, lengths=[*whole[:3], 0]),
        tiff_of(tags, strips, order=order, lengths=[whole[0], whole[1] - 3, *whole[2:]]),
        tiff_of(tags, strips, order=order, lengths=whole[:3]),
        tiff_of(tags, [*strips[:3], pack(SMALL[6:7].tobytes())], order=order),
        tiff_of(tags, strips, order=order)[:-4],
    ):
        with pytest.raises(UnusableImage, match=REFUSED):
            pixels(wrong)


@pytest.mark.parametrize("compression", PACKERS)
def test_strips_that_share_their_data_are_refused(compression: int) -> None:
    strip = PACKERS[compression](SMALL[:4].tobytes())
    content = tiff_of(tags_of(compression=compression, t278=4), [strip, strip])
    assert pixels(content).shape == (8, 8)
    second = struct.pack("<I", content.rindex(strip))
    first = struct.pack("<I", content.index(strip))
    with pytest.raises(UnusableImage, match="share the same data"):
        pixels(content.replace(second, first, 1))


@pytest.mark.parametrize("compression", PACKERS)
def test_a_single_strip_with_half_of_the_rows_is_refused(compression: int) -> None:
    half = PACKERS[compression](SMALL[:4].tobytes())
    tags = tags_of(compression=compression)
    for content in (
        tiff_of(tags, [half]),
        tiff_of(tags, [half, bytes(200)], places=1),  # what follows is not the image
        tiff_of(tags, [PACKERS[compression](SMALL.tobytes())], lengths=[0]),
    ):
        with pytest.raises(UnusableImage, match=REFUSED):
            pixels(content)


@pytest.mark.parametrize("compression", [1, 8, 32773])
def test_missing_or_short_planes_are_refused(compression: int) -> None:
    pack = PACKERS[compression]
    planes = [pack(COLOUR[..., i].tobytes()) for i in range(3)]
    tags = tags_of([8, 8, 8], 2, compression, t284=2)
    np.testing.assert_array_equal(pixels(tiff_of(tags, planes), 3), COLOUR)
    short = [*planes[:2], pack(COLOUR[:4, :, 2].tobytes())]
    whole = [len(plane) for plane in planes]
    for wrong in (
        tiff_of(tags, planes, places=2),
        tiff_of(tags, planes, lengths=[whole[0], 0, whole[2]]),
        tiff_of(tags, short),
    ):
        with pytest.raises(UnusableImage, match=REFUSED):
            pixels(wrong, 3)


@pytest.mark.parametrize("compression", [1, 8])
def test_missing_or_short_tiles_are_refused(compression: int) -> None:
    pack = PACKERS[compression]
    tiles = [pack(GREY[y : y + 16, x : x + 16].tobytes()) for y in (0, 16) for x in (0, 16)]
    tags: Tags = tags_of(compression=compression, t256=32, t257=32, t322=16, t323=16)
    del tags[278]
    np.testing.assert_array_equal(pixels(tiff_of(tags, tiles, tiled=True)), GREY)
    whole = [len(tile) for tile in tiles]
    for wrong in (
        tiff_of(tags, tiles, tiled=True, places=3),
        tiff_of(tags, tiles, tiled=True, lengths=[*whole[:3], 0]),
        tiff_of(tags, [*tiles[:3], pack(GREY[:8, :16].tobytes())], tiled=True),
    ):
        with pytest.raises(UnusableImage, match=REFUSED):
            pixels(wrong)


@pytest.mark.parametrize("compression", ["tiff_lzw", "lzma", "zstd"])
def test_half_of_the_rows_under_other_compressions_is_refused(compression: str) -> None:
    def strip(image: np.ndarray) -> tuple[int, bytes]:
        buffer = io.BytesIO()
        try:
            Image.fromarray(image).save(buffer, "TIFF", compression=compression)
        except (OSError, KeyError):
            pytest.skip("this Pillow does not write it")
        found = Image.open(buffer).tag_v2  # type: ignore[attr-defined]
        return found[259], buffer.getvalue()[found[273][0] :][: found[279][0]]

    number, whole = strip(GREY)
    _, half = strip(GREY[:16])
    tags = tags_of(compression=number, t256=32, t257=32, t278=32)
    np.testing.assert_array_equal(pixels(tiff_of(tags, [whole])), GREY)
    for short in (half, whole[: len(whole) // 2]):
        with pytest.raises(UnusableImage, match="damaged"):
            pixels(tiff_of(tags, [short]))


@pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("image", [GREY, RGB], ids=["grey", "colour"])
def test_jpeg_within_tiff_with_data_missing_is_refused(image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "TIFF", compression="jpeg", quality=90)
    content = buffer.getvalue()
    assert abs(pixels(content, 1).astype(int) - pixels(content, 1)).max() == 0
    tags = Image.open(buffer).tag_v2  # type: ignore[attr-defined]
    start, length = tags[273][0], tags[279][0]
    end = start + length
    half = content[: start + length // 2] + b"\xff\xd9" + content[start + length // 2 + 2 :]
    assert len(half) == len(content)
    zeroed = content[: start + length // 2] + bytes(length - length // 2) + content[end:]
    for damaged in (half, zeroed):
        with pytest.raises(UnusableImage, match=r"damaged: (Corrupt|Premature|decoder)"):
            pixels(damaged)
    frame = content.index(b"\xff\xc0", start)
    fewer = content[: frame + 5] + struct.pack(">H", 16) + content[frame + 7 :]
    with pytest.raises(UnusableImage, match="JPEG data of fewer pixels"):
        pixels(fewer)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_codes_are_refused_because_missing_rows_go_unnoticed(compression: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY > 128).save(buffer, "TIFF", compression=compression)
    with pytest.raises(UnusableImage, match="missing data go unnoticed; save it again"):
        pixels(buffer.getvalue())


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_inverted_grey_is_inverted_at_its_own_depth(bits: int, compression: int) -> None:
    values = np.arange(64) * 1021 % (1 << bits)
    if bits == 16:
        packed = values.astype("<u2").tobytes()
    else:
        digits = (values[:, None] >> np.arange(bits)[::-1]) & 1
        packed = np.packbits(digits.astype(np.uint8).ravel()).tobytes()
    piece = PACKERS[compression](packed)
    top = (1 << bits) - 1

    def eight(grey: np.ndarray) -> np.ndarray:
        return (grey >> 8 if bits == 16 else grey * 255 // top).reshape(8, 8)

    black = pixels(tiff_of(tags_of(bits, 1, compression), [piece]))
    np.testing.assert_array_equal(black, eight(values))
    white = pixels(tiff_of(tags_of(bits, 0, compression), [piece]))
    np.testing.assert_array_equal(white, eight(top - values))


@pytest.mark.parametrize("bits", [3, 6, 10, 14])
@pytest.mark.parametrize("photometric", [0, 1])
def test_depths_that_are_not_read_are_refused_with_the_way_out(bits: int, photometric: int) -> None:
    content = tiff_of(tags_of(bits, photometric), [bytes(8 * bits)])
    with pytest.raises(UnusableImage, match=rf"grey of {bits} bits.*scale its values.*PNG"):
        pixels(content)


def test_grey_of_12_bits_is_scaled_by_its_own_maximum() -> None:
    values = np.linspace(0, 4095, 64).astype(int)
    packed = b""
    for first, second in values.reshape(-1, 2).tolist():
        packed += ((first << 12) | second).to_bytes(3, "big")
    content = tiff_of(tags_of(12), [packed])
    np.testing.assert_array_equal(pixels(content).ravel(), values >> 4)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_few_bits_in_samples_of_16_are_refused_where_the_file_says_so(bits: int) -> None:
    top = (1 << bits) - 1
    strip = np.linspace(0, top, 64).astype("<u2").tobytes()
    with pytest.raises(UnusableImage, match=rf"values of {bits} bits in samples of 16.*multiply"):
        pixels(tiff_of(tags_of(16, t281=top), [strip]))
    assert pixels(tiff_of(tags_of(16, t281=65535), [strip])).max() == top >> 8


def test_signed_values_of_8_bits_are_refused() -> None:
    with pytest.raises(UnusableImage, match="signed integer"):
        pixels(tiff_of(tags_of(8, t339=2), [bytes(64)]))


def test_planes_of_16_bits_are_read_packed_and_refused_raw() -> None:
    """Pillow takes the bytes of raw 16-bit planes for pixels of 8 bits."""
    wide = COLOUR.astype("<u2") * 257
    planes = [wide[..., i].tobytes() for i in range(3)]
    packed = [zlib.compress(plane) for plane in planes]
    tags = tags_of([16, 16, 16], 2, 8, t284=2)
    np.testing.assert_array_equal(pixels(tiff_of(tags, packed), 3), COLOUR)
    with pytest.raises(UnusableImage, match="colour planes of more than 8 bits"):
        pixels(tiff_of(tags | {259: 1}, planes), 3)


def test_palettes_of_8_bits_or_with_colours_missing_are_refused() -> None:
    wide = [value * 257 for value in range(256)] * 3
    content = tiff_of(tags_of(8, 3, t320=wide), [SMALL.tobytes()])
    np.testing.assert_array_equal(pixels(content, 3)[..., 0], SMALL)
    with pytest.raises(UnusableImage, match="a palette of 8 bits"):
        pixels(tiff_of(tags_of(8, 3, t320=list(range(256)) * 3), [SMALL.tobytes()]))
    with pytest.raises(UnusableImage, match="palette is too short"):
        pixels(tiff_of(tags_of(8, 3, t320=wide[: 64 * 3]), [SMALL.tobytes()]))


def test_colours_at_a_lower_resolution_are_refused() -> None:
    tags = tags_of([8, 8, 8], 6, t530=[2, 2])
    with pytest.raises(UnusableImage, match="YCbCr with colours at a lower resolution"):
        pixels(tiff_of(tags, [bytes(192)]), 3)


def test_a_tag_of_a_million_values_is_refused_before_it_is_read() -> None:
    places = [0] * (tiff.MAX_NUMBERS + 1)
    content = tiff_of(tags_of(), [SMALL.tobytes()])
    entry = content.index(struct.pack("<HHI", 273, 4, 1))
    bomb = content[:entry] + struct.pack("<HHII", 273, 4, len(places), len(content))
    bomb += content[entry + 12 :] + bytes(4 * len(places))
    with pytest.raises(UnusableImage, match="its tag 273 has 524,289 values"):
        pixels(bomb)


def test_thousands_of_tags_are_refused() -> None:
    entries = struct.pack("<HHII", 65000, 3, 1, 0) * 5000
    with pytest.raises(UnusableImage, match="its directory has 5,000 tags"):
        pixels(b"II*\0" + struct.pack("<IH", 8, 5000) + entries + bytes(4))


def test_billions_of_samples_a_pixel_are_refused_at_once() -> None:
    started = time.process_time()
    with pytest.raises(UnusableImage, match="damaged"):
        pixels(tiff_of(tags_of() | {277: 0x7F000000}, [SMALL.tobytes()]))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("place", [4, 8, 10, 12, 22])
def test_directories_that_cannot_be_are_refused(place: int) -> None:
    content = bytearray(tiff_of(tags_of(), [SMALL.tobytes()]))
    content[place : place + 2] = b"\xff\xff"
    with pytest.raises(UnusableImage):
        pixels(bytes(content))


def test_the_memory_of_a_tile_is_counted() -> None:
    tags = tags_of(compression=8, t322=16384, t323=16384)
    content = tiff_of(tags, [zlib.compress(b"x")], tiled=True)
    with pytest.raises(UnusableImage, match="take up to 1,0.. MB to decode"):
        decode_module.open_image(io.BytesIO(content))


def test_grey_with_associated_alpha_is_not_called_damaged() -> None:
    content = tiff_of(tags_of([8, 8], t338=1), [bytes(range(128))])
    for channels in (1, 3, 4):
        with pytest.raises(UnusableImage, match="^grey multiplied by its alpha channel"):
            pixels(content, channels)
