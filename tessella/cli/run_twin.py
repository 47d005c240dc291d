"""The exact twin of a run, made where there is none."""

from __future__ import annotations

from pathlib import Path

import torch

from tessella import files
from tessella.cli.terminal import say
from tessella.errors import InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.twin_files import source_of
from tessella.pipeline import Generator, fingerprint, is_bundled, load_saved, locate


def twin_of_run(run: str) -> ExactModel:
    """The exact twin of the density model of a run.

    It is kept in the run directory (of a bundled model, in the cache), so that files can be
    decompressed with it.

    Raises:
        InputError: when the run holds no density model on pixels.
        ConfigError: when its model has no exact twin.
        ArtifactError: when it cannot be read or written.
    """
    folder = locate(run)
    model = load_saved(run)
    if not isinstance(model, Generator) or model.two_stage:
        raise InputError(
            f"{run} has no density model on pixels, which image files are compressed with: train"
            " one, or name another run"
        )
    source = fingerprint(model)
    kept = _kept_in(folder, source)
    # A run that was trained on has other weights than its twin was made from.
    if has_twin(kept) and source_of(kept) == source:
        return load_twin(kept)
    say(f"making the exact twin of {run}: {kept}")
    twin = model.priors[0].exact()
    save_twin(twin, kept, source)
    return twin


def _kept_in(folder: Path, source: str) -> Path:
    """Where the twin of a run is: in its directory, unless that belongs to the package."""
    if has_twin(folder) or not is_bundled(folder):
        return folder
    return files.cache_folder() / "models" / source


def set_threads(threads: int) -> None:
    """Let torch use a number of threads; 0 keeps its choice."""
    if threads:
        torch.set_num_threads(threads)
