"""Plans: what is counted is what is there, and more of anything never makes a plan worse."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tessella as ts
from tessella.cli.entry import main
from tessella.cli.verb_options import Plan as PlanOptions
from tessella.config import load_recipe, recipe_names
from tessella.errors import ConfigError
from tessella.models import MODELS
from tessella.planning import ACCELERATORS, GB, Hardware, choice, facts_of, plan, planned_task
from tessella.planning import compute_time as compute
from tessella.planning.held_bytes import WeightBytes, weight_bytes
from tessella.planning.live_memory import LiveMemory, product_counter
from tessella.planning.memory_parts import largest_batch, memory_parts
from tessella.planning.plan_text import duration_text, size, text_of
from tessella.planning.recipe_task import PlannedTask
from tessella.planning.step_counts import count_step
from tessella.planning.traffic import ring_seconds, traffic
from tessella.training.optimizers import create_optimizer

ROOT = Path(__file__).resolve().parents[2]
H100 = Hardware("h100")

TINY = {
    "gpt": ["model.layers=1", "model.width=16", "model.heads=2"],
    "transformer": ["model.layers=1", "model.width=16", "model.heads=2"],
    "nade": ["model.hidden=4", "data.size=4"],
    "diagonal-bilstm": ["model.layers=1", "model.hidden=4", "data.size=4"],
}
"""Sizes of families whose steps would take long at their defaults."""


def of_recipe(name: str, *overrides: str, tokenizer: str = "") -> PlannedTask:
    return planned_task(load_recipe(name, overrides), tokenizer)


@pytest.fixture(scope="module")
def small() -> choice.TrainingPlan:
    return plan(of_recipe("digits", "model.layers=1", "model.hidden=16"), Hardware())


def kept_for_backward(task: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that the graph of the loss refers to, weights left out: by hooks of autograd."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*task.parameters(), x]}
    known |= {tensor.untyped_storage().data_ptr() for tensor in task.buffers()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = task(x, None)["loss"]
    assert loss.requires_grad
    return sum(seen.values())


def test_activations_are_what_the_graph_keeps() -> None:
    planned = of_recipe("digits", "model.layers=2", "model.hidden=16")
    counts = count_step(planned, checkpointing=False, half=False)
    task = planned.build().train()
    x, _ = planned.examples(8)
    counted = counts.activations.at(8) + counts.logits.at(8)
    # A few results, such as the figures of the log, live on beside the graph.
    assert counted == pytest.approx(kept_for_backward(task, x), rel=0.05)


def test_memory_of_tensors_is_counted_until_nothing_refers_to_them() -> None:
    weight = torch.zeros(256, requires_grad=True)  # 1 KiB
    memory = LiveMemory([weight])
    with memory:
        doubled = weight * 2
        assert memory.live == 1024
        view = doubled.view(16, 16)
        del doubled
        assert memory.live == 1024, "a view keeps the memory"
        del view
        assert memory.live == 0
    assert memory.peak == 1024
    assert memory.operations == 1


def test_shapes_alone_give_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = of_recipe("digits", "model.layers=1", "model.hidden=8")
    real = count_step(planned, checkpointing=False, half=True)
    monkeypatch.setattr("tessella.planning.step_counts.LARGEST_REAL_PASS", 0)
    followed = count_step(planned, checkpointing=False, half=True)
    assert followed.followed
    assert not real.followed
    assert replace(followed, followed=False) == real


def test_checkpointing_keeps_less_and_multiplies_more() -> None:
    planned = of_recipe("digits", "model.layers=4", "model.hidden=16")
    kept = count_step(planned, checkpointing=False, half=False)
    computed_again = count_step(planned, checkpointing=True, half=False)
    assert computed_again.activations.each < kept.activations.each
    assert computed_again.flops.each > kept.flops.each


def test_the_attention_of_a_processor_is_counted() -> None:
    query = torch.zeros(1, 2, 64, 16, requires_grad=True)
    with product_counter() as products:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
        forward = products.get_total_flops()
        out.sum().backward()
    # Two products of 64 x 16 x 64 for each of two heads; five of them on the way back.
    assert forward == 2 * 2 * (2 * 64 * 16 * 64)
    assert products.get_total_flops() == forward * 7 // 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizer_takes_the_bytes_that_were_counted(optimizer: str) -> None:
    planned = of_recipe("digits", "model.layers=2", f"train.optimizer={optimizer}")
    task = planned.build()
    counted = weight_bytes(task, planned.recipe.train)
    made = create_optimizer(task, planned.recipe.train)
    x, _ = planned.examples(2)
    task(x, None)["loss"].backward()
    made.step()
    held = 0
    for values in made.state.values():
        held += sum(value.nbytes for value in values.values() if value.dim())
    assert counted.parameters == sum(parameter.numel() for parameter in task.parameters())
    assert counted.gradients == sum(parameter.nbytes for parameter in task.parameters())
    assert counted.moments == held


@pytest.mark.parametrize("family", MODELS)
def test_every_family_is_planned(family: str) -> None:
    sizes = TINY.get(family, [])
    planned = of_recipe("digits", f"model.name={family}", *sizes)
    made = plan(planned, H100)
    assert made.held.parameters > 0
    # A masked model has no pass of its own from which on memory is that of logits.
    if not ts.MODELS[family].states_bound:
        assert made.way.memory.logits > 0
    assert made.images_a_second > 0
    assert family in text_of(made)


SHRUNK = {
    "cifar10-vqvae2": ["data.size=16"],
    "digits-vae": [],
    "digits-vqgan": [],
    "digits-vqvae": [],
    "folder-vqvae": ["data.size=16", "tokenizer.hidden=16"],
}
"""A recipe of each kind, in sizes that are counted at once."""


@pytest.mark.parametrize("name", SHRUNK)
def test_every_kind_of_recipe_is_planned(name: str) -> None:
    made = plan(of_recipe(name, *SHRUNK[name]), Hardware("a100", 2))
    assert made.way.memory.total < 80 * GB
    assert made.way.memory.activations > 0
    assert json.dumps(facts_of(made))


@pytest.mark.parametrize("name", recipe_names())
def test_the_shape_of_every_recipe_that_ships_is_known(name: str) -> None:
    words = ["data.size=16"] if name.startswith("folder") else []
    tokenizer = name.replace("prior", "vqvae") if name.endswith("prior") else ""
    if name == "digits-next-scale":
        tokenizer = "digits-multiscale"
    x, _ = of_recipe(name, *words, tokenizer=tokenizer).examples(2)
    assert len(x) == 2


def test_a_prior_on_several_grids_is_planned() -> None:
    small = ["model.layers=1", "model.hidden=8"]
    made = plan(of_recipe("mnist-prior", *small, tokenizer="mnist-vqvae2"), H100)
    assert made.way.memory.logits > 0
    assert made.held.parameters > 0


def test_a_prior_on_more_codes_than_a_pixel_has_values_is_planned() -> None:
    # Nobody takes 1,024 codes for pixels.
    small = ["model.layers=1", "model.hidden=8", "data.size=32"]
    planned = of_recipe("folder-prior", *small, tokenizer="folder-vqgan")
    assert planned.tokenizer is not None
    assert planned.tokenizer.grids()[0].levels > 256
    assert plan(planned, H100).way.memory.logits > 0


@pytest.fixture(scope="module")
def heavy_counts() -> tuple[WeightBytes, Any]:
    """Counts of a model that is worth several devices: the small one, with larger weights."""
    counts = count_step(of_recipe("digits", "model.layers=1"), False, False)
    gigabytes = 10 * 10**9
    held = WeightBytes(
        parameters=gigabytes // 4,
        weights=gigabytes,
        gradients=gigabytes,
        moments=2 * gigabytes,
        average=gigabytes,
        spare=0,
        largest_block=gigabytes // 10,
    )
    return held, counts


def test_more_memory_never_gives_a_smaller_batch_or_a_slower_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = of_recipe("digits", "model.layers=2", "train.batch=64")
    counted: dict[tuple[bool, bool], Any] = {}

    def count_once(task: PlannedTask, checkpointing: bool, half: bool) -> Any:
        key = (checkpointing, half)
        if key not in counted:
            counted[key] = count_step(task, checkpointing, half)
        return counted[key]

    monkeypatch.setattr(choice, "count_step", count_once)
    largest = 0
    seconds = float("inf")
    planned_ones = 0
    for memory in (0.6, 0.7, 0.72, 0.75, 0.8, 1.0, 2.0, 8.0):
        try:
            made = plan(planned, Hardware("h100", memory=memory * GB))
        except ConfigError:
            assert not planned_ones, "what fitted into less fits into more"
            continue
        planned_ones += 1
        assert made.largest_of_all >= largest
        assert made.way.step_seconds <= choice.EQUALLY_FAST * seconds
        largest = made.largest_of_all
        seconds = made.way.step_seconds
    assert planned_ones > 3


def test_weights_are_spread_where_they_do_not_fit(heavy_counts: tuple[WeightBytes, Any]) -> None:
    held, counts = heavy_counts
    hardware = Hardware("h100", devices=8, memory=40 * GB)
    assert largest_batch(held, counts, False, hardware) == 0
    assert largest_batch(held, counts, True, hardware) > 0
    spread = memory_parts(held, counts, 1, 1, True, hardware)
    assert spread.weights == held.weights / 8
    assert spread.moments == held.moments / 8
    assert spread.gathered == 2 * held.largest_block


def test_a_ring_sends_what_the_formula_says(heavy_counts: tuple[WeightBytes, Any]) -> None:
    held, _ = heavy_counts
    computing = compute.ComputeTime(one_pass=1.0, backward=2 / 3, optimizer=0.0, reason="")
    one = traffic(held, computing, 1, False, Hardware("h100"))
    assert one.sent == 0
    eight = Hardware("h100", devices=8)
    assert traffic(held, computing, 1, False, eight).sent == 2 * 7 / 8 * held.gradients
    assert traffic(held, computing, 1, True, eight).sent == pytest.approx(3 * 7 / 8 * 10**10)
    # Between machines the network is the narrowest place.
    far = Hardware("h100", devices=8, nodes=4, network=10 * GB)
    assert ring_seconds(1e9, 0, far) == pytest.approx(0.1)
    assert ring_seconds(1e9, 0, eight) == pytest.approx(1 / 450)
    # What computing hides is not waited for, but for the last bucket.
    hidden = traffic(held, computing, 1, False, eight)
    assert 0 < hidden.exposed < hidden.seconds


def test_a_batch_is_made_to_fit_the_devices() -> None:
    tiny = of_recipe("digits", "train.batch=10", "model.layers=1", "model.hidden=8")
    made = plan(tiny, Hardware("h100", devices=4))
    assert made.batch == 12
    assert "cannot be divided" in text_of(made)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(ConfigError, match=r"the least that a step takes is .* take smaller sizes"):
        plan(of_recipe("digits", "model.layers=1"), Hardware("h100", memory=0.1 * GB))


def test_a_recipe_that_says_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.size=64 data\.channels=3"):
        of_recipe("digits", "data.source=npz:images.npz")
    with pytest.raises(ConfigError, match="--tokenizer"):
        of_recipe("digits-prior")
    with pytest.raises(ConfigError, match="run or the recipe of a tokenizer"):
        of_recipe("digits-prior", tokenizer="digits")


def test_the_time_of_a_run_follows_its_limits(small: choice.TrainingPlan) -> None:
    assert small.run_seconds == pytest.approx(60 * small.recipe.train.minutes, rel=0.05)
    by_images = plan(of_recipe("digits", "model.layers=1"), Hardware(), images=6400)
    assert by_images.run_seconds == pytest.approx(6400 / by_images.images_a_second)
    in_epochs = of_recipe("digits", "model.layers=1", "train.minutes=0", "train.epochs=3")
    assert "give --images" in text_of(plan(in_epochs, Hardware()))


def test_the_command_prints_and_writes_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plan.json"
    words = ["plan", "digits", "--gpus", "8", "--nodes", "2", "--network", "25"]
    assert main([*words, "train.batch=64", "model.layers=1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("batch a device", "sharding", "checkpointing", "precision", "accumulate", "step"):
        assert f"\n{name} " in printed
    assert "torchrun --nnodes 2 --nproc-per-node 8" in printed
    facts = json.loads(out.read_text())
    assert facts["batch_a_device"] == 4
    assert facts["memory"]["total"] == pytest.approx(
        sum(value for name, value in facts["memory"].items() if name != "total")
    )
    assert set(facts["reasons"]) >= {"sharding", "precision", "step"}


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "digitz"]) == 2
    assert "digits" in capsys.readouterr().err
    assert main(["plan", "digits", "--network", "0"]) == 2
    assert "--network must be above 0" in capsys.readouterr().err


def test_the_command_offers_the_accelerators_that_there_are() -> None:
    annotation = str(PlanOptions.__annotations__["gpu"])
    for name, accelerator in ACCELERATORS.items():
        assert (repr(name) in annotation) == accelerator.is_gpu


def test_shares_of_the_peak_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    works = importlib.import_module("training_share").WORKS
    measured = json.loads((ROOT / "results" / "training_share.json").read_text())["rows"]
    by_name = {row["work"]: row for row in measured}
    for work in works:
        # Of families that were measured at several sizes, the default sizes count.
        if work.sizes:
            continue
        row = by_name[work.name]
        for precision, name in (("32", "float32"), ("bf16", "bfloat16")):
            flops = counted_gflop(work, row)
            share = flops / row[name]["seconds"]["least"] / row[name]["peak_gflops"]
            assert compute.MEASURED_SHARES[work.family][precision] == pytest.approx(share, rel=0.1)


def counted_gflop(work: Any, row: dict[str, Any]) -> float:
    """What a step of the benchmark multiplies, with the attention that its counter left out."""
    if work.family not in ("transformer", "pixelsnail"):
        return float(row["gflop"])
    model = ts.create(work.family, work.grid, head=work.head).train()
    x = torch.zeros(work.batch, *work.grid.shape, dtype=torch.int64)
    with product_counter() as products:
        (-model.distribution(x).log_prob(x).mean()).backward()
    return products.get_total_flops() / 1e9


def test_sizes_and_durations_are_readable() -> None:
    assert size(2_500_000_000) == "2.5 GB"
    assert duration_text(3 * 86400) == "3 days"
