"""What a user passes to the public functions by mistake, and what the refusal says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import tessella as ts
from tessella import files
from tessella.config import TrainConfig, load_recipe
from tessella.data import ImageSet
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaWarning
from tessella.nn import outline
from tessella.pipeline import locate, pixel_generator
from tessella.report.run_summary import describe, render
from tessella.training import train_recipe

GRID = ts.Grid(8, 8, 1, levels=17)


def images(n: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)


def tiny(grid: ts.Grid = GRID) -> Any:
    return ts.create("gated-pixelcnn", grid, layers=1, hidden=4)


def train(out: Path, given: Any, model: Any = None, **options: Any) -> Any:
    model = tiny() if model is None else model
    options = {"steps": 1, "batch": 4, "device": "cpu", "say": lambda line: None} | options
    return ts.train(model, given, out=out, **options)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (torch.rand(4, 8, 8, 1), r"\(images \* 255\)\.round\(\)\.to\(torch\.uint8\)"),
        (torch.zeros(4, 8, 8, 1, dtype=torch.bool), r"images\.to\(torch\.uint8\) \* 255"),
        (torch.zeros(4, 8, 8, 1, dtype=torch.int64), r"images\.to\(torch\.uint8\)$"),
        (np.zeros((4, 8, 8, 1)), r"np\.round\(images \* 255\)\.astype\(np\.uint8\)"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), r"images\.movedim\(1, -1\)"),
    ],
)
def test_the_line_that_converts_images_is_for_what_was_given(given: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        ts.load("digits").encode(given)
    with pytest.raises(InputError, match=line):
        ts.load("digits-vqvae").encode(given)
    # An image with one row of pixels is allowed where the channels are not known.
    if given.shape[-1] == 1:
        with pytest.raises(InputError, match=line):
            ts.evaluate("digits", given)


@pytest.mark.parametrize("given", [torch.rand(20, 8, 8, 1), np.zeros((20, 8, 8, 1))])
def test_training_names_the_line_for_what_was_given(tmp_path: Path, given: Any) -> None:
    line = r"np\.round\(images"
    if isinstance(given, torch.Tensor):
        line = r"\.round\(\)\.to\(torch\.uint8\)"
    with pytest.raises(InputError, match=line):
        train(tmp_path / "run", given, valid=images())


@pytest.mark.parametrize("run", [None, 5])
def test_a_run_that_is_no_path_is_refused(run: Any) -> None:
    with pytest.raises(InputError, match="path of its directory"):
        ts.load(run)
    with pytest.raises(InputError, match="evaluate takes a run directory"):
        ts.evaluate(run, images())


def test_a_model_is_saved_to_a_path() -> None:
    wrong: Any = 5
    with pytest.raises(InputError, match="named by its path, got int"):
        ts.load("digits").save(wrong)


@pytest.mark.parametrize(
    "items", [["a", "b"], [None, None], ["abc", "def", "ghi"], [("a", "b"), ("c", "d")]]
)
def test_an_iterable_of_other_things_than_numbers_is_refused(tmp_path: Path, items: Any) -> None:
    loader: Any = DataLoader(items, 2, collate_fn=lambda batch: batch)
    with pytest.raises(InputError):
        train(tmp_path / "run", loader, valid=images())


def test_labels_of_an_iterable_must_be_integers(tmp_path: Path) -> None:
    model = ts.create("gated-pixelcnn", GRID, classes=2, layers=1, hidden=4)
    loader: Any = DataLoader([(images(4), ["a"] * 4)], None)
    with pytest.raises(InputError, match="labels must be integers"):
        train(tmp_path / "run", loader, model, valid=images(4), valid_labels=[0, 1, 0, 1])


def test_no_images_at_all_are_called_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no images"):
        train(tmp_path / "run", [])
    with pytest.raises(InputError, match="valid is empty: there are no images"):
        train(tmp_path / "run", images(), valid=[])


@pytest.mark.parametrize("steps", [10**13, 10**30, 10**400])
def test_steps_are_bounded(tmp_path: Path, steps: int) -> None:
    with pytest.raises(ConfigError, match=r"train\.steps must be at most 1000000000000, got"):
        train(tmp_path / "run", images(), steps=steps)


def test_minutes_must_be_finite() -> None:
    with pytest.raises(ConfigError, match=r"train\.minutes must be finite and at least 0"):
        TrainConfig(minutes=float("inf"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 10**9}, "^hidden must be at most 1048576, got 1000000000"),
        ({"layers": 10**6}, "^layers must be at most 1000, got 1000000"),
        ({"hidden": 10**6}, "a network of these sizes has .* G parameters .* this machine has"),
        ({"classes": 10**12}, "a network of these sizes has"),
        ({"kernel": 2**19 + 1, "hidden": 2**19}, "no machine can hold|of these sizes"),
    ],
)
def test_a_model_that_no_machine_can_hold_is_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ts.create("gated-pixelcnn", GRID, **sizes)


def test_a_tokenizer_and_a_vae_that_no_machine_can_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images_of: Any = {"image_size": (8, 8), "channels": 1}
    with pytest.raises(ConfigError, match="^hidden must be at most 1048576"):
        ts.create_tokenizer("vqvae", hidden=10**9, **images_of)
    with pytest.raises(ConfigError, match="^hidden must be at most 1048576"):
        ts.create_vae(hidden=10**9, **images_of)
    # On a smaller machine sizes that are allowed elsewhere are refused as well.
    monkeypatch.setattr(outline, "machine_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="a network of these sizes has"):
        ts.create_tokenizer("vqvae", **images_of)
    with pytest.raises(ConfigError, match="a network of these sizes has"):
        ts.create_vae(**images_of)


def test_looking_at_sizes_first_changes_no_weight_and_no_random_number() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = ts.create("made", GRID, hidden=8, seed=3)
    again = ts.create("made", GRID, hidden=8, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.is_meta


def test_more_images_than_memory_holds_are_refused_at_once() -> None:
    many = 10**12
    model = tiny()
    with pytest.raises(InputError, match=r"n=1000000000000 images take .* in parts.* --out"):
        ts.sample(model, n=many)
    with pytest.raises(InputError, match="in parts"):
        next(ts.stream(model, n=many))
    generator = ts.load("digits")
    with pytest.raises(InputError, match=r"batches\(\) yields one batch.* --out DIRECTORY"):
        generator.sample(many)
    # One batch after another takes the memory of one, so it is not refused.
    first = next(generator.batches(many, batch=2, method="naive"))
    assert first.shape == (2, 8, 8, 1)
    # The last of many are only a few.
    assert len(generator.sample(many, start=many - 2, method="naive")) == 2


def test_a_vae_refuses_more_images_than_memory_holds() -> None:
    vae = ts.create_vae(image_size=(8, 8), channels=1, hidden=4, latent=2)
    with pytest.raises(InputError, match=r"batches\(\) yields one batch after another"):
        vae.sample(10**12)


def test_a_prior_is_told_of_in_bits_a_code(tmp_path: Path) -> None:
    said: list[str] = []
    tokenizer = ts.load("digits-vqvae")
    prior = ts.create("gated-pixelcnn", tokenizer.grid(), layers=1, hidden=4)
    options = {"steps": 3, "validate_every": 1, "batch": 4, "device": "cpu", "say": said.append}
    ts.train(prior, images(), out=tmp_path / "run", tokenizer=tokenizer, **options)
    assert "best bits_per_code " in said[-1]
    facts = describe(tmp_path / "run")
    # What is stored keeps its name, for other programs.
    assert set(facts["validation"]["figures"]) == {"bits_per_dim"}
    text = render(facts)
    assert "bits/code; best, at step" in text
    assert "bits/code by step" in text or "bits_per_code" in text
    assert "bits/dim" not in text
    ts.train(tiny(), images(), out=tmp_path / "pixels", **options)
    assert "best bits_per_dim " in said[-1]
    assert "bits/dim; best, at step" in render(describe(tmp_path / "pixels"))


def small(high: int, n: int = 30) -> np.ndarray:
    """Images of symbols rather than of values 0..255."""
    drawn = np.random.default_rng(0).integers(0, high + 1, (n, 8, 8, 1)).astype(np.uint8)
    drawn[0, 0, 0, 0] = high
    return drawn


@pytest.mark.parametrize(("levels", "high"), [(2, 1), (17, 1), (17, 16), (8, 7), (32, 31)])
def test_symbols_given_as_images_are_refused_with_the_line(
    tmp_path: Path, levels: int, high: int
) -> None:
    model = tiny(ts.Grid(8, 8, 1, levels))
    line = rf"np\.round\(images \* \(255 / {high}\)\)\.astype\(np\.uint8\)"
    if high == 1:
        line = r"two colours, give images \* 255"
    generator = pixel_generator(model)
    known = np.zeros((8, 8), bool)
    with pytest.raises(InputError, match=line):
        train(tmp_path / "run", small(high), model)
    with pytest.raises(InputError, match=line):
        ts.evaluate(model, small(high))
    with pytest.raises(InputError, match=line):
        generator.encode(small(high))
    with pytest.raises(InputError, match=line):
        generator.log_prob(small(high))
    with pytest.raises(InputError, match=line):
        generator.complete(small(high), known)
    with pytest.raises(InputError, match=line.replace("images", "valid")):
        train(tmp_path / "run", images(), model, valid=small(high))
    loader: Any = DataLoader(torch.from_numpy(small(high)), 8)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is above"):
        train(tmp_path / "run", loader, model, valid=images())


def test_symbols_given_as_a_tensor_get_the_line_of_torch() -> None:
    with pytest.raises(InputError, match=r"\(images \* \(255 / 16\)\)\.round\(\)\.to\(torch"):
        ts.evaluate("digits", torch.from_numpy(small(16)))


def test_dark_images_that_are_meant_pass(tmp_path: Path) -> None:
    digits = ts.load("digits")
    # Black pictures, and those of a set, which has been checked as it was read.
    digits.encode(np.zeros((5, 8, 8, 1), np.uint8))
    ts.evaluate("digits", ImageSet(small(1)))
    train(tmp_path / "set", ImageSet(small(3)), valid=ImageSet(small(3)))
    # A model of 256 levels tells 0 from 1.
    fine = tiny(ts.Grid(8, 8, 1, 256))
    train(tmp_path / "fine", small(1), fine)
    ts.evaluate(fine, small(16))
    # Symbols of another integer type are symbols.
    train(tmp_path / "symbols", small(16).astype(np.int64))


@pytest.mark.parametrize(
    ("levels", "high", "n", "line"),
    [
        (17, 1, 1, r"images \* 255"),
        (17, 16, 1, r"\(255 / 16\)"),
        # Few images of symbols may lack the largest one.
        (17, 12, 3, r"\(255 / 16\)"),
        (64, 40, 1, r"\(255 / 63\)"),
        (100, 12, 3, r"\(255 / 15\)"),
    ],
)
def test_dark_images_lead_to_a_warning_before_a_model_sees_them(
    levels: int, high: int, n: int, line: str
) -> None:
    generator = pixel_generator(tiny(ts.Grid(8, 8, 1, levels)))
    with pytest.warns(TessellaWarning, match=line) as caught:
        generator.log_prob(small(high, n))
    assert caught[0].filename == __file__
    with pytest.warns(TessellaWarning, match=line):
        generator.complete(small(high, n), np.ones((8, 8), bool))


def test_ordinary_images_lead_to_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    pixel_generator(tiny(ts.Grid(8, 8, 1, 17))).encode(small(17, n=1))
    pixel_generator(tiny(ts.Grid(8, 8, 1, 128))).encode(small(100, n=3))
    pixel_generator(tiny(ts.Grid(8, 8, 1, 256))).encode(small(1, n=1))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("part", "name"),
    [("quantizer", "of-a-plugin"), ("name", "of-a-plugin")],
)
def test_a_run_of_a_plugin_names_the_option_that_loads_it(
    tmp_path: Path, part: str, name: str
) -> None:
    run = shutil.copytree(locate("digits-vqvae"), tmp_path / "run")
    config = files.read_json_object(run / "config.json")
    model: Any = config["model"]
    model[part] = name
    files.write_json(run / "config.json", config)
    with pytest.raises(ArtifactError, match=r"--plugin FILE\.py, in Python ts\.load_plugin"):
        ts.load(run)


def test_a_two_stage_run_given_as_tokenizer_names_the_run_of_its_tokenizer(tmp_path: Path) -> None:
    recipe = load_recipe("digits-prior", ["train.steps=1"])
    recipe = replace(recipe, prior_of="digits-codes")
    with pytest.raises(ConfigError, match="two-stage model: name the run of its tokenizer, "):
        train_recipe(recipe, tmp_path / "run")


def test_the_size_of_a_tokenizer_is_asked_for_before_images_are_read(tmp_path: Path) -> None:
    # The folder is not even there.
    recipe = load_recipe("folder-prior", ["data.source=folder:nowhere", "train.steps=1"])
    recipe = replace(recipe, prior_of="digits-vqvae")
    with pytest.raises(ConfigError, match=r"of 8x8x1, and data\.size is 64: set data\.size=8$"):
        train_recipe(recipe, tmp_path / "run")


def test_other_images_than_those_of_a_tokenizer_name_what_to_set(tmp_path: Path) -> None:
    recipe = load_recipe("digits-prior", ["train.steps=1", "data.channels=3"])
    recipe = replace(recipe, prior_of="digits-vqvae")
    with pytest.raises(ConfigError, match=r"the data has 8x8x3: set data\.channels=1$"):
        train_recipe(recipe, tmp_path / "run")
