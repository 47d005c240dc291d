"""``tessella eval``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tessella import data, files
from tessella.cli import preview
from tessella.cli.processes import set_threads, start_processes
from tessella.cli.rounding import load_rounded
from tessella.cli.run_images import load_images
from tessella.cli.terminal import answer
from tessella.cli.verb_options import Eval
from tessella.errors import ArtifactError
from tessella.evaluation import Evaluation, assess, check_comparable, compare
from tessella.files import pictures
from tessella.pipeline import (
    BoundsImages,
    SavedModel,
    is_bundled,
    learned_tokenizer,
    load_saved,
    locate,
    write_card,
)
from tessella.pipeline.run_record import read_run_record
from tessella.report import run_summary
from tessella.training.run_directory import RunDirectory, environment

PREVIEWED = 8
"""Images that are shown with their reconstructions."""


def run(command: Eval) -> int:
    """Measure a run on images; print, write and keep the figures."""
    set_threads(command.threads)
    # Every process goes through all of it and measures its part; only the first one reports.
    device, is_first = start_processes(command.device, command.devices)
    path = locate(command.run)
    read_run_record(path)  # a damaged record is refused before minutes are spent on figures
    model = load_rounded(command.run, device, command.weights)
    other = load_saved(command.against, device) if command.against else None
    # Before any image is measured, as that takes minutes.
    if other is not None:
        check_comparable(model, other)
    images = load_images(command, model, command.split)
    result = assess(path, images, batch=command.batch, model=model)
    figures = {**result.figures, "run": Path(command.run).name}
    if command.weights != "own":
        figures["rounded_to"] = command.weights
    if other is not None:
        against = assess(locate(command.against), images, batch=command.batch, model=other)
        figures["against"] = _comparison(command, result, against)
    if not is_first:
        return 0
    figures["made"] = environment(device, command.devices)
    if not command.no_preview:
        _preview(model, images)
    _show(figures, images)
    if command.json:
        files.write_json(command.json, figures)
    if command.per_image:
        files.write_text(command.per_image, result.table())
    # The card of a run is about the model that the run holds.
    if command.weights == "own":
        _renew_card(path, f"{images.name}, {images.split}", figures)
    return 0


def _comparison(command: Eval, result: Evaluation, against: Evaluation) -> dict[str, object]:
    """The figures of ``--against``."""
    figures: dict[str, object] = {"run": Path(command.against).name}
    for name in ("weights", "condition", "overlap"):
        if name in against.figures:
            figures[name] = against.figures[name]
    return figures | compare(result, against)


def _preview(model: SavedModel, images: data.ImageSet) -> None:
    """Show the first images above their reconstructions, where a model has some."""
    shown = np.asarray(images.images[:PREVIEWED])
    if isinstance(model, BoundsImages):
        decoded = model.reconstruct(shown)
    elif (tokenizer := learned_tokenizer(model)) is not None:
        decoded = tokenizer.decode(tokenizer.encode(shown), size=shown.shape[1:3])
    else:
        return
    both = np.concatenate([shown, decoded.cpu().numpy()])
    preview.show(pictures.sheet(both, columns=len(shown)))


def _show(figures: Mapping[str, object], images: data.ImageSet) -> None:
    """Print the figures, and notes on those that show a model that has learned nothing."""
    answer(f"{figures['run']} on {images.name}, {images.split}:")
    shown = {name: value for name, value in figures.items() if name not in ("run", "data", "made")}
    for label, value, unit in run_summary.figure_rows(shown):
        answer(f"  {label:32} {value} {unit}".rstrip())
    if _figure(figures, "baseline_bits_per_dim") <= _figure(figures, "bits_per_dim"):
        answer("note: this is no better than independent symbols; the model needs more training")
    # PSNR is None of images that were reconstructed exactly, which the mean image never is.
    mean_image = _figure(figures, "mean_image_psnr_db")
    if mean_image >= _figure(figures, "psnr_db"):
        answer(
            "note: the reconstructions are no better than the mean image;"
            " the tokenizer needs more training"
        )
    diagnosis = figures.get("diagnosis")
    if isinstance(diagnosis, list):
        for line in diagnosis:
            answer(f"codes: {line}")


def _figure(figures: Mapping[str, object], name: str) -> float:
    """A figure, or NaN, which compares as false, where it was not measured."""
    value = figures.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _renew_card(path: Path, name: str, figures: Mapping[str, object]) -> None:
    """Add the figures to the card of a run; bundled models stay as they are."""
    if is_bundled(path) or not (path / "run.json").exists():
        return
    # The figures go into the record, too: the card is written anew from it each time.
    run_directory = RunDirectory(path)
    record = run_directory.facts()
    shown = {}
    for key, value in figures.items():
        if key not in ("data", "run", "made") and value is not None:
            shown[key] = value
    measured = {**record.get("figures", {}), name: shown}
    validation = record.get("progress", {}).get("figures", {})
    # A run that cannot be written, on a shared disk for instance, can still be measured.
    try:
        run_directory.update(figures=measured)
        write_card(path, {"validation": validation, **measured})
    except ArtifactError as error:
        answer(f"the figures are not on the card: {error}")
