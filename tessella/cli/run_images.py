"""The images that a verb works on: those of the run, or others prepared alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tessella import config, data, files
from tessella.cli.checks import data_overrides
from tessella.cli.verb_options import Complete, Eval, Tokenize
from tessella.config import DataConfig
from tessella.errors import DataError
from tessella.evaluation.image_source import as_scored, check_fit, data_config
from tessella.pipeline import SavedModel, locate, pixel_levels

PREPARATION = ("size", "crop", "channels", "levels", "binarize", "binarize_seed")
"""Data options that other images take from the run."""


def load_images(
    command: Eval | Complete | Tokenize, model: SavedModel, split: str
) -> data.ImageSet:
    """Load the images of a split: of ``--data``, or of the run's source.

    Raises:
        DataError: when they are missing or cannot be read.
        InputError: when their size, channels or levels are not those of the model.
    """
    chosen = chosen_data(command, model)
    with or_name_the_data(is_given=bool(command.data)):
        images = data.load(chosen, split)
    check_fit(model, command.run, images, check_levels=True)
    return images


def chosen_data(command: Eval | Complete | Tokenize, model: SavedModel) -> DataConfig:
    """The images that a command works on, and how they are prepared."""
    run = locate(command.run)
    levels = pixel_levels(model)
    if command.data:
        # Other images get the size and the channels of the run's, but not its limit or its flips.
        values = _preparation(run) | {"source": command.data}
        if levels:
            values["levels"] = levels
    else:
        values = config.to_dict(data_config(run))
    # What the command says comes last.
    values |= data_overrides(command.overrides)
    chosen: DataConfig = config.from_dict(DataConfig, values, "data")
    return as_scored(chosen)


@contextlib.contextmanager
def or_name_the_data(is_given: bool) -> Iterator[None]:
    """Where a run's own images are not in their place, say that they can be named.

    Args:
        is_given: whether the command names the images, so that the error can stand as it is.
    """
    try:
        yield
    except DataError as error:
        # One piece of advice is enough.
        if is_given or "--data" in str(error):
            raise
        raise DataError(f"{error}; if they lie elsewhere now, name them with --data") from error


def _preparation(run: Path) -> dict[str, object]:
    """How the images of a run were prepared."""
    record = run / "run.json"
    if not record.exists():
        return {}
    # A run that was trained on arrays has a record without data.
    recipe = files.read_json_object(record).get("recipe")
    prepared = recipe.get("data") if isinstance(recipe, dict) else None
    if not isinstance(prepared, dict):
        return {}
    return {name: prepared[name] for name in PREPARATION if name in prepared}
