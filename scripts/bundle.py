"""Put a finished run into the package, as a model that ships.

    python scripts/bundle.py runs/mnist mnist           # adds the model `mnist`, or replaces it
    python scripts/bundle.py runs/mnist mnist --data mnist:mnist.npz    # where its images are now
    python scripts/bundle.py runs/mnist mnist --float32 # keeps the weights as they are
    python scripts/bundle.py --demo runs/demo           # the three models of a demo
    python scripts/bundle.py --sizes                    # what the models take

The run is copied without what only training needs. Weights are stored as float16 where that changes
no figure by more than ``TOLERANCE``, which is measured on held-out images of the run; loading makes
float32 of them again. A model of pixels gets its exact twin, so that a compressed file names the
same model on every machine. The log keeps its validations, the record loses the paths of the
machine, and the card says what ``bundle_notes.toml`` knows of the data and the use.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tessella import data, files
from tessella.errors import ConfigError, TessellaError
from tessella.evaluation import data_config, evaluate
from tessella.exact import save_twin
from tessella.pipeline import Generator, fingerprint, load_saved, locate, read_config, write_card
from tessella.tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "tessella" / "bundle"
NOTES = Path(__file__).resolve().with_name("bundle_notes.toml")

DEMO = {"pixels": "digits", "vqvae": "digits-vqvae", "codes": "digits-codes"}
"""Names of the models by the stage of the demo that trains them."""

TRAINING_ONLY = (
    ".lock",
    "checkpoints",
    "tensorboard",
    "wandb",
    "wandb-id",
    "report.html",
    "skipped.txt",
    # Of a benchmark: what other programs did meanwhile.
    "busy.json",
    # Hashes of the training images: they take more bytes than a small model.
    "images.safetensors",
    # Made anew, of the weights that ship.
    "exact.json",
    "exact.safetensors",
)
"""Parts of a run directory that a model does not need."""

LIMIT = 12_000_000
"""Bytes that all models may take together: everybody downloads them, used or not."""

BASELINE_LIMIT = 100_000
"""Largest baseline that ships, in bytes. Its figures stay on the card."""

TOLERANCE = {"bits_per_dim": 1e-3, "bound_bits_per_dim": 1e-3, "psnr_db": 1e-2}
"""Largest change of a figure that rounding the weights may cause."""

MEASURED = 256
"""Held-out images on which the change is measured."""

CURVE_ROWS = 10
"""Rows of the learning curve on a card."""

HALF_LIMIT = float(torch.finfo(torch.float16).max)


def bundle(run: Path, name: str, float32: bool = False, source: str = "") -> None:
    """Put a run into the package under a name.

    Args:
        run: a finished run, or a model of the bundle that is to be written anew.
        name: of the model; ``bundle_notes.toml`` must have an entry for it.
        float32: keep the weights as they are.
        source: where the images of the run are now; empty where the run says.

    Raises:
        SystemExit: when something is missing, or the models would take too many bytes.
    """
    notes = notes_of(name)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / name
        shutil.copytree(run, model, ignore=shutil.ignore_patterns(*TRAINING_ONLY))
        if not (model / "run.json").exists():
            raise SystemExit(f"{run} has no run.json, so its card could not say how it was trained")
        drop_large_baseline(model)
        keep_validations(model / "log.jsonl")
        describe_tokenizer(model)
        if not float32:
            halve(model, source)
        add_twin(model)
        clean_record(model / "run.json", name)
        name_classes(model / "run.json", notes)
        write_own_card(model, name, notes)
        refuse_traces(model)
        size = bytes_of(model)
        others = sum(taken for other, taken in sizes().items() if other != name)
        if size + others > LIMIT:
            raise SystemExit(
                f"{name} takes {size:,} bytes and the other models {others:,}: together more than"
                f" {LIMIT:,}"
            )
        shutil.rmtree(BUNDLE / name, ignore_errors=True)
        shutil.copytree(model, BUNDLE / name)
    report_sizes()


def notes_of(name: str) -> Mapping[str, str]:
    """What is known of a model beyond its figures."""
    notes = tomllib.loads(NOTES.read_text(encoding="utf-8"))
    if name not in notes:
        raise SystemExit(
            f"{NOTES.name} has no entry [{name}]: write what its data are and under which terms,"
            " what the model is for, and what it cannot do"
        )
    entry: Mapping[str, str] = notes[name]
    return entry


def drop_large_baseline(model: Path) -> None:
    """Remove a baseline that would take more bytes than it is worth."""
    baseline = model / "baseline"
    if baseline.is_dir() and bytes_of(baseline) > BASELINE_LIMIT:
        print(f"without its baseline of {bytes_of(baseline):,} bytes")
        shutil.rmtree(baseline)


def keep_validations(log: Path) -> None:
    """Reduce a log to its learning curve: the lines of validations."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        if any(key.startswith("valid/") for key in json.loads(line)):
            kept.append(line)
    log.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def describe_tokenizer(model: Path) -> None:
    """Keep with a two-stage model how its tokenizer was trained, where that is known."""
    facts = read_json(model / "run.json")
    named = facts["recipe"].get("prior_of")
    if not named or "tokenizer_run" in facts:
        return
    try:
        tokenizer = read_json(locate(named) / "run.json")
    except (TessellaError, OSError):
        print(f"the card does not say how its tokenizer was trained: there is no run {named}")
        return
    facts["tokenizer_run"] = {
        key: tokenizer[key] for key in ("data", "environment", "progress") if key in tokenizer
    }
    write_json(model / "run.json", facts)


def halve(model: Path, source: str) -> None:
    """Store weights as float16 where no figure changes by more than its tolerance.

    The parts of a two-stage model are tried one by one: rounding a tokenizer moves vectors to
    neighbouring codes, which may change more than rounding its prior.
    """
    before = figures_of(model, source)
    for path in weights_of(model):
        kept = path.read_bytes()
        files.write_tensors(path, halved(files.read_tensors(path)))
        after = figures_of(model, source)
        changes = {}
        for figure in TOLERANCE:
            if figure in before:
                changes[figure] = after[figure] - before[figure]
        told = ", ".join(f"{name} {change:+.6f}" for name, change in changes.items())
        print(f"{path.relative_to(model)} as float16: {told}")
        # Not "greater than": a figure that is no number is no small change.
        if not all(abs(change) <= TOLERANCE[figure] for figure, change in changes.items()):
            print("it stays float32: the change is too large")
            path.write_bytes(kept)


def halved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of float32 as float16, those left out that its range does not hold."""
    narrow = {}
    for name, tensor in tensors.items():
        fits = tensor.dtype == torch.float32 and bool((tensor.abs() < HALF_LIMIT).all())
        narrow[name] = tensor.half() if fits else tensor
    return narrow


def weights_of(model: Path) -> list[Path]:
    """The files of weights of a model: one, or those of its two stages."""
    folders = [model, model / "tokenizer", model / "prior"]
    return [folder / "model.safetensors" for folder in folders if has_weights(folder)]


def has_weights(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def figures_of(model: Path, source: str) -> dict[str, Any]:
    """Figures of a model on the first held-out images of its run."""
    try:
        config = data_config(model)
        config = replace(config, source=source or config.source, limit=MEASURED)
        return evaluate(model, data.load(config, "valid"))
    except TessellaError as error:
        raise SystemExit(
            f"the figures cannot be measured: {error}\n"
            "Give --data SOURCE where the images have moved, or --float32"
        ) from error


def add_twin(model: Path) -> None:
    """Keep the exact twin of a model of pixels with it."""
    loaded = load_saved(model)
    if not isinstance(loaded, Generator) or loaded.two_stage:
        return
    prior = loaded.priors[0]
    try:
        twin = prior.exact()
    except ConfigError as error:
        print(f"without an exact twin: {error}")
        return
    save_twin(twin, model, fingerprint(prior))
    size = sum((model / f"exact.{ending}").stat().st_size for ending in ("json", "safetensors"))
    print(f"its exact twin takes {size:,} bytes")


def clean_record(path: Path, name: str) -> None:
    """Take the paths of the machine that trained a run out of its record."""
    facts = read_json(path)
    # A tokenizer that ships too is named by its place in the bundle.
    named = facts["recipe"].get("prior_of")
    if named:
        facts["recipe"]["prior_of"] = bundled_tokenizer(path.parent) or Path(named).name
    write_json(path, without_folders(facts))


def name_classes(path: Path, notes: Mapping[str, str]) -> None:
    """Give the classes of a record the names that the notes have, where its data had none."""
    names = [name.strip() for name in notes.get("classes", "").split(",") if name.strip()]
    if not names:
        return
    facts = read_json(path)
    # A prior's record holds that of its tokenizer, which was trained on the same data.
    for part in (facts, facts.get("tokenizer_run") or {}):
        for split in (part.get("data") or {}).values():
            split["classes"] = split["classes"] or names
    write_json(path, facts)


def bundled_tokenizer(model: Path) -> str:
    """Name of the bundled tokenizer with the weights of a model's own; empty where none has."""
    loaded = load_saved(model)
    assert isinstance(loaded, Generator)
    wanted = fingerprint(loaded.tokenizer)
    for name in sizes():
        if read_config(BUNDLE / name)["kind"] == "tokenizer":
            tokenizer = load_saved(BUNDLE / name)
            assert isinstance(tokenizer, Tokenizer)
            if fingerprint(tokenizer) == wanted:
                return name
    return ""


ABSOLUTE = re.compile(r"^((?:[\w+-]+:|--[\w-]+=)*)((?:/|~|[A-Za-z]:[\\/]).*)$", re.DOTALL)
"""An absolute path, with the name of a source or of an option in front."""


def without_folders(value: Any) -> Any:
    """Plain values in which absolute paths have lost their folders."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    found = ABSOLUTE.match(value) if isinstance(value, str) else None
    if found is None:
        return value
    return found[1] + re.split(r"[\\/]", found[2].rstrip("\\/"))[-1]


def write_own_card(model: Path, name: str, notes: Mapping[str, str]) -> None:
    """Write the card of a model: how it was trained, on what, what for, and its figures."""
    facts = read_json(model / "run.json")
    sections = {
        "What it is for": notes["use"],
        "What it cannot do": notes["limits"],
        "Data and their terms": notes["data"],
        "Training": "\n".join(training_lines(facts)),
    }
    curve = curve_of(model)
    if curve:
        sections["Learning curve"] = curve_table(curve)
    sections["Files"] = files_text(model)
    figures = {"validation": facts["progress"].get("figures", {}), **facts.get("figures", {})}
    write_card(model, figures, sections)
    card = model / "README.md"
    text = card.read_text(encoding="utf-8")
    # A model that ships is known by its name.
    card.write_text(text.replace("ts.load(PATH)", f'ts.load("{name}")'), encoding="utf-8")


def training_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The budget, the machine and the images, as items of a list."""
    # What a recipe says of itself ends with figures of another run.
    about = (facts["recipe"].get("about") or "").partition(":")[0].partition(" (give")[0]
    yield f"- Recipe: {about or 'not one that ships'}; its settings are in `run.json`"
    yield "- Budget: " + budget(facts)
    yield "- Machine: " + machine(facts["environment"])
    if "tokenizer_run" in facts:
        tokenizer = facts["tokenizer_run"]
        yield f"- Tokenizer: {budget(tokenizer)}; {machine(tokenizer['environment'])}"
    for split, images in facts["data"].items():
        shape = "x".join(str(side) for side in images["shape"])
        yield (
            f"- Images, {split}: {images['count']:,} of {shape}, {images['source']},"
            f" {images['split_rule'] or 'as the source divides them'}; SHA-256 of their pixels"
            f" `{images['sha256']}`"
        )


def budget(facts: Mapping[str, Any]) -> str:
    progress = facts["progress"]
    return (
        f"{progress['step']:,} steps in {progress['seconds'] / 60:.1f} minutes; the weights are"
        f" those of step {progress['best_step']:,}"
    )


def machine(environment: Mapping[str, Any]) -> str:
    device = environment["device"]
    if device == "cpu":
        device = f"CPU, {environment['threads']} of {environment['cores']} cores"
    return f"{device}, {environment['system']}, torch {environment['torch']}"


def curve_of(model: Path) -> list[tuple[float, int, float]]:
    """Minute, step and figure of each validation in the log; empty where there is none."""
    log = model / "log.jsonl"
    if not log.exists():
        return []
    curve = []
    figure = "mse" if read_config(model)["kind"] == "tokenizer" else "bits_per_dim"
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if f"valid/{figure}" in entry:
            curve.append((entry["seconds"] / 60, entry["step"], entry[f"valid/{figure}"]))
    return curve


def curve_table(curve: list[tuple[float, int, float]]) -> str:
    """Some rows of a learning curve, its last among them."""
    stride = math.ceil(len(curve) / CURVE_ROWS)
    rows = curve[::-stride][::-1]
    lines = ["| minute | step | validation |", "|---|---|---|"]
    for minute, step, figure in rows:
        lines.append(f"| {minute:.2f} | {step:,} | {figure:.4f} |")
    return "\n".join([*lines, "", "All validations are in `log.jsonl`."])


def files_text(model: Path) -> str:
    """Sizes of the larger files of a model."""
    lines = ["| file | bytes |", "|---|---|"]
    for file in sorted(model.rglob("*.safetensors")):
        lines.append(f"| `{file.relative_to(model).as_posix()}` | {file.stat().st_size:,} |")
    stored = {str(t.dtype) for path in weights_of(model) for t in files.read_tensors(path).values()}
    kinds = ", ".join(sorted(kind.removeprefix("torch.") for kind in stored))
    return "\n".join([*lines, "", f"Weights are stored as {kinds} and computed with as float32."])


def refuse_traces(model: Path) -> None:
    """Refuse to ship text that names the machine that trained a model, or a folder on it."""
    host = platform.node()
    for file in model.rglob("*"):
        if file.suffix not in (".json", ".jsonl", ".md", ".txt"):
            continue
        text = file.read_text(encoding="utf-8")
        # Addresses of the web have a slash before each part, too.
        found = re.search(r"(?<![\w./:<-])/[\w.-]+/[\w./-]*", text)
        if found:
            raise SystemExit(f"{file.relative_to(model)} names the folder {found[0]}")
        for name in (host, str(Path.home())):
            if len(name) > 1 and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                raise SystemExit(f"{file.relative_to(model)} names {name}")


def sizes() -> dict[str, int]:
    """Bytes of each model that ships."""
    found = {}
    for folder in sorted(BUNDLE.iterdir()) if BUNDLE.is_dir() else ():
        if (folder / "config.json").exists():
            found[folder.name] = bytes_of(folder)
    return found


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def report_sizes() -> None:
    taken = sizes()
    for name, size in taken.items():
        print(f"{name:16} {size:12,} bytes")
    print(f"{'together':16} {sum(taken.values()):12,} bytes of {LIMIT:,}")


def read_json(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def write_json(path: Path, facts: object) -> None:
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, help="a finished run")
    parser.add_argument("name", nargs="?", help="the name that the model gets")
    parser.add_argument("--float32", action="store_true", help="keep the weights as they are")
    parser.add_argument("--data", default="", help="where the images of the run are now")
    parser.add_argument("--demo", type=Path, help="put in the three models of this demo")
    parser.add_argument("--sizes", action="store_true", help="only say what the models take")
    given = parser.parse_args(arguments)
    if given.sizes:
        report_sizes()
    elif given.demo:
        # The tokenizer comes before the prior, which names it.
        for stage, name in DEMO.items():
            bundle(given.demo / stage, name, given.float32)
    elif given.run and given.name:
        bundle(given.run, given.name, given.float32, given.data)
    else:
        parser.error("give RUN and NAME, or --demo RUN, or --sizes")


if __name__ == "__main__":
    main(sys.argv[1:])
