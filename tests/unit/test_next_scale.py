"""The next-scale model: probabilities, what each code sees, drawing, training, saving, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.models import NextScale
from tessella.models.hierarchy import level_condition, pack, unpack
from tessella.sampling import Sampler, Sampling
from tessella.training.tasks import DensityTask

GRIDS = (ts.Grid(1, 1, 1, 2), ts.Grid(2, 2, 1, 2), ts.Grid(2, 3, 1, 2))


def prior(grids: Sequence[ts.Grid] = GRIDS, **sizes: Any) -> NextScale:
    sizes = {"layers": 2, "width": 8, "heads": 2, "embedding": 4, "seed": 1} | sizes
    built = ts.create_prior("next-scale", grids, **sizes)
    assert isinstance(built, NextScale)
    generator = torch.Generator().manual_seed(0)
    # Fresh weights give nearly uniform codes, which would hide what depends on what.
    for parameter in built.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return built.double()


def some_codes(grids: Sequence[ts.Grid] = GRIDS, n: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    codes = []
    for grid in grids:
        codes.append(torch.randint(grid.levels, (n, *grid.shape), generator=generator))
    return tuple(codes)


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
        codebook_size=8,
        code_dim=4,
        groups=4,
    )


def images(n: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(n, 8, 8, 1), dtype=np.uint8)


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_the_probabilities_of_all_codes_sum_to_one(label: int | None) -> None:
    model = prior(classes=0 if label is None else 2)
    every = torch.tensor(list(itertools.product(range(2), repeat=model.symbols)))
    labels = None if label is None else torch.full((len(every),), label)
    total = model.log_prob(unpack(every, GRIDS), labels).exp().sum()
    assert float(total.detach()) == pytest.approx(1, abs=1e-12)


def test_codes_depend_on_all_coarser_scales_and_on_nothing_else() -> None:
    model = prior()
    codes = some_codes(n=1)
    for changed in range(3):
        other = list(codes)
        other[changed] = 1 - other[changed]
        for scale, (one, two) in enumerate(zip(tables(model), tables(model, other), strict=True)):
            same = torch.equal(one.table(), two.table())
            assert same == (scale <= changed), (scale, changed)


def tables(model: NextScale, codes: Sequence[torch.Tensor] | None = None) -> Any:
    return model.distributions(codes or some_codes(n=1), None)


@pytest.mark.parametrize("changed", range(1 + 4))
def test_every_single_code_of_a_coarser_scale_is_seen(changed: int) -> None:
    model = prior()
    packed = pack(some_codes(n=1))
    other = packed.clone()
    other[:, changed] = 1 - other[:, changed]
    one = tables(model, unpack(packed, GRIDS))[-1].table()
    two = tables(model, unpack(other, GRIDS))[-1].table()
    # Every place of the finest scale, not only those below the code.
    assert bool((one != two).any(-1).all())


def test_a_pass_over_one_scale_is_that_over_all_of_them() -> None:
    model = prior(classes=2)
    codes = some_codes()
    labels = torch.tensor([0, 1, 2, 1])
    together = model.log_probs(codes, labels)
    for level, part in enumerate(model.priors):
        condition = level_condition(part, labels, codes[:level])
        torch.testing.assert_close(part.log_prob(codes[level], condition), together[level])


def test_the_input_of_a_scale_is_the_enlarged_sum_of_the_coarser_codes() -> None:
    model = prior()
    codes = some_codes(n=2)
    network = model.network
    total = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    for scale in range(2):
        vectors = network.vectors[codes[scale][..., 0]].movedim(-1, 1)
        maps = torch.nn.functional.interpolate(vectors, size=(2, 3), mode="bicubic")
        total = total + (maps + network.blends[scale](maps)) / 2
    expected = network.widen(total.flatten(2).transpose(1, 2))
    torch.testing.assert_close(network._inputs(codes[:2])[:, 5:], expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3}, {"guidance": 1.5}])
def test_all_methods_draw_the_same_codes(options: dict[str, float]) -> None:
    grids = (ts.Grid(1, 1, 1, 5), ts.Grid(2, 2, 1, 5), ts.Grid(3, 3, 1, 5))
    model = prior(grids, classes=2)
    labels = torch.tensor([0, 1, 1, 0])
    naive = draw(model, 4, labels, method="naive", **options)
    for method in ("cached", "parallel", "auto"):
        assert torch.equal(draw(model, 4, labels, method=method, **options), naive), method


def draw(
    model: NextScale, n: int, labels: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Codes of all scales, packed, drawn one scale after another."""
    codes: list[torch.Tensor] = []
    for level, part in enumerate(model.priors):
        how = Sampling.from_keywords(every=part.grid.symbols, **options)
        condition = level_condition(part, labels, codes) or None
        for _, partial in Sampler(part, how, level).stream(n, 7, condition):
            drawn = partial
        codes.append(drawn.clone())
    return pack(codes)


def test_a_scale_takes_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = scales_tokenizer()
    generator = ts.Generator(tokenizer, prior(tokenizer.grids()).float())
    assert isinstance(generator.prior, NextScale)
    network = generator.prior.network
    passes = []
    forward = type(network).forward

    def counted(self: Any, *inputs: Any) -> Any:
        passes.append(len(inputs[0]))
        return forward(self, *inputs)

    monkeypatch.setattr(type(network), "forward", counted)
    generator.sample(5)
    # The scales in order, each once.
    assert passes == [0, 1, 2]


def test_image_i_has_seed_plus_i_whatever_the_batch() -> None:
    tokenizer = scales_tokenizer()
    generator = ts.Generator(tokenizer, prior(tokenizer.grids()))
    whole = list(generator.stream_symbols(4, seed=5))[-1][1]
    alone = list(generator.stream_symbols(1, seed=7))[-1][1]
    for one, many in zip(alone, whole, strict=True):
        assert torch.equal(one[0], many[2])


def test_codes_are_drawn_as_often_as_they_are_probable() -> None:
    grids = (ts.Grid(1, 1, 1, 2), ts.Grid(1, 2, 1, 2))
    model = prior(grids)
    n = 4000
    drawn = draw(model, n)
    every = torch.tensor(list(itertools.product(range(2), repeat=3)))
    expected = model.log_prob(unpack(every, grids)).exp().detach()
    places = (drawn * torch.tensor([4, 2, 1])).sum(1)
    counts = torch.bincount(places, minlength=8).double()
    chi_squared = float(((counts - n * expected) ** 2 / (n * expected)).sum())
    # 7 degrees of freedom: more in one of 10,000 draws; the seed is fixed.
    assert chi_squared < 29.9


def test_it_trains_with_one_pass_and_comes_back(tmp_path: Path) -> None:
    tokenizer = scales_tokenizer()
    model = ts.create_prior(
        "next-scale", tokenizer.grids(), layers=1, width=8, heads=2, classes=2, dropout=0.1
    )
    assert isinstance(model, NextScale)
    labels = np.arange(24) % 2
    say: Any = lambda line: None  # noqa: E731
    run = ts.train(
        model, images(), labels=labels, out=tmp_path / "run", tokenizer=tokenizer, steps=3, say=say
    )
    generator = run.load()
    assert isinstance(generator, ts.Generator)
    assert isinstance(generator.prior, NextScale)
    assert not generator.prior.training
    torch.testing.assert_close(
        generator.log_prob(images(), torch.from_numpy(labels)),
        model.log_prob(tokenizer.encode(images()), torch.from_numpy(labels)),
    )
    figures = ts.evaluate(tmp_path / "run", images(), labels=labels)
    assert len(figures["bits_per_code_of_grids"]) == 3
    assert generator.prior.config() == model.config()
    assert "next-scale on" in repr(generator)


def test_it_learns_how_fine_codes_follow_from_coarse_ones() -> None:
    grids = (ts.Grid(1, 1, 1, 4), ts.Grid(2, 2, 1, 4), ts.Grid(3, 3, 1, 4))
    model = ts.create_prior("next-scale", grids, layers=1, width=16, heads=2)
    assert isinstance(model, NextScale)
    # Every fine code is the coarsest one, plus its column in the finest grid.
    coarse = torch.arange(4).view(4, 1, 1, 1)
    column = torch.arange(3).view(1, 1, 3, 1)
    codes = (coarse, coarse.expand(4, 2, 2, 1), ((coarse + column) % 4).expand(4, 3, 3, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        (-model.log_prob(codes).mean()).backward()
        optimizer.step()
    first, second, third = (float(part.detach().mean()) for part in model.log_probs(codes))
    assert first == pytest.approx(-np.log(4), abs=0.05)
    assert second > -0.1
    assert third > -0.2


def test_its_weights_are_saved_once(tmp_path: Path) -> None:
    model = prior(classes=2).float()
    model.null_class = False
    assert all(key.startswith("network.") for key in model.state_dict())
    model.save_pretrained(tmp_path / "prior")
    again = NextScale.from_pretrained(tmp_path / "prior")
    assert again.config() == model.config()
    assert again.parameter_count() == model.parameter_count()
    labels = torch.tensor([0, 1, 1, 0])
    assert torch.equal(again.log_prob(some_codes(), labels), model.log_prob(some_codes(), labels))


def test_rounded_weights_are_those_of_all_scales() -> None:
    model = prior().float()
    rounded = ts.quantize_weights(model, "bfloat16")
    together = rounded.log_probs(some_codes(), None)
    codes = some_codes()
    for level, part in enumerate(rounded.priors):
        condition = level_condition(part, None, codes[:level]) or None
        torch.testing.assert_close(part.log_prob(codes[level], condition), together[level])
    assert not torch.equal(together[2], model.log_probs(some_codes(), None)[2])


def test_the_loss_is_that_of_log_prob() -> None:
    tokenizer = scales_tokenizer()
    model = prior(tokenizer.grids())
    task = DensityTask(model, tokenizer)
    figures = task(torch.from_numpy(images()), None)
    expected = model.bits_per_dim(tokenizer.encode(images())).mean()
    torch.testing.assert_close(figures["loss"], expected)
    assert set(figures) == {"loss", "bits_per_code/0", "bits_per_code/1", "bits_per_code/2"}


def test_dropout_reaches_training_but_no_likelihood() -> None:
    model = prior(dropout=0.5)
    assert torch.equal(model.log_prob(some_codes()), model.log_prob(some_codes()))
    with pytest.raises(InputError, match="training mode"):
        model.train().log_prob(some_codes())
    one, two = (model.distributions(some_codes(), None)[-1].table() for _ in range(2))
    assert not torch.equal(one, two)


def test_two_grids_of_codes_are_two_scales() -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae2", image_size=(8, 8), channels=1, hidden=8, residual_hidden=4, code_dim=4
    )
    generator = ts.Generator(tokenizer, prior(tokenizer.grids(), layers=1).float())
    assert generator.sample(2).shape == (2, 8, 8, 1)


def test_codes_that_are_given_are_kept_and_part_of_an_image_is_refused() -> None:
    tokenizer = scales_tokenizer()
    generator = ts.Generator(tokenizer, prior(tokenizer.grids()))
    codes = tokenizer.encode(images(3))
    known = [torch.zeros(3, *grid.shape, dtype=torch.bool) for grid in tokenizer.grids()]
    known[1][:] = True
    drawn = list(generator.stream_symbols(3, x=codes, known=tuple(known)))[-1][1]
    assert torch.equal(drawn[1], codes[1])
    assert not torch.equal(drawn[2], codes[2])
    with pytest.raises(InputError, match=r"cannot keep part of an image.*raster order"):
        generator.complete(images(3), np.ones((8, 8), dtype=bool))


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    one, two = ts.Grid(1, 1, 1, 4), ts.Grid(2, 2, 1, 4)
    cases: list[tuple[list[ts.Grid], dict[str, Any], str]] = [
        ([two], {}, "one grid: train a multiscale-vqgan"),
        ([two, one], {}, "from coarse to fine"),
        ([one, ts.Grid(2, 2, 1, 5)], {}, "equally many levels"),
        ([one, ts.Grid(2, 2, 2, 4)], {}, "one channel"),
        ([one, two], {"width": 9}, "divide the width"),
        ([one, two], {"layers": 0}, "layers >= 1"),
        ([one, two], {"head": "logistic-mixture"}, "take 'categorical'"),
        ([one, two], {"finer": {"layers": 1}}, "one for all grids"),
        ([one, two], {"hidden": 3}, "unknown size of next-scale"),
    ]
    for grids, sizes, message in cases:
        options: Any = {"heads": 2} | sizes
        with pytest.raises(ConfigError, match=message):
            ts.create_prior("next-scale", grids, **options)
    with pytest.raises(ConfigError, match=r"not one grid: use ts\.create_prior"):
        ts.create("next-scale", two)
