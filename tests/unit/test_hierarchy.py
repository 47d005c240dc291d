"""Priors of several grids: probabilities, sampling, completion, training, saving."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.models import Hierarchy
from tessella.models.hierarchy import pack, unpack
from tessella.noise import Noise
from tessella.sampling import Sampler
from tessella.tokenizers import TOKENIZERS, Tokenizer
from tessella.training import loop
from tessella.training.tasks import DensityTask

TOP, BOTTOM = ts.Grid(1, 2, 1, 2), ts.Grid(2, 4, 1, 3)


class Halves(Tokenizer):
    """Grey images on two grids: the mean of blocks of 4x4 pixels, and of 2x2, to 2 and 3 levels."""

    name = "halves"
    lossless = False
    stride = 2

    def __init__(self, image_size: tuple[int, int] = (4, 8), channels: int = 1) -> None:
        super().__init__(image_size, channels)
        self.register_buffer("nothing", torch.zeros(1))

    def grids(self, height: int | None = None, width: int | None = None) -> tuple[ts.Grid, ...]:
        height, width = self._size(height, width)
        return ts.Grid(height // 4, width // 4, 1, 2), ts.Grid(height // 2, width // 2, 1, 3)

    def config(self) -> dict[str, Any]:
        return {"image_size": list(self.image_size), "channels": self.channels}

    def encode_float(self, images: torch.Tensor) -> Any:
        return tuple(
            torch.nn.functional.avg_pool2d(images.movedim(-1, 1), side).movedim(1, -1)
            for side in (4, 2)
        )

    def decode_float(self, features: Any) -> torch.Tensor:
        return features[-1].repeat_interleave(2, 1).repeat_interleave(2, 2)

    def _encode(self, images: torch.Tensor) -> Any:
        top, bottom = self.encode_float(images.double() / 256)
        return (2 * top).long(), (3 * bottom).long()

    def _decode(self, symbols: Any) -> torch.Tensor:
        return (self.decode_float((symbols[0], symbols[1])) * 85 + 40).to(torch.uint8)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENIZERS._entries, "halves", Halves)


def prior(name: str = "gated-pixelcnn", **sizes: Any) -> Hierarchy:
    sizes = {"layers": 1, "hidden": 8, "seed": 1} | sizes
    built = ts.create_prior(name, (TOP, BOTTOM), **sizes)
    assert isinstance(built, Hierarchy)
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():  # so that every part has a say
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return built.double()


def images(n: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 8, 1), dtype=np.uint8)


def every_pair(top: ts.Grid, bottom: ts.Grid) -> tuple[torch.Tensor, torch.Tensor]:
    tops = list(itertools.product(range(top.levels), repeat=top.symbols))
    bottoms = list(itertools.product(range(bottom.levels), repeat=bottom.symbols))
    pairs = list(itertools.product(tops, bottoms))
    return (
        torch.tensor([pair[0] for pair in pairs]).view(-1, *top.shape),
        torch.tensor([pair[1] for pair in pairs]).view(-1, *bottom.shape),
    )


@pytest.mark.parametrize("name", ["gated-pixelcnn", "transformer"])
def test_the_probabilities_of_all_pairs_of_grids_sum_to_one(name: str) -> None:
    top, bottom = ts.Grid(1, 1, 1, 3), ts.Grid(2, 2, 1, 2)
    model = ts.create_prior(name, (top, bottom), layers=1, seed=2).double()
    total = model.log_prob(every_pair(top, bottom)).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_the_fine_grid_depends_on_the_coarse_one() -> None:
    model, (top, bottom) = prior(), every_pair(ts.Grid(1, 2, 1, 2), ts.Grid(1, 1, 1, 2))
    fine = torch.zeros(len(top), *BOTTOM.shape, dtype=torch.int64)
    _, given = model.log_probs((top, fine))
    assert len(given.unique()) > 2, "four coarse grids, each should matter"
    assert bottom.shape[0] == len(top)


def test_each_image_depends_on_its_own_seed_only_and_grids_have_noise_of_their_own() -> None:
    generator = ts.Generator(Halves(), prior())
    together = generator.sample(6, seed=3)
    assert torch.equal(together[4], generator.sample(1, seed=7)[0])
    assert torch.equal(together, generator.sample(6, seed=3, batch=4))
    grid = ts.Grid(2, 2, 1, 4)
    one, other = (Noise(grid, 1, 0, part=part).at(0) for part in (0, 1))
    assert not torch.equal(one, other)


def test_samples_are_exactly_what_each_prior_draws_given_the_coarser_codes() -> None:
    model = prior()
    generator = ts.Generator(Halves(), model)
    *_, (index, _) = generator.stream(5, seed=2)
    assert index == TOP.symbols + BOTTOM.symbols
    top = ts.sample(model.priors[0], 5, seed=2)
    sampler = Sampler(model.priors[1], part=1)
    *_, (_, bottom) = sampler.stream(5, 2, {"codes": top})
    assert torch.equal(generator.sample(5, seed=2), generator.tokenizer.decode((top, bottom)))


@pytest.mark.parametrize("method", ["cached", "parallel", "naive"])
def test_all_methods_draw_the_same(method: str) -> None:
    generator = ts.Generator(Halves(), prior())
    assert torch.equal(generator.sample(4, seed=1, method=method), generator.sample(4, seed=1))


def test_completion_keeps_the_cells_that_are_known_on_every_grid() -> None:
    generator, given = ts.Generator(Halves(), prior()), images(3)
    known = torch.zeros(4, 8, dtype=torch.bool)
    known[:, :4] = known[:2] = True
    masks = generator._known_symbols(known, 3)
    assert masks[0][0, :, :, 0].tolist() == [[True, False]]
    assert masks[1][0, :, :, 0].tolist() == [[True, True, True, True], [True, True, False, False]]
    symbols = generator.encode(given)
    done = generator.complete(given, known, seed=4)
    again = generator.tokenizer.decode(symbols)
    assert torch.equal(done[:, :2], again[:, :2])
    assert torch.equal(done[:, :, :4], again[:, :, :4])
    with pytest.raises(InputError, match="both"):
        generator.sample(3, x=symbols)


def test_classes_reach_both_priors() -> None:
    model = prior(classes=3)
    generator = ts.Generator(Halves(), model)
    labels = torch.tensor([0, 1, 2, 3])
    assert generator.sample(4, cond=labels).shape == (4, 4, 8, 1)
    symbols = generator.encode(np.repeat(images(1), 4, 0))
    for nats in model.log_probs(symbols, labels):
        assert len(nats.unique()) == 4
    assert torch.equal(
        generator.sample(4, cond=labels, guidance=1.0), generator.sample(4, cond=labels)
    )
    assert generator.sample(4, cond=labels, guidance=2.0).shape == (4, 4, 8, 1)


def test_priors_that_do_not_fit_are_refused() -> None:
    plain = ts.create("gated-pixelcnn", BOTTOM, layers=1, hidden=8)
    top = ts.create("gated-pixelcnn", TOP, layers=1, hidden=8)
    with pytest.raises(ConfigError, match="must be conditioned on codes"):
        Hierarchy([top, plain])
    with pytest.raises(ConfigError, match="2 priors"):
        Hierarchy([top])
    with pytest.raises(ConfigError, match="does not fit its tokenizer"):
        ts.Generator(Halves(), top)
    with pytest.raises(ConfigError, match="cannot be conditioned on a grid of codes"):
        ts.create_prior("fvsbn", (TOP, BOTTOM))
    with pytest.raises(InputError, match="all 2 grids"):
        prior().log_prob(torch.zeros(2, 1, 2, 1, dtype=torch.int64))


def test_packing_is_undone_by_unpacking() -> None:
    top, bottom = (torch.randint(grid.levels, (3, *grid.shape)) for grid in (TOP, BOTTOM))
    packed = pack((top, bottom))
    assert packed.shape == (3, TOP.symbols + BOTTOM.symbols)
    assert all(
        torch.equal(a, b) for a, b in zip(unpack(packed, (TOP, BOTTOM)), (top, bottom), strict=True)
    )


def test_the_loss_of_training_is_the_exact_figure_in_bits_per_code() -> None:
    model, tokenizer = prior(), Halves()
    task = DensityTask(model, tokenizer)
    x = torch.from_numpy(images())
    expected = model.bits_per_dim(tokenizer.encode(x)).mean()
    torch.testing.assert_close(task(x, None)["loss"], expected)
    torch.testing.assert_close(task(pack(tokenizer.encode(x)), None)["loss"], expected)


def test_a_run_trains_resumes_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(out: str, resume: bool = False) -> Any:
        model = ts.create_prior(
            "gated-pixelcnn", (TOP, BOTTOM), layers=1, hidden=8, finer={"layers": 2}
        )
        options = {"steps": 12, "batch": 16, "validate_every": 4, "learning_rate": 1e-2}
        say: Any = lambda line: None  # noqa: E731
        return ts.train(
            model,
            images(200),
            out=tmp_path / out,
            tokenizer=Halves(),
            resume=resume,
            say=say,
            **options,
        )

    step = loop._step

    def last_before_a_signal(session: loop.Session, *rest: Any) -> dict[str, float]:
        if session.progress.step == 3:
            session.stop.set()
        return step(session, *rest)

    whole = train("whole").load()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", last_before_a_signal)
        assert train("halves").interrupted
    parts = train("halves", resume=True).load()
    assert isinstance(whole, ts.Generator)
    assert whole.prior.config()["priors"][1]["sizes"]["layers"] == 2
    assert torch.equal(whole.sample(5), parts.sample(5))
    figures = ts.evaluate(tmp_path / "whole", images(20, seed=5))
    of_grids = figures["bits_per_code_of_grids"]
    mean = (of_grids[0] * TOP.symbols + of_grids[1] * BOTTOM.symbols) / (
        TOP.symbols + BOTTOM.symbols
    )
    assert figures["bits_per_code"] == pytest.approx(mean)
    assert figures["bits_per_code"] == pytest.approx(
        float(whole.bits_per_dim(images(20, seed=5)).mean().detach())
    )
    assert figures["baseline_bits_per_dim"] > 0
    assert figures["codebook_size"] == [2, 3]


def test_codes_of_many_scales_are_refused_with_what_can_be_done() -> None:
    with pytest.raises(ConfigError, match=r"makes 3 grids.*at most 2.*docs/tokenizers\.md"):
        ts.create_prior("gated-pixelcnn", scales_tokenizer().grids(), layers=1, hidden=4)


def test_codes_of_many_scales_are_modelled_as_one_sequence(tmp_path: Path) -> None:
    # As docs/tokenizers.md shows it.
    tokenizer = scales_tokenizer()
    images = np.random.default_rng(0).integers(256, size=(24, 8, 8, 1), dtype=np.uint8)
    grids = tokenizer.grids()
    codes = pack(tokenizer.encode(images))[:, None, :, None]
    sequence = ts.Grid(1, codes.shape[2], 1, grids[0].levels)
    assert sequence.shape == (1, 1 + 4 + 16, 1)
    model = ts.create("transformer", sequence, layers=1, width=8, heads=2)
    ts.train(model, codes, steps=2, out=tmp_path / "scales")
    drawn = ts.sample(model, n=2, seed=0)
    parts = unpack(drawn.flatten(1), grids)
    assert torch.equal(pack(parts)[:, None, :, None], drawn)
    assert tokenizer.decode(parts).shape == (2, 8, 8, 1)


def scales_tokenizer() -> ts.Tokenizer:
    """Codes of three scales, with random weights."""
    return ts.create_tokenizer(
        "multiscale-vqgan",
        image_size=(8, 8),
        channels=1,
        hidden=8,
        multipliers=(1, 2),
        residual_blocks=1,
        scales=(1, 2, 4),
        codebook_size=16,
        code_dim=4,
        groups=4,
    )
