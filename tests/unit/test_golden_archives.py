"""Files of every version of the format decode to the images they were made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tessella as ts
from tessella.exact import load_twin

pytest.importorskip("constriction", reason="needs the extra compress")

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "twin_name", "group"),
    [
        ("lstm", "lstm", 64),
        ("lstm-coded", "lstm", 5),
        ("pixelcnn++", "pixelcnn++", 64),
        ("lstm-predicted", "lstm-predicted", 64),
    ],
)
def test_a_golden_file_decodes_and_encodes_as_ever(name: str, twin_name: str, group: int):
    twin = load_twin(GOLDEN / "twins" / twin_name)
    data = (GOLDEN / "archives" / f"{name}.tsl").read_bytes()
    with np.load(GOLDEN / "archives" / f"{name}.npz") as stored:
        expected = [stored[f"image{i}"] for i in range(len(stored.files))]
    images = ts.decompress(data, twin)
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        assert np.array_equal(np.asarray(image), wanted)
    assert ts.compress(expected, twin, group=group) == data
