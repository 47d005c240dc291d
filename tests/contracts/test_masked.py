"""What masked models promise beside their contracts: drawing, refusals, training.

The contracts themselves (no leak, the bound by enumeration, frequencies, saving) are in
``tessella.contracts.masked_contracts``; ``test_contract_library.py`` runs them.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella.errors import ConfigError, InputError, NumericalError
from tessella.models.masked_model import MaskedModel
from tessella.pipeline import Generator, load_model, save_model
from tessella.sampling import Unmasking
from tessella.tokenizers import create_tokenizer

GRID = ts.Grid(3, 4, 2, 5)


def build(grid: ts.Grid = GRID, classes: int = 0, **sizes: str) -> MaskedModel:
    """A small model in float64 with every parameter moved."""
    model = ts.create("masked", grid, "categorical", classes, seed=3, layers=1, width=8, heads=2)
    assert isinstance(model, MaskedModel)
    model = model.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += 0.3 * moved
    return model


def some(n: int, grid: ts.Grid = GRID) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(grid.levels, (n, *grid.shape), generator=generator)


# ---- The bound and the loss


def test_the_estimate_of_the_bound_is_right_on_average() -> None:
    grid = ts.Grid(2, 2, 1, 3)
    model = build(grid)
    x = some(1, grid)
    orders = model.random_orders(600, seed=1)
    with torch.no_grad():
        exact = model.log_prob(x.expand(600, -1, -1, -1), order=orders)
    for masks in (1, 3):
        many = x.expand(1000, -1, -1, -1)
        found = model.any_order_bound(many, masks=masks, seed=2)
        spread = float(found.var() / 1000 + exact.var() / 600) ** 0.5
        assert abs(float(found.mean() - exact.mean())) < 4 * spread


def test_the_loss_is_minus_the_bound_on_average() -> None:
    grid = ts.Grid(2, 2, 1, 3)
    model = build(grid)
    x = some(1, grid)
    bound = model.any_order_bound(x.expand(1000, -1, -1, -1), seed=2)
    torch.manual_seed(1)
    with torch.no_grad():
        nats = model.training_nats(x.expand(4000, -1, -1, -1), model.condition(None, 4000))
    # Shares are spread evenly over a batch, so this overstates the error.
    spread = float(nats.var() / 4000 + bound.var() / 1000) ** 0.5
    assert abs(float(nats.mean() + bound.mean())) < 4 * spread


def test_schedules_of_training_mask_as_they_say() -> None:
    model = build()
    torch.manual_seed(0)
    means = {"uniform": 0.5, "cosine": 2 / math.pi, "arccos": 2 / math.pi}
    for schedule, mean in means.items():
        model.use_schedule(schedule)
        masked = ~model._training_masks(400)
        assert int(masked.flatten(1).sum(1).min()) >= 1
        # A share is rounded up to whole symbols, half a symbol on average.
        assert float(masked.double().mean()) == pytest.approx(mean + 0.5 / GRID.symbols, abs=0.02)
    with pytest.raises(ConfigError, match="uniform"):
        model.use_schedule("unifrom")


# ---- Drawing


def test_a_step_keeps_as_many_symbols_as_its_schedule_says() -> None:
    model = build()
    missing = {
        "linear": [18, 12, 6, 0],
        "cosine": [22, 16, 9, 0],
        "arccos": [20, 16, 11, 0],
    }
    for schedule, expected in missing.items():
        unmasking = Unmasking(4, schedule)  # type: ignore[arg-type]
        places = [place for place, _ in ts.stream(model, n=2, unmasking=unmasking)]
        assert [GRID.symbols - place for place in places] == expected


def test_more_steps_than_symbols_stop_with_the_last_symbol() -> None:
    grid = ts.Grid(2, 2, 1, 3)
    model = build(grid)
    places = [place for place, _ in ts.stream(model, n=2, unmasking=Unmasking(steps=40))]
    assert places == [1, 2, 3, 4]


def test_partial_grids_keep_what_they_hold() -> None:
    model = build()
    before = torch.zeros(3, *GRID.shape, dtype=torch.int64)
    for _, x in ts.stream(model, n=3, seed=2, unmasking=Unmasking(steps=6)):
        assert bool(((before == 0) | (x == before)).all())
        before = x.clone()
    assert torch.equal(before, ts.sample(model, n=3, seed=2, unmasking=Unmasking(steps=6)))


def test_without_noise_in_the_choice_the_most_confident_symbols_stay() -> None:
    model = build()
    unmasking = Unmasking(2, "linear", 0.0)
    _, first = next(ts.stream(model, n=1, unmasking=unmasking, temperature=1e-40))
    nothing = torch.zeros(1, *GRID.shape, dtype=torch.bool)
    with torch.no_grad():
        parameters = model.predictions(first, nothing, model.condition(None, 1))
    best, level = model.head(parameters).table().max(-1)
    confident = best.flatten().argsort()[GRID.symbols // 2 :]
    expected = torch.zeros(GRID.symbols, dtype=torch.int64)
    expected[confident] = level.flatten()[confident]
    assert torch.equal(first.flatten(), expected)


def test_known_symbols_stay_whatever_the_mask() -> None:
    model = build(classes=3)
    x = some(4)
    generator = torch.Generator().manual_seed(1)
    known = torch.rand(x.shape, generator=generator) < 0.5
    known[0] = True
    known[1] = False
    cond = torch.tensor([0, 1, 2, 0])
    for rule in ({}, {"guidance": 2.0, "top_k": 2, "top_p": 0.9, "temperature": 0.8}):
        drawn = ts.complete(model, x, known, seed=4, cond=cond, **rule)
        assert torch.equal(drawn[known], x[known])
        in_twos = ts.complete(model, x, known, seed=4, cond=cond, batch=2, **rule)
        assert torch.equal(drawn, in_twos)
    same_noise = ts.sample(model, n=1, seed=5, cond=cond[1:2])
    assert torch.equal(ts.complete(model, x, known, seed=4, cond=cond)[1:2], same_noise)


def test_no_probability_of_a_completion_is_stated() -> None:
    # Completions are drawn by unmasking, whose probability no order gives.
    known = torch.zeros(3, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="whose probability is not known"):
        ts.log_prob_missing(build(), some(2), known)


def test_of_no_images_there_are_no_bounds() -> None:
    assert build().any_order_bound(some(2)[:0]).shape == (0,)


def test_weights_that_are_no_numbers_are_an_error() -> None:
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        ts.sample(model, n=2)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        model.any_order_bound(some(2))


# ---- What it does not offer


def test_what_takes_exact_probabilities_names_the_way_out() -> None:
    model = build()
    x = some(2)
    refused = "any_order_bound.*order=.*such as any-order"
    for attempt in (
        lambda: model.log_prob(x),
        lambda: model.bits_per_dim(x),
        lambda: model.init_state(2),
    ):
        with pytest.raises(InputError, match=refused):
            attempt()
    with pytest.raises(ConfigError, match="masked has no exact twin"):
        model.exact()
    for method in ("cached", "parallel", "naive"):
        with pytest.raises(InputError, match="leave method out.*any-order"):
            ts.sample(model, n=1, method=method)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="family masked"):
        ts.sample(ts.create("independent", GRID), n=1, unmasking=Unmasking())
    with pytest.raises(ConfigError, match="head='categorical'"):
        ts.create("masked", GRID, "logistic-mixture")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"schedule": "sine"}, "cosine"),
        ({"choice_temperature": -1.0}, "choice_temperature"),
        ({"choice_temperature": math.nan}, "choice_temperature"),
    ],
)
def test_unmasking_refuses_what_means_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Unmasking(**options)  # type: ignore[arg-type]


# ---- Runs


def test_a_generator_draws_completes_and_is_evaluated_by_a_bound(tmp_path: Path) -> None:
    grid = ts.Grid(4, 4, 1, 16)
    generator = Generator(create_tokenizer("identity", image_size=(4, 4), channels=1, levels=16),
                          build(grid).float())  # fmt: skip
    images = generator.sample(5, seed=1, unmasking=Unmasking(steps=3))
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:, 2:] = True
    completed = generator.complete(images, known, seed=2)
    assert torch.equal(completed[:, :, 2:], images[:, :, 2:])
    figures = ts.evaluate(generator, images)
    bits = -generator.any_order_bound(images, masks=64).mean() / math.log(2) / 16
    assert figures["bound_bits_per_dim"] == pytest.approx(float(bits), rel=0.1)
    assert "bits_per_dim" not in figures
    assert figures["bound_masks"] == 16
    # The masks of an image follow its pixels.
    again = ts.evaluate(generator, images.flip(0), batch=2)
    assert again["bound_bits_per_dim"] == pytest.approx(figures["bound_bits_per_dim"], rel=1e-5)


def test_a_card_calls_a_bound_a_bound(tmp_path: Path) -> None:
    validation = {"validation": {"bits_per_dim": 3.25}}
    save_model(build(), tmp_path / "pixels", validation)
    card = (tmp_path / "pixels" / "README.md").read_text()
    assert "| bound_bits_per_dim | 3.25 |" in card
    assert "any_order_bound(images)" in card
    tokenizer = create_tokenizer("vqvae", image_size=(8, 8), channels=1, hidden=8, codebook_size=16)
    prior = ts.create("masked", tokenizer.grid(), layers=1, width=8, heads=2)
    Generator(tokenizer, prior).save(tmp_path / "codes", validation)
    card = (tmp_path / "codes" / "README.md").read_text()
    assert "| bound_bits_per_code | 3.25 |" in card


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = build(classes=2).float()
    model.use_schedule("cosine")
    save_model(model, tmp_path / "masked")
    again = load_model(tmp_path / "masked")
    assert isinstance(again, MaskedModel)
    x = some(3)
    assert torch.equal(again.any_order_bound(x), model.any_order_bound(x))
