"""Figures against direct computations."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tessella as ts
from tessella.config import DataConfig, load_recipe
from tessella.data import ImageSet
from tessella.data import load as load_images
from tessella.errors import DataError, InputError
from tessella.evaluation import check_comparable, check_fit
from tessella.evaluation.metrics import mean_squared_error, psnr, ssim, standard_error
from tessella.files import read_json
from tessella.models import DensityModel
from tessella.models.independent import Independent
from tessella.pipeline import Generator, fingerprint, pixel_generator
from tessella.report.figure_text import figure_rows, shown
from tessella.training import train_recipe


def pictures(n: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, height, width, channels), generator=generator, dtype=torch.uint8)


def ssim_by_loops(x: np.ndarray, y: np.ndarray, side: int) -> float:
    """Wang et al. 2004, window by window."""
    at = np.arange(side) - side // 2
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(x.shape[2]):
        for i in range(x.shape[0] - side + 1):
            for j in range(x.shape[1] - side + 1):
                a, b = (v[i : i + side, j : j + side, c].astype(float) for v in (x, y))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                vab = (window * (a - ma) * (b - mb)).sum()
                c1, c2 = 2.55**2, 7.65**2
                values.append(
                    (2 * ma * mb + c1) * (2 * vab + c2) / (ma**2 + mb**2 + c1) / (va + vb + c2)
                )
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("shape", "side"), [((14, 12, 3), 11), ((8, 8, 1), 7), ((5, 9, 1), 5), ((1, 1, 2), 1)]
)
def test_ssim_is_what_loops_give(shape: tuple[int, int, int], side: int) -> None:
    x = pictures(2, *shape)
    y = (
        (x.int() + torch.randint(-40, 40, x.shape, generator=torch.Generator().manual_seed(1)))
        .clamp(0, 255)
        .byte()
    )
    expected = [ssim_by_loops(a, b, side) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-9)
    assert ssim(x, x).numpy() == pytest.approx(1.0)


def test_psnr_is_the_mean_over_images_not_of_the_mean() -> None:
    x = torch.zeros(2, 4, 4, 1, dtype=torch.uint8)
    y = x.clone()
    y[0] += 1
    y[1] += 100
    decibels = psnr(mean_squared_error(x, y))
    assert decibels.tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(2.55)])


def test_the_standard_error_is_that_of_the_mean() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    assert standard_error(values) == pytest.approx(np.std(values.numpy(), ddof=1) / 2)
    assert math.isnan(standard_error(values[:1]))


@pytest.mark.parametrize("n", [2, 49, 50, 51, 1000])
@pytest.mark.parametrize("value", [46.4613248125209992, 1e-9, -3.3e12, 0.0])
def test_equal_values_have_no_error(n: int, value: float) -> None:
    assert standard_error(torch.full((n,), value, dtype=torch.float64)) == 0
    assert standard_error(psnr(torch.full((n,), 1.46875, dtype=torch.float64))) == 0


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (46.4613248125209992, 1e-15, "46.46132 ± 0.00000"),
        (46.4613248125209992, 0.0, "46.46 ± 0"),
        (84.8512, 0.2013, "84.85 ± 0.20"),
        (0.0, 1e-12, "0.0000000 ± 0.0000000"),
        (0.0001, 0.02, "0.000 ± 0.020"),
        (123456.7, 1e-9, "123,456.7 ± 0.0"),
        (5e12, 1e-3, "5,000,000,000,000 ± 0"),
        (3.25, math.nan, "3.25"),
        (3.25, None, "3.25"),
    ],
)
def test_figures_have_the_digits_that_their_errors_allow(
    value: float, error: float | None, text: str
) -> None:
    assert shown(value, error) == text


def test_the_baseline_is_a_histogram_with_one_added() -> None:
    grid = ts.Grid(2, 3, 2, 5)
    x = torch.randint(5, (20, 2, 3, 2), generator=torch.Generator().manual_seed(0))
    model = ts.create("independent", grid).double()
    assert isinstance(model, Independent)
    model.fit(x)
    log_prob = model.log_prob(x[:4], reduce=False).detach()
    for place in np.ndindex(2, 3, 2):
        for image in range(4):
            count = int((x[(slice(None), *place)] == x[(image, *place)]).sum())
            assert float(log_prob[(image, *place)]) == pytest.approx(math.log((count + 1) / 25))


def test_bits_of_a_pixel_model_are_its_log_prob() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(3, 4, 1, 17), layers=2, hidden=8)
    images = pictures(7, 3, 4, 1)
    figures = ts.evaluate(model, images, batch=3)
    symbols = (images.double() * 16 / 255).round().long()
    nats = -model.log_prob(symbols).double()
    assert figures["nats_per_image"] == pytest.approx(float(nats.mean()), rel=1e-6)
    assert figures["bits_per_dim"] == pytest.approx(float(nats.mean()) / 12 / math.log(2), rel=1e-6)
    assert figures["bits_per_dim_se"] == pytest.approx(
        float(nats.std()) / 12 / math.log(2) / math.sqrt(7), rel=1e-4
    )
    assert figures["images"] == 7


def test_labels_are_used_where_the_model_has_classes() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 3), classes=2, layers=1, hidden=4)
    images, labels = pictures(4, 2, 2, 1), np.array([0, 1, 1, 0])
    with_labels, without = ts.evaluate(model, images, labels), ts.evaluate(model, images)
    assert with_labels["condition"] == "labels"
    assert without["condition"] == "null class"
    assert with_labels["bits_per_dim"] != without["bits_per_dim"]


def test_bad_images_are_refused() -> None:
    model = ts.create("gated-pixelcnn", ts.Grid(2, 2, 1, 3), layers=1, hidden=4)
    with pytest.raises(InputError, match="uint8"):
        ts.evaluate(model, np.zeros((2, 2, 2, 1), np.float32))
    with pytest.raises(InputError, match="2x2"):
        ts.evaluate(model, np.zeros((2, 3, 2, 1), np.uint8))
    with pytest.raises(InputError, match="no images"):
        ts.evaluate(model, np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(InputError, match="images"):
        ts.evaluate(model)


def pixel_model(seed: int = 0, levels: int = 17) -> DensityModel:
    return ts.create("gated-pixelcnn", ts.Grid(3, 4, 1, levels), layers=1, hidden=4, seed=seed)


def two_stage(seed: int = 0, tokenizer_seed: int = 0) -> Generator:
    tokenizer = ts.create_tokenizer(
        "vqvae",
        image_size=(8, 8),
        channels=1,
        codebook_size=8,
        hidden=8,
        code_dim=4,
        seed=tokenizer_seed,
    )
    prior = ts.create("gated-pixelcnn", tokenizer.grid(), layers=1, hidden=4, seed=seed)
    return Generator(tokenizer, prior)


def rows(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def test_the_table_has_the_values_whose_mean_is_the_figure() -> None:
    result = ts.assess(two_stage(), pictures(7, 8, 8, 1), batch=3)
    table = rows(result.table())
    assert [row["index"] for row in table] == [str(i) for i in range(7)]
    figures = {
        "nats": "nats_per_image",
        "bits_per_dim": "bits_per_dim",
        "bits": "bits_per_image",
        "psnr_db": "psnr_db",
        "ssim": "ssim",
        "mse": "mse",
    }
    for column, figure in figures.items():
        values = torch.tensor([float(row[column]) for row in table], dtype=torch.float64)
        assert result.figures[figure] == pytest.approx(float(values.mean()), rel=1e-12)
        assert result.figures[f"{figure}_se"] == pytest.approx(standard_error(values), rel=1e-9)


def test_the_table_names_files_and_classes() -> None:
    images = ImageSet(
        pictures(2, 3, 4, 1).numpy(), np.array([1, 0]), names=("a, b.png", 'c"d\udcff.png')
    )
    table = rows(ts.assess(pixel_model(), images).table())
    assert [(row["name"], row["label"], row["in_training"]) for row in table] == [
        ("a, b.png", "1", ""),
        ('c"d\\xff.png', "0", ""),
    ]


def test_bits_of_codes_are_told_per_code_per_image_and_per_image_dimension() -> None:
    generator, images = two_stage(), pictures(5, 8, 8, 1)
    figures = ts.evaluate(generator, images)
    bits = -generator.log_prob(images).double() / math.log(2)
    assert figures["bits_per_image"] == pytest.approx(float(bits.mean()), rel=1e-6)
    assert figures["bits_per_code"] == pytest.approx(float(bits.mean()) / 4, rel=1e-6)
    assert figures["bits_per_image_dim"] == pytest.approx(float(bits.mean()) / 64, rel=1e-6)
    assert figures["bits_per_image_dim_se"] == pytest.approx(standard_error(bits) / 64, rel=1e-4)


def test_a_comparison_is_the_mean_difference_of_each_image() -> None:
    images, models = pictures(9, 3, 4, 1), (pixel_model(0), pixel_model(1))
    one, two = (
        -model.bits_per_dim((images.double() * 16 / 255).round().long()).double()
        for model in models
    )
    difference = ts.compare(*(ts.assess(model, images) for model in models))["bits_per_dim"]
    assert difference["difference"] == pytest.approx(float((two - one).mean()), rel=1e-4)
    assert difference["difference_se"] == pytest.approx(standard_error(two - one), rel=1e-4)
    assert difference["first"] == pytest.approx(float(-one.mean()), rel=1e-6)


def test_bits_of_different_things_are_not_compared() -> None:
    images = pictures(4, 8, 8, 1)
    same_codes = ts.compare(ts.assess(two_stage(0), images), ts.assess(two_stage(1), images))
    assert "bits" not in same_codes
    assert same_codes["bits_per_dim"]["difference"] != 0
    other_codes = ts.compare(
        ts.assess(two_stage(0), images), ts.assess(two_stage(0, tokenizer_seed=1), images)
    )
    assert "tokenizers differ" in other_codes["bits"]
    assert "bits_per_dim" not in other_codes
    assert "psnr_db" in other_codes
    with pytest.raises(InputError, match="levels"):
        ts.compare(*(ts.assess(pixel_model(levels=n), pictures(4, 3, 4, 1)) for n in (16, 17)))


def test_a_comparison_says_when_only_one_model_is_given_the_class() -> None:
    images, labels = pictures(6, 3, 4, 1), np.array([0, 1, 1, 0, 1, 0])
    grid = ts.Grid(3, 4, 1, 17)
    conditional = ts.create("gated-pixelcnn", grid, classes=2, layers=1, hidden=4)
    given = ts.assess(conditional, images, labels)
    plain = ts.assess(pixel_model(), images)
    figures = ts.compare(given, plain)
    assert "p(image given its class)" in figures["conditions"]
    assert "as it has no classes" in figures["conditions"]
    rows_of_it = [row for row in figure_rows({"against": figures}) if row[0] == "conditions"]
    assert rows_of_it == [("conditions", "not the same", f"({figures['conditions']})")]
    assert "conditions" in ts.compare(given, ts.assess(conditional, images))
    assert "conditions" not in ts.compare(given, given)
    assert "conditions" not in ts.compare(ts.assess(conditional, images), plain)


def test_models_of_images_of_other_sizes_are_not_compared() -> None:
    other = ts.create("gated-pixelcnn", ts.Grid(4, 4, 1, 17), layers=1, hidden=4)
    with pytest.raises(InputError, match="one takes images of 3x4x1, the other of 4x4x1"):
        check_comparable(pixel_generator(pixel_model()), pixel_generator(other))
    vae = ts.create_vae(image_size=(3, 4), channels=1, levels=17, hidden=4, latent=2)
    with pytest.raises(InputError, match="a VAE gives no exact bits"):
        check_comparable(pixel_generator(pixel_model()), vae)
    assert check_comparable(vae, vae)


def test_images_that_do_not_fit_are_refused_with_what_converts_them() -> None:
    model = pixel_generator(pixel_model())
    images = ImageSet(np.zeros((2, 5, 4, 3), np.uint8), levels=256)
    with pytest.raises(InputError) as refusal:
        check_fit(model, "runs/x", images)
    for words in ("runs/x", "3x4x1 with 17 levels", "5x4x3 with 256 levels", "data.size=3x4",
                  "data.channels=1", "data.levels=17"):  # fmt: skip
        assert words in str(refusal.value)
    right_size = ImageSet(np.zeros((2, 3, 4, 1), np.uint8), levels=256)
    check_fit(model, "runs/x", right_size)
    with pytest.raises(InputError, match="add data.levels=17"):
        check_fit(model, "runs/x", right_size, check_levels=True)
    check_fit(two_stage().tokenizer, "runs/x", ImageSet(np.zeros((2, 5, 9, 1), np.uint8)))


def test_a_prior_on_stored_codes_is_measured_on_the_images_of_its_tokenizer(
    tmp_path: Path,
) -> None:
    silent: Any = lambda line: None  # noqa: E731
    small = ["train.minutes=0", "train.steps=2", "train.batch=8"]
    tokenizer = load_recipe("digits-vqvae", [*small, "tokenizer.hidden=8", "tokenizer.code_dim=4"])
    train_recipe(tokenizer, tmp_path / "vqvae", say=silent)
    for split in ("train", "valid"):
        images = load_images(DataConfig("digits"), split)
        ts.tokenize(ts.load(tmp_path / "vqvae"), images, tmp_path / "codes" / split)
    changes = ["model.layers=1", "model.hidden=4", f"prior_of={tmp_path / 'vqvae'}"]
    changes.append(f"data.source=codes:{tmp_path / 'codes'}")
    prior = load_recipe("digits-prior", [*small, *changes])
    run = train_recipe(prior, tmp_path / "prior", say=silent).path
    figures = ts.evaluate(run)
    assert figures["images"] == 297
    assert figures["data"]["source"] == "digits"
    shutil.rmtree(tmp_path / "vqvae")
    with pytest.raises(DataError, match=r"stored codes .*'digits': name these images with --data"):
        ts.evaluate(run)


def test_a_comparison_needs_the_same_images() -> None:
    one, two = (ts.assess(pixel_model(), pictures(4, 3, 4, 1, seed)) for seed in (0, 1))
    with pytest.raises(InputError, match="same images"):
        ts.compare(one, two)


def test_images_of_the_training_set_are_recognized(tmp_path: Path) -> None:
    trained, other = pictures(30, 8, 8, 1, 1).numpy(), pictures(3, 8, 8, 1, 2).numpy()
    model = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=1, hidden=4)
    run = ts.train(
        model, trained, valid=other, out=tmp_path / "run", steps=1, batch=4, say=lambda line: None
    )
    mixed = np.concatenate(
        [other[:1], trained[5:6], trained[6:7, :, ::-1], other[1:], trained[7:8]]
    )
    result = ts.assess(run.path, mixed)
    assert result.figures["overlap"] == {"identical": 2, "mirrored": 1, "first": [1, 5]}
    assert [row["in_training"] for row in rows(result.table())] == ["0", "1", "0", "0", "0", "1"]
    assert ts.evaluate(model, mixed)["overlap"] is None


def test_training_counts_validation_images_that_are_trained_on(tmp_path: Path) -> None:
    images, said = pictures(30, 8, 8, 1, 1).numpy(), []
    model = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=1, hidden=4)
    run = ts.train(
        model, images, valid=images[3:5], out=tmp_path / "run", steps=1, batch=4, say=said.append
    )
    assert read_json(run.path / "run.json")["overlap"] == 2
    assert any("2 validation images" in line for line in said)


def test_figures_say_which_images_and_which_weights() -> None:
    images, model = pictures(4, 3, 4, 1), pixel_model()
    figures = ts.evaluate(model, images)
    assert figures["data"]["sha256"] == hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert figures["weights"] == fingerprint(pixel_generator(model))
    assert ts.evaluate(model, images.flip(0))["data"] != figures["data"]


@pytest.mark.slow
def test_processes_share_the_images_and_agree_on_the_figures(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tessella",
        "eval",
        "digits-codes",
        "--data",
        "digits",
        "--threads",
        "1",
    ]
    tables = []
    for devices in (1, 2):
        files = [
            "--json",
            str(tmp_path / f"{devices}.json"),
            "--per-image",
            str(tmp_path / f"{devices}.csv"),
        ]
        subprocess.run(
            [*command, "--devices", str(devices), "--device", "cpu", *files],
            check=True,
            timeout=300,
        )
        tables.append(rows((tmp_path / f"{devices}.csv").read_text()))
    assert [row["hash"] for row in tables[0]] == [row["hash"] for row in tables[1]]
    for one, two in zip(*tables, strict=True):
        assert float(one["nats"]) == pytest.approx(float(two["nats"]), rel=1e-5)
    first, second = (read_json(tmp_path / f"{devices}.json") for devices in (1, 2))
    assert first["images"] == second["images"] == len(tables[0])
    assert first["codebook_used"] == second["codebook_used"]
    assert first["psnr_db"] == pytest.approx(second["psnr_db"], rel=1e-6)
