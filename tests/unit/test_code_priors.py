"""The benchmark of priors on codes, on tiny runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tessella as ts
from tessella.data import ImageSet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def code_priors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("code_priors")


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """A raster prior and a masked one on the codes of one tokenizer."""
    tokenizer = ts.create_tokenizer("vqvae", image_size=(8, 8), channels=1, hidden=8,
                                    codebook_size=16)  # fmt: skip
    for family in ("transformer", "masked"):
        prior = ts.create(family, tokenizer.grid(), layers=1, width=8, heads=2)
        ts.Generator(tokenizer, prior).save(tmp_path / family)
    return [str(tmp_path / "transformer"), str(tmp_path / "masked")]


def test_a_masked_prior_has_a_row_for_each_number_of_steps(
    code_priors: ModuleType, runs: list[str], tmp_path: Path
) -> None:
    drawers = [drawer for run in runs for drawer in code_priors.drawers_of(run, [1, 2])]
    assert [drawer.label for drawer in drawers] == [
        "transformer",
        "masked, 1 steps",
        "masked, 2 steps",
    ]
    assert [drawer.passes for drawer in drawers] == [4, 1, 2]
    code_priors.check_tokenizers(drawers)
    times = code_priors.time_drawings(drawers, [1, 2], rounds=1)
    for row in times.values():
        assert set(row) == {"ms_an_image_at_1", "ms_an_image_at_2"}
        assert all(milliseconds > 0 for milliseconds in row.values())
    code_priors.save_sheet(drawers, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_bits_say_whether_they_are_exact(code_priors: ModuleType, runs: list[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    images = ImageSet(pixels)
    exact, bound = (code_priors.bits_of(run, images, batch=2) for run in runs)
    assert (exact["bits_are"], bound["bits_are"]) == ("exact", "a bound")
    # Untrained, both give each of the 16 codes about the same probability.
    assert exact["bits_per_code"] == pytest.approx(4, abs=0.5)
    assert bound["bits_per_code"] == pytest.approx(4, abs=0.5)


def test_codes_of_different_tokenizers_do_not_compare(
    code_priors: ModuleType, runs: list[str], tmp_path: Path
) -> None:
    other = ts.create_tokenizer("vqvae", image_size=(8, 8), channels=1, hidden=8,
                                codebook_size=16, seed=1)  # fmt: skip
    prior = ts.create("transformer", other.grid(), layers=1, width=8, heads=2)
    ts.Generator(other, prior).save(tmp_path / "other")
    drawers = [code_priors.drawers_of(run, [1])[0] for run in (runs[0], str(tmp_path / "other"))]
    with pytest.raises(ValueError, match="other, transformer have several tokenizers"):
        code_priors.check_tokenizers(drawers)
