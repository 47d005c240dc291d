"""Muon beside AdamW: what it moves, how far, and that a run can rely on it like on AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tessella as ts
from tessella import data
from tessella.config import DataConfig, TrainConfig
from tessella.errors import ConfigError, TrainingError
from tessella.models import create_prior
from tessella.nn.convolution import channels_last
from tessella.tokenizers.quantizers import Quantizer
from tessella.training import checkpoint, loop
from tessella.training.optimizers import Muon, Together, create_optimizer, orthogonalized
from tessella.training.tasks import DensityTask, TokenizerTask

GRID = ts.Grid(4, 4, 1, 4)
CONFIG = TrainConfig(steps=1, optimizer="muon", learning_rate=0.1, weight_decay=0.1)
OPTIONS: dict[str, Any] = {
    "steps": 8,
    "batch": 8,
    "warmup": 2,
    "validate_every": 3,
    "optimizer": "muon",
    "say": lambda line: None,
}


def images(n: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


def model(name: str = "gated-pixelcnn") -> ts.DensityModel:
    small = {"layers": 2, "hidden": 8, "dropout": 0.2}
    return ts.create(name, GRID, **(small if name == "gated-pixelcnn" else {}))


def moved(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """What a step adds to a parameter."""
    before = parameter.detach().clone()
    optimizer.step()
    return parameter.detach() - before


def with_gradient(*shape: int, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    parameter.grad = torch.randn(shape, generator=generator)
    return parameter


# ---- What goes to which


@pytest.mark.parametrize("name", sorted(ts.MODELS))
def test_tables_vectors_and_last_layers_are_not_for_muon(name: str) -> None:
    made = ts.create(name, ts.Grid(4, 4, 3, 4), classes=2)
    hidden = set(made.hidden_matrices())
    assert all(parameter.dim() > 1 for parameter in hidden)
    for module in made.last_layers():
        assert not hidden & set(module.parameters())
    for key, parameter in made.named_parameters():
        table = ("vectors", "embedding.direction", "bias", "gain", "class_", "rows", "columns")
        if any(word in key for word in table):
            assert parameter not in hidden, key
    # All that is large in a deep model is hidden.
    share = sum(p.numel() for p in hidden) / sum(p.numel() for p in made.parameters())
    shallow = {"independent": 0.0, "fvsbn": 0.0, "nade": 0.0, "made": 0.2}
    assert share >= shallow.get(name, 0.7)
    assert bool(hidden) == (shallow.get(name, 1.0) > 0)


def test_every_parameter_has_one_optimizer() -> None:
    made = model()
    optimizer = create_optimizer(DensityTask(made, None), CONFIG)
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == set(made.parameters())
    assert set(optimizer.param_groups[0]["params"]) == set(made.hidden_matrices())
    # Without Muon there is no other optimizer than there always was.
    plain = create_optimizer(DensityTask(made, None), TrainConfig(steps=1))
    assert type(plain) is torch.optim.AdamW


def test_a_hierarchy_gives_the_matrices_of_all_its_models() -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae2", image_size=(16, 16), channels=1, codebook_size=8, hidden=8, code_dim=4
    )
    grids = tokenizer.grids()
    prior = create_prior("gated-pixelcnn", grids, layers=1, hidden=4, finer={"layers": 2})
    assert isinstance(prior, ts.Hierarchy)
    matrices = DensityTask(prior, None).hidden_matrices()
    assert len(matrices) == sum(len(level.hidden_matrices()) for level in prior)


@pytest.mark.parametrize("name", ["fvsbn", "nade", "independent"])
def test_a_model_without_hidden_matrices_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has none: leave it out"):
        create_optimizer(DensityTask(model(name), None), CONFIG)


@pytest.mark.parametrize("name", ["vqvae", "patch-vqvae", "vqvae2", "vqgan"])
def test_kernels_of_a_tokenizer_but_those_that_make_pixels_are_for_muon(name: str) -> None:
    # Rows of the codebook and of the quantizer's projections are no hidden layers.
    sizes: dict[str, Any] = {"quantizer": "vq", "options": {"code_dim": 3}, "hidden": 8}
    tokenizer = ts.create_tokenizer(name, image_size=(8, 8), channels=1, code_dim=4, **sizes)
    task = TokenizerTask(tokenizer)
    hidden = set(task.hidden_matrices())
    kernels = [key for key, p in tokenizer.named_parameters() if p.dim() == 4]
    left = {key for key, p in tokenizer.named_parameters() if p.dim() > 1 and p not in hidden}
    # Parameters come in the order of the layers.
    last = [key for key in kernels if key.startswith("decoder.")][-1]
    assert left & set(kernels) == {last}
    quantizers = [module for module in tokenizer.modules() if isinstance(module, Quantizer)]
    theirs = {parameter for quantizer in quantizers for parameter in quantizer.parameters()}
    assert {tokenizer.get_parameter(key) for key in left - {last}} <= theirs
    optimizer = create_optimizer(task, CONFIG)
    taken = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == set(tokenizer.parameters())


def test_the_layer_that_makes_pixels_is_the_one_that_muon_leaves() -> None:
    tokenizer = ts.create_tokenizer("patch-vqvae", image_size=(8, 8), channels=2, hidden=8)
    left = set(tokenizer.parameters()) - set(TokenizerTask(tokenizer).hidden_matrices())
    # 2 channels of 4x4 pixels at once.
    assert [tuple(p.shape) for p in left if p.dim() == 4] == [(32, 8, 3, 3)]


def test_a_tokenizer_without_networks_is_refused() -> None:
    tokenizer = ts.create_tokenizer("identity", image_size=(4, 4), channels=1)
    with pytest.raises(ConfigError, match="serves density models, and tokenizers"):
        TokenizerTask(tokenizer).hidden_matrices()


def test_an_unknown_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer must be .*'muon'"):
        ts.train(model(), images(), out=tmp_path / "a", steps=1, optimizer="moun")
    with pytest.raises(ConfigError, match=r"train\.optimizer must be 'adamw' or 'muon'"):
        TrainConfig(steps=1, optimizer="sgd")


# ---- How far a step goes


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_a_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    ours, theirs = with_gradient(*shape), with_gradient(*shape)
    mine = Muon([ours], lr=0.1, weight_decay=0.1)
    torchs = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(3):
        ours.grad = with_gradient(*shape, seed=seed).grad
        theirs.grad = ours.grad
        wanted, got = moved(theirs, torchs), moved(ours, mine)
        # Theirs is rounded to bfloat16, which has 8 bits, at every product.
        torch.testing.assert_close(got, wanted, rtol=0.0, atol=0.04 * float(wanted.abs().max()))
    assert torch.equal(mine.state[ours]["momentum_buffer"], torchs.state[theirs]["momentum_buffer"])


def test_orthogonal_matrices_come_out() -> None:
    values = torch.linalg.svdvals(orthogonalized(torch.randn(3, 16, 64)))
    assert values.min() > 0.6
    assert values.max() < 1.3
    # Nothing to go by is no reason for NaN.
    assert not orthogonalized(torch.zeros(1, 4, 8)).any()


def test_shapes_that_are_worked_on_together_do_not_mix() -> None:
    shapes = [(8, 24), (24, 8), (8, 6, 2, 2), (8, 8), (2, 8, 24)]
    together = [with_gradient(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    optimizer = Muon(together, lr=0.1)
    optimizer.step()
    for seed, (shape, parameter) in enumerate(zip(shapes, together, strict=True)):
        alone = with_gradient(*shape, seed=seed)
        Muon([alone], lr=0.1).step()
        torch.testing.assert_close(parameter, alone, rtol=1e-4, atol=1e-5)


def test_a_stack_is_so_many_matrices() -> None:
    stack = with_gradient(2, 8, 24)
    parts = [nn.Parameter(part.detach().clone()) for part in stack]
    for part, gradient in zip(parts, stack.grad, strict=True):  # type: ignore[arg-type]
        part.grad = gradient
    Muon([stack], lr=0.1).step()
    Muon(parts, lr=0.1).step()
    torch.testing.assert_close(stack.detach(), torch.stack(list(parts)).detach())


def test_a_kernel_moves_as_its_matrix_in_place_whatever_its_layout() -> None:
    layer, plain = nn.Conv2d(6, 8, 3), with_gradient(8, 6, 3, 3)
    layer.weight.data.copy_(plain.detach())
    channels_last(layer)
    layer.weight.grad = plain.grad.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    memory, strides = layer.weight.data_ptr(), layer.weight.stride()
    matrix = nn.Parameter(plain.detach().flatten(1).clone())
    matrix.grad = plain.grad.flatten(1)  # type: ignore[union-attr]
    optimizer = Muon([layer.weight], lr=0.1)
    optimizer.step()
    Muon([matrix], lr=0.1).step()
    torch.testing.assert_close(layer.weight.detach().flatten(1), matrix.detach())
    assert (layer.weight.data_ptr(), layer.weight.stride()) == (memory, strides)
    # What it remembers lies in memory like the weights, as a resumed run has it.
    assert optimizer.state[layer.weight]["momentum_buffer"].stride() == strides


@pytest.mark.parametrize("name", ["pixelcnn", "made"])
def test_weights_under_a_mask_stay(name: str) -> None:
    made = ts.create(name, ts.Grid(3, 3, 2, 4)).train()
    task = DensityTask(made, None)
    optimizer = create_optimizer(task, TrainConfig(steps=1, optimizer="muon", weight_decay=0.0))
    count = made.parameter_count()
    weights = made.hidden_matrices()
    before = [weight.detach().clone() for weight in weights]
    seen = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    for _ in range(3):
        task(torch.randint(4, (16, 3, 3, 2)), None)["loss"].backward()
        # The penalty has a gradient under the mask, too.
        loop.add_penalty(optimizer, 0.1)
        for had_gradient, weight in zip(seen, weights, strict=True):
            assert weight.grad is not None
            had_gradient |= weight.grad != 0
        optimizer.step()
        optimizer.zero_grad()
    masked = 0
    for weight, old, had_gradient in zip(weights, before, seen, strict=True):
        masked += int((~had_gradient).sum())
        assert torch.equal(weight[~had_gradient], old[~had_gradient])
        assert float((weight[had_gradient] != old[had_gradient]).float().mean()) > 0.99
    assert masked > 0
    assert made.parameter_count() == count


def test_a_mask_does_not_shorten_an_update() -> None:
    parameter = with_gradient(16, 64)
    assert parameter.grad is not None
    parameter.grad[:, 32:] = 0
    change = moved(parameter, Muon([parameter], lr=0.1))
    # The half that is seen moves as a matrix of that size does.
    half = nn.Parameter(torch.zeros(16, 32))
    half.grad = parameter.grad[:, :32].clone()
    torch.testing.assert_close(change[:, :32], moved(half, Muon([half], lr=0.1)))
    assert not change[:, 32:].any()


def test_rates_reach_both_before_and_after_a_checkpoint() -> None:
    matrix, vector = with_gradient(8, 8), with_gradient(8)
    parts = (Muon([matrix], lr=0.1), torch.optim.AdamW([vector], lr=0.1))
    optimizer = Together(*parts)
    optimizer.step()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert not moved(matrix, optimizer).any()
    assert not moved(vector, optimizer).any()
    assert set(optimizer.state) == {matrix, vector}
    assert float(optimizer.state[vector]["step"]) == 3


# ---- Runs


def test_a_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS | {"accumulate": 2, "l2": 1e-3}
    ts.train(model(), images(), out=tmp_path / "straight", **options)
    taken, step = [0], loop._step

    def stopping(session: Any, *rest: Any) -> Any:
        taken[0] += 1
        if taken[0] == 5:
            session.stop.set()
        return step(session, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", stopping)
        run = ts.train(model(), images(), out=tmp_path / "broken", **options)
    assert run.interrupted
    again = ts.train(model(), images(), out=tmp_path / "broken", resume=True, **options)
    assert again.progress.step == 8
    states = [checkpoint.newest(tmp_path / name)[0] for name in ("straight", "broken")]
    assert states[0].keys() == states[1].keys()
    assert any(name.endswith("momentum_buffer") for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path: Path) -> None:
    ts.train(model(), images(), out=tmp_path / "run", **OPTIONS)
    options = OPTIONS | {"optimizer": "adamw", "steps": 9}
    with pytest.raises(TrainingError, match=r"train\.optimizer=muon: leave that as it was"):
        ts.train(model(), images(), out=tmp_path / "run", resume=True, **options)


def test_a_bad_batch_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[dict[str, torch.Tensor]] = []
    forward = DensityTask.forward

    def poisoned(task: DensityTask, x: torch.Tensor, labels: object) -> dict[str, torch.Tensor]:
        figures = forward(task, x, None)
        if len(taken) == 3:
            figures["loss"] = figures["loss"] * float("nan")
        taken.append({name: p.detach().clone() for name, p in task.module.named_parameters()})
        return figures

    ready = loop.main

    def main(session: Any) -> Any:
        # The forecast has taken steps of its own.
        taken.clear()
        return ready(session)

    monkeypatch.setattr(loop, "main", main)
    monkeypatch.setattr(DensityTask, "forward", poisoned)
    options = OPTIONS | {"validate_every": 100}
    with pytest.raises(TrainingError, match="loss became nan"):
        ts.train(model(), images(), out=tmp_path / "run", **options)
    tensors = checkpoint.newest(tmp_path / "run")[0]
    for name, value in taken[3].items():
        assert torch.equal(tensors[f"module/{name}"], value), name
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_digits_are_learned(tmp_path: Path) -> None:
    config = DataConfig("digits")
    train, valid = data.load(config, "train"), data.load(config, "valid")
    net = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=2, hidden=16)
    options = OPTIONS | {"steps": 60, "batch": 32, "learning_rate": 1e-2}
    run = ts.train(net, train, valid=valid, out=tmp_path / "run", **options)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert run.figures["bits_per_dim"] < first["loss"] - 1
