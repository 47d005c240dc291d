"""One image file of every kind, compared with pixels computed by hand."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from handmade import png, tiff
from PIL import Image, ImageOps

from tessella.data import decode as decode_module
from tessella.data.decode import UnusableImage, decode, is_image

RANDOM = np.random.default_rng(4)
RGB = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[..., 0]
WIDE = np.array([[0, 255, 256], [1000, 32768, 65535]], np.uint16)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def pixels(file: io.BytesIO, channels: int = 3) -> np.ndarray:
    return np.asarray(decode(file, channels))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files(kind: str) -> None:
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(RGB), kind)), RGB)
    np.testing.assert_array_equal(
        pixels(saved(Image.fromarray(GREY), kind)), np.stack([GREY] * 3, axis=-1)
    )
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(GREY), kind), 1), GREY)


def test_zero_channels_keep_grey_and_make_rgb_of_the_rest() -> None:
    assert decode(saved(Image.fromarray(GREY)), 0).mode == "L"
    assert decode(saved(Image.fromarray(RGB)), 0).mode == "RGB"
    assert decode(saved(Image.fromarray(RGB).quantize(8)), 0).mode == "RGB"
    assert decode(saved(Image.fromarray(GREY > 128)), 0).mode == "L"


def test_grey_is_luma() -> None:
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(pixels(saved(Image.fromarray(RGB)), 1), luma, atol=0.51)


def test_alpha_lies_on_white_unless_kept() -> None:
    alpha = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
    image = Image.fromarray(np.dstack([RGB, alpha]))
    share = alpha[..., None] / 255
    np.testing.assert_allclose(pixels(saved(image)), RGB * share + 255 * (1 - share), atol=1)
    np.testing.assert_array_equal(pixels(saved(image), 4), np.dstack([RGB, alpha]))
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(RGB)), 4)[..., 3], 255)
    grey = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha)))
    np.testing.assert_allclose(
        pixels(saved(grey), 1), GREY * share[..., 0] + 255 * (1 - share[..., 0]), atol=1
    )


def test_a_transparent_palette_colour_lies_on_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image = image.convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert pixels(saved(image, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert pixels(saved(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_one_bit_is_black_and_white() -> None:
    np.testing.assert_array_equal(
        pixels(saved(Image.fromarray(GREY > 128)), 1), np.where(GREY > 128, 255, 0)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_shifted(kind: str) -> None:
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(WIDE), kind), 1), WIDE >> 8)


def test_big_endian_tiff_and_pgm_of_16_bits() -> None:
    swapped = Image.frombytes("I;16B", (3, 2), WIDE.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(saved(swapped, "TIFF"), 1), WIDE >> 8)
    pgm = io.BytesIO(b"P5 3 2 65535\n" + WIDE.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(pgm, 1), WIDE >> 8)


def test_tiff_of_12_bits() -> None:
    """Two samples of 12 bits, packed into three bytes."""
    assert pixels(tiff(2, 1, 12, [b"\xab\xc1\x23"]), 1).tolist() == [[0xAB, 0x12]]


def test_colour_of_16_bits_keeps_the_high_byte() -> None:
    values = [0x1234, 0xFF01, 0x00FF, 0x80AA, 0x7F80, 0xFE99]
    file = png(2, 1, 16, 2, [struct.pack(">6H", *values)])
    assert pixels(file).ravel().tolist() == [value >> 8 for value in values]


def test_the_transparent_value_of_16_bit_grey_lies_on_white() -> None:
    file = png(3, 1, 16, 0, [struct.pack(">3H", 0x1234, 0x1235, 0x80FF)], struct.pack(">H", 0x1234))
    assert pixels(file, 1).tolist() == [[255, 0x12, 0x80]]


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = pixels(saved(image, "JPEG", quality=95)).reshape(-1, 3).mean(0)
    assert red[0] > 240
    assert red[1:].max() < 15


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert pixels(file).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY.T[:, ::-1],
        7: GREY.T[::-1, ::-1],
        8: GREY.T[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(GREY), exif=exif), 1), upright)
    wide = Image.fromarray(GREY.astype(np.uint16) << 8)
    np.testing.assert_array_equal(pixels(saved(wide, exif=exif), 1), upright)
    tiff = saved(Image.fromarray(GREY), "TIFF", tiffinfo={274: orientation})
    np.testing.assert_array_equal(pixels(tiff, 1), upright)
    assert (
        ImageOps.exif_transpose(Image.open(saved(Image.fromarray(GREY), exif=exif))).size
        == upright.shape[::-1]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_an_8_bit_meaning_are_refused(dtype: type) -> None:
    with pytest.raises(UnusableImage, match=r"floating-point|32-bit"):
        decode(saved(Image.fromarray(WIDE.astype(dtype)), "TIFF"), 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_is_checked_before_decoding() -> None:
    huge = png(60_000, 60_000, 8, 0, [b""])
    with pytest.raises(UnusableImage, match="more than 100,000,000 pixels"):
        decode(huge, 3)
    with pytest.raises(UnusableImage, match="11000x10000 pixels are more than 100,000,000"):
        decode(png(11_000, 10_000, 8, 0, [b""]), 3)


def test_the_byte_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_BYTES", 20)
    with pytest.raises(UnusableImage, match="larger than"):
        decode(saved(Image.fromarray(RGB)), 3)


def test_postscript_is_not_run() -> None:
    with pytest.raises(UnusableImage, match="PostScript"):
        decode(saved(Image.fromarray(RGB), "EPS"), 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_cut_files_are_refused(kind: str) -> None:
    content = saved(
        Image.fromarray(RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind
    ).getvalue()
    for length in (0, 4, 30, len(content) // 2):
        with pytest.raises(UnusableImage):
            decode(io.BytesIO(content[:length]), 3)


def test_is_image() -> None:
    assert is_image(saved(Image.fromarray(RGB)))
    assert not is_image(io.BytesIO(b"hello"))
    assert not is_image(io.BytesIO(b""))
