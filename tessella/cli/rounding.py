"""Runs whose density model a verb uses with rounded weights (``--weights``)."""

from __future__ import annotations

import torch

from tessella.cli.drawing_options import Weights
from tessella.cli.terminal import say
from tessella.errors import ConfigError, InputError
from tessella.models.weight_storage import quantize_weights
from tessella.pipeline import Generator, SavedModel, load_saved
from tessella.pipeline.saved_model import NOUNS


def load_rounded(run: str, device: torch.device | str, weights: Weights) -> SavedModel:
    """Load a run, and round the weights of its density model if that was asked for.

    A line says that what is used is another model than the run's.

    Args:
        run: path of the run, or the name of a bundled model.
        device: where to put it.
        weights: ``own`` leaves the weights as they are.

    Raises:
        InputError: for a run without a density model, or one without weights that can be rounded.
    """
    model = load_saved(run, device)
    if weights == "own":
        return model
    if not isinstance(model, Generator):
        raise InputError(
            f"--weights {weights} is for density models, and {run} is {NOUNS[model.kind]}: "
            "leave it out"
        )
    try:
        prior = quantize_weights(model.prior, weights)
    except ConfigError as error:
        raise InputError(f"--weights {weights}: {error}") from error
    say(
        f"note: {run} with weights rounded to {weights} is another model, whose probabilities and "
        "samples are its own"
    )
    return Generator(model.tokenizer, prior)
