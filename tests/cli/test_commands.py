"""Every verb as a user types it: what it prints, what it writes, and one clear line for every
mistake."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella as ts
from tessella.cli.entry import main
from tessella.files.pictures import read_made
from tessella.report.run_summary import figure_rows, shown
from tessella.sampling import sample

SMALL = ["model.layers=2", "model.hidden=8", "train.validate_every=3", "train.batch=16"]
SMALL_VQ = [
    "tokenizer.hidden=8",
    "tokenizer.code_dim=4",
    "train.validate_every=3",
    "train.batch=16",
]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    try:
        status = main(words)
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small runs on the digits: pixels, vqvae, codes."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "digits", *SMALL, "--steps", "6", "--out", f"{folder}/pixels"]) == 0
    assert (
        main(["train", "digits-vqvae", *SMALL_VQ, "--steps", "6", "--out", f"{folder}/vqvae"]) == 0
    )
    words = ["train", "digits-prior", *SMALL, "--steps", "6", "--out", f"{folder}/codes"]
    assert main([*words, "--tokenizer", f"{folder}/vqvae"]) == 0
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small colour pictures of mixed sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for i in range(24):
        height, width = generator.integers(20, 40, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.{'jpg' if i % 2 else 'png'}")
    return folder


def test_help_answers_at_once_and_shows_only_verbs_that_exist() -> None:
    started = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "tessella", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - started < 10, "torch must not be imported for help"
    assert (
        "{demo,train,plan,sample,complete,eval,shards,data,tokenize,detokenize,compress,"
        "decompress,score,serve,import,export,info,check}" in shown.stdout
    )
    code = "import sys; from tessella.cli.entry import main; main(['--version']); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("verb", ["demo", "train", "sample", "complete", "eval", "info"])
def test_every_verb_has_help_with_examples(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    status, out, _ = run(capsys, verb, "--help")
    assert status == 0
    assert f"$ tessella {verb}" in out


def test_sample_writes_a_sheet_that_says_how_it_was_made(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    status, said, _ = run(
        capsys, "sample", f"{runs}/pixels", "--n", "4", "--seed", "3", "--out", str(out)
    )
    assert status == 0
    assert str(out) in said
    made = read_made(out)
    assert made["seed"] == 3
    assert made["run"] == "pixels"
    assert len(made["model"]) == 16
    assert made["tessella"] == ts.__version__


def test_sample_writes_arrays_and_single_files_of_the_same_images(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "sample",
        f"{runs}/codes",
        "--n",
        "3",
        "--seed",
        "5",
        "--temperature",
        "0.9",
        "--top-k",
        "20",
    ]
    assert run(capsys, *words, "--out", f"{tmp_path}/x.npz")[0] == 0
    assert run(capsys, *words, "--out", f"{tmp_path}/x/")[0] == 0
    images = np.load(tmp_path / "x.npz")["arr_0"]
    assert images.shape == (3, 8, 8, 1)
    for i in range(3):
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / f"x/{5 + i:08d}.png")), images[i, :, :, 0]
        )
    generator = ts.load(runs / "codes")
    assert isinstance(generator, ts.Generator)
    codes = sample(generator.prior, 3, 5, temperature=0.9, top_k=20)
    assert np.array_equal(generator.tokenizer.decode(codes).numpy(), images)


def test_complete_keeps_the_upper_rows(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.png"
    status, _, _ = run(
        capsys, "complete", f"{runs}/pixels", "--n", "2", "--variants", "2", "--out", str(out)
    )
    assert status == 0
    assert read_made(out)["keep"] == 0.5


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        (
            "pixels",
            {
                "bits_per_dim",
                "bits_per_dim_se",
                "nats_per_image",
                "images",
                "baseline_bits_per_dim",
            },
        ),
        (
            "vqvae",
            {"psnr_db", "ssim", "mse", "codebook_used", "code_perplexity", "mean_image_psnr_db"},
        ),
        (
            "codes",
            {
                "bits_per_code",
                "bits_per_image",
                "bits_per_image_dim",
                "psnr_db",
                "baseline_bits_per_dim",
            },
        ),
    ],
)
def test_eval_prints_and_writes_the_same_figures(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, keys: set[str]
) -> None:
    status, out, _ = run(capsys, "eval", f"{runs}/{name}", "--json", f"{tmp_path}/f.json")
    assert status == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert keys <= set(figures)
    rows = figure_rows(
        {key: figures[key] for name in keys for key in (name, f"{name}_se") if key in figures}
    )
    assert all(value in out for _, value, _ in rows)
    assert figures["images"] == 297
    assert "digits, test" in (runs / name / "README.md").read_text()
    assert figures["data"]["split"] == "test"
    assert len(figures["data"]["sha256"]) == 64


def test_eval_tells_the_difference_of_two_runs_and_the_values_of_every_image(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", f"{runs}/pixels", "--against", "digits", "--json", f"{tmp_path}/f.json"]
    status, out, _ = run(capsys, *words, "--per-image", f"{tmp_path}/images.csv")
    assert status == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    told = figures["against"]["bits_per_dim"]
    assert told["first"] == pytest.approx(figures["bits_per_dim"], rel=1e-12)
    assert told["difference"] == pytest.approx(told["first"] - told["second"])
    assert told["difference_se"] > 0
    difference = shown(told["difference"], told["difference_se"])
    assert f"code length minus digits         {difference} bits/dim" in out
    assert figures["overlap"]["identical"] == 0
    assert len((tmp_path / "images.csv").read_text().splitlines()) == 1 + figures["images"]


def test_eval_measures_what_rounded_weights_cost(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (runs / "pixels" / "README.md").read_text()
    words = ["eval", f"{runs}/pixels", "--weights", "int8", "--against", f"{runs}/pixels"]
    status, out, _ = run(capsys, *words, "--json", f"{tmp_path}/f.json", "data.limit=100")
    assert status == 0
    assert out.startswith(f"note: {runs}/pixels with weights rounded to int8 is another model")
    assert "weights rounded to               int8" in out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["rounded_to"] == "int8"
    assert figures["weights"] != figures["against"]["weights"]
    assert 0 < abs(figures["against"]["bits_per_dim"]["difference"]) < 0.1
    # What the card of a run says is about its own weights.
    assert (runs / "pixels" / "README.md").read_text() == card


def test_eval_says_when_the_images_were_trained_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "eval", f"{runs}/pixels", "--split", "train")
    assert "of these trained on              1,350 images" in out


def test_eval_takes_other_data(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", test_images=np.zeros((5, 8, 8), np.uint8))
    status, out, _ = run(capsys, "eval", f"{runs}/pixels", "--data", f"npz:{tmp_path}/other.npz")
    assert status == 0
    assert "pixels on npz:other.npz, test:\n  images                           5\n" in out


def test_info_tells_what_is_there_and_what_a_run_is(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "info")
    assert status == 0
    assert all(
        word in out
        for word in ("gated-pixelcnn", "vqvae", "folder", "digits-prior", ts.__version__)
    )
    status, out, _ = run(capsys, "info", f"{runs}/codes")
    assert status == 0
    assert "4x4x1 of 64 levels" in out


@pytest.mark.parametrize("name", ["pixels", "vqvae", "codes"])
def test_info_tells_people_and_programs_the_same(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status, out, _ = run(capsys, "info", f"{runs}/{name}", "--json")
    assert status == 0
    facts = json.loads(out)
    status, out, _ = run(capsys, "info", f"{runs}/{name}")
    assert status == 0
    assert facts["weights"] in out
    assert "finished, 6 steps" in out
    assert facts["training"]["steps"] == 6
    assert "{" not in out
    assert "\x1b" not in out, "no colours where the output is no terminal"


def test_info_writes_a_report(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "x.html"
    status, said, _ = run(capsys, "info", f"{runs}/pixels", "--report", str(out), "--samples", "1")
    assert status == 0
    assert str(out) in said
    assert run(capsys, "info", f"{runs}/pixels", "--samples", "0", "--report")[0] == 0
    assert (runs / "pixels" / "report.html").read_text().startswith("<!DOCTYPE html>")
    (runs / "pixels" / "report.html").unlink()


def test_training_resumes_from_the_command_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{tmp_path}/run"
    assert run(capsys, "train", "digits", *SMALL, "--steps", "3", "--out", out)[0] == 0
    status, said, _ = run(capsys, "train", "--resume", out, "--steps", "6")
    assert status == 0
    assert "resuming at step 3" in said
    assert "step 6" in said


def test_one_command_starts_a_run_and_goes_on_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "digits", *SMALL, "--start-or-resume", "--out", f"{tmp_path}/run"]
    assert run(capsys, *command, "--steps", "2")[0] == 0
    status, said, _ = run(capsys, *command, "--steps", "4")
    assert status == 0
    assert "resuming at step 2" in said
    status, _, complaint = run(capsys, "train", "--resume", f"{tmp_path}/run", "--start-or-resume")
    assert status == 2
    assert "--start-or-resume" in complaint


def test_a_folder_of_photographs_goes_through_the_chain(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", f"folder:{photographs}", "data.size=16", "--steps", "3", "train.batch=8"]
    vq = ["tokenizer.hidden=8", "tokenizer.code_dim=4", "tokenizer.codebook_size=8"]
    assert run(capsys, "train", "folder-vqvae", *words, *vq, "--out", f"{tmp_path}/vq")[0] == 0
    net = ["model.layers=2", "model.hidden=8"]
    prior = ["--tokenizer", f"{tmp_path}/vq", "--out", f"{tmp_path}/prior"]
    assert run(capsys, "train", "folder-prior", *words, *net, *prior)[0] == 0
    assert (
        run(capsys, "sample", f"{tmp_path}/prior", "--n", "2", "--out", f"{tmp_path}/s.png")[0] == 0
    )
    assert (
        run(capsys, "complete", f"{tmp_path}/prior", "--n", "1", "--out", f"{tmp_path}/c.png")[0]
        == 0
    )
    assert run(capsys, "eval", f"{tmp_path}/prior")[0] == 0


def broken(runs: Path, tmp_path: Path, what: str) -> str:
    """A copy of the pixel run with something wrong in it."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / what
    shutil.copytree(runs / "pixels", folder)
    config = json.loads((folder / "config.json").read_text())
    if what == "version":
        (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    elif what == "missing":
        weights = load_file(folder / "model.safetensors")
        weights.pop(sorted(weights)[0])
        save_file(weights, folder / "model.safetensors")
    elif what == "cut":
        (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-100]
        )
    elif what == "json":
        (folder / "config.json").write_text("{")
    elif what == "weights":
        (folder / "model.safetensors").unlink()
    elif what == "model":
        config["model"]["name"] = "pixelcnn9"
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("what", ["version", "missing", "cut", "json", "weights", "model"])
def test_a_broken_run_directory_is_told_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    expected = {"version": "format 99", "missing": "missing tensors", "model": "pixelcnn9"}
    status, _, err = run(
        capsys, "sample", broken(runs, tmp_path, what), "--out", f"{tmp_path}/x.png"
    )
    assert status == 2
    assert err.startswith("tessella: ")
    assert err.count("\n") == 1
    assert expected.get(what, what if what == "json" else "model.safetensors") in err
    assert not (tmp_path / "x.png").exists()


MISTAKES = {
    "sample nowhere": "no run directory at nowhere",
    "sample {runs}/vqvae": "is a tokenizer",
    "sample {runs}/vqvae --weights int8": "--weights int8 is for density models",
    "eval {runs}/vqvae --weights bfloat16": "--weights bfloat16 is for density models",
    "complete {runs}/pixels --weights int4": "int4",
    "sample {runs}/pixels --n 0": "--n must be at least 1, got 0",
    "sample {runs}/pixels --seed -1": "seed",
    "sample {runs}/pixels --temperature 0": "temperature",
    "sample {runs}/pixels --top-p 2": "top_p",
    "sample {runs}/pixels --class-label 1": "no classes",
    "sample {runs}/pixels --guidance 2": "guidance needs",
    "sample {runs}/pixels --steps 4": "family masked",
    "sample {runs}/pixels --steps 0": "steps",
    "sample {runs}/pixels --choice-temperature -1": "choice_temperature",
    "sample {runs}/pixels --out x.gif": ".png",
    "sample {runs}/pixels --out x.json": ".png",
    "sample {runs}/pixels --guidance 2 --out x.npz": "guidance needs",
    "sample {runs}/pixels --batch 0 --out x/": "--batch must lie in 1..1048576, got 0",
    "sample {runs}/pixels --out {tmp}/big.npz": "something else than a run of images",
    "sample {runs}/pixels --out /proc/none/x.png": "cannot write",
    "sample {runs}/pixels --out /dev/null/x/": "cannot write",
    "sample {runs}/codes/prior": "one half",
    "complete {runs}/pixels --keep 1.5": "--keep",
    "complete {runs}/pixels --order known-first": "family any-order",
    "complete {runs}/pixels --order known": "--order",
    "complete {runs}/pixels --mask {tmp}/none.png": "none.png for the mask",
    "complete {runs}/pixels --data npz:{tmp}/none.npz": "none.npz",
    "complete {runs}/pixels --data npz:{tmp}/big.npz": "8x8",
    "eval {runs}/pixels --data npz:{tmp}/float.npz": "float",
    "eval {runs}/pixels --data npz:{tmp}/big.npz": "8x8",
    "eval {runs}/pixels data.levels=256": "17 levels",
    "eval {runs}/pixels --batch 0": "batch",
    "eval {runs}/pixels --threads -1": "--threads",
    "eval {runs}/pixels --json figures": ".json",
    "eval {runs}/vqvae --batch -1": "batch",
    "eval {runs}/pixels --per-image images.txt": ".csv",
    "eval {runs}/pixels --against {tmp}/missing": "no run directory",
    "eval {runs}/pixels --against {runs}/vqvae": "cannot be compared",
    "eval {runs}/pixels --against {runs}/codes": "those of codes",
    "eval {runs}/pixels --devices 0": "devices",
    "eval {runs}/pixels --device cuda --devices 2": "CUDA",
    "eval {runs}/pixels --data npz:{tmp}/text.npz": "text.npz",
    "eval {runs}/pixels --data folder:{tmp}/empty": "empty",
    "eval {runs}/pixels --data mnist:{tmp}/empty": "empty",
    "eval {runs}/pixels --data cifar10:{tmp}/empty": "empty",
    "eval {runs}/pixels --data imagenet:/x": "Known",
    "eval {runs}/pixels --data folder": "folder:PATH",
    "eval {runs}/pixels --json /proc/none/x.json": "cannot write",
    "eval {runs}/pixels model.layers=3": "only data.*",
    "train": "give a recipe",
    "train digit": "did you mean 'digits'",
    "train {tmp}/none.toml": "none.toml",
    "train {tmp}/bad.toml": "not valid TOML",
    "train digits model.layer=3 --steps 1": "did you mean 'layers'",
    "train digits train.minuts=3": "did you mean 'minutes'",
    "train digits trian.minutes=3": "did you mean 'train'",
    "train digits train.minutes=long": "must be of type float",
    "train digits nonsense": "table.key=value",
    "train digits --steps 0": "--steps must be above 0",
    "train folder-vqvae": "name them with --data folder:PATH",
    "train digits --steps 1 --accumulate 0": "at least 1",
    "train digits --steps 1 --threads -1": "must lie in 0..4096",
    "train digits --steps 1 --devices 0": "must lie in 1..1024",
    "train digits --steps 1 model.classes=10": "follows from the data",
    "train digits-vqvae --steps 1 tokenizer.channels=3": "follows from the data",
    "train digits train.minutes=nan": "minutes",
    "train digits --steps 1 --device cuda": "CUDA",
    "train digits --steps 1 --out {runs}/pixels": "holds a run already",
    "train digits --steps 1 --out /proc/none/run": "cannot write",
    "train digits --steps 1 data.levels=300": "levels",
    "train digits --steps 1 data.levels=1": "levels",
    "train digits --steps 1 model.head=mixture": "Known: categorical",
    "train digits --steps 1 --data npz:{tmp}/text.npz": "text.npz",
    "train digits-prior --steps 1": "--tokenizer",
    "train digits-prior --steps 1 --tokenizer {runs}/pixels": "is a density model",
    "train digits-prior --steps 1 --tokenizer {runs}/vqvae --data npz:{tmp}/big.npz": "8x8x1",
    "train --resume {tmp}/empty": "no run",
    "train --resume {runs}/pixels model.layers=3": "train.*",
    "info nowhere": "no run directory",
    "info nowhere --report": "no run directory",
    "info --json": "give it first",
    "info --report {runs}/pixels": "give it first",
    "info digits --report": "ships with the package",
    "info {runs}/pixels --report x.txt": ".html",
    "info {runs}/pixels --report a.html b.html": "one file at most",
    "info {runs}/pixels --report x.html --samples 65": "0..64",
    "info {runs}/pixels --report /proc/none/x.html": "cannot write",
    "demo --minutes 0": "--minutes",
    "demo --out {runs}/pixels": "not an earlier demo",
    "demo --out {tmp}/bad.toml": "not an earlier demo",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_a_failure(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("[data\n")
    (tmp_path / "text.npz").write_text("this is no archive")
    np.savez(tmp_path / "big.npz", images=np.arange(40 * 81, dtype=np.uint8).reshape(40, 9, 9, 1))
    np.savez(tmp_path / "float.npz", images=np.zeros((40, 8, 8, 1)))
    monkeypatch.chdir(tmp_path)
    before = sorted(p for p in tmp_path.rglob("*"))
    status, _, err = run(capsys, *words.format(runs=runs, tmp=tmp_path).split())
    assert status == 2, err
    assert err.startswith("tessella: "), err
    assert err.count("\n") == 1, err
    assert MISTAKES[words] in err, err
    left = [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()]
    assert not left, f"a failed command left {left}"


def test_parsing_mistakes_fail_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["smple"],
        ["sample"],
        ["sample", "digits", "--sede", "3"],
        ["sample", "digits", "--n", "many"],
    ):
        status, out, err = run(capsys, *words)
        assert status == 2
        assert not out
        assert err.startswith("tessella: ")
        assert err.count("\n") == 1


def test_the_command_works_where_tyro_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("raise ImportError('no tyro')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    words = [sys.executable, "-m", "tessella", "sample", "digits"]
    shown = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert shown.returncode == 2
    assert shown.stderr == 'tessella: the command line needs tyro: pip install "tyro>=1.0,<2"\n'


def pictures(folder: Path, n: int = 30, seed: int = 0, size: int = 8) -> Path:
    """Small grey pictures in a new folder."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for i in range(n):
        Image.fromarray(generator.integers(0, 256, (size, size), dtype=np.uint8)).save(
            folder / f"{i:03d}.png"
        )
    return folder


ON_FOLDER = [*SMALL, "data.levels=16", "data.channels=1", "--steps", "3"]


def test_a_pixel_model_trains_on_a_folder_that_may_move_and_gain_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = pictures(tmp_path / "here"), f"{tmp_path}/run"
    assert (
        run(capsys, "train", "digits", "--data", f"folder:{folder}", "--out", out, *ON_FOLDER)[0]
        == 0
    )
    moved = folder.rename(tmp_path / "there")
    (moved / "Thumbs.db").write_text("x")
    status, _, err = run(capsys, "train", "--resume", out, "--steps", "5")
    assert status == 2
    assert "name them with --data" in err
    assert (
        run(capsys, "train", "--resume", out, "--steps", "5", "--data", f"folder:{moved}")[0] == 0
    )
    assert "step 5" in (tmp_path / "run" / "log.jsonl").read_text().replace('"step": 5', "step 5")
    Image.new("L", (8, 8)).save(moved / "more.png")
    for i in range(40):  # some of them fall into the training split
        Image.new("L", (8, 8), i).save(moved / f"more{i}.png")
    status, _, err = run(
        capsys, "train", "--resume", out, "--steps", "7", "--data", f"folder:{moved}"
    )
    assert status == 2
    assert "train count was" in err


def test_a_folder_whose_name_is_not_text_is_trained_on_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(os.fsencode(f"{tmp_path}/ph") + b"\xe9t")
    try:
        pictures(Path(name))
    except OSError:
        pytest.skip("this file system takes no such names")
    out, figures = f"{tmp_path}/run", tmp_path / "figures.json"
    assert (
        run(capsys, "train", "digits", "--data", f"folder:{name}", "--out", out, *ON_FOLDER)[0] == 0
    )
    status, said, _ = run(capsys, "eval", out, "--json", str(figures))
    assert status == 0
    assert "ph\\udce9t" in said
    assert json.loads(figures.read_text())["data"]["source"].endswith(os.fsdecode(b"ph\xe9t"))
    assert run(capsys, "info", out)[0] == 0


def test_classes_are_found_again_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate("abc"):
        pictures(tmp_path / "trained" / name, 20, seed=i)
    out = f"{tmp_path}/run"
    words = [
        "train",
        "digits",
        "model.conditional=true",
        "--data",
        f"folder:{tmp_path}/trained",
        "--out",
        out,
    ]
    assert run(capsys, *words, *ON_FOLDER)[0] == 0
    for name in "bc":
        (tmp_path / "other" / name).mkdir(parents=True)
        for path in sorted((tmp_path / "trained" / name).iterdir())[:5]:
            (tmp_path / "other" / name / path.name).write_bytes(path.read_bytes())
    words = ["eval", out, "--data", f"folder:{tmp_path}/other", "--split", "all"]
    assert run(capsys, *words, "--per-image", f"{tmp_path}/images.csv")[0] == 0
    table = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [(row["name"][0], row["label"]) for row in table] == [("b", "1")] * 5 + [("c", "2")] * 5
    pictures(tmp_path / "other" / "d", 2)
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "not d" in err


def test_what_its_tokenizer_was_trained_on_counts_for_a_prior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", 60)
    vqvae, prior = f"{tmp_path}/vqvae", f"{tmp_path}/prior"
    words = ["--data", f"folder:{folder}", "data.channels=1", "--steps", "2"]
    assert run(capsys, "train", "digits-vqvae", *SMALL_VQ, *words, "--out", vqvae)[0] == 0
    few = ["data.limit=5", "--tokenizer", vqvae, "--out", prior]
    assert run(capsys, "train", "digits-prior", *SMALL, *words, *few)[0] == 0
    figures = tmp_path / "figures.json"
    assert (
        run(capsys, "eval", prior, "--split", "train", "data.limit=0", "--json", str(figures))[0]
        == 0
    )
    measured = json.loads(figures.read_text())
    assert measured["images"] > 40
    assert measured["overlap"]["identical"] == measured["images"]


def test_classes_of_another_folder_are_nothing_to_a_model_without_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, names in (("trained", "ab"), ("other", "xy")):
        for i, name in enumerate(names):
            pictures(tmp_path / folder / name, 20, seed=i)
    out = f"{tmp_path}/run"
    assert (
        run(
            capsys,
            "train",
            "digits",
            "--data",
            f"folder:{tmp_path}/trained",
            "--out",
            out,
            *ON_FOLDER,
        )[0]
        == 0
    )
    assert run(capsys, "eval", out, "--data", f"folder:{tmp_path}/other", "--split", "all")[0] == 0


def test_a_prior_goes_on_without_the_run_of_its_tokenizer(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, prior = tmp_path / "tokenizer", f"{tmp_path}/prior"
    shutil.copytree(runs / "vqvae", tokenizer)
    assert (
        run(
            capsys,
            "train",
            "digits-prior",
            *SMALL,
            "--steps",
            "3",
            "--tokenizer",
            str(tokenizer),
            "--out",
            prior,
        )[0]
        == 0
    )
    shutil.rmtree(tokenizer)
    assert run(capsys, "train", "--resume", prior, "--steps", "5")[0] == 0
