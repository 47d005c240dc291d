"""Images as they come: one folder with every oddity, what becomes of each file, and what damage
costs."""

from __future__ import annotations

import functools
import io
import os
import re
import threading
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import png, tiff
from PIL import Image

from tessella.config import DataConfig
from tessella.data import ImageSet, image_files, load, pixel_conversion
from tessella.data import decode as decode_module
from tessella.data.decode import UnusableImage, decode, open_image
from tessella.data.formats import jpeg
from tessella.errors import DataError, InputError, TessellaWarning

RANDOM = np.random.default_rng(8)
RGB = RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.where(RGB[..., 1] > 100, 255, 0).astype(np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 0, 90], [0, 255, 7], [66, 77, 88]], np.uint8)
INDEX = RANDOM.integers(0, 4, (6, 8), dtype=np.uint8)
WHITE = np.full((6, 8, 3), 255, np.uint8)
BIG = Image.fromarray(RANDOM.integers(0, 256, (60, 80, 3), dtype=np.uint8))
needs_simplejpeg = pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg is not installed")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def with_palette() -> Image.Image:
    image = Image.frombytes("P", (8, 6), INDEX.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def lying(orientation: int) -> bytes:
    """A file that shows RGB once it is turned as its EXIF orientation says."""
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB),
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    return saved(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)


def cmyk_jpeg(adobe: bool) -> bytes:
    """Plain red, inverted as Adobe does it, with and without its marker: without, everyone assumes
    the same."""
    content = saved(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG", quality=95)
    place = content.index(b"\xff\xee")
    return content if adobe else content[:place] + content[place + 16 :]


def flipped_png() -> bytes:
    """Pixels stored without compression, one bit of them flipped."""
    content = bytearray(saved(Image.fromarray(RGB), "PNG", compress_level=0))
    content[content.index(b"IDAT") + 60] ^= 1
    return bytes(content)


def wrong_checksum_png() -> bytes:
    """A stream of pixels that is whole in itself, under the checksum of another."""
    content = bytearray(saved(Image.fromarray(RGB), "PNG"))
    content[-13] ^= 1  # before the 12 bytes of IEND
    return bytes(content)


def longer_webp() -> bytes:
    """Bytes put in where a decoder does not look, so that it finds other ones than were written."""
    content = saved(Image.fromarray(RGB), "WEBP", lossless=True)
    return content + bytes(20)


RED = np.broadcast_to(np.array([255, 0, 0], np.uint8), (6, 8, 3))
JPEG = saved(Image.fromarray(RGB), "JPEG", quality=90)
JPEG_PIXELS = np.asarray(Image.open(io.BytesIO(JPEG)))
LARGE_JPEG = saved(BIG, "JPEG")
OTHER = Image.fromarray(RGB[::-1].copy())
ANIMATED: dict[str, Any] = {"save_all": True, "append_images": [OTHER, OTHER]}

GOOD: dict[str, tuple[bytes, np.ndarray, int]] = {
    **{f"exif-{orientation}.png": (lying(orientation), RGB, 0) for orientation in range(1, 9)},
    "grey.png": (saved(Image.fromarray(GREY), "PNG"), grey(GREY), 0),
    "bit.png": (saved(Image.fromarray(GREY > 128), "PNG"), grey(np.where(GREY > 128, 255, 0)), 0),
    "palette.png": (saved(with_palette(), "PNG"), PALETTE[INDEX], 0),
    "palette.gif": (saved(with_palette(), "GIF"), PALETTE[INDEX], 0),
    "palette.bmp": (saved(with_palette(), "BMP"), PALETTE[INDEX], 0),
    "clear.png": (
        saved(with_palette(), "PNG", transparency=2),
        np.where((INDEX == 2)[..., None], WHITE, PALETTE[INDEX]),
        0,
    ),
    "rgba.png": (
        saved(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"),
        np.where(ALPHA[..., None] == 255, RGB, WHITE),
        0,
    ),
    "la.png": (
        saved(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA))), "PNG"),
        np.where(ALPHA[..., None] == 255, grey(GREY), WHITE),
        0,
    ),
    "grey16.png": (
        saved(Image.fromarray(GREY.astype(np.uint16) << 8 | 0x37), "PNG"),
        grey(GREY),
        0,
    ),
    "rgb16.png": (
        png(8, 6, 16, 2, [(row * 256.0 + 0x9A).astype(">u2").tobytes() for row in RGB]).read(),
        RGB,
        0,
    ),
    "grey16.tiff": (
        tiff(8, 6, 16, [(GREY * 256.0 + 0xF1).astype("<u2").tobytes()]).read(),
        grey(GREY),
        0,
    ),
    "grey12.tiff": (
        tiff(
            8,
            6,
            12,
            [b"".join(bytes([a, 0x50 | b >> 4, (b & 15) << 4]) for a, b in GREY.reshape(-1, 2))],
        ).read(),
        grey(GREY),
        0,
    ),
    "strips.tiff": (
        tiff(8, 6, 8, [GREY[:4].tobytes(), GREY[4:].tobytes()], rows=4).read(),
        grey(GREY),
        0,
    ),
    "cmyk.tiff": (saved(Image.fromarray(np.dstack([255 - RGB, 0 * GREY]), "CMYK"), "TIFF"), RGB, 0),
    "cmyk-adobe.jpg": (cmyk_jpeg(adobe=True), RED, 6),
    "cmyk-plain.jpg": (cmyk_jpeg(adobe=False), RED, 6),
    "ycbcr.tiff": (saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), RGB, 3),
    "animated.gif": (
        saved(with_palette(), "GIF", save_all=True, append_images=[OTHER]),
        PALETTE[INDEX],
        0,
    ),
    "animated.png": (saved(Image.fromarray(RGB), "PNG", **ANIMATED), RGB, 0),
    "animated.webp": (saved(Image.fromarray(RGB), "WEBP", lossless=True, **ANIMATED), RGB, 0),
    "pages.tiff": (saved(Image.fromarray(RGB), "TIFF", **ANIMATED), RGB, 0),
    "progressive.jpg": (
        saved(Image.fromarray(RGB), "JPEG", quality=90, progressive=True),
        JPEG_PIXELS,
        0,
    ),
    "two.mpo": (saved(Image.fromarray(RGB), "MPO", quality=90, **ANIMATED), JPEG_PIXELS, 0),
    "really-png.jpg": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
    "no-extension": (JPEG, JPEG_PIXELS, 0),
    "followed-by-text.jpg": (JPEG + b"hello", JPEG_PIXELS, 0),
    "SHOUTED.PNG": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
    "with space.png": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
    "ünïcode 雪.png": (saved(Image.fromarray(RGB), "PNG"), RGB, 0),
}
"""Content, the pixels it must give, and how far they may be off (colour spaces and JPEG round)."""

BAD: dict[str, tuple[bytes, str]] = {
    "text.png": (b"<html>404</html>", "not an image"),
    "empty.png": (b"", "the file is empty"),
    "cut.png": (saved(BIG, "PNG")[:-4000], "damaged"),
    "cut.jpg": (LARGE_JPEG[:-1500], "damaged"),
    "cut.webp": (saved(BIG, "WEBP", lossless=True)[:-1000], "damaged"),
    "cut.gif": (saved(BIG, "GIF")[:-1000], "damaged"),
    "cut.bmp": (saved(BIG, "BMP")[:-1000], "damaged"),
    "cut.tiff": (tiff(8, 6, 8, [GREY.tobytes()]).read()[:-5], "damaged"),
    "strip-missing.tiff": (
        tiff(8, 6, 8, [GREY[:4].tobytes()], rows=4).read(),
        "damaged: its strips do not cover",
    ),
    "strip-short.tiff": (
        tiff(8, 6, 8, [GREY[:2].tobytes(), b"short", GREY[4:].tobytes()], rows=2).read(),
        "damaged: its strips are shorter",
    ),
    "flipped.png": (flipped_png(), "damaged.*checksum"),
    "checksum.png": (wrong_checksum_png(), "damaged.*checksum"),
    "longer.webp": (longer_webp(), "damaged: its length"),
    "bomb.png": (png(60_000, 60_000, 8, 0, [b""]).read(), "more than 100,000,000 pixels"),
    "smaller-bomb.png": (
        png(11_000, 9_000, 8, 2, [b""]).read(),
        "11000x9000 pixels of this PNG take up to",
    ),
    "tile-bomb.tiff": (
        tiff(8, 6, 8, [b"x"], compression=8, tile=(16384, 16384)).read(),
        "take up to 1,074 MB",
    ),
    "scan-bomb.jpg": (JPEG[:-2] + b"\xff\xda\0\2" * 101, "more than 100 scans"),
    "signed.tiff": (tiff(8, 6, 16, [bytes(96)], sample_format=2).read(), "signed integer"),
    "whole32.tiff": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32-bit"),
    "float.tiff": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
    "lab.tiff": (
        saved(Image.frombytes("LAB", (8, 6), RGB.tobytes()), "TIFF"),
        r"L\*a\*b\* colours",
    ),
    "program.eps": (saved(Image.fromarray(RGB), "EPS"), "PostScript"),
    "icon.ico": (
        saved(Image.fromarray(RGB), "ICO"),
        "^ICO is not read here; convert it to JPEG or PNG$",
    ),
    "phone.HEIC": (b"\0\0\0\x18ftypheic", "^HEIC is not read here; convert it to JPEG or PNG$"),
    "preview.dng": (
        tiff(8, 6, 8, [GREY.tobytes()]).read(),
        "^camera raw is not read here; convert it to JPEG or PNG$",
    ),
}
"""Content, and the reason it is skipped for."""
if jpeg.simplejpeg is not None:
    BAD["closed.jpg"] = (
        LARGE_JPEG[:-1500] + b"\xff\xd9",
        "damaged: Corrupt JPEG data: premature end",
    )

FOREIGN = {"notes.txt": b"hello", "Thumbs.db": bytes(600)}
IGNORED = {
    ".hidden.png": b"",
    ".DS_Store": bytes(40),
    ".git/photo.png": b"",
    "sub/.cache/photo.png": b"",
    "__MACOSX/._photo.png": b"",
    "__MACOSX/photo.png": b"",
}
PLAIN = {f"plain-{i:02}.png": saved(Image.fromarray(RGB), "PNG") for i in range(80)}


def everything() -> dict[str, bytes]:
    images = {name: case[0] for name, case in (GOOD | BAD).items()}
    return images | FOREIGN | IGNORED | PLAIN


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def all_train(names: Any) -> list[str]:
    return ["train"] * len(names)


def of(root: Path, **options: Any) -> ImageSet:
    return load(DataConfig(f"folder:{root}", **options), "train")


@pytest.fixture(autouse=True)
def one_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessella.data.folder_layouts.by_hash", all_train)


@dataclass
class Outcome:
    """What became of each file."""

    pixels: dict[str, np.ndarray]
    reasons: dict[str, str]


@pytest.fixture(scope="module", params=["folder", "zip"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("odd") / "photos"
    if request.param == "zip":
        with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
            for name, content in everything().items():
                archive.writestr(name, content)
        root = root.with_suffix(".zip")
    else:
        fill(root, everything())
        (root / "loop").symlink_to(root, target_is_directory=True)
        (root / "self.png").symlink_to(root / "self.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tessella.data.folder_layouts.by_hash", all_train)
        part = of(root)
    return Outcome(
        dict(zip(part.names or (), part.images[:], strict=True)),
        {name: reason for name, _, reason in (line.partition(": ") for line in part.skipped)},
    )


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_gives_its_pixels(outcome: Outcome, name: str) -> None:
    _, expected, off = GOOD[name]
    assert abs(outcome.pixels[name].astype(int) - expected).max() <= off


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_image_is_skipped_with_its_reason(outcome: Outcome, name: str) -> None:
    assert re.search(BAD[name][1], outcome.reasons[name])
    assert name not in outcome.pixels


def test_nothing_else_is_in_the_folder(outcome: Outcome) -> None:
    assert set(outcome.pixels) == {*GOOD, *PLAIN}
    assert {name for name, reason in outcome.reasons.items() if name not in BAD} == {*FOREIGN}
    assert all(outcome.reasons[name] == "not an image" for name in FOREIGN)


def test_foreign_files_are_no_failures_but_damaged_images_are(tmp_path: Path) -> None:
    nine, bad = (
        dict(list(PLAIN.items())[:9]),
        dict.fromkeys(("cut.png", "cut2.png"), BAD["cut.png"][0]),
    )
    fill(tmp_path / "a", nine | bad | {f"{i}.txt": b"hello" for i in range(9)})
    assert len(of(tmp_path / "a")) == 9
    fill(tmp_path / "b", nine | bad | {"text.png": b"hello"})
    with pytest.raises(
        DataError, match=r"3 of 12 files .*more than 20 %.*remove them; .*cut\.png: damaged"
    ):
        of(tmp_path / "b")


def test_two_failures_never_refuse_a_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": PLAIN["plain-00.png"], "2.png": b"hello", "3.heic": b"hello"})
    assert of(tmp_path).names == ("1.png",)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"no images for split 'train'.*2\.png: not an image"):
        of(tmp_path)


def test_photographs_of_a_kind_that_is_not_read_are_not_passed_over(tmp_path: Path) -> None:
    fill(
        tmp_path, dict(list(PLAIN.items())[:30]) | {f"{i:03}.heic": b"ftypheic" for i in range(300)}
    )
    with pytest.raises(
        DataError,
        match=r"of 330 files .*000\.heic: HEIC is not read here; convert it to JPEG or PNG",
    ):
        of(tmp_path)


def wide_grey(top: int) -> bytes:
    rows = [np.linspace(0, top, 8).astype(">u2").tobytes()] * 6
    return png(8, 6, 16, 0, rows).read()


@pytest.mark.parametrize(("top", "factor"), [(200, 256), (1023, 64), (4095, 16), (16383, 4)])
def test_16_bits_that_hold_few_in_all_files_are_warned_of(
    tmp_path: Path, top: int, factor: int
) -> None:
    """Each alone may be a dark image; that all are makes a camera's 10 to 14 bits likely."""
    fill(tmp_path / "a", {f"{i}.png": wide_grey(top) for i in range(4)})
    with pytest.warns(TessellaWarning, match=rf"above {top}, .*multiply all values by {factor},"):
        of(tmp_path / "a")
    fill(tmp_path / "a", {"4.png": wide_grey(65535)})
    with warnings.catch_warnings():
        warnings.simplefilter("error", TessellaWarning)
        assert len(of(tmp_path / "a")) == 5


def test_colours_of_16_bits_that_hold_few_are_warned_of(tmp_path: Path) -> None:
    rows = [np.linspace(0, 4095, 24).astype(">u2").tobytes()] * 6
    fill(tmp_path, {"a.png": png(8, 6, 16, 2, rows).read()})
    with pytest.warns(TessellaWarning, match="above 4095, .*multiply all values by 16,"):
        of(tmp_path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.png": PLAIN["plain-00.png"]})
    odd = os.fsencode(tmp_path) + b"/cat/\xff\xe9.png"
    broken = os.fsencode(tmp_path) + b"/cat/\xfe.txt"
    try:
        for path in (odd, broken):
            with open(path, "wb") as file:  # noqa: PTH123 - a path of bytes
                file.write(PLAIN["plain-00.png"] if path == odd else b"hello")
    except OSError:
        pytest.skip("this file system has no such names")
    for _ in range(2):  # decoded, then from the cache
        part = of(tmp_path)
        assert [os.fsencode(name) for name in part.names or ()] == [
            b"cat/1.png",
            b"cat/\xff\xe9.png",
        ]
        assert part.skipped == ("cat/\\xfe.txt: not an image",)
        assert part.label_names == ("cat",)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_a_file_without_permission_is_skipped_until_it_is_given(tmp_path: Path) -> None:
    fill(tmp_path, PLAIN)
    (tmp_path / "plain-07.png").chmod(0)
    assert of(tmp_path).skipped == (f"plain-07.png: cannot be read: {os.strerror(13)}",)
    (tmp_path / "plain-07.png").chmod(0o600)
    assert of(tmp_path).skipped == ()


def test_labels_of_sub_folders_with_oddities(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            f"{'ab'[i % 2]}/{name}": content
            for i, (name, content) in enumerate(everything().items())
        },
    )
    part = of(tmp_path)
    assert part.label_names == ("a", "b")
    assert part.labels is not None
    assert [("a", "b")[label] for label in part.labels] == [name[0] for name in part.names or ()]


def test_sizes_mixed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = [(6, 8), (60, 8), (7, 90), (1, 1), (33, 35)]
    images = [
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes
    ]
    fill(tmp_path, {f"{i}.png": saved(image, "PNG") for i, image in enumerate(images)})
    for crop in ("center", "squash"):
        assert of(tmp_path, size="5x4", crop=crop).images.shape == (5, 5, 4, 3)
    assert len(of(tmp_path, size="6x8", crop="tiles")) == 1 + 10 + 11 + 0 + 5 * 4
    with pytest.raises(
        InputError, match=r"0\.png is 8 pixels wide and 6 high, 1\.png 8 wide and 60 high"
    ):
        of(tmp_path)


def slow_at_random(file: io.BufferedIOBase) -> decode_module.Opened:
    opened = open_image(file)
    time.sleep(opened.data[-20] / 20_000)
    return opened


def numbered(count: int) -> dict[str, bytes]:
    images = np.random.default_rng(1).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return {f"{i:03}.png": saved(Image.fromarray(image), "PNG") for i, image in enumerate(images)}


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_threads_keep_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    files = numbered(40)
    files["005.png"] = b""
    fill(tmp_path / "x", files)
    (tmp_path / "x").rename(tmp_path / "y")
    monkeypatch.setattr(image_files, "open_image", slow_at_random)
    sets = []
    for threads in (1, 6):
        monkeypatch.setattr(image_files, "worker_count", lambda: threads)  # noqa: B023
        monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / f"cache{threads}"))
        sets.append(of(tmp_path / "y", limit=limit))
    assert (
        sets[0].names
        == sets[1].names
        == tuple(name for name in sorted(files) if name != "005.png")[: limit or None]
    )
    np.testing.assert_array_equal(sets[0].images[:], sets[1].images[:])
    assert sets[0].skipped == sets[1].skipped


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def begin_and_count(file: io.BufferedIOBase) -> decode_module.Opened:
        calls.append(1)
        return open_image(file)

    monkeypatch.setattr(image_files, "open_image", begin_and_count)
    return calls


def test_tiles_stop_soon_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, numbered(80))
    calls = counted(monkeypatch)
    monkeypatch.setattr(image_files, "worker_count", lambda: 2)
    part = of(tmp_path, size="3x4", crop="tiles", limit=10)
    assert part.names is not None
    assert part.names[-1] == "002.png#0,4"
    assert len(calls) <= 3 + 2 * 2


def test_a_hopeless_folder_is_given_up_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, dict.fromkeys(PLAIN, b"hello"))
    calls = counted(monkeypatch)
    monkeypatch.setattr(image_files, "worker_count", lambda: 2)
    with pytest.raises(DataError, match="at least 17 of 80 files"):
        of(tmp_path)
    assert len(calls) <= 17 + 2 * 2


def test_large_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, numbered(12))
    inside, most, guard = [0], [0], threading.Lock()

    def watched(opened: decode_module.Opened, channels: int) -> Image.Image:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        with guard:
            inside[0] -= 1
        return decode_module.decode_pixels(opened, channels)

    monkeypatch.setattr(image_files, "decode_pixels", watched)
    monkeypatch.setattr(image_files, "worker_count", lambda: 4)
    of(tmp_path)
    assert most[0] > 1
    most[0] = 0
    monkeypatch.setattr(image_files, "MAX_TOGETHER", 1)
    of(tmp_path, limit=11)
    assert most[0] == 1


@pytest.mark.parametrize("spooled", [False, True])
def test_images_are_rebuilt_in_bands_to_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    whole = {name: np.asarray(decode(io.BytesIO(case[0]), 3)) for name, case in GOOD.items()}
    monkeypatch.setattr(pixel_conversion, "BAND", 11)
    if spooled:
        monkeypatch.setattr(decode_module, "MAX_MEMORY", 2)
        monkeypatch.setattr(decode_module, "_check_memory", lambda image, need: None)
    for name, expected in whole.items():
        np.testing.assert_array_equal(
            np.asarray(decode(io.BytesIO(GOOD[name][0]), 3)), expected, err_msg=name
        )


@pytest.mark.parametrize(
    ("kind", "fits"),
    [("PNG", True), ("JPEG", True), ("progressive", False), ("WEBP", False), ("BMP", True)],
)
def test_photographs_of_50_megapixels_fit_where_the_format_allows(kind: str, fits: bool) -> None:
    """Judged by headers, changed to say 8688x5792; nothing is decoded."""
    image = Image.open(
        io.BytesIO(
            saved(BIG, kind.replace("progressive", "JPEG"), progressive=kind == "progressive")
        )
    )
    image._size = (8688, 5792)  # type: ignore[attr-defined]
    need = decode_module._memory(image, 25_000_000, None)
    check = functools.partial(decode_module._check_memory, image, need)
    if fits:
        return check()
    with pytest.raises(UnusableImage, match="8688x5792 pixels of this .* MB to decode"):
        check()


def test_nothing_is_shown_where_there_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, numbered(5) | {"bomb.png": png(11_000, 9_000, 8, 2, [b""]).read()})
    of(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("error")
def test_pillow_warns_of_nothing(tmp_path: Path) -> None:
    fill(tmp_path, numbered(9) | {"bomb.png": png(11_000, 9_000, 8, 2, [b""]).read()})
    assert len(of(tmp_path)) == 9


def test_jpeg_files_are_read_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(np.asarray(decode(io.BytesIO(JPEG), 3)), JPEG_PIXELS)


@needs_simplejpeg
def test_complaints_of_simplejpeg_about_anything_but_damage_are_left_to_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        @staticmethod
        def decode_jpeg(*_: Any, **__: Any) -> None:
            raise ValueError("Unsupported JPEG process: SOF type 0xc9")

    monkeypatch.setattr(jpeg, "simplejpeg", Refusing)
    np.testing.assert_array_equal(np.asarray(decode(io.BytesIO(JPEG), 3)), JPEG_PIXELS)


@pytest.fixture(scope="module")
def mutated() -> list[tuple[str, str, bytes]]:
    benchmark = pytest.importorskip("benchmarks.damaged_images")
    return list(benchmark.damaged(240, seed=3))


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_files_are_decoded_or_skipped_and_never_crash(
    mutated: list[tuple[str, str, bytes]],
) -> None:
    outcomes: dict[str, list[bool]] = {}
    for kind, how, content in mutated:
        started = time.process_time()
        try:
            np.asarray(decode(io.BytesIO(content), 3))
        except UnusableImage:
            outcomes.setdefault(f"{kind} {how}", []).append(False)
        else:
            outcomes.setdefault(f"{kind} {how}", []).append(True)
        assert time.process_time() - started < 1, (kind, how)
    assert not any(any(good) for case, good in outcomes.items() if case.startswith("png "))
    assert not any(any(good) for case, good in outcomes.items() if case.endswith(" cut"))
    assert sum(map(sum, outcomes.values())) > 20  # some changes make another valid file
