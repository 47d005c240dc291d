"""The exact twin of a run, made where there is none."""

from __future__ import annotations

from pathlib import Path

import torch

from tessella.cli.terminal import say
from tessella.codec.model_lookup import places
from tessella.errors import ArtifactError
from tessella.exact import ExactModel
from tessella.pipeline import Generator, fingerprint, load_saved
from tessella.pipeline.kept_twin import exact_twin_of
from tessella.tokenizers import Tokenizer


def twin_of_run(run: str) -> ExactModel:
    """The exact twin of the density model of a run, see :func:`exact_twin_of`.

    A line says where it is kept when one has to be made.
    """
    return exact_twin_of(run, load_saved(run), say)


def tokenizer_of_run(run: str) -> Tokenizer | None:
    """The tokenizer of a two-stage run; None where the model is one of pixels."""
    model = load_saved(run)
    if isinstance(model, Generator) and model.two_stage:
        return model.tokenizer
    return None


def find_tokenizer(wanted: bytes, given: str, beside: Path) -> Tokenizer:
    """The tokenizer of a fingerprint.

    Args:
        wanted: first bytes of the fingerprint.
        given: a run or a folder of runs where it must be; empty for the usual places.
        beside: the folder of the file.

    Raises:
        ArtifactError: when it is not there; the message has the fingerprint.
    """
    for place in places(given, beside):
        runs = [place]
        if place.is_dir():
            runs += sorted(item for item in place.iterdir() if item.is_dir())
        for run in runs:
            if not (run / "tokenizer").is_dir():
                continue
            tokenizer = tokenizer_of_run(str(run))
            if tokenizer is not None and fingerprint(tokenizer).startswith(wanted.hex()):
                return tokenizer
    raise ArtifactError(
        f"the file needs the tokenizer {wanted.hex()}: name its two-stage run with --model"
    )


def set_threads(threads: int) -> None:
    """Let torch use a number of threads; 0 keeps its choice."""
    if threads:
        torch.set_num_threads(threads)
