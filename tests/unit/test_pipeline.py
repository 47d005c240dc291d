"""Generators: two parts that fit, saved and loaded, sampled and completed as images."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella import files
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaWarning
from tessella.pipeline import (
    BoundsImages,
    CompletesImages,
    DrawsImages,
    SavedModel,
    ScoresImages,
    bundled,
    class_count,
    fingerprint,
    learned_tokenizer,
    locate,
    pixel_generator,
    pixel_levels,
    require,
    require_codes,
    save_model,
)
from tessella.pipeline.model_card import card
from tessella.sampling import Sampler
from tessella.training.progress import Progress
from tessella.training.trainer import Run


def test_a_trained_run_shows_where_it_is_and_how_good_it_is() -> None:
    progress = Progress(step=400, seconds=62.7)
    assert repr(Run(Path("runs/a"), progress, True)) == (
        "Run('runs/a', steps=400, seconds=63, interrupted=True)"
    )
    progress.best_step = 300
    progress.figures = {"bits_per_dim": 1.23456}
    assert repr(Run(Path("runs/a"), progress, False)) == (
        "Run('runs/a', steps=400, seconds=63, best_step=300, bits_per_dim=1.235)"
    )
    names = {"bits_per_dim": "bits_per_code"}
    assert repr(Run(Path("runs/a"), progress, False, names)) == (
        "Run('runs/a', steps=400, seconds=63, best_step=300, bits_per_code=1.235)"
    )


def tokenizer(seed: int = 0, image_size: tuple[int, int] = (6, 10)) -> ts.Tokenizer:
    return ts.create_tokenizer(
        "vqvae",
        seed=seed,
        image_size=image_size,
        channels=3,
        codebook_size=8,
        hidden=4,
        code_dim=2,
        downsample=4,
    )


def two_stage() -> ts.Generator:
    stage = tokenizer()
    return ts.Generator(stage, ts.create("gated-pixelcnn", stage.grid(), layers=2, hidden=4))


def pixels() -> ts.Generator:
    return pixel_generator(
        ts.create(
            "gated-pixelcnn", ts.Grid(6, 5, 3, 8), head="logistic-mixture", layers=2, hidden=4
        )
    )


def variational() -> ts.VAE:
    return ts.create_vae(image_size=(6, 5), channels=3, levels=8, hidden=4, latent=2)


CAPABILITIES = (DrawsImages, CompletesImages, ScoresImages, BoundsImages)
HELD = {
    "density-model": (pixels, {DrawsImages, CompletesImages, ScoresImages}),
    "generator": (two_stage, {DrawsImages, CompletesImages, ScoresImages}),
    "tokenizer": (tokenizer, set()),
    "vae": (variational, {DrawsImages, BoundsImages}),
}
"""What a run can hold: how to make a small one, and what it can do."""


@pytest.mark.parametrize("kind", HELD)
def test_all_that_a_run_can_hold_is_one_kind_of_thing(kind: str) -> None:
    make, able = HELD[kind]
    model = make()
    assert isinstance(model, SavedModel)
    assert model.kind == kind
    assert model.image_grid.levels == 256
    assert model.image_grid.shape == (*model.tokenizer.image_size, 3)
    assert fingerprint(model) == fingerprint(model.to("cpu"))
    assert class_count(model) == 0
    for capability in CAPABILITIES:
        if capability in able:
            assert require(model, capability, "RUN") is model
        else:
            with pytest.raises(InputError, match="^RUN is a (tokenizer|VAE|.* model), which "):
                require(model, capability, "RUN")


def test_codes_come_from_learned_tokenizers_only() -> None:
    assert learned_tokenizer(pixels()) is None
    assert learned_tokenizer(variational()) is None
    generator = two_stage()
    assert require_codes(generator, "RUN") is generator.tokenizer
    with pytest.raises(InputError, match="RUN is a VAE on pixels, without a learned tokenizer"):
        require_codes(variational(), "RUN")
    assert [pixel_levels(model) for model in (pixels(), variational(), generator)] == [8, 8, None]


def test_what_is_expected_of_a_run_is_checked() -> None:
    assert isinstance(ts.load("digits", expect=ts.Generator), ts.Generator)
    with pytest.raises(InputError, match="digits-vqvae is a tokenizer, not a Generator"):
        ts.load("digits-vqvae", expect=ts.Generator)


def photographs(n: int = 3, height: int = 6, width: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("make", [two_stage, pixels])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    generator = make()
    generator.save(tmp_path / "g", {"bits_per_dim": 1.25})
    again = ts.load(tmp_path / "g")
    assert isinstance(again, ts.Generator)
    assert fingerprint(again) == fingerprint(generator)
    assert torch.equal(again.sample(2, seed=3), generator.sample(2, seed=3))
    images = photographs(width=generator.tokenizer.image_size[1])
    assert torch.equal(again.log_prob(images), generator.log_prob(images))
    assert "| bits_per_dim | 1.25 |" in (tmp_path / "g" / "README.md").read_text()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_model_is_not_saved_over_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="was not made by tessella"):
        pixels().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    pixels().save(tmp_path, force=True)
    pixels().save(tmp_path)


@pytest.mark.parametrize("make", [two_stage, pixels, variational])
def test_a_model_says_what_it_is(make) -> None:  # type: ignore[no-untyped-def]
    text = repr(make())
    assert len(text) < 300
    assert "parameters=" in text
    assert "images" in text


def test_a_prior_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit its tokenizer"):
        ts.Generator(
            tokenizer(), ts.create("gated-pixelcnn", ts.Grid(2, 3, 1, 9), layers=1, hidden=4)
        )
    two_stage().save(tmp_path)
    save_model(tokenizer(image_size=(9, 9)), tmp_path / "tokenizer")
    with pytest.raises(ArtifactError, match="does not fit its tokenizer"):
        ts.load(tmp_path)


def test_codes_are_kept_where_their_whole_cell_is_known() -> None:
    generator = two_stage()  # 6x10 pixels, 4x4 cells: 2x3 codes, the outer ones cut by the border
    known = torch.ones(6, 10, dtype=torch.bool)
    known[5, 9] = known[0, 3] = False
    cells = generator._known_symbols(known, 1)[0][0, :, :, 0]
    assert cells.tolist() == [[False, True, True], [True, True, False]]
    images = photographs(2)
    drawn = generator.tokenizer.encode(
        generator.complete(images, torch.ones(6, 10, dtype=torch.bool))
    )
    assert torch.equal(
        drawn, generator.tokenizer.encode(generator.tokenizer.decode(generator.encode(images)))
    )


def test_pixels_that_are_known_stay() -> None:
    generator = pixels()
    images = generator.tokenizer.decode(generator.encode(photographs(2, width=5)))
    known = torch.zeros(6, 5, dtype=torch.bool)
    known[:3, ::2] = True
    completed = generator.complete(images, known, seed=1)
    assert torch.equal(completed[:, known], images[:, known])
    assert not torch.equal(completed, images)


@pytest.mark.parametrize("make", [two_stage, pixels])
def test_batches_are_the_sample_from_any_image_on(make) -> None:  # type: ignore[no-untyped-def]
    generator = make()
    whole = generator.sample(7, seed=3)
    parts = list(generator.batches(7, 3, batch=3, start=2))
    assert [len(part) for part in parts] == [3, 2]
    assert torch.equal(torch.cat(parts), whole[2:])


def test_each_batch_takes_its_own_classes() -> None:
    prior = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 8), classes=3, layers=2, hidden=4).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    generator, classes = pixel_generator(prior), torch.arange(5) % 3
    parts = list(generator.batches(5, seed=1, batch=2, start=2, cond=classes))
    alone = [generator.sample(1, seed=1 + i, cond=classes[i : i + 1]) for i in range(2, 5)]
    assert torch.equal(torch.cat(parts), torch.cat(alone))
    assert not torch.equal(
        generator.sample(5, seed=1, cond=2 - classes), generator.sample(5, seed=1, cond=classes)
    )


def test_batches_tell_how_far_they_are() -> None:
    seen: list[float] = []
    for _ in pixels().batches(5, batch=2, start=2, watch=seen.append):
        pass
    assert seen == sorted(seen)
    assert seen[0] == pytest.approx(2 + 2 / 6), "a row of the first batch"
    assert seen[-1] == 5
    assert len(seen) == 2 * 6


@pytest.mark.parametrize("make", [two_stage, pixels])
def test_grids_are_drawn_in_one_go_where_nobody_watches(
    make: Callable[[], ts.Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make()
    stops: list[int] = []
    streaming = Sampler.stream

    def counted(self: Sampler, *arguments: Any, **options: Any) -> Iterator[Any]:
        for index, x in streaming(self, *arguments, **options):
            stops.append(index)
            yield index, x

    monkeypatch.setattr(Sampler, "stream", counted)
    alone = generator.sample(4, batch=2)
    assert stops == [grid.symbols for _ in range(2) for grid in generator.grids]
    stops.clear()
    watched = generator.sample(4, batch=2, watch=lambda done: None)
    assert len(stops) == 2 * sum(grid.height for grid in generator.grids)
    assert torch.equal(alone, watched)


def test_batches_hold_one_batch_whatever_the_number() -> None:
    batches = pixels().batches(12, batch=2)
    next(batches)
    gc.collect()
    gc.disable()  # a state that is spent goes at once, not when the collector finds it
    try:
        held = [sum(type(item) is torch.Tensor for item in gc.get_objects()) for _ in batches]
    finally:
        gc.enable()
    assert max(held) <= held[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be an integer of at least 1, got 0"),
        ({"batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"start": -1}, "start must be an integer of at least 0, got -1"),
        ({"seed": 2**64 - 3, "n": 4, "batch": 1}, "seed must be"),
        ({"cond": torch.zeros(4, dtype=torch.int64)}, "no classes"),
    ],
)
def test_batches_that_cannot_be_are_refused_before_the_first(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        next(pixels().batches(**arguments))


def test_a_completion_is_the_same_in_any_batches() -> None:
    for generator in (two_stage(), pixels()):
        images = photographs(5, width=generator.tokenizer.image_size[1])
        known = np.random.default_rng(1).integers(0, 2, images.shape, dtype=np.uint8).astype(bool)
        whole = generator.complete(images, known, seed=2)
        assert torch.equal(generator.complete(images, known, seed=2, batch=2), whole)


def test_a_stream_ends_with_the_sample() -> None:
    for generator in (two_stage(), pixels()):
        last = [images.clone() for _, images in generator.stream(2, seed=4)][-1]
        assert torch.equal(last, generator.sample(2, seed=4))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (photographs().astype(np.float32) / 255, "uint8"),
        (photographs(height=7), "6x10"),
        (photographs()[..., :1], "channel"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        two_stage().log_prob(images)


def test_a_grid_no_image_has_needs_its_tokenizer(tmp_path: Path) -> None:
    save_model(ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 512), layers=1, hidden=4), tmp_path)
    with pytest.raises(ArtifactError, match="levels"):
        ts.load(tmp_path)


def test_models_of_digits_load_and_sample() -> None:
    assert {"digits", "digits-codes", "digits-vqvae"} <= set(bundled())
    for name in ("digits", "digits-codes"):
        generator = ts.load(name)
        assert isinstance(generator, ts.Generator)
        assert generator.sample(2).shape == (2, 8, 8, 1)
    assert isinstance(ts.load("digits-vqvae"), ts.Tokenizer)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_the_bytes_are_float32_once_loaded(
    tmp_path: Path, half: torch.dtype
) -> None:
    shutil.copytree(locate("digits"), tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    stored = {name: tensor.to(half) for name, tensor in files.read_tensors(weights).items()}
    files.write_tensors(weights, stored)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = ts.load(tmp_path / "run").priors[0].state_dict()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())


@pytest.mark.parametrize("other", [torch.float64, torch.int32])
def test_weights_of_types_that_float32_does_not_hold_are_refused(
    tmp_path: Path, other: torch.dtype
) -> None:
    shutil.copytree(locate("digits"), tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    stored = {name: tensor.to(other) for name, tensor in files.read_tensors(weights).items()}
    files.write_tensors(weights, stored)
    with pytest.raises(ArtifactError, match="tensors of a wrong type"):
        ts.load(tmp_path / "run")


def test_integers_are_not_stored_as_floats(tmp_path: Path) -> None:
    shutil.copytree(locate("digits-vqvae"), tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    stored = {name: tensor.half() for name, tensor in files.read_tensors(weights).items()}
    files.write_tensors(weights, stored)
    with pytest.raises(ArtifactError, match="F16 instead of I64"):
        ts.load(tmp_path / "run")


def test_a_card_shows_figures_in_sections() -> None:
    text = card("tokenizer", {"name": "vqvae"}, {"test": {"psnr_db": 24.123456, "images": 7}})
    assert "### test" in text
    assert "| psnr_db | 24.123 |" in text
    assert json.dumps({"name": "vqvae"}, indent=2) in text
    assert "tessella eval" in card("tokenizer", {}, None)
    more = card("tokenizer", {}, None, {"Terms": "None are stated."})
    assert more.index("## Terms") < more.index("None are stated.") < more.index("## Figures")


@pytest.mark.parametrize("head", ["ordinal", "logistic-mixture"])
def test_a_head_that_orders_codes_is_warned_of(tmp_path: Path, head: str) -> None:
    stage = tokenizer()
    prior = ts.create("gated-pixelcnn", stage.grid(), head=head, layers=1, hidden=4)
    with pytest.warns(TessellaWarning, match=f'{head}.*no order.*head="categorical"') as told:
        generator = ts.Generator(stage, prior)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.save(tmp_path)
        two_stage()
        pixel_generator(
            ts.create("gated-pixelcnn", ts.Grid(6, 5, 1, 8), head=head, layers=1, hidden=4)
        )
