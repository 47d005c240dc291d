"""What every registered density model promises, with every head, on tiny grids in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

import tessella as ts
from tessella import kernel
from tessella.errors import ConfigError, InputError
from tessella.heads import JointHead
from tessella.models import from_config
from tessella.pipeline import load_model, save_model
from tessella.sampling.kernel_walk import KernelWalk

SIZES: dict[str, dict[str, object]] = {
    "transformer": {"layers": 2, "width": 8, "heads": 2, "kv_heads": 1, "feedforward": 6},
    "any-order": {"layers": 2, "width": 8, "heads": 2, "feedforward": 6},
    "masked": {"layers": 2, "width": 8, "heads": 2, "feedforward": 6},
    "gpt": {"layers": 2, "width": 8, "heads": 2, "feedforward": 6},
    "independent": {},
    "made": {"hidden": 12, "layers": 2, "masks": 2, "embedding": 2, "direct": True, "dropout": 0.0},
    "lstm": {"layers": 2, "hidden": 6},
    "fvsbn": {"embedding": 2},
    "nade": {"hidden": 5, "embedding": 2},
    "pixelsnail": {
        "blocks": 1,
        "residual_blocks": 1,
        "channels": 4,
        "residual_channels": 3,
        "heads": 2,
    },
    "pixelcnn++": {"blocks": 1, "filters": 4, "scales": 2, "embedding": 3},
    "gated-pixelcnn": {"layers": 3, "hidden": 6},
    "pixelcnn": {"layers": 2, "hidden": 18, "last": 18},
    "row-lstm": {"layers": 2, "hidden": 9, "last": 12},
    "diagonal-bilstm": {"layers": 2, "hidden": 9, "last": 12},
}
GRIDS = [
    ts.Grid(1, 1, 1, 3),
    ts.Grid(1, 4, 1, 4),
    ts.Grid(5, 4, 1, 2),
    ts.Grid(3, 4, 3, 5),
    ts.Grid(3, 2, 2, 6),
]


def build(
    name: str,
    head: str,
    grid: ts.Grid,
    classes: int = 0,
    codes: ts.Grid | None = None,
    **sizes: object,
) -> ts.DensityModel:
    """A small model in float64 with every parameter moved, so that nothing is zero by its
    initialization."""
    sizes = SIZES[name] | sizes
    predicted = head == PREDICTED
    if predicted:
        head = "logistic-mixture"
        sizes = sizes | {"predictor": True, "predictor_hidden": 6}
        # An average of networks has no common prediction.
        if name == "made":
            sizes["masks"] = 1
    model = ts.create(name, grid, head=head, classes=classes, seed=3, codes=codes, **sizes).double()
    if predicted:
        # Coefficients and classes of noise, so that nothing is a default.
        model.fit_predictor(some(grid, 50, seed=9))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    return model


PREDICTED = "logistic-mixture after a prediction"
"""Stands for the logistic-mixture head with a predictor, whose own network is small."""

HEADS = (*ts.HEADS, PREDICTED)


def fits(head: str, grid: ts.Grid) -> bool:
    return "logistic-mixture" not in head or grid.levels > 2


def takes(name: str, head: str) -> bool:
    """Whether a family takes a head; a predictor needs raster order."""
    return head != PREDICTED or not ts.MODELS[name].any_order


def some(grid: ts.Grid, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        grid.levels, (n, *grid.shape), generator=torch.Generator().manual_seed(seed)
    )


def all_grids(grid: ts.Grid) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(grid.levels), repeat=grid.symbols))).view(
        -1, *grid.shape
    )


# What a model of masked symbols promises is in test_masked.py.
EXACT_FAMILIES = [name for name, family in ts.MODELS.items() if not family.states_bound]
CASES = [
    pytest.param(
        name, head, grid, id=f"{name}-{head}-{'x'.join(map(str, (*grid.shape, grid.levels)))}"
    )
    for name in EXACT_FAMILIES
    for head in HEADS
    for grid in GRIDS
    if fits(head, grid) and takes(name, head)
]
PAIRS = [
    pytest.param(name, head, id=f"{name}-{head}")
    for name in EXACT_FAMILIES
    for head in HEADS
    if takes(name, head)
]


def test_every_registered_model_has_sizes_here() -> None:
    assert set(SIZES) == set(ts.MODELS)


@pytest.mark.parametrize(("name", "head", "grid"), CASES)
def test_symbols_depend_on_the_receptive_field_and_nothing_else(
    name: str, head: str, grid: ts.Grid
) -> None:
    model = build(name, head, grid)
    field = model.dependencies()
    assert field.shape == (grid.symbols, grid.symbols)
    assert not field.triu().any(), "a receptive field must lie before the symbol"
    depends = torch.zeros_like(field)
    with torch.no_grad():
        for seed in range(3):
            x = some(grid, 1, seed)
            before = model.distribution(x).table(x).flatten(1, 3)
            changed = x.flatten(1).repeat(grid.symbols, 1)
            changed.diagonal().add_(1 + seed % (grid.levels - 1)).remainder_(grid.levels)
            changed = changed.view(-1, *grid.shape)
            after = model.distribution(changed).table(changed).flatten(1, 3)
            depends |= ((after - before).abs().amax(-1) > 1e-13).T
    assert torch.equal(depends, field)


@pytest.fixture(params=["plain", "compiled"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the programs of steps in torch, and compiled."""
    if request.param == "plain":
        monkeypatch.setenv("TESSELLA_KERNEL", "0")
    elif not kernel.available():
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize(("name", "head", "grid"), CASES)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.usefixtures("steps")
def test_step_equals_forward(name: str, head: str, grid: ts.Grid, classes: int) -> None:
    model = build(name, head, grid, classes)
    x = some(grid, 4)
    cond = torch.arange(4) if classes else None
    expected = model.distribution(x, model.condition(cond, 4)).table(x).flatten(1, 3).detach()
    state, previous = model.init_state(4, cond), torch.zeros(4, dtype=torch.int64)
    for index in range(grid.symbols):
        parameters, state = model.step(previous, index, state)
        table = model.head.symbol(parameters).table()
        torch.testing.assert_close(table, expected[:, index], rtol=1e-12, atol=1e-12)
        previous = x.flatten(1)[:, index]


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_forward_can_begin_at_a_row(name: str, head: str) -> None:
    grid = ts.Grid(9, 2, 1, 3)  # higher than what the convolutions see
    model, x = build(name, head, grid, classes=2), some(grid, 3)
    condition = model.condition(torch.tensor([0, 1, 2]), 3)
    expected = model(x, condition)
    for row in range(grid.height):
        torch.testing.assert_close(
            model.forward_from(x, condition, row), expected[:, row:], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("name", "head", "grid"), CASES)
def test_a_state_can_be_cloned_and_its_rows_selected(name: str, head: str, grid: ts.Grid) -> None:
    model = build(name, head, grid, classes=2)
    x, cond, half = some(grid, 3), torch.tensor([0, 1, 2]), grid.symbols // 2
    state, previous = model.init_state(3, cond), torch.zeros(3, dtype=torch.int64)
    for index in range(half):
        _, state = model.step(previous, index, state)
        previous = x.flatten(1)[:, index]
    kept, rows = state.clone(), torch.tensor([2, 0, 2])
    run, _ = walk_on(model, x, previous, state, half)
    again, _ = walk_on(model, x, previous, kept.clone(), half)
    picked, _ = walk_on(model, x[rows], previous[rows], kept.select(rows), half)
    assert torch.equal(run, again), "a clone must not share what a step updates"
    torch.testing.assert_close(picked, run[rows], rtol=0, atol=1e-12)


def walk_on(model, x, previous, state, start):  # type: ignore[no-untyped-def]
    tables = []
    for index in range(start, model.grid.symbols):
        parameters, state = model.step(previous, index, state)
        tables.append(model.head.symbol(parameters).table())
        previous = x.flatten(1)[:, index]
    return torch.stack(tables, 1), state


@pytest.mark.parametrize(("name", "head", "grid"), CASES)
def test_cached_and_parallel_sampling_equal_the_naive_oracle(
    name: str, head: str, grid: ts.Grid
) -> None:
    model = build(name, head, grid)
    cached = ts.sample(model, n=5, seed=11, method="cached")
    assert torch.equal(cached, ts.sample(model, n=5, seed=11, method="naive"))
    assert torch.equal(cached, ts.sample(model, n=5, seed=11, method="parallel"))
    assert not ts.replay(model, cached, seed=11).differs.any()
    if grid.symbols > 1:
        assert len(cached.unique(dim=0)) > 1, "different seeds must give different images"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_the_kernel_draws_what_torch_draws(
    name: str, head: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, head, ts.Grid(3, 4, 3, 5), classes=2).to(dtype)
    state = model.init_state(3)
    if KernelWalk.of(model, state, 3) is None:
        pytest.skip("no compiler, or no programs")
    guided = {"guidance": 1.5, "top_k": 4, "cond": torch.tensor([0, 1, 1])}
    for rule in ({}, {"temperature": 0.8, "top_p": 0.9}, guided):
        monkeypatch.delenv("TESSELLA_KERNEL", raising=False)
        in_kernel = ts.sample(model, n=3, seed=1, method="cached", **rule)
        monkeypatch.setenv("TESSELLA_KERNEL", "0")
        assert torch.equal(in_kernel, ts.sample(model, n=3, seed=1, method="cached", **rule))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_bent_distributions_sample_alike_by_all_methods(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(3, 3, 2, 5), classes=2)
    rule = {
        "temperature": 0.8,
        "top_k": 4,
        "top_p": 0.9,
        "guidance": 1.5,
        "cond": torch.tensor([0, 1, 1]),
    }
    cached = ts.sample(model, n=3, seed=1, method="cached", **rule)
    assert torch.equal(cached, ts.sample(model, n=3, seed=1, method="naive", batch=2, **rule))
    assert torch.equal(cached, ts.sample(model, n=3, seed=1, method="parallel", batch=2, **rule))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_the_batch_does_not_change_an_image(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(3, 3, 2, 5))
    whole = ts.sample(model, n=7, seed=4)
    assert torch.equal(whole, ts.sample(model, n=7, seed=4, batch=3))
    assert torch.equal(whole[5:6], ts.sample(model, n=1, seed=9))


@pytest.mark.parametrize(("name", "head"), PAIRS)
@pytest.mark.parametrize("shape", [(2, 2, 1, 3), (2, 1, 3, 3), (2, 2, 3, 2)])
def test_probabilities_of_all_grids_sum_to_one(
    name: str, head: str, shape: tuple[int, int, int, int]
) -> None:
    grid = ts.Grid(*shape)
    if not fits(head, grid):
        grid = ts.Grid(2, 1, 3, 4)
    model = build(name, head, grid)
    with torch.no_grad():
        total = model.log_prob(all_grids(grid)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_samples_are_as_frequent_as_their_probability(name: str, head: str) -> None:
    grid, n = ts.Grid(2, 1, 1, 3), 4000
    model = build(name, head, grid)
    x = ts.sample(model, n=n, seed=100, batch=n)
    expected = n * model.log_prob(all_grids(grid)).exp().detach()
    seen = torch.bincount(x.flatten(1) @ torch.tensor([3, 1]), minlength=9)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 26.1, (
        "8 degrees of freedom: exceeded with probability 0.001 by an exact sampler"
    )


@pytest.mark.parametrize(("name", "head", "grid"), CASES)
def test_log_prob_agrees_with_table_and_units(name: str, head: str, grid: ts.Grid) -> None:
    model = build(name, head, grid)
    x = some(grid, 3)
    with torch.no_grad():
        each = model.log_prob(x, reduce=False)
        table = model.distribution(x).table(x)
        torch.testing.assert_close(table.logsumexp(-1), torch.zeros_like(each), rtol=0, atol=1e-12)
        torch.testing.assert_close(each, table.gather(-1, x[..., None])[..., 0], rtol=0, atol=1e-12)
        bits = -model.log_prob(x) / torch.log(torch.tensor(2.0, dtype=torch.float64)) / grid.symbols
        torch.testing.assert_close(model.bits_per_dim(x), bits)
        torch.testing.assert_close(
            model.log_prob(x.to(torch.uint8).numpy()), each.flatten(1).sum(1)
        )


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_the_mode_is_the_likeliest_level_given_the_modes_before(name: str, head: str) -> None:
    # The mode of a pixel given the pixels of x before it: by the table of x with the pixel replaced
    # by its mode.
    model = build(name, head, ts.Grid(2, 2, 3, 4))
    x = some(model.grid, 2)
    mode = model.distribution(x).mode()
    assert mode.shape == x.shape
    factored = not isinstance(model.head, JointHead)
    for row, column in itertools.product(range(2), repeat=2):
        changed = x.clone()
        if not factored:
            changed[:, row, column] = mode[:, row, column]
        table = model.distribution(changed).table(changed)[:, row, column]
        assert torch.equal(mode[:, row, column], table.argmax(-1))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_what_is_saved_gives_the_same_log_prob(name: str, head: str, tmp_path: Path) -> None:
    model = build(name, head, ts.Grid(3, 2, 2, 6), classes=2).float()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, ts.DensityModel)
    x, cond = some(model.grid, 3), torch.tensor([0, 1, 2])
    assert torch.equal(again.log_prob(x, cond), model.log_prob(x, cond))


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_a_config_rebuilds_the_model(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(3, 2, 2, 6), classes=2)
    again = from_config(model.config()).double()
    assert again.config() == model.config()
    again.load_state_dict(model.state_dict())
    x = some(model.grid, 3)
    assert torch.equal(
        again.log_prob(x, torch.tensor([0, 1, 2])), model.log_prob(x, torch.tensor([0, 1, 2]))
    )


@pytest.mark.parametrize("head", ts.HEADS)
@pytest.mark.parametrize("name", EXACT_FAMILIES)
def test_creation_follows_its_seed_and_leaves_the_global_generator_alone(
    name: str, head: str
) -> None:
    before = torch.get_rng_state()
    one, two, other = (
        ts.create(name, ts.Grid(2, 2, 1, 4), head=head, seed=s, **SIZES[name]) for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
    assert not one.training


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_completion_keeps_what_is_known_and_draws_the_rest(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(4, 3, 2, 5))
    x = some(model.grid, 3)
    known = torch.zeros(4, 3, dtype=torch.bool)
    known[:2] = known[3, 1] = True
    drawn = [
        ts.complete(model, x, known, seed=2, method=method)
        for method in ("cached", "naive", "parallel")
    ]
    assert torch.equal(drawn[0][:, known], x[:, known])
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(
        ts.complete(model, x, torch.zeros_like(known), seed=2), ts.sample(model, n=3, seed=2)
    )


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_classes_change_the_distribution_and_null_is_the_last_index(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(2, 2, 1, 4), classes=3)
    x = some(model.grid, 4)
    scores = [model.log_prob(x, torch.full((4,), c)) for c in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(scores, 2))
    assert torch.equal(model.log_prob(x), scores[3])
    model.null_class = False
    with pytest.raises(InputError, match="give cond"):
        model.log_prob(x)


@pytest.mark.parametrize(("name", "head"), PAIRS)
@pytest.mark.parametrize("classes", [0, 2])
def test_bad_input_is_refused_with_a_reason(name: str, head: str, classes: int) -> None:
    model = build(name, head, ts.Grid(2, 2, 1, 4), classes=classes)
    x = some(model.grid, 2)
    with pytest.raises(InputError, match=r"0\.\.3"):
        model.log_prob(x + 4)
    with pytest.raises(InputError, match="shape"):
        model.log_prob(x[..., 0])
    with pytest.raises(InputError, match="integers"):
        model.log_prob(x.float())
    with pytest.raises(InputError, match=r"0\.\.1|no classes"):
        model.log_prob(x, torch.tensor([0, 7]))
    with pytest.raises(InputError, match="codes"):
        model.log_prob(x, x)


WITH_CODES = [pair for pair in PAIRS if ts.MODELS[str(pair.values[0])].takes_codes]


@pytest.mark.parametrize(("name", "head"), WITH_CODES)
def test_codes_condition_every_symbol_by_all_methods(name: str, head: str) -> None:
    grid, codes = ts.Grid(3, 4, 2, 5), ts.Grid(2, 2, 1, 4)
    model = build(name, head, grid, classes=2, codes=codes)
    upper, labels = some(codes, 3, seed=1), torch.tensor([0, 1, 2])
    cond = {"class": labels, "codes": upper}
    x = some(grid, 3)
    expected = model.distribution(x, model.condition(cond, 3)).table(x).flatten(1, 3).detach()
    walked, _ = walk_on(model, x, labels, model.init_state(3, cond), 0)
    torch.testing.assert_close(walked, expected, rtol=0, atol=1e-12)
    for other in (
        {"class": labels, "codes": (upper + 1) % 4},
        {"class": (labels + 1) % 3, "codes": upper},
    ):
        changed = model.distribution(x, model.condition(other, 3)).table(x).flatten(1, 3)
        assert bool(((changed - expected).abs().amax(-1) > 1e-9).all()), (
            "a condition must reach every symbol"
        )
    assert torch.equal(
        model.log_prob(x, {"codes": upper}), model.log_prob(x, cond | {"class": labels * 0 + 2})
    )
    rule = {"guidance": 2.0, "cond": {"class": torch.tensor([0, 1, 1]), "codes": upper}}
    cached = ts.sample(model, 3, 1, "cached", batch=2, **rule)
    for method in ("naive", "parallel"):
        assert torch.equal(cached, ts.sample(model, 3, 1, method=method, **rule))
    again = from_config(model.config())
    assert again.config() == model.config()
    assert again.conditioning.codes == codes


@pytest.mark.parametrize(("name", "head"), WITH_CODES[:1] + PAIRS[:1])
def test_codes_that_do_not_fit_are_refused(name: str, head: str) -> None:
    grid, codes = ts.Grid(2, 2, 1, 4), ts.Grid(2, 1, 1, 3)
    if not ts.MODELS[name].takes_codes:
        with pytest.raises(ConfigError, match="codes"):
            build(name, head, grid, codes=codes)
        return
    model = build(name, head, grid, codes=codes)
    x = some(grid, 2)
    for cond, message in (
        (None, "give cond"),
        (some(codes, 3), "3 images"),
        (some(grid, 2), "shape"),
    ):
        with pytest.raises(InputError, match=message):
            model.log_prob(x, cond)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_checkpointing_changes_no_gradient_and_every_parameter_has_one(
    name: str, head: str
) -> None:
    model = build(name, head, ts.Grid(4, 3, 2, 5), classes=2).train()
    x, condition = some(model.grid, 3), model.condition(torch.tensor([0, 1, 2]), 3)
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model.distribution(x, condition).log_prob(x).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None, f"{key} does nothing"
        assert bool(gradient.abs().sum() > 0), f"{key} does nothing"
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "head"), WITH_CODES)
def test_checkpointing_changes_no_gradient_of_codes(name: str, head: str) -> None:
    codes = ts.Grid(2, 2, 1, 4)
    model = build(name, head, ts.Grid(4, 3, 2, 5), classes=2, codes=codes).train()
    x, cond = some(model.grid, 3), {"class": torch.tensor([0, 1, 2]), "codes": some(codes, 3)}
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model.distribution(x, model.condition(cond, 3)).log_prob(x).sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None, f"{key} does nothing"
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_guidance_needs_classes(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(2, 2, 1, 4))
    with pytest.raises(InputError, match="guidance needs a model with classes"):
        ts.sample(model, n=2, guidance=2.0)
    with pytest.raises(InputError, match="guidance needs a class"):
        ts.sample(build(name, head, model.grid, classes=2), n=2, guidance=2.0)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_half_precision_trains_on_nearly_the_same_loss(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(3, 4, 3, 5), classes=2).float().train()
    x, condition = some(model.grid, 3), model.condition(torch.tensor([0, 1, 2]), 3)
    full = -model.distribution(x, condition).log_prob(x).mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = -model.distribution(x, condition).log_prob(x).mean()
    half.backward()
    torch.testing.assert_close(half, full, rtol=0.03, atol=0)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_no_images_have_no_probabilities(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(3, 4, 2, 5))
    assert model.log_prob(some(model.grid, 0)).shape == (0,)


DROPOUT = [
    pair
    for pair in PAIRS
    if "dropout" in ts.create(str(pair.values[0]), ts.Grid(1, 2, 1, 3)).sizes()
]


@pytest.mark.parametrize(("name", "head"), DROPOUT)
def test_dropout_in_training_mode_is_refused(name: str, head: str) -> None:
    model = build(name, head, ts.Grid(2, 2, 1, 4), dropout=0.1).train()
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        model.log_prob(some(model.grid, 1))
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        ts.sample(model, n=1)
