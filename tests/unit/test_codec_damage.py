"""Files that are damaged, or of something else, are refused; never is a picture wrong."""

from __future__ import annotations

import random
import zlib

import pytest
import torch
from fake_twin import FakeTwin

import tessella as ts
from tessella.codec.container import HAS_FILES, Contents, ImageRun, read_container
from tessella.codec.tiles import ImageShape
from tessella.codec.varints import ByteReader, varint
from tessella.errors import BitstreamError, TessellaError

pytest.importorskip("constriction", reason="the entropy coder is an optional library")

GRID = ts.Grid(4, 4, 1, 16)
TWIN = FakeTwin(GRID)
IMAGES = [torch.full((4, 2, 1), 3), torch.full((9, 7, 1), 4)]
NOISE = [torch.randint(0, 16, (4, 2, 1), generator=torch.Generator().manual_seed(1))]


def with_checksum(data: bytes) -> bytes:
    """A file whose checksum is that of what it holds now."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def refused_or_same(data: bytes, images: list[torch.Tensor]) -> bool:
    """Whether a file is refused; if it is not, it must hold the images."""
    try:
        back = ts.decompress(data, TWIN)
    except BitstreamError:
        return True
    assert len(back) == len(images)
    for one, other in zip(back, images, strict=True):
        assert torch.equal(one, other)
    return False


@pytest.mark.parametrize("images", [IMAGES, NOISE], ids=["coded", "raw"])
def test_every_bit_matters(images: list[torch.Tensor]) -> None:
    data = ts.compress(images, TWIN)
    assert read_container(data).streams[0].raw == (images is NOISE)
    assert not refused_or_same(data, images)
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        assert refused_or_same(bytes(changed), images)
        # The checksum is for accidents; what it does not see is found by what stands behind it.
        if place < 8 * len(data) - 32:
            assert refused_or_same(with_checksum(bytes(changed)), images)


def test_a_file_that_is_cut_short_or_goes_on_is_refused() -> None:
    data = ts.compress(IMAGES, TWIN)
    for length in range(len(data)):
        assert refused_or_same(data[:length], IMAGES)
        if length >= 4:
            assert refused_or_same(with_checksum(data[:length]), IMAGES)
    for more in (b"\0", b"more", data):
        assert refused_or_same(data + more, IMAGES)
        assert refused_or_same(with_checksum(data + more), IMAGES)


def test_pieces_of_files_in_each_other_are_refused() -> None:
    one = ts.compress(IMAGES, TWIN)
    other = ts.compress([*NOISE, *IMAGES], TWIN, group=2)
    dice = random.Random(0)
    for _ in range(300):
        start = dice.randrange(len(one))
        place = dice.randrange(len(other))
        spliced = one[:start] + other[place : place + dice.randrange(20)] + one[start:]
        if spliced != one:
            assert refused_or_same(with_checksum(spliced), IMAGES)


def test_another_model_is_named() -> None:
    data = ts.compress(IMAGES, TWIN)
    with pytest.raises(BitstreamError, match=TWIN.id[:32]):
        ts.decompress(data, FakeTwin(GRID, name="other"))


def test_a_model_that_only_claims_to_be_the_one_gives_no_picture() -> None:
    twin = FakeTwin(GRID, sharp=5)
    twin.id = TWIN.id
    data = ts.compress(IMAGES, TWIN)
    with pytest.raises(BitstreamError):
        ts.decompress(data, twin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"\x89PNG\r\n", "no compressed file"),
        (b"\x89TSL\x02", "format 02"),
        (b"\x89TSL", "format no version"),
        (b"", "no compressed file"),
    ],
)
def test_other_files_are_told_apart(change: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        read_container(change)


def test_a_later_arithmetic_is_named() -> None:
    data = bytearray(ts.compress(IMAGES, TWIN))
    data[5] = 2
    with pytest.raises(BitstreamError, match="version 2 of the arithmetic"):
        read_container(with_checksum(bytes(data)))


def test_errors_are_values_of_ours() -> None:
    assert issubclass(BitstreamError, ValueError)
    assert issubclass(BitstreamError, TessellaError)


def header(*runs: ImageRun, flags: int = 0, group: int = 64) -> bytes:
    """The header of an archive."""
    return Contents(bytes(16), 1, GRID, group, flags, runs).written()


def test_sizes_are_believed_only_as_far_as_the_file_goes() -> None:
    # 2^28 pixels, as 2^24 pieces: the streams of their groups cannot be in so short a file.
    claims = [
        header(ImageRun(1, ImageShape(1 << 14, 1 << 14, 1))),
        header(ImageRun(1 << 24, ImageShape(4, 4, 1)), group=1024),
        header(ImageRun(1 << 24, ImageShape(1, 1, 1)), flags=HAS_FILES),
        header(ImageRun(1 << 24, ImageShape(1, 1, 1), mode=3)),
    ]
    for claim in claims:
        with pytest.raises(BitstreamError, match=r"too short|missing"):
            read_container(with_checksum(claim + bytes(100)))


def test_the_number_of_pixels_is_limited() -> None:
    data = ts.compress(torch.zeros(3, 4, 4, 1, dtype=torch.uint8), TWIN)
    assert len(ts.decompress(data, TWIN, max_pixels=48)) == 3
    with pytest.raises(BitstreamError, match=r"48 pixels.*47.*max_pixels"):
        ts.decompress(data, TWIN, max_pixels=47)
    huge = header(ImageRun(1, ImageShape(1 << 40, 1 << 40, 1))) + bytes(20)
    with pytest.raises(BitstreamError, match="max_pixels"):
        read_container(with_checksum(huge))


def test_numbers_have_one_form() -> None:
    for value in (0, 1, 127, 128, 300, (1 << 63) - 1):
        encoded = varint(value)
        assert ByteReader(encoded, len(encoded)).number("it") == value
    for wrong in (b"", b"\x80", b"\x80\x00", b"\xff" * 10, b"\xff" * 9):
        with pytest.raises(BitstreamError):
            ByteReader(wrong, len(wrong)).number("it")
