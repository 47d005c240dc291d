"""PNG files written chunk by chunk: missing rows, transparent colours, bombs, odd orders."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tessella.data import decode as decode_module
from tessella.data.decode import UnusableImage, decode
from tessella.data.formats import png as png_format
from tessella.errors import DataError

WIDTH, HEIGHT = 11, 13
KINDS = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8)]
KINDS += [(4, 8), (4, 16), (6, 8), (6, 16)]
"""Every colour type with every bit depth (table 8 of the specification)."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
PASSES += [(0, 1, 1, 2)]
WHITE = [255, 255, 255]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int, colour: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def pixels(content: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode(io.BytesIO(content), channels))


def packed_rows(samples: np.ndarray, depth: int) -> bytes:
    """Rows of samples ``[height, width, channels]``, each behind the filter type 0."""
    rows = b""
    for row in samples.reshape(len(samples), -1):
        if depth == 16:
            packed = row.astype(">u2").tobytes()
        else:
            bits = (row[:, None] >> np.arange(depth)[::-1]) & 1
            packed = np.packbits(bits.astype(np.uint8).ravel()).tobytes()
        rows += b"\0" + packed
    return rows


def random_image(colour: int, depth: int) -> np.ndarray:
    random = np.random.default_rng([colour, depth])
    shape = (HEIGHT, WIDTH, CHANNELS[colour])
    return random.integers(0, 1 << depth, shape).astype(np.int64)


def unpacked(samples: np.ndarray, depth: int, interlace: bool) -> bytes:
    if not interlace:
        return packed_rows(samples, depth)
    parts = [samples[top::down, left::across] for left, top, across, down in PASSES]
    return b"".join(packed_rows(part, depth) for part in parts if part.size)


def file_of(colour: int, depth: int, data: bytes, interlace: bool) -> bytes:
    palette = chunk(b"PLTE", bytes(i % 256 for i in range(3 << min(depth, 8))))
    return png_of(
        header(WIDTH, HEIGHT, depth, colour, int(interlace)),
        palette if colour == 3 else b"",
        chunk(b"IDAT", zlib.compress(data)),
    )


@pytest.mark.parametrize("interlace", [False, True], ids=["plain", "adam7"])
@pytest.mark.parametrize(("colour", "depth"), KINDS)
def test_every_kind_is_read_whole_and_refused_with_rows_missing(
    colour: int, depth: int, interlace: bool
) -> None:
    samples = random_image(colour, depth)
    data = unpacked(samples, depth, interlace)
    whole = pixels(file_of(colour, depth, data, interlace))
    other = pixels(file_of(colour, depth, unpacked(samples, depth, not interlace), not interlace))
    np.testing.assert_array_equal(whole, other)
    if colour == 0:
        expected = samples[..., 0] >> 8
        if depth < 16:
            expected = samples[..., 0] * 255 // ((1 << depth) - 1)
        np.testing.assert_array_equal(whole[..., 0], expected)
    for length in (0, 1, len(data) // 2, len(data) - 1):
        with pytest.raises(UnusableImage, match="damaged: rows are missing"):
            pixels(file_of(colour, depth, data[:length], interlace))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 5), (4, 4)])
def test_small_interlaced_images_lack_some_passes(size: tuple[int, int]) -> None:
    height, width = size
    samples = np.arange(height * width).reshape(height, width, 1)
    data = unpacked(samples, 8, interlace=True)
    content = png_of(header(width, height, 8, 0, 1), chunk(b"IDAT", zlib.compress(data)))
    assert png_format.read_png(content).unpacked == len(data)
    np.testing.assert_array_equal(pixels(content, 1), samples[..., 0])


def test_more_image_data_than_needed_is_fine() -> None:
    samples = random_image(0, 8)
    data = unpacked(samples, 8, interlace=False)
    longer = file_of(0, 8, data + bytes(5000), interlace=False)
    np.testing.assert_array_equal(pixels(longer, 1), samples[..., 0])


def test_image_data_in_many_chunks_are_one_stream() -> None:
    samples = random_image(2, 8)
    packed = zlib.compress(unpacked(samples, 8, interlace=False))
    parts = [chunk(b"IDAT", packed[i : i + 7]) for i in range(0, len(packed), 7)]
    np.testing.assert_array_equal(pixels(png_of(header(WIDTH, HEIGHT, 8, 2), *parts)), samples)
    with pytest.raises(UnusableImage, match="rows are missing"):
        pixels(png_of(header(WIDTH, HEIGHT, 8, 2), *parts[: len(parts) // 2]))
    parts.insert(3, chunk(b"tEXt", b"a\0b"))
    with pytest.raises(UnusableImage, match="interrupted"):
        pixels(png_of(header(WIDTH, HEIGHT, 8, 2), *parts))


def keyed(depth: int, colour: int, samples: list[int], key: list[int]) -> bytes:
    channels = CHANNELS[colour]
    values = np.array(samples).reshape(1, -1, channels)
    return png_of(
        header(len(samples) // channels, 1, depth, colour),
        chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)),
        chunk(b"IDAT", zlib.compress(packed_rows(values, depth))),
    )


@pytest.mark.parametrize(
    ("depth", "colour", "samples", "key", "expected"),
    [
        (1, 0, [0, 1, 1, 0], [0], [WHITE, WHITE, WHITE, WHITE]),
        (1, 0, [0, 1, 1, 0], [1], [[0] * 3, WHITE, WHITE, [0] * 3]),
        (2, 0, [0, 1, 2, 3], [1], [[0] * 3, WHITE, [170] * 3, WHITE]),
        (4, 0, [3, 12], [3], [WHITE, [204] * 3]),
        (4, 0, [3, 12], [51], [WHITE, [204] * 3]),  # of 51 only the low four bits count
        (8, 0, [10, 200], [10], [WHITE, [200] * 3]),
        (16, 0, [1000, 1001, 40000], [1000], [WHITE, [3] * 3, [156] * 3]),
        (8, 2, [10, 20, 30, 1, 2, 3], [10, 20, 30], [WHITE, [1, 2, 3]]),
        (8, 2, [10, 20, 30, 10, 20, 31], [10, 20, 30], [WHITE, [10, 20, 31]]),
        (
            16,
            2,
            [0x0A11, 0x1411, 0x1E11, 0x0A11, 0x1411, 0x1E12, 0x2000, 0x3000, 0x4000],
            [0x0A11, 0x1411, 0x1E11],
            [WHITE, [10, 20, 30], [32, 48, 64]],
        ),
        (16, 2, [0, 0, 10, 0x33, 0x44, 0x0A55], [0, 0, 10], [WHITE, [0, 0, 10]]),
    ],
)
def test_one_transparent_colour_is_compared_at_the_depth_of_the_file(
    depth: int, colour: int, samples: list[int], key: list[int], expected: list[list[int]]
) -> None:
    content = keyed(depth, colour, samples, key)
    assert pixels(content)[0].tolist() == expected


def test_a_transparent_colour_is_kept_where_alpha_is_asked_for() -> None:
    grey = keyed(2, 0, [0, 1, 2, 3], [1])
    assert pixels(grey, 4)[0, :, 3].tolist() == [255, 0, 255, 255]
    colour = keyed(16, 2, [0x0A11, 0, 0, 0x0A12, 0, 0], [0x0A11, 0, 0])
    assert pixels(colour, 4)[0].tolist() == [[10, 0, 0, 0], [10, 0, 0, 255]]


def test_a_transparent_colour_in_bands_and_upside_down(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(48, dtype=np.uint16).reshape(6, 8) * 300
    exif = Image.Exif()
    exif[274] = 3
    content = png_of(
        header(8, 6, 16, 0),
        chunk(b"tRNS", struct.pack(">H", 300 * 9)),
        chunk(b"eXIf", exif.tobytes()[6:]),
        chunk(b"IDAT", zlib.compress(packed_rows(values[..., None].astype(np.int64), 16))),
    )
    expected = np.where(values == 300 * 9, 255, values >> 8)[::-1, ::-1]
    np.testing.assert_array_equal(pixels(content, 1), expected)
    monkeypatch.setattr("tessella.data.pixel_conversion.BAND", 11)
    monkeypatch.setattr(decode_module, "BAND", 11)
    np.testing.assert_array_equal(pixels(content, 1), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_palette_colours_of_every_depth(depth: int) -> None:
    content = png_of(
        header(2, 1, depth, 3),
        chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])),
        chunk(b"tRNS", bytes([255, 0])),
        chunk(b"IDAT", zlib.compress(packed_rows(np.array([[[0], [1]]]), depth))),
    )
    assert pixels(content)[0].tolist() == [[10, 20, 30], WHITE]


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_colour_numbers_beyond_the_palette_are_refused(depth: int) -> None:
    content = png_of(
        header(2, 1, depth, 3),
        chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])),
        chunk(b"IDAT", zlib.compress(packed_rows(np.array([[[0], [2]]]), depth))),
    )
    with pytest.raises(UnusableImage, match="colour number 2, and its palette has 2 colours"):
        pixels(content)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tRNS", b"\0"),
        chunk(b"tRNS", b"\0\1") * 2,
        chunk(b"PLTE", b"\0\1"),
        chunk(b"IHDR", b"") + chunk(b"tRNS", b"\0\1"),
    ],
    ids=["short key", "two keys", "odd palette", "two headers"],
)
def test_chunks_that_cannot_be_are_refused(extra: bytes) -> None:
    data = chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    assert pixels(png_of(header(2, 1, 8, 0), data), 1).tolist() == [[1, 2]]
    with pytest.raises(UnusableImage, match="damaged"):
        pixels(png_of(header(2, 1, 8, 0), extra, data))


@pytest.mark.parametrize("kind", [b"tRNS", b"IDAT", b"tEXt"])
def test_a_wrong_checksum_names_its_chunk(kind: bytes) -> None:
    # The text comes behind the pixels, where a decoder need not look.
    contents = {b"tRNS": b"\0\1", b"IDAT": zlib.compress(b"\0\1\2"), b"tEXt": b"a\0b"}
    chunks = {name: chunk(name, content) for name, content in contents.items()}
    assert pixels(png_of(header(2, 1, 8, 0), *chunks.values()), 1).tolist() == [[255, 2]]
    chunks[kind] = chunks[kind][:-1] + bytes([chunks[kind][-1] ^ 1])
    with pytest.raises(UnusableImage, match=f"wrong checksum of chunk '{kind.decode()}'"):
        pixels(png_of(header(2, 1, 8, 0), *chunks.values()), 1)


def test_a_transparent_colour_behind_the_pixels_is_refused() -> None:
    data = chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    with pytest.raises(UnusableImage, match="tRNS is doubled or out of place"):
        pixels(png_of(header(2, 1, 8, 0), data, chunk(b"tRNS", b"\0\1")))


def significant(bits: int, values: list[int]) -> bytes:
    return png_of(
        header(len(values), 1, 16, 0),
        chunk(b"sBIT", bytes([bits])),
        chunk(b"IDAT", zlib.compress(packed_rows(np.array(values).reshape(1, -1, 1), 16))),
    )


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_significant_bits_must_be_the_high_ones(bits: int) -> None:
    top = (1 << bits) - 1
    assert pixels(significant(bits, [top << (16 - bits), 0]), 1).tolist() == [[255, 0]]
    assert pixels(significant(bits, [0, 0]), 1).tolist() == [[0, 0]]
    with pytest.raises(UnusableImage, match=rf"multiply them by {1 << (16 - bits)}, or save 8"):
        pixels(significant(bits, [top, 0]))


BOMB = zlib.compress(bytes(60 << 20), 9)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"key\0\0" + BOMB),
        chunk(b"iCCP", b"name\0\0" + BOMB),
        chunk(b"iTXt", b"key\0\1\0en\0key\0" + BOMB),
        chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 20))) * 9,
    ],
    ids=["zTXt", "iCCP", "iTXt", "many"],
)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_bombs_in_texts_and_profiles_are_refused_unseen(extra: bytes, behind: bool) -> None:
    parts = [chunk(b"IDAT", zlib.compress(b"\0\1\2")), extra]
    started = time.process_time()
    with pytest.raises(UnusableImage, match="unpacks to more than 1 MiB"):
        pixels(png_of(header(2, 1, 8, 0), *(parts if behind else parts[::-1])))
    assert time.process_time() - started < 1


def test_ordinary_texts_and_profiles_are_passed_over() -> None:
    data = chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    texts = chunk(b"zTXt", b"key\0\0" + zlib.compress(b"hello")) + chunk(b"iCCP", b"name\0\0odd")
    texts += chunk(b"iTXt", b"key\0\0\0en\0key\0hello") + chunk(b"tEXt", bytes(5000))
    assert pixels(png_of(header(2, 1, 8, 0), texts, data), 1).tolist() == [[1, 2]]


def test_missing_rows_of_a_large_image_take_no_memory_for_its_pixels() -> None:
    """Refused before the 60 million pixels that the header announces are allocated."""
    content = png_of(header(10_000, 6_000, 8, 0), chunk(b"IDAT", zlib.compress(bytes(99))))
    opened = decode_module.open_image(io.BytesIO(content))
    with pytest.raises(UnusableImage, match="rows are missing"):
        decode_module.decode_pixels(opened, 3)
    assert opened.image._im is None  # type: ignore[attr-defined]


def test_image_data_that_never_end_are_not_unpacked_for_ever() -> None:
    packed = zlib.compress(b"\0\1\2" + bytes(100 << 20), 9)
    started = time.process_time()
    content = png_of(header(2, 1, 8, 0), chunk(b"IDAT", packed))
    assert pixels(content, 1).tolist() == [[1, 2]]
    assert time.process_time() - started < 1


def test_too_many_chunks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_format, "MAX_CHUNKS", 10)
    content = png_of(
        header(2, 1, 8, 0), chunk(b"tEXt", b"a\0b") * 9, chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    )
    with pytest.raises(UnusableImage, match="more than 10 chunks"):
        pixels(content)


def test_pillow_set_to_make_up_pixels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES is set.*set it to False"):
        pixels(file_of(0, 8, unpacked(random_image(0, 8), 8, interlace=False), interlace=False))
