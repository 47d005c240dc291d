"""What models that predict in any order promise, on tiny grids in float64.

What every model promises in raster order is in ``test_models.py``.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError
from tessella.models.condition import Condition
from tessella.models.order_agnostic_model import OrderAgnosticModel
from tessella.nn import orders
from tessella.pipeline import load_model, save_model
from tessella.sampling.ordered_walk import OrderedNoise

EXACT = 1e-11
"""Largest difference, in nats, between two ways to compute a log-probability in float64."""

HEADS = ("categorical", "ordinal", "logistic-mixture")
COLOUR = ts.Grid(2, 3, 2, 4)
TINY = ts.Grid(2, 2, 1, 3)


def build(grid: ts.Grid, head: str = "categorical", classes: int = 0) -> OrderAgnosticModel:
    """A small model in float64 with every parameter moved."""
    model = ts.create("any-order", grid, head, classes, seed=3, layers=2, width=8, heads=2)
    assert isinstance(model, OrderAgnosticModel)
    model = model.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.3 * moved
    return model


def some(grid: ts.Grid, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(grid.levels, (n, *grid.shape), generator=generator)


def all_grids(grid: ts.Grid) -> torch.Tensor:
    sequences = itertools.product(range(grid.levels), repeat=grid.symbols)
    return torch.tensor(list(sequences)).view(-1, *grid.shape)


@torch.no_grad()
def tables(model: OrderAgnosticModel, x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of all levels at all places under an order: ``[n, symbols, levels]``."""
    condition = model.condition(None, len(x), order)
    return model.distribution(x, condition).table(x).flatten(1, 3)


def walked(
    model: OrderAgnosticModel, x: torch.Tensor, condition: Condition, naive: bool
) -> torch.Tensor:
    """Log-probabilities of all levels along the order of a condition, step by step."""
    order = condition.order
    assert order is not None
    state = (
        model.whole_grid_state(len(x), condition) if naive else model.init_state(len(x), condition)
    )
    step = model.whole_grid_step if naive else model.step
    previous = torch.zeros(len(x), dtype=torch.int64)
    found = torch.zeros(len(x), model.grid.symbols, model.grid.levels, dtype=torch.float64)
    images = torch.arange(len(x))
    for index in range(model.grid.symbols):
        parameters, state = step(previous, index, state)
        found[images, order[:, index]] = model.head.symbol(parameters).table()
        previous = x.flatten(1)[images, order[:, index]]
    return found


# ---- One order


@pytest.mark.parametrize("head", HEADS)
def test_every_order_gives_all_grids_a_total_of_one(head: str) -> None:
    model = build(TINY, head)
    x = all_grids(TINY)
    with torch.no_grad():
        for order in itertools.permutations(range(TINY.symbols)):
            total = model.log_prob(x, order=order).logsumexp(0)
            assert abs(float(total)) < EXACT, order


def test_every_order_of_channels_gives_all_grids_a_total_of_one() -> None:
    grid = ts.Grid(1, 2, 2, 2)
    model = build(grid)
    x = all_grids(grid)
    with torch.no_grad():
        for order in itertools.permutations(range(grid.symbols)):
            total = model.log_prob(x, order=order).logsumexp(0)
            assert abs(float(total)) < EXACT, order


@pytest.mark.parametrize("head", HEADS)
def test_raster_order_is_what_no_order_means(head: str) -> None:
    model = build(COLOUR, head)
    x = some(COLOUR, 5)
    raster = torch.arange(COLOUR.symbols)
    with torch.no_grad():
        scores = model.log_prob(x, reduce=False)
        torch.testing.assert_close(model.log_prob(x, reduce=False, order=raster), scores)
        for other in model.random_orders(3, seed=1):
            assert not torch.allclose(model.log_prob(x, order=other), scores.flatten(1).sum(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("classes", [0, 3])
def test_steps_along_any_order_equal_the_parallel_pass(head: str, classes: int) -> None:
    model = build(COLOUR, head, classes)
    x = some(COLOUR, 4)
    # Another order, and another class, for each image; the null class is the last.
    cond = torch.arange(4) if classes else None
    condition = model.condition(cond, 4, model.random_orders(4, seed=1))
    with torch.no_grad():
        expected = model.distribution(x, condition).table(x).flatten(1, 3)
    for naive in (False, True):
        found = walked(model, x, condition, naive)
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_symbols_that_are_not_known_yet_change_nothing() -> None:
    model = build(COLOUR)
    x = some(COLOUR, 1)
    for seed in range(4):
        order = model.random_orders(1, seed)[0]
        before = tables(model, x, order)[0]
        for position in range(COLOUR.symbols):
            changed = x.clone()
            flat = changed.flatten(1)
            flat[0, order[position]] = (flat[0, order[position]] + 1) % COLOUR.levels
            moved = (tables(model, changed, order)[0] - before).abs().amax(-1) > 1e-13
            seen_by = moved[order]
            # Not by itself or by what comes before it, and by all that comes after it.
            assert not seen_by[: position + 1].any()
            assert seen_by[position + 1 :].all()


def test_a_missing_symbol_says_nothing_about_another_whatever_is_known() -> None:
    model = build(ts.Grid(3, 3, 1, 4))
    generator = torch.Generator().manual_seed(7)
    for _ in range(10):
        known = torch.rand(9, generator=generator) < 0.5
        target = int(torch.randint(9, (), generator=generator))
        known[target] = False
        # What is known, then the target, then the rest: p(target | known).
        others = [place for place in range(9) if not known[place] and place != target]
        order = torch.tensor([*known.nonzero()[:, 0].tolist(), target, *others])
        x = some(model.grid, 2)
        x[1].flatten()[known] = x[0].flatten()[known]
        given = tables(model, x, order)[:, target]
        torch.testing.assert_close(given[0], given[1], rtol=0, atol=1e-13)


def test_a_state_along_an_order_can_be_cloned_and_its_rows_selected() -> None:
    model = build(COLOUR)
    x = some(COLOUR, 3).flatten(1)
    condition = model.condition(None, 3, model.random_orders(3))
    order = condition.order
    assert order is not None
    state = model.init_state(3, condition)
    images = torch.arange(3)
    previous = torch.zeros(3, dtype=torch.int64)
    for index in range(5):
        _, state = model.step(previous, index, state)
        previous = x[images, order[:, index]]
    copy = state.clone()
    rows = torch.tensor([2, 0])
    expected, _ = model.step(previous, 5, state)
    assert torch.equal(model.step(previous, 5, copy.clone())[0], expected)
    selected, _ = model.step(previous[rows], 5, copy.select(rows))
    torch.testing.assert_close(selected, expected[rows], rtol=0, atol=EXACT)


# ---- Several orders


def test_a_mixture_of_orders_is_a_distribution_and_the_mean_bounds_it() -> None:
    model = build(TINY)
    x = all_grids(TINY)
    several = model.random_orders(5, seed=2)
    with torch.no_grad():
        mixture = model.log_prob_mixture(x, several)
        bound = model.log_prob_bound(x, several)
        each = torch.stack([model.log_prob(x, order=order) for order in several])
    assert abs(float(mixture.logsumexp(0))) < EXACT
    torch.testing.assert_close(mixture, each.exp().mean(0).log())
    torch.testing.assert_close(bound, each.mean(0))
    assert bool((bound <= mixture).all())
    assert bool((bound < mixture - 1e-6).any())


def test_random_orders_follow_their_seed_and_keep_pixels_together_for_a_joint_head() -> None:
    before = torch.get_rng_state()
    model = build(COLOUR)
    assert torch.equal(model.random_orders(4, seed=1), model.random_orders(4, seed=1))
    assert not torch.equal(model.random_orders(4, seed=1), model.random_orders(4, seed=2))
    joint = build(COLOUR, "logistic-mixture")
    for order in joint.random_orders(4):
        assert order.sort().values.tolist() == list(range(12))
        assert order[1::2].tolist() == (order[::2] + 1).tolist()
    assert torch.equal(before, torch.get_rng_state())


# ---- Completions that see all that is known

LOWER = torch.tensor([[False, False], [True, True]])


@pytest.mark.parametrize("head", HEADS)
def test_what_is_missing_has_the_conditional_probabilities_of_its_order(head: str) -> None:
    model = build(TINY, head)
    x = all_grids(TINY)
    with torch.no_grad():
        joint = model.log_prob(x, order=[2, 3, 0, 1])
    missing = ts.log_prob_missing(model, x, LOWER)
    # p(upper | lower) = p(upper, lower) / sum over all upper halves.
    of_lower = x.flatten(1)[:, 2:] @ torch.tensor([3, 1])
    for lower in range(9):
        alike = of_lower == lower
        expected = joint[alike] - joint[alike].logsumexp(0)
        torch.testing.assert_close(missing[alike], expected, rtol=0, atol=EXACT)


def test_completions_are_as_frequent_as_probable() -> None:
    model = build(TINY)
    given = torch.tensor([0, 0, 2, 1]).view(1, 2, 2, 1)
    n = 4000
    drawn = ts.complete(
        model, given.repeat(n, 1, 1, 1), LOWER, seed=50, batch=n, order="known-first"
    )
    assert torch.equal(drawn[:, 1], given[:, 1].expand(n, -1, -1))
    uppers = all_grids(ts.Grid(1, 2, 1, 3))
    every = torch.cat([uppers, given[:, 1:].expand(9, -1, -1, -1)], dim=1)
    expected = n * ts.log_prob_missing(model, every, LOWER).exp()
    assert float(expected.sum()) == pytest.approx(n)
    seen = torch.bincount(drawn.flatten(1)[:, :2] @ torch.tensor([3, 1]), minlength=9)
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    # 8 degrees of freedom: above 26.1 once in a thousand seeds.
    assert chi_square < 26.1
    # The lower half matters: in raster order the upper half is drawn without it.
    raster = ts.complete(model, given.repeat(n, 1, 1, 1), LOWER, seed=50, batch=n)
    seen = torch.bincount(raster.flatten(1)[:, :2] @ torch.tensor([3, 1]), minlength=9)
    assert float(((seen - expected) ** 2 / expected).sum()) > 26.1


@pytest.mark.parametrize("head", HEADS)
def test_cached_completions_are_the_naive_ones_under_every_rule(head: str) -> None:
    model = build(COLOUR, head, classes=3)
    x = some(COLOUR, 4)
    generator = torch.Generator().manual_seed(1)
    # Another mask for each image; all channels of a pixel, as a joint head wants it.
    known = (torch.rand(4, 2, 3, 1, generator=generator) < 0.5).expand(-1, -1, -1, 2)
    cond = torch.tensor([0, 1, 2, 1])
    rules: list[dict[str, float]] = [
        {},
        {"temperature": 0.7, "top_k": 3, "top_p": 0.9},
        {"guidance": 1.5},
    ]
    for rule in rules:
        options = {"cond": cond, "order": "known-first", "seed": 9, **rule}
        cached = ts.complete(model, x, known, **options)  # type: ignore[arg-type]
        naive = ts.complete(model, x, known, method="naive", **options)  # type: ignore[arg-type]
        assert torch.equal(cached, naive)
        assert torch.equal(cached[known], x[known])
        in_twos = ts.complete(model, x, known, batch=2, **options)  # type: ignore[arg-type]
        assert torch.equal(cached, in_twos)


def test_with_nothing_or_the_first_rows_known_both_orders_draw_the_same() -> None:
    grid = ts.Grid(3, 2, 2, 4)
    model = build(grid)
    x = some(grid, 3)
    for rows in range(4):
        known = torch.arange(3)[:, None].expand(3, 2) < rows
        first = ts.complete(model, x, known, seed=4, order="known-first")
        assert torch.equal(first, ts.complete(model, x, known, seed=4))
    last = [drawn for _, drawn in ts.stream(model, n=3, seed=4, order="known-first")][-1]
    assert torch.equal(last, ts.sample(model, n=3, seed=4))


def test_a_stream_of_a_completion_shows_the_known_symbols_first() -> None:
    model = build(COLOUR)
    x = some(COLOUR, 2) % 3 + 1  # no zeros, which stand for missing symbols
    known = torch.tensor([[False, False, False], [False, True, True]])
    seen = []
    for count, partial in ts.stream(
        model, n=2, x=x, known=known, order="known-first", every=4, seed=1
    ):
        seen.append((count, partial.clone()))
    assert [count for count, _ in seen] == [4, 8, 12]
    mask = known[None, :, :, None].expand(2, -1, -1, 2)
    assert torch.equal(seen[0][1], torch.where(mask, x, 0))


def test_the_noise_of_a_symbol_is_that_of_its_place() -> None:
    from tessella.noise import Noise

    order = torch.tensor([[3, 0, 2, 1], [0, 1, 2, 3]])
    plain = Noise(TINY, 2, seed=6)
    for given in (order, order[:1].expand(2, -1)):
        ordered = OrderedNoise(TINY, given, seed=6)
        for position in range(4):
            for image in range(2):
                place = int(given[image, position])
                assert torch.equal(ordered.at(position)[image], plain.at(place)[image])


def test_nothing_missing_scores_zero_and_everything_missing_scores_the_image() -> None:
    model = build(COLOUR)
    x = some(COLOUR, 3)
    all_of_it = torch.ones(2, 3, dtype=torch.bool)
    assert ts.log_prob_missing(model, x, all_of_it).tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        torch.testing.assert_close(ts.log_prob_missing(model, x, ~all_of_it), model.log_prob(x))


# ---- A generator of images


def test_a_generator_completes_and_scores_pixels_and_codes(tmp_path: Path) -> None:
    model = ts.create("any-order", ts.Grid(4, 4, 1, 4), layers=1, width=8, heads=2)
    save_model(model, tmp_path / "pixels")
    pixels = ts.load(tmp_path / "pixels")
    images = torch.randint(256, (2, 4, 4, 1), generator=torch.Generator().manual_seed(0)).byte()
    images[..., 0, 0, 0] = 255
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[2:] = True
    completed = pixels.complete(images, known, seed=3, order="known-first")
    kept = pixels.encode(completed)[:, 2:]
    assert torch.equal(kept, pixels.encode(images)[:, 2:])
    missing = pixels.log_prob_missing(images, known)
    expected = ts.log_prob_missing(model, pixels.encode(images), known)
    torch.testing.assert_close(missing, expected)

    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(8, 8), channels=1, hidden=8, code_dim=4, codebook_size=16
    )
    prior = ts.create("any-order", tokenizer.grid(), layers=1, width=8, heads=2)
    two_stage = ts.Generator(tokenizer, prior)
    images = torch.randint(256, (2, 8, 8, 1), generator=torch.Generator().manual_seed(0)).byte()
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[4:] = True
    assert two_stage.complete(images, known, order="known-first").shape == (2, 8, 8, 1)
    codes, masks = two_stage.symbols_to_keep(images, known)
    assert 0 < int(masks[0].sum()) < masks[0].numel()
    torch.testing.assert_close(
        two_stage.log_prob_missing(images, known),
        ts.log_prob_missing(prior, codes[0], masks[0]),
    )


# ---- Training


def test_orders_of_training_follow_the_global_generator_and_the_shares() -> None:
    grid = ts.Grid(6, 5, 2, 3)
    model = ts.create(
        "any-order", grid, layers=1, width=8, heads=2, raster_share=0.3, known_first_share=0.4
    )
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        order = model.training_condition(Condition(), 600).order
        assert order is not None
        drawn.append(order)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    raster = torch.arange(grid.symbols)
    assert torch.equal(drawn[0].sort(dim=1).values, raster.expand(600, -1))
    # Known first and then missing: at most one step back. (Nothing or all known is raster order.)
    steps_back = (drawn[0].diff(dim=1) < 0).sum(1)
    share = float((steps_back == 0).float().mean())
    assert 0.25 < share < 0.5
    assert 0.15 < float((steps_back == 1).float().mean()) < 0.45
    assert 0.2 < float((steps_back > 1).float().mean()) < 0.4


def test_masks_of_training_hold_halves_of_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = orders.rectangle_masks(2000, 4, 3, generator).view(2000, 4, 3)
    lower = torch.zeros(4, 3, dtype=torch.bool)
    lower[2:] = True
    assert int((masks == lower).all(dim=(1, 2)).sum()) > 10
    assert 0.4 < float(masks.float().mean()) < 0.6


def test_other_models_train_as_they_did() -> None:
    model = ts.create("transformer", TINY, layers=1, width=8, heads=2)
    condition = Condition()
    before = torch.get_rng_state()
    assert model.training_condition(condition, 4) is condition
    assert torch.equal(before, torch.get_rng_state())


def test_the_shares_come_back_with_a_saved_model(tmp_path: Path) -> None:
    model = ts.create("any-order", TINY, width=8, heads=2, raster_share=0.5, known_first_share=0.1)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, OrderAgnosticModel)
    assert loaded.sizes()["raster_share"] == 0.5
    assert loaded.sizes()["known_first_share"] == 0.1


# ---- Refusals


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2], r"of shape \[4\] or \[2, 4\], got .* of shape \[3\]"),
        ([0, 1, 2, 2], "each place 0..3 once"),
        ([0, 1, 2, 4], "each place 0..3 once"),
        ([0.0, 1.0, 2.0, 3.0], "integers"),
        ("raster", "order must be"),
    ],
)
def test_what_is_no_order_is_refused(order: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(TINY).log_prob(some(TINY, 2), order=order)


def test_a_joint_head_refuses_orders_and_masks_that_part_a_pixel() -> None:
    model = build(COLOUR, "logistic-mixture")
    x = some(COLOUR, 1)
    parted = torch.arange(12)
    parted[[1, 2]] = parted[[2, 1]]
    turned = torch.arange(12)
    turned[[0, 1]] = turned[[1, 0]]
    for order in (parted, turned):
        with pytest.raises(InputError, match="must keep them together"):
            model.log_prob(x, order=order)
    known = torch.zeros(x.shape, dtype=torch.bool)
    known[..., 0] = True
    for refused in (
        lambda: ts.complete(model, x, known, order="known-first"),
        lambda: ts.log_prob_missing(model, x, known),
    ):
        with pytest.raises(InputError, match="all or none of them"):
            refused()


def test_models_of_raster_order_name_the_one_that_can() -> None:
    model = ts.create("transformer", TINY, layers=1, width=8, heads=2)
    x = some(TINY, 1)
    for refused in (
        lambda: ts.complete(model, x, LOWER, order="known-first"),
        lambda: ts.log_prob_missing(model, x, LOWER),
    ):
        with pytest.raises(InputError, match="transformer predicts .* family any-order"):
            refused()
    with pytest.raises(InputError, match="raster order only: leave the order out"):
        model.log_prob(x, Condition(order=torch.arange(4)[None]))
    with pytest.raises(InputError, match="not this model's"):
        model.distribution(x, Condition(order=torch.arange(4)[None]))


def test_other_options_that_make_no_sense_are_refused() -> None:
    model = build(TINY)
    x = some(TINY, 1)
    with pytest.raises(InputError, match="unknown order 'known_first'"):
        ts.complete(model, x, LOWER, order="known_first")  # type: ignore[arg-type]
    for method in ("windows", "parallel"):
        with pytest.raises(InputError, match=f"method='{method}' draws in raster order"):
            ts.complete(model, x, LOWER, order="known-first", method=method)
    with pytest.raises(InputError, match="at least one order"):
        model.log_prob_bound(x, [])
    with pytest.raises(ConfigError, match="takes no predictor"):
        ts.create("any-order", ts.Grid(4, 4, 1, 8), "logistic-mixture", predictor=True)
    with pytest.raises(ConfigError, match="add up to at most 1"):
        ts.create("any-order", TINY, raster_share=0.6, known_first_share=0.5)
    with pytest.raises(ConfigError, match="heads that divide the width"):
        ts.create("any-order", TINY, width=30)


def test_a_fresh_model_is_about_as_good_as_guessing() -> None:
    model = ts.create("any-order", ts.Grid(8, 8, 1, 16))
    with torch.no_grad():
        bits = model.bits_per_dim(some(model.grid, 4))
    assert float(bits.mean()) == pytest.approx(math.log2(16), abs=0.3)
