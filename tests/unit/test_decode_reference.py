"""The reference decoder, which knows only the documentation, decodes the golden files."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tessella.exact import load_twin

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = GOLDEN / "decode_reference.py"
TWIN = GOLDEN / "twins" / "lstm"
ARCHIVES = ["lstm", "lstm-coded"]


def _load_script() -> ModuleType:
    # Python does this for a script that is run: its other half lies beside it.
    sys.path.insert(0, str(GOLDEN))
    spec = importlib.util.spec_from_file_location("decode_reference", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


reference = _load_script()
arithmetic = sys.modules["reference_arithmetic"]


@pytest.fixture(scope="module")
def twin() -> object:
    return reference.read_twin(TWIN)


@pytest.fixture(scope="module")
def predicted() -> object:
    return reference.read_twin(GOLDEN / "twins" / "lstm-predicted")


def _archive(name: str) -> bytes:
    return (GOLDEN / "archives" / f"{name}.tsl").read_bytes()


def _with_checksum(data: bytes) -> bytes:
    """The file whose last four bytes are replaced by the checksum of the others."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def _with_flipped_bit(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_reference_decodes_the_golden_images(name: str, twin: object):
    _check_images(name, reference.decode(_archive(name), twin))


def test_the_reference_decodes_images_of_a_model_with_a_predictor(predicted: object):
    decoded = reference.decode(_archive("lstm-predicted"), predicted)
    assert decoded.packed == [False]
    _check_images("lstm-predicted", decoded)


def _check_images(name: str, decoded: object) -> None:
    with np.load(GOLDEN / "archives" / f"{name}.npz") as stored:
        expected = [stored[f"image{i}"] for i in range(len(stored.files))]
    assert len(decoded.images) == len(expected)
    for image, wanted in zip(decoded.images, expected, strict=True):
        assert image.dtype == wanted.dtype
        assert np.array_equal(image, wanted)


def test_the_golden_files_have_streams_of_both_kinds(twin: object):
    # A packed stream does not need the twin: alone it would prove nothing about the arithmetic.
    assert reference.decode(_archive("lstm"), twin).packed == [True]
    assert reference.decode(_archive("lstm-coded"), twin).packed == [False, False, True]


def test_the_tables_of_functions_are_the_golden_ones():
    golden = (GOLDEN / "functions.sha256").read_text().strip()
    assert reference.tables().digest() == golden


@pytest.mark.parametrize("name", ARCHIVES)
def test_any_flipped_bit_is_noticed(name: str, twin: object):
    data = _archive(name)
    for bit in range(8 * len(data)):
        with pytest.raises(reference.DecodingError):
            reference.decode(_with_flipped_bit(data, bit), twin)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_flipped_bit_under_a_right_checksum_is_noticed(name: str, twin: object):
    data = _archive(name)
    for bit in range(0, 8 * (len(data) - 4), 11):
        with pytest.raises(reference.DecodingError):
            reference.decode(_with_checksum(_with_flipped_bit(data, bit)), twin)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_file_that_ends_early_is_noticed(name: str, twin: object):
    data = _archive(name)
    for length in range(len(data)):
        with pytest.raises(reference.DecodingError):
            reference.decode(data[:length], twin)
    for length in range(len(data) - 4):
        with pytest.raises(reference.DecodingError):
            reference.decode(_with_checksum(data[:length] + bytes(4)), twin)


def test_another_twin_is_refused(tmp_path: Path):
    for file in TWIN.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    numbers = tmp_path / "exact.safetensors"
    numbers.write_bytes(_with_flipped_bit(numbers.read_bytes(), 8 * numbers.stat().st_size - 8))
    with pytest.raises(reference.DecodingError, match="do not have its id"):
        reference.read_twin(tmp_path)


def test_more_pixels_than_allowed_are_refused(twin: object):
    with pytest.raises(reference.DecodingError, match="more than 53 pixels"):
        reference.decode(_archive("lstm"), twin, most_pixels=53)
    reference.decode(_archive("lstm"), twin, most_pixels=54)


@pytest.mark.parametrize("levels", [3, 16, 256, 1000])
@pytest.mark.parametrize("spread", [0.1, 3.0, 1000.0])
def test_frequencies_of_a_mixture_are_positive_and_sum_to_the_total(levels: int, spread: float):
    # Two channels of three components: logits, means, log-scales and coefficients.
    drawn = np.random.default_rng(0).normal(size=[5, 18]) * spread * 2**16
    pixel = arithmetic.Pixel(drawn.astype(np.int64), None, 3, 2, levels)
    for symbol in range(2):
        frequencies = pixel.frequencies()
        assert frequencies.shape == (5, levels)
        assert frequencies.min() >= 1
        assert (frequencies.sum(axis=1) == 2**24).all()
        if symbol == 0:
            pixel.learn(np.arange(5) % levels)


def test_a_predictor_has_the_frequencies_of_the_reference(predicted: object):
    exact = load_twin(GOLDEN / "twins" / "lstm-predicted")
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(256, (16, *exact.grid.shape), generator=generator)
    # Of all contrasts, so that there are pixels of most classes.
    x >>= (torch.arange(16) % 8).view(-1, 1, 1, 1)
    expected = exact(x).flatten(1, 3).numpy()
    model = arithmetic.Lstm(predicted, 16)
    for index in range(exact.grid.symbols):
        assert np.array_equal(model.frequencies(index, x.numpy()), expected[:, index]), index


def test_the_script_needs_nothing_but_numpy():
    # It is run as a user runs it, in a process where the packages that it must not need are barred.
    barred = "import sys\nfor name in ('tessella', 'torch', 'constriction', 'safetensors'):\n"
    code = barred + "    sys.modules[name] = None\nimport runpy\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    archive = GOLDEN / "archives" / "lstm-coded.tsl"
    start = f"import sys\nsys.path.insert(0, {str(GOLDEN)!r})\n"
    start += f"sys.argv = {[str(SCRIPT), str(archive), str(TWIN)]!r}\n"
    finished = subprocess.run(
        [sys.executable, "-I", "-c", start + code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "stream 0: coded" in finished.stdout
    assert "image 4: uint8 [3, 6, 1]" in finished.stdout
