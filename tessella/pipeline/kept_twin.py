"""The exact twin of a run's model, kept with the run and made where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tessella import files
from tessella.errors import InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.twin_files import source_of
from tessella.pipeline.generator import Generator
from tessella.pipeline.loading import is_bundled, locate
from tessella.pipeline.saved_model import SavedModel
from tessella.pipeline.weights import fingerprint


def exact_twin_of(run: str, model: SavedModel, tell: Callable[[str], object]) -> ExactModel:
    """The exact twin of the density model of a run: of its pixels, or of its codes.

    It is kept in the run directory, so that files can be decompressed with it. Models of pixels
    that ship have theirs; that of another bundled model goes to the cache.

    Args:
        run: the run's name or path.
        model: what it holds.
        tell: called with a line before a twin is made, which takes a while.

    Raises:
        InputError: when the run holds no density model.
        ConfigError: when its model has no exact twin.
        ArtifactError: when it cannot be read or written.
    """
    folder = locate(run)
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
    tell(f"making the exact twin of {run}: {kept}")
    twin = prior.exact()
    save_twin(twin, kept, source)
    return twin


def _kept_in(folder: Path, source: str, two_stage: bool) -> Path:
    """Where the twin of a run is: in its directory, unless that belongs to the package."""
    of_prior = folder / "prior" if two_stage else folder
    if not is_bundled(folder) or (has_twin(of_prior) and source_of(of_prior) == source):
        return of_prior
    return files.cache_folder() / "models" / source
