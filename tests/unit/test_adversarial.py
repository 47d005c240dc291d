"""Training against a discriminator: gradients of both sides, the start, the guard, and that a run
goes on exactly."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tessella.config import (
    AdversarialConfig,
    DataConfig,
    Recipe,
    TokenizerConfig,
    TrainConfig,
    from_dict,
)
from tessella.errors import ConfigError, TessellaWarning
from tessella.files import read_tensors, write_tensors
from tessella.tokenizers import create_tokenizer
from tessella.training import loop, train_recipe
from tessella.training.adversarial import (
    BEFORE_START,
    GUARDED,
    TAKEN_OVER,
    AdversarialTask,
    Adversaries,
    Discriminator,
)
from tessella.training.examples import Examples
from tessella.training.perceptual import STAGES
from tessella.training.progress import Rank
from tessella.training.tasks import TokenizerTask

SIZES: dict[str, Any] = {
    "codebook_size": 16,
    "hidden": 8,
    "multipliers": (1, 1),
    "residual_blocks": 1,
    "latent": 4,
}
SIZES |= {"code_dim": 4}
TERMS: dict[str, Any] = {"start": 2, "layers": 1, "hidden": 8}


def some(n: int = 16, size: int = 8) -> torch.Tensor:
    """Images of a few large squares, uint8."""
    make = torch.Generator().manual_seed(n)
    coarse = torch.randint(0, 256, (n, size // 4, size // 4, 1), generator=make, dtype=torch.uint8)
    return coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)


def weights() -> dict[str, torch.Tensor]:
    """Random weights of a narrow perceptual network."""
    make, before, tensors = torch.Generator().manual_seed(0), 3, {}
    for stage, numbers in enumerate(STAGES):
        for number in numbers:
            tensors[f"features.{number}.weight"] = torch.randn(4, before, 3, 3, generator=make) / 5
            tensors[f"features.{number}.bias"] = torch.zeros(4)
            before = 4
        tensors[f"lin{stage}.model.1.weight"] = torch.ones(1, 4, 1, 1)
    return tensors


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def task(size: int = 8, train: dict[str, Any] | None = None, **terms: Any) -> AdversarialTask:
    tokenizer = create_tokenizer("vqgan", image_size=(size, size), channels=1, **SIZES)
    limits = TrainConfig(**({"steps": 20} | (train or {})))
    return AdversarialTask(
        tokenizer, AdversarialConfig(**(TERMS | terms)), limits, 16, (size, size)
    ).train()


def parts(made: AdversarialTask) -> Adversaries:
    assert isinstance(made.module, Adversaries)
    return made.module


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def recipe(perceptual: str = "", **train: Any) -> Recipe:
    return Recipe(
        data=DataConfig("digits", limit=40),
        train=TrainConfig(
            **({"steps": 6, "batch": 4, "warmup": 2, "validate_every": 2, "device": "cpu"} | train)
        ),
        tokenizer=TokenizerConfig("vqgan", sizes=SIZES),
        adversarial=AdversarialConfig(**TERMS, perceptual=perceptual),
    )


def in_two(what: Recipe, out: Path, last: int) -> None:
    """Train in two sittings, the first of which is told to stop in step ``last``."""
    step, taken = loop._step, [0]

    def counted(session: Any, *rest: Any) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == last:
            session.stop.set()
        return step(session, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", counted)
        assert train_recipe(what, out, say=lambda line: None).interrupted
    train_recipe(what, out, resume=True, say=lambda line: None)


def test_a_patch_is_judged_by_its_pixels() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(3, hidden=4, layers=3).double()
    images = torch.randn(1, 3, 128, 96, dtype=torch.float64, requires_grad=True)
    for part in discriminator:  # the statistics of a norm see the whole image
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = lambda x: x  # type: ignore[method-assign]
    scores = discriminator(images)
    assert scores.shape == (1, 1, 14, 10)
    (gradient,) = torch.autograd.grad(scores[0, 0, 7, 5], images)
    rows = gradient[0].abs().sum((0, 2)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_an_image_is_judged_by_itself() -> None:
    torch.manual_seed(0)
    discriminator, images = Discriminator(1, 8, 2).double(), torch.randn(3, 1, 16, 16).double()
    one_by_one = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(discriminator(images), one_by_one)


def test_before_the_start_only_the_tokenizer_learns() -> None:
    made, plain = (
        task(start=5),
        create_tokenizer("vqgan", image_size=(8, 8), channels=1, **SIZES).train(),
    )
    made(some(), None)["loss"].backward()
    plain(some()).losses["loss"].backward()
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradient, parts(made).tokenizer.get_parameter(name).grad), name  # type: ignore[arg-type]
    for name, parameter in parts(made).discriminator.named_parameters():
        assert parameter.grad is not None, f"{name}: several processes wait for every gradient"
        assert not parameter.grad.any(), name


def test_one_backward_pass_gives_each_side_the_gradient_of_its_own_loss() -> None:
    made = task(start=0).double()
    figures = made(some(), None)
    figures["loss"].backward()
    seen = gradients(made)
    other = task(start=0).double()
    both, images = parts(other), some().double() / 255
    out = both.tokenizer(some())
    real, fake = (2 * x.permute(0, 3, 1, 2) - 1 for x in (images, out.reconstruction))
    of_discriminator = (
        torch.relu(1 - both.discriminator(real)).mean()
        + torch.relu(1 + both.discriminator(fake.detach())).mean()
    ) / 2
    expected = torch.autograd.grad(of_discriminator, list(both.discriminator.parameters()))
    for (name, _), gradient in zip(both.discriminator.named_parameters(), expected, strict=True):
        torch.testing.assert_close(seen[f"module.discriminator.{name}"], gradient)
    last = both.tokenizer.last_layer
    fooled = -both.discriminator(fake).mean()
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm()
        for loss in (out.losses["loss"], fooled)
    ]
    weight = (0.8 * norms[0] / (norms[1] + 1e-6)).detach()
    torch.testing.assert_close(figures["adversarial_weight"], weight)
    names = [name for name, _ in both.tokenizer.named_parameters()]
    total = out.losses["loss"] + weight * fooled
    expected = torch.autograd.grad(total, list(both.tokenizer.parameters()))
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(seen[f"module.tokenizer.{name}"], gradient)


def test_the_adversarial_term_begins_at_its_step_whatever_is_accumulated() -> None:
    made = task(train={"accumulate": 2, "batch": 4})
    assert ["adversarial" in made(some(), None) for _ in range(6)] == [False] * 4 + [True] * 2


def test_a_start_below_1_is_a_share_of_the_run_and_stays_when_that_grows() -> None:
    made = task(train={"steps": 4}, start=0.5)
    assert ["adversarial" in made(some(), None) for _ in range(3)] == [False, False, True]
    made.train_config = TrainConfig(steps=1000)
    assert "adversarial" in made(some(), None)


def test_a_share_of_minutes_is_counted_in_seconds() -> None:
    made = task(train={"steps": 0, "minutes": 1.0}, start=0.5)
    assert "adversarial" not in made(some(), None)
    parts(made).seconds.fill_(31.0)
    assert "adversarial" in made(some(), None)


def test_figures_are_detached_but_for_the_loss(tmp_path: Path) -> None:
    write_tensors(tmp_path / "lpips.safetensors", weights())
    made = task(16, start=0, perceptual=str(tmp_path / "lpips.safetensors"))
    figures = made(some(4, 16), None)
    assert {"mse", "perceptual", "adversarial", "adversarial_weight", "discriminator"} <= set(
        figures
    )
    assert [name for name, value in figures.items() if value.requires_grad] == ["loss"]
    assert all(value.isfinite() and value.dim() == 0 for value in figures.values())


def test_all_terms_together_learn(tmp_path: Path) -> None:
    write_tensors(tmp_path / "lpips.safetensors", weights())
    made = task(16, start=20, perceptual=str(tmp_path / "lpips.safetensors"), perceptual_weight=0.1)
    optimizer, errors = torch.optim.AdamW(made.parameters(), lr=3e-3), []
    for _ in range(50):
        optimizer.zero_grad()
        figures = made(some(16, 16), None)
        figures["loss"].backward()
        optimizer.step()
        errors.append((float(figures["mse"]), float(figures["perceptual"])))
    assert errors[-1][0] < 0.5 * errors[0][0]
    assert errors[-1][1] < errors[0][1]


def test_under_autocast_losses_are_finite_and_codes_are_searched_in_float32() -> None:
    made = task(start=0)
    with torch.autocast("cpu", torch.bfloat16):
        figures = made(some(), None)
    figures["loss"].backward()
    assert figures["loss"].dtype == torch.float32
    assert all(value.isfinite() for value in figures.values())
    assert all(gradient.isfinite().all() for gradient in gradients(made).values())


def test_the_guard_is_content_as_long_as_the_error_stays_within_its_tolerance() -> None:
    both = parts(task())
    averaged = copy.deepcopy(both)
    before = [both.judge(averaged, mse, 0.5) for mse in (300.0, 100.0)]
    both.played.fill_(1)
    after = [both.judge(averaged, 149.0, 0.5)]
    both.played.fill_(7)
    after += [both.judge(averaged, 120.0, 0.5)]
    assert before[0] > before[1] > after[0] > after[1], "the later of good weights are kept"
    assert [rank.tier for rank in (*before, *after)] == [BEFORE_START] * 2 + [GUARDED] * 2
    assert int(both.takeovers) == 0
    assert float(both.least) == 100.0


def test_a_takeover_puts_back_the_last_good_weights_and_codes() -> None:
    made = task(start=0)
    both = parts(made)
    made(some(), None)
    averaged = copy.deepcopy(both)
    with torch.no_grad():
        next(averaged.tokenizer.parameters()).add_(1.0)  # averaged weights are not the trained ones
    good = {name: tensor.clone() for name, tensor in averaged.learned().items()}
    assert both.judge(averaged, 100.0, 0.5).tier == GUARDED
    for part in (both, averaged):
        for tensor in part.learned().values():
            tensor.mul_(7)
    with pytest.warns(
        TessellaWarning, match="took over: .* from 100 to 151. .* weight is now 0.5 of"
    ):
        assert both.judge(averaged, 151.0, 0.5) == Rank(TAKEN_OVER, 151.0)
    for part in (both, averaged):
        assert all(torch.equal(tensor, good[name]) for name, tensor in part.learned().items())
    assert float(made(some(), None)["adversarial_weight"]) > 0


def test_after_four_takeovers_the_adversarial_term_is_off() -> None:
    made = task(start=0)
    both = parts(made)
    made(some(), None)
    both.judge(both, 1.0, 0.5)
    strengths = []
    for _ in range(4):
        with pytest.warns(TessellaWarning, match="took over"):
            both.judge(both, float("nan"), 0.5)
        strengths.append(float(both.strength))
    assert strengths == [0.5, 0.25, 0.125, 0.0]
    assert "adversarial" not in made(some(), None)


def test_a_discriminator_that_wrecks_a_validation_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, examples = task(start=0), Examples([some(32)])
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)

    def step() -> None:
        optimizer.zero_grad()
        made(some(32), None)["loss"].backward()
        optimizer.step()

    for _ in range(40):
        step()
    both = parts(made)
    first = made.judge(both, made.validate(both, examples, 16, steps=1))
    monkeypatch.setattr("tessella.training.adversarial.LARGEST_LAMBDA", 1e9)
    config, made.config = made.config, AdversarialConfig(**(TERMS | {"weight": 1e4, "start": 0}))
    for _ in range(10):
        step()
    made.config = config
    with pytest.warns(TessellaWarning, match="took over"):
        wrecked = made.judge(both, made.validate(both, examples, 16, steps=1))
    assert wrecked.figures["mse"] > 1.5 * first.figures["mse"]
    assert wrecked.figures["takeovers"] == 1.0
    assert wrecked.figures["adversarial_strength"] == 0.5
    again = made.judge(both, made.validate(both, examples, 16, steps=1))
    assert again.figures["mse"] == pytest.approx(first.figures["mse"])
    assert first.rank == Rank(GUARDED, -40.0)
    assert again.rank < first.rank < wrecked.rank
    assert "precedence" not in first.figures


TWO = """
import copy, sys, warnings
import torch
import torch.distributed as dist
from tessella.config import AdversarialConfig, TrainConfig
from tessella.tokenizers import create_tokenizer
from tessella.training.adversarial import AdversarialTask

rank = int(sys.argv[1])
torch.set_num_threads(1)
warnings.simplefilter("ignore")
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
sizes = {"codebook_size": 16, "hidden": 8, "multipliers": (1, 1), "residual_blocks": 1}
sizes |= {"latent": 4, "code_dim": 4}
tokenizer = create_tokenizer("vqgan", image_size=(8, 8), channels=1, **sizes)
terms, train = AdversarialConfig(start=1, layers=1, hidden=8), TrainConfig(steps=9)
task = AdversarialTask(tokenizer, terms, train, 16, (8, 8)).train()
both, wrapped = task.module, torch.nn.parallel.DistributedDataParallel(task)
optimizer = torch.optim.SGD(task.parameters(), 0.01)
generator = torch.Generator().manual_seed(rank)
images = torch.randint(0, 256, (8, 8, 8, 1), generator=generator, dtype=torch.uint8)
for step in range(4):
    optimizer.zero_grad()
    wrapped(images, None)["loss"].backward()
    optimizer.step()
    if step == 1 and rank == 0:
        averaged = copy.deepcopy(both)
        both.judge(averaged, 1.0, 0.5)
    if step == 2 and rank == 0:
        both.judge(averaged, 2.0, 0.5)
    mine = torch.cat([tensor.detach().double().flatten() for tensor in both.learned().values()])
    first = mine.clone()
    dist.broadcast(first, 0)
    same = torch.equal(mine, first)
    assert same == (step != 2 or rank == 0), (step, same)
assert float(both.strength) == 0.5
dist.destroy_process_group()
"""


def test_several_processes_train_and_are_put_back_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")]) for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]


def test_the_state_holds_what_the_guard_remembers() -> None:
    made, other = task(start=0), task(start=0)
    made(some(), None)
    parts(made).judge(parts(made), 5.0, 0.5)
    parts(other).load_state_dict(parts(made).state_dict())
    assert parts(other).state_dict().keys() == parts(made).state_dict().keys()
    assert float(parts(other).least) == 5.0
    assert parts(other).good.keys() == parts(made).good.keys()
    assert all(
        torch.equal(tensor, parts(other).good[name]) for name, tensor in parts(made).good.items()
    )
    with pytest.raises(RuntimeError, match="Unexpected key"):
        parts(other).load_state_dict(parts(made).state_dict() | {"better.codebook": torch.zeros(1)})


def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    lines: list[str] = []
    train_recipe(recipe(), whole, say=lines.append)
    assert any("no perceptual term" in line and "from step 2 on" in line for line in lines)
    in_two(recipe(), halves, 3)
    states = [
        read_tensors(out / "checkpoints" / "step-00000006" / "state.safetensors")
        for out in (whole, halves)
    ]
    assert states[0].keys() == states[1].keys()
    assert any(name.startswith("module/good.tokenizer.") for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert log(whole) == log(halves)
    kept = [read_tensors(out / "model.safetensors") for out in (whole, halves)]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
    assert not any("discriminator" in name for name in kept[0])


@pytest.mark.parametrize("last", [3, 5])
def test_a_takeover_is_the_same_before_and_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    measured = TokenizerTask.validate

    def wrecked_at_4(self: TokenizerTask, *rest: Any) -> dict[str, float]:
        assert isinstance(self.module, Adversaries)
        return measured(self, *rest) | {"mse": 9.0 if int(self.module.passes) == 4 else 1.0}

    monkeypatch.setattr(TokenizerTask, "validate", wrecked_at_4)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with pytest.warns(TessellaWarning, match="took over"):
        train_recipe(recipe(), whole, say=lambda line: None)
    with pytest.warns(TessellaWarning, match="took over"):
        in_two(recipe(), halves, last)
    states = [
        read_tensors(out / "checkpoints" / "step-00000006" / "state.safetensors")
        for out in (whole, halves)
    ]
    assert int(states[0]["module/takeovers"]) == 1
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert log(whole) == log(halves)


def test_the_weights_kept_are_not_those_from_before_the_adversarial_term(tmp_path: Path) -> None:
    run = train_recipe(recipe(steps=8), tmp_path / "run", say=lambda line: None)
    assert run.progress.best_step == 8
    assert run.figures["takeovers"] == 0
    assert run.load().name == "vqgan"  # type: ignore[union-attr]


def test_other_tokenizers_and_images_too_small_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "lpips.safetensors", weights())
    vqvae, train = create_tokenizer("vqvae", image_size=(32, 32)), TrainConfig(steps=1)
    with pytest.raises(ConfigError, match="for the tokenizer \"vqgan\", this one is 'vqvae'"):
        AdversarialTask(vqvae, AdversarialConfig(), train, 1, (32, 32))
    vqgan = create_tokenizer("vqgan", image_size=(8, 8), **SIZES)
    with pytest.raises(ConfigError, match="layers=3 need images of at least 24x24, got 8x30"):
        AdversarialTask(vqgan, AdversarialConfig(), train, 1, (8, 30))
    terms = AdversarialConfig(layers=1, perceptual=str(tmp_path / "lpips.safetensors"))
    with pytest.raises(ConfigError, match="the perceptual term need images of at least 16x16"):
        AdversarialTask(vqgan, terms, train, 1, (8, 8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tolerance": -0.1}, "adversarial.tolerance must be at least 0"),
        ({"layers": 0}, "adversarial.layers and adversarial.hidden must be at least 1"),
        ({"wieght": 1.0}, "did you mean 'weight'"),
    ],
)
def test_terms_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(AdversarialConfig, values, "adversarial")
