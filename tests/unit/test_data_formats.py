"""Files of all other formats, written byte by byte: fewer pixels than their header says."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tessella.data.decode import UnusableImage, decode

RANDOM = np.random.default_rng(6)
RGB = RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def saved(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode(io.BytesIO(content), channels))


# GIF


def lzw(numbers: list[int], size: int = 2, end: bool = True) -> bytes:
    """Colour numbers as codes that never build a table: a clear code before every second one."""
    clear = 1 << size
    codes = []
    for i, number in enumerate(numbers):
        codes += [clear, number] if i % 2 == 0 else [number]
    bits = 0
    for i, code in enumerate(codes + [clear + 1] * end):
        bits |= code << (i * (size + 1))
    length = (len(codes) + end) * (size + 1)
    return bits.to_bytes((length + 7) // 8, "little")


def gif(
    packed: bytes,
    frame: tuple[int, int, int, int] = (0, 0, 8, 8),
    *,
    size: int = 2,
    transparent: int | None = None,
    rest: bytes = b"",
) -> bytes:
    """A GIF of 8x8 pixels and four colours with one frame at (left, top, width, height)."""
    content = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x81, 0, 0) + bytes(range(12))
    if transparent is not None:
        content += b"\x21\xf9\4\1\0\0" + bytes([transparent, 0])
    content += b"\x2c" + struct.pack("<HHHHB", *frame, 0) + bytes([size])
    for start in range(0, len(packed), 255):
        block = packed[start : start + 255]
        content += bytes([len(block)]) + block
    return content + b"\0" + rest + b"\x3b"


COLOURS = np.arange(12, dtype=np.uint8).reshape(4, 3)
NUMBERS = [1, 2, 3, 0] * 16


def test_a_whole_gif_is_read() -> None:
    expected = COLOURS[NUMBERS].reshape(8, 8, 3)
    np.testing.assert_array_equal(pixels(gif(lzw(NUMBERS))), expected)
    np.testing.assert_array_equal(pixels(gif(lzw(NUMBERS, end=False))), expected)


@pytest.mark.parametrize("transparent", [None, 0, 3])
@pytest.mark.parametrize("end", [False, True])
def test_a_gif_whose_codes_end_early_is_refused(transparent: int | None, end: bool) -> None:
    short = lzw(NUMBERS[:32], end=end)
    with pytest.raises(UnusableImage, match="end after 32 of 64 pixels"):
        pixels(gif(short, transparent=transparent))
    second = gif(lzw(NUMBERS))[25:-1]  # another whole frame does not help the first
    with pytest.raises(UnusableImage, match="end after 32 of 64 pixels"):
        pixels(gif(short, transparent=transparent, rest=second))


@pytest.mark.parametrize("frame", [(0, 0, 4, 4), (4, 0, 4, 8), (0, 1, 8, 8), (0, 0, 8, 7)])
@pytest.mark.parametrize("transparent", [None, 1])
def test_a_gif_whose_first_frame_leaves_canvas_free_is_refused(
    frame: tuple[int, int, int, int], transparent: int | None
) -> None:
    count = frame[2] * frame[3]
    with pytest.raises(UnusableImage, match="does not cover the canvas of 8x8.*save it as PNG"):
        pixels(gif(lzw(NUMBERS[:count]), frame, transparent=transparent))


def test_a_gif_with_a_frame_larger_than_its_canvas_is_that_frame() -> None:
    content = gif(lzw(NUMBERS[:4] * 24), (0, 0, 12, 8))
    np.testing.assert_array_equal(pixels(content), COLOURS[NUMBERS[:4] * 24].reshape(8, 12, 3))


def test_colours_that_a_gif_does_not_have_are_refused() -> None:
    with pytest.raises(UnusableImage, match="colour number 7, and its palette has 4 colours"):
        pixels(gif(lzw([7] * 64, size=3), size=3))
    without = gif(lzw(NUMBERS)).replace(b"\x81\0\0" + bytes(range(12)), b"\1\0\0")
    with pytest.raises(UnusableImage, match="no colours, only their numbers"):
        pixels(without)


@pytest.mark.parametrize("levels", [1, 2, 3, 16, 200, 256])
@pytest.mark.parametrize("order", ["noise", "sorted"])
def test_codes_of_real_gifs_are_counted_right(levels: int, order: str) -> None:
    """Tables that fill up, are cleared and are not; runs; every length of codes."""
    image = np.random.default_rng(levels).integers(0, levels, (150, 170), dtype=np.uint8)
    if order == "sorted":
        image = np.sort(image, axis=1)
    np.testing.assert_array_equal(pixels(saved(image, "GIF"), 1), image)


# BMP


def bmp(bits: int, packing: int, body: bytes, colours: int = 0, offset: int = 0) -> bytes:
    """A BMP of 8x8 pixels; ``colours`` limits the palette."""
    used = colours or (1 << bits if bits <= 8 else 0)
    palette = b"".join(bytes([i, i, i // 2, 0]) for i in range(used))
    place = offset or 54 + len(palette)
    head = struct.pack("<IHHI", 54 + len(palette) + len(body), 0, 0, place)
    sizes = (40, 8, 8, 1, bits, packing, len(body), 0, 0, colours, 0)
    return b"BM" + head + struct.pack("<IiiHHIIiiII", *sizes) + palette + body


LINE = bytes([8, 5, 0, 0])  # eight pixels of colour 5, end of line
END = bytes([0, 1])


@pytest.mark.parametrize(
    ("bits", "packing", "body"),
    [(1, 0, bytes(32)), (4, 0, bytes(32)), (8, 0, bytes(64)), (16, 0, bytes(128))]
    + [(24, 0, bytes(192)), (32, 0, bytes(256)), (8, 1, LINE * 8 + END), (4, 2, LINE * 8 + END)],
)
def test_a_bmp_with_half_of_its_pixels_is_refused(bits: int, packing: int, body: bytes) -> None:
    assert pixels(bmp(bits, packing, body)).shape == (8, 8, 3)
    half = body[: len(body) // 2]
    with pytest.raises(UnusableImage, match=r"shorter than its pixels|leave pixels out"):
        pixels(bmp(bits, packing, half + END * (packing > 0)))


@pytest.mark.parametrize(
    "body",
    [
        bytes([4, 5, 0, 0]) * 8 + END,
        LINE * 2 + bytes([0, 2, 0, 6]) + END,
        LINE * 7 + bytes([0, 2, 7, 0]) + bytes([1, 5]) + END,
        LINE * 7 + bytes([0, 8, 1, 2, 3]),
        bytes([4, 5, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0]) * 8,
    ],
    ids=["short lines", "jump of rows", "jump of columns", "cut literals", "literals too long"],
)
def test_run_length_codes_that_leave_pixels_out_are_refused(body: bytes) -> None:
    with pytest.raises(UnusableImage, match="leave pixels out"):
        pixels(bmp(8, 1, body))


def test_run_length_codes_with_literals_are_read() -> None:
    literal = bytes([0, 5, 1, 2, 3, 4, 5, 0, 3, 9, 0, 0])  # padded to two bytes; a run; a line end
    assert pixels(bmp(8, 1, literal * 8))[0, :, 2].tolist() == [1, 2, 3, 4, 5, 9, 9, 9]


def test_pixels_within_the_header_of_a_bmp_are_refused() -> None:
    with pytest.raises(UnusableImage, match="begin within its header"):
        pixels(bmp(24, 0, bytes(192), offset=30))


def test_colours_that_a_bmp_does_not_have_are_refused() -> None:
    with pytest.raises(UnusableImage, match="colour number 63, and its palette has 16 colours"):
        pixels(bmp(8, 0, GREY.tobytes(), colours=16))


def test_a_profile_behind_the_pixels_of_a_bmp_is_not_read_as_pixels() -> None:
    v5 = bytearray(124)
    v5[:40] = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 24, 0, 0, 0, 0, 0, 0)
    v5[112:120] = struct.pack("<II", 124 + 192, 96)  # bV5ProfileData, bV5ProfileSize
    head = b"BM" + struct.pack("<IHHI", 0, 0, 0, 138)
    assert pixels(head + bytes(v5) + bytes(192 + 96)).shape == (8, 8, 3)
    v5[112:120] = struct.pack("<II", 124 + 96, 96)
    with pytest.raises(UnusableImage, match="shorter than its pixels"):
        pixels(head + bytes(v5) + bytes(96 + 96))


def test_a_palette_of_white_before_black_is_kept() -> None:
    sizes = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, 1, 0, 4, 0, 0, 2, 0)
    palette = b"\xff\xff\xff\0\0\0\0\0"
    content = b"BM" + struct.pack("<IHHI", 66, 0, 0, 62) + sizes + palette + b"\xf0\0\0\0"
    assert pixels(content, 1).tolist() == [[0] * 4 + [255] * 4]


# PBM, PGM, PPM


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"P1 4 4\n", b"0 1 " * 8),
        (b"P2 4 4 255\n", b"7 " * 16),
        (b"P2 4 4 1023\n", b"7 " * 16),
        (b"P3 4 4 255\n", b"7 " * 48),
        (b"P4 16 4\n", bytes(8)),
        (b"P5 4 4 255\n", bytes(16)),
        (b"P5 4 4 100\n", bytes(16)),
        (b"P5 4 4 1023\n", bytes(32)),
        (b"P5 4 4 65535\n", bytes(32)),
        (b"P6 4 4 255\n", bytes(48)),
        (b"P6 4 4 15\n", bytes(48)),
        (b"P6 4 4 1023\n", bytes(96)),
        (b"P6 4 4 65535\n", bytes(96)),
    ],
)
def test_a_netpbm_file_with_pixels_missing_is_refused(head: bytes, body: bytes) -> None:
    assert pixels(head + body).shape[0] == 4
    for length in (len(body) // 2, len(body) - 2):
        with pytest.raises(UnusableImage, match="damaged"):
            pixels(head + body[:length])


@pytest.mark.parametrize(
    ("maximum", "values", "expected"),
    [
        (1023, [0, 511, 512, 1023], [0, 127, 128, 255]),
        (4095, [0, 2047, 2048, 4095], [0, 127, 128, 255]),
        (16383, [0, 8191, 8192, 16383], [0, 127, 128, 255]),
        (65535, [0, 0x12FF, 0x1300, 65535], [0, 0x12, 0x13, 255]),
    ],
)
def test_pgm_values_are_scaled_by_the_largest_that_the_header_allows(
    maximum: int, values: list[int], expected: list[int]
) -> None:
    binary = b"P5 4 1 %d\n" % maximum + struct.pack(">4H", *values)
    assert pixels(binary, 1).tolist() == [expected]
    plain = b"P2 4 1 %d\n" % maximum + " ".join(map(str, values)).encode()
    assert pixels(plain, 1).tolist() == [expected]


def test_ppm_of_16_bits_keeps_the_high_byte() -> None:
    values = [0x00FF, 0x0100, 0x01FF, 0xFFFF, 0x8000, 0x0001]
    content = b"P6 2 1 65535\n" + struct.pack(">6H", *values)
    assert pixels(content).ravel().tolist() == [value >> 8 for value in values]


@pytest.mark.parametrize(
    "content",
    [
        b"P5 2 1 15\n" + bytes([15, 16]),
        b"P5 2 1 1023\n" + struct.pack(">2H", 0, 1024),
        b"P6 1 1 1023\n" + struct.pack(">3H", 0, 0, 4095),
        b"P2 2 1 15\n15 16",
    ],
)
def test_values_above_the_largest_are_refused(content: bytes) -> None:
    with pytest.raises(UnusableImage, match=r"damaged: (it holds|Channel value too large)"):
        pixels(content)


def test_zero_is_white_in_pbm() -> None:
    assert pixels(b"P1 2 1\n0 1", 1).tolist() == [[255, 0]]
    assert pixels(b"P4 2 1\n\x40", 1).tolist() == [[255, 0]]


@pytest.mark.parametrize("magic", [b"PyRGBA", b"PyCMYK", b"P0CMYK"])
def test_variants_that_only_pillow_knows_are_refused(magic: bytes) -> None:
    with pytest.raises(UnusableImage, match="only Pillow knows"):
        pixels(magic + b" 4 4 255\n" + bytes(64))


# TGA and QOI

FOOTER = bytes(8) + b"TRUEVISION-XFILE.\0"


def tga(kind: int, bits: int, body: bytes) -> bytes:
    return struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, 8, 8, bits, 0x20) + body


@pytest.mark.parametrize("bits", [8, 24, 32])
@pytest.mark.parametrize("footer", [b"", FOOTER], ids=["old", "footer"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tga_with_half_of_its_pixels_is_refused(bits: int, footer: bytes, packed: bool) -> None:
    row = b"\x87" + bytes([9] * (bits // 8)) if packed else bytes([9] * bits)
    kind = (3 if bits == 8 else 2) + 8 * packed
    assert pixels(tga(kind, bits, row * 8 + footer)).shape == (8, 8, 3)
    for rows in (4, 7):
        with pytest.raises(UnusableImage, match="pixels end before its header says"):
            pixels(tga(kind, bits, row * rows + footer))


def test_the_footer_of_a_tga_is_not_read_as_pixels() -> None:
    with pytest.raises(UnusableImage, match="pixels end before"):
        pixels(tga(3, 8, bytes(40) + FOOTER))
    area = struct.pack("<II", 18 + 40, 0) + FOOTER[8:]  # an extension area of 30 bytes before it
    with pytest.raises(UnusableImage, match="pixels end before"):
        pixels(tga(3, 8, bytes(40) + bytes(30) + area))


def test_a_qoi_that_lacks_a_few_pixels_is_refused() -> None:
    """Bytes of the end mark are codes of pixels too."""
    content = saved(RGB, "QOI")
    np.testing.assert_array_equal(pixels(content), RGB)
    for missing in (1, 4, 8, 12, 500):
        with pytest.raises(UnusableImage, match="damaged"):
            pixels(content[: -8 - missing] + content[-8:])


# WebP, AVIF, JPEG, JPEG 2000


def riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"WEBP"
    for kind, data in chunks:
        body += kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_with_half_of_its_data_in_a_right_container_is_refused(lossless: bool) -> None:
    content = saved(RGB, "WEBP", lossless=lossless)
    kind, data = content[12:16], content[20:]
    assert pixels(riff([(kind, data)])).shape == (32, 32, 3)
    for length in (len(data) // 10, len(data) // 2, len(data) - 9):
        with pytest.raises(UnusableImage, match="damaged"):
            pixels(riff([(kind, data[:length])]))


def test_a_webp_animation_whose_first_frame_leaves_canvas_free_is_refused() -> None:
    content = saved(RGB, "WEBP", lossless=True)
    still = content[12:]

    def animation(side: int) -> bytes:
        three = (side - 1).to_bytes(3, "little")
        frame = bytes(6) + (31).to_bytes(3, "little") * 2 + bytes(4) + still
        canvas = b"\2" + bytes(3) + three + three
        return riff([(b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", frame), (b"ANMF", frame)])

    np.testing.assert_array_equal(pixels(animation(32)), RGB)
    with pytest.raises(UnusableImage, match="covers 32x32 pixels of 40x40"):
        pixels(animation(40))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_avif_with_part_of_its_data_in_a_right_container_is_refused(share: float) -> None:
    content = saved(RGB, "AVIF")
    start = content.index(b"mdat") + 4
    item = content[start : start - 8 + struct.unpack(">I", content[start - 8 : start - 4])[0]]
    # The last of the open bitstream units is the frame: a header byte and a length of two bytes.
    frame = item.rindex(bytes([0x32]), 0, 40)
    length = (item[frame + 1] & 127) | item[frame + 2] << 7
    kept = int(length * share)
    assert frame + 3 + length == len(item)
    shorter = item[: frame + 1] + bytes([kept & 127 | 128, kept >> 7])
    shorter += item[frame + 3 : frame + 3 + kept]
    place = content.index(struct.pack(">I", len(item)))  # in the box of item locations
    cut = content[:place] + struct.pack(">I", len(shorter)) + content[place + 4 : start - 8]
    with pytest.raises(UnusableImage, match="damaged"):
        pixels(cut + struct.pack(">I", 8 + len(shorter)) + b"mdat" + shorter)


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    content = saved(RGB, "JPEG", progressive=True)
    scans = [i for i in range(len(content)) if content[i : i + 2] == b"\xff\xda"]
    assert pixels(content).shape == (32, 32, 3)
    for scan in scans[1:]:
        with pytest.raises(UnusableImage, match="scans are missing"):
            pixels(content[:scan] + b"\xff\xd9")


def test_thousands_of_segments_are_refused() -> None:
    content = saved(RGB, "JPEG")
    frame = content.index(b"\xff\xc0")
    bomb = content[:frame] + b"\xff\xee\0\2" * 10_001 + content[frame:]
    with pytest.raises(UnusableImage, match="more than 10,000 segments"):
        pixels(bomb)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_whole_jpegs_pass(subsampling: int, options: dict[str, Any]) -> None:
    content = saved(RGB, "JPEG", quality=90, subsampling=subsampling, **options)
    np.testing.assert_array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))
    assert pixels(saved(RGB[..., 0], "JPEG", **options)).shape == (32, 32, 3)


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_jpeg_2000_is_refused_because_missing_tiles_go_unnoticed() -> None:
    content = saved(RGB, "JPEG2000", tile_size=(16, 16))
    with pytest.raises(UnusableImage, match="JPEG 2000.*convert it to PNG"):
        pixels(content)
