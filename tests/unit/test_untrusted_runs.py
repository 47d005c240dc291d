"""Run directories from elsewhere: whatever they hold, they load or are refused with our error, in
memory that the files justify."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import tessella as ts
from tessella import files
from tessella.errors import ArtifactError, InputError, TessellaError, TessellaWarning
from tessella.pipeline import bundled, load_saved, locate, read_run_record
from tessella.pipeline.building import MOST_SYMBOLS
from tessella.report import run_summary

BUNDLE = Path(ts.__file__).parent / "bundle"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A copy of the bundled pixel model, to be damaged."""
    return Path(shutil.copytree(BUNDLE / "digits", tmp_path / "digits"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE / "digits-vqvae", tmp_path / "digits-vqvae"))


def change(run: Path, way: str, value: Any, name: str = "config.json") -> None:
    """Set one entry of a JSON file: ``model.sizes.hidden``."""
    whole = json.loads((run / name).read_text())
    *parents, last = way.split(".")
    place = whole
    for key in parents:
        place = place[key]
    place[last] = value
    (run / name).write_text(json.dumps(whole))


def test_all_bundled_weights_carry_a_checksum_and_load_without_a_word() -> None:
    weights = list(BUNDLE.rglob("*.safetensors"))
    assert len(weights) >= 8
    for path in weights:
        assert "sha256" in files.read_tensors_header(path).metadata
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in bundled():
            ts.load(name)


def test_a_flipped_bit_of_a_bundled_model_is_noticed(digits: Path) -> None:
    weights = digits / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1000] ^= 4
    weights.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="damaged"):
        ts.load(digits)


def test_weights_without_a_checksum_load_with_a_note(digits: Path) -> None:
    weights = digits / "model.safetensors"
    safetensors.torch.save_file(files.read_tensors(weights), weights)
    with pytest.warns(TessellaWarning, match="no checksum"):
        ts.load(digits)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["digits", "digits-vqvae"])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, name: str, number: float
) -> None:
    run = Path(shutil.copytree(BUNDLE / name, tmp_path / name))
    tensors = files.read_tensors(run / "model.safetensors")
    broken = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
    tensors[broken] = tensors[broken].clone()
    tensors[broken].flatten()[0] = number
    files.write_tensors(run / "model.safetensors", tensors)
    with pytest.raises(ArtifactError, match=f"not finite.*{broken}"):
        ts.load(run)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("model.sizes.hidden", 10**9),
        ("model.sizes.hidden", 2**31),
        ("model.sizes.hidden", -1),
        ("model.sizes.hidden", 10**200),
        ("model.sizes.hidden", 1.5),
        ("model.sizes.hidden", [32]),
        ("model.sizes.layers", 65537),
        ("model.sizes.layers", 10**6),
        ("model.sizes", {"layrs": 4}),
        ("model.sizes", None),
        ("model.head", "x"),
        ("model.head", {"name": "x"}),
        ("model.head", {"name": ["x"]}),
        ("model.head", None),
        ("model.null_class", "no"),
        ("model.null_class", 1),
        ("model.null_class", None),
        ("model.classes", True),
        ("model.classes", 10**8),
        ("model.classes", -1),
        ("model.grid", [8, 8, 1, 17]),
        ("model.grid.height", 10**6),
        ("model.grid.levels", 10**6),
        ("model.grid.levels", 0),
        ("model.name", 5),
        ("model.name", "gated"),
        ("model", 5),
        ("model", None),
        ("kind", ["density-model"]),
        ("kind", "vae"),
        ("kind", "tokenizer"),
        ("kind", "generator"),
        ("format", {}),
    ],
)
def test_configurations_that_cannot_be_are_refused(digits: Path, way: str, value: Any) -> None:
    change(digits, way, value)
    with pytest.raises(ArtifactError):
        ts.load(digits)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("model.hidden", 2**31),
        ("model.hidden", "64"),
        ("model.codebook_size", 10**9),
        ("model.image_size", [10**6, 10**6]),
        ("model.image_size", [0, 8]),
        ("model.image_size", 8),
        ("model.quantizer", 7),
        ("model.seed", "x"),
        ("model", []),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(tokenizer: Path, way: str, value: Any) -> None:
    change(tokenizer, way, value)
    with pytest.raises(ArtifactError):
        ts.load(tokenizer)


@pytest.mark.parametrize(
    ("way", "value"), [("model", 5), ("model.latent", 2**31), ("model.shape", 3)]
)
def test_vaes_that_cannot_be_are_refused(tmp_path: Path, way: str, value: Any) -> None:
    from tessella.pipeline import save_model

    save_model(ts.create_vae(image_size=(4, 4), channels=1, hidden=4, latent=2), tmp_path)
    ts.load(tmp_path)
    change(tmp_path, way, value)
    with pytest.raises(ArtifactError):
        ts.load(tmp_path)


def test_large_images_are_refused_before_memory_is_taken(digits: Path) -> None:
    # Convolutions have the same weights for every grid, so their shapes do not tell.
    change(digits, "model.grid", {"height": 10**6, "width": 10**6, "channels": 1, "levels": 17})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match=f"the most that is loaded is {MOST_SYMBOLS:,}"):
        ts.load(digits)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000, "kilobytes"


@pytest.mark.parametrize("name", ["config.json", "run.json", "log.jsonl"])
@pytest.mark.parametrize("depth", [1_000, 200_000])
def test_nested_brackets_are_no_recursion_error(digits: Path, name: str, depth: int) -> None:
    (digits / name).write_text("[" * depth + "]" * depth)
    if name == "config.json":
        with pytest.raises(ArtifactError, match="nested"):
            ts.load(digits)
    else:
        assert run_summary.render(run_summary.describe(digits))


@pytest.mark.parametrize("name", ["config.json", "run.json", "model.safetensors"])
@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_not_read(digits: Path, name: str, device: str) -> None:
    (digits / name).unlink()
    if device == "pipe":
        os.mkfifo(digits / name)
    else:
        (digits / name).symlink_to(device)
    read = read_run_record if name == "run.json" else load_saved
    with pytest.raises(ArtifactError, match="regular file"):
        read(digits)


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("recipe", 5),
        ("recipe", []),
        ("recipe.data", "digits"),
        ("recipe.data.source", 5),
        ("recipe.prior_of", {}),
        ("recipe.about", 7),
        ("data", []),
        ("data.train.shape", 8),
        ("data.train.classes", [1, 2]),
        ("task", []),
        ("status", {}),
        ("progress", "done"),
        ("progress.step", "many"),
        ("progress.figures", [1]),
        ("figures", [1]),
        ("figures", {"digits": 5}),
        ("environment.command", "tessella"),
        ("sittings", {}),
        ("sittings", [5]),
        ("overlap", "none"),
        ("format", 2),
    ],
)
def test_records_of_wrong_types_are_refused_and_described(
    digits: Path, way: str, value: Any
) -> None:
    change(digits, way, value, "run.json")
    with pytest.raises(ArtifactError, match=r"run\.json"):
        read_run_record(digits)
    facts = run_summary.describe(digits)
    assert any("run.json" in problem for problem in facts["problems"])
    assert run_summary.render(facts)
    with pytest.raises(TessellaError, match=r"run\.json"):
        ts.evaluate(digits)


def test_a_record_that_is_a_list_is_refused(digits: Path) -> None:
    (digits / "run.json").write_text("[]")
    with pytest.raises(ArtifactError, match="JSON object"):
        read_run_record(digits)


def test_lines_of_a_log_that_are_no_entries_are_counted(digits: Path) -> None:
    lines = ['{"step": 1e999}', "[]", "5", '{"step": "x"}', '{"step": 3, "loss": 1}', '{"step":']
    (digits / "log.jsonl").write_text("\n".join(lines))
    facts = run_summary.describe(digits)
    assert facts["log"]["unreadable"] == 5
    assert facts["curves"]["loss"] == {"step": [3], "value": [1]}
    assert run_summary.render(facts)


def test_a_baseline_that_is_another_model_is_refused(digits: Path) -> None:
    shutil.rmtree(digits / "baseline")
    shutil.copytree(BUNDLE / "digits-vqvae", digits / "baseline")
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ArtifactError, match="must hold a density model"):
        ts.evaluate(digits, images)


def test_every_family_and_tokenizer_passes_the_check_of_its_shapes(tmp_path: Path) -> None:
    grid = ts.Grid(4, 4, 1, 4)
    for name in ts.MODELS:
        ts.Generator(
            ts.create_tokenizer("identity", image_size=(4, 4), channels=1, levels=4),
            ts.create(name, grid),
        ).save(tmp_path / name)
        assert load_saved(tmp_path / name).kind == "density-model"


def test_memory_is_in_proportion_to_the_files(digits: Path) -> None:
    """A process with little memory refuses what would take much."""
    change(digits, "model.sizes.hidden", 60_000)
    code = (
        "import resource, sys\n"
        "import tessella as ts\n"
        "ts.load('digits')\n"
        "from pathlib import Path\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "try:\n"
        "    ts.load(sys.argv[1])\n"
        "except ts.errors.ArtifactError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "wrong shape" in done.stdout, done.stderr[-2000:]


def test_a_run_that_needs_its_images_names_them(digits: Path) -> None:
    assert locate("digits").is_dir()
    with pytest.raises(InputError, match=r"8x8x1 with 17 levels.*data\.size=8x8 data\.channels=1"):
        ts.evaluate(digits, torch.zeros(2, 10, 8, 3, dtype=torch.uint8))
