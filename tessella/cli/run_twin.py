"""The exact twin of a run, made where there is none."""

from __future__ import annotations

from pathlib import Path

import torch

from tessella import files
from tessella.cli.terminal import say
from tessella.codec.model_lookup import places
from tessella.errors import ArtifactError, InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.twin_files import source_of
from tessella.pipeline import Generator, fingerprint, is_bundled, load_saved, locate
from tessella.tokenizers import Tokenizer


def twin_of_run(run: str) -> ExactModel:
    """The exact twin of the density model of a run: of its pixels, or of its codes.

    It is kept in the run directory, so that files can be decompressed with it. Models of pixels
    that ship have theirs; that of another bundled model goes to the cache.

    Raises:
        InputError: when the run holds no density model.
        ConfigError: when its model has no exact twin.
        ArtifactError: when it cannot be read or written.
    """
    folder = locate(run)
    model = load_saved(run)
    if not isinstance(model, Generator) or len(model.priors) != 1:
        raise InputError(
            f"{run} has no density model, or several, and files are compressed with one: name"
            " another run"
        )
    prior = model.priors[0]
    source = fingerprint(prior)
    kept = _kept_in(folder, source, model.two_stage)
    # A run that was trained on has other weights than its twin was made from.
    if has_twin(kept) and source_of(kept) == source:
        return load_twin(kept)
    say(f"making the exact twin of {run}: {kept}")
    twin = prior.exact()
    save_twin(twin, kept, source)
    return twin


def _kept_in(folder: Path, source: str, two_stage: bool) -> Path:
    """Where the twin of a run is: in its directory, unless that belongs to the package."""
    of_prior = folder / "prior" if two_stage else folder
    if not is_bundled(folder) or (has_twin(of_prior) and source_of(of_prior) == source):
        return of_prior
    return files.cache_folder() / "models" / source


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
