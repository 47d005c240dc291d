"""The benchmark of completions, on grids that can be enumerated."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tessella as ts
from tessella.pipeline import save_model

ROOT = Path(__file__).resolve().parents[2]
GRID = ts.Grid(2, 2, 1, 2)


@pytest.fixture
def completion(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("completion")


def test_halves_are_scored_alone_and_given_the_other(completion: ModuleType) -> None:
    model = ts.create("any-order", GRID, layers=1, width=8, heads=2).double()
    x = torch.tensor([[a, b, c, d] for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)])
    x = x.view(16, 2, 2, 1)
    scores = completion.score(model, x, batch=5)
    with torch.no_grad():
        nats = model.log_prob(x).view(4, 4)  # [upper, lower]
        reversed_nats = model.log_prob(x, order=[2, 3, 0, 1]).view(4, 4)
    alone = nats.logsumexp(1, keepdim=True).expand(4, 4).flatten()
    given = (reversed_nats - reversed_nats.logsumexp(0)).flatten()
    torch.testing.assert_close(scores["alone"], -alone)
    torch.testing.assert_close(scores["given_lower"], -given)


def test_differences_are_taken_image_by_image(completion: ModuleType, tmp_path: Path) -> None:
    images = torch.randint(2, (6, 2, 2, 1), generator=torch.Generator().manual_seed(0)) * 255
    measured = []
    for family in ("transformer", "any-order"):
        model = ts.create(family, GRID, layers=1, width=8, heads=2)
        save_model(model, tmp_path / family)
        run = str(tmp_path / family)
        measured.append(completion.measure(run, images.byte().numpy(), batch=4))
    compared = completion.reference(measured)
    assert torch.equal(compared, measured[1].scores["given_lower"])
    raster, any_order = (completion.row_of(scored, compared, {}) for scored in measured)
    assert "nats_given_lower" not in raster
    assert any_order["nats_given_lower_minus_reference"] == 0
    expected = (measured[0].scores["alone"] - compared).mean()
    assert raster["nats_alone_minus_reference"] == pytest.approx(float(expected))
    assert raster["minutes"] is None


def test_images_of_another_size_are_refused(completion: ModuleType) -> None:
    with pytest.raises(ValueError, match="the images are"):
        completion.symbols_of(torch.zeros(1, 3, 2, 1, dtype=torch.uint8).numpy(), GRID)
