"""The exact twin of a run, made once and kept with the run."""

from __future__ import annotations

from pathlib import Path

from tessella import files
from tessella.errors import InputError
from tessella.exact import ExactModel, has_twin, load_twin, save_twin
from tessella.exact.twin_files import source_of
from tessella.models import DensityModel
from tessella.pipeline.generator import Generator
from tessella.pipeline.loading import is_bundled, load, locate
from tessella.pipeline.weights import fingerprint


def twin_of_run(run: Path | str, images: object = None) -> ExactModel:
    """The exact twin of a run's density model: the one kept with the run, or a new one.

    A new twin is written to the directory of the run; that of a bundled model, to the cache.

    Args:
        run: a run directory, or the name of a bundled model.
        images: symbols for the calibration of a new twin, ``[n, height, width, channels]``; the
            model draws some itself without.

    Raises:
        ArtifactError: when the run or its twin is damaged.
        ConfigError: when its model has no exact twin.
        InputError: when it has no density model, or several.
    """
    path = locate(run)
    generator = load(run, expect=Generator)
    prior = generator.prior
    if not isinstance(prior, DensityModel):
        raise InputError(f"{run} has a prior over several grids, and those have no exact twin")
    # Training may have gone on since a twin was made.
    source = fingerprint(prior)
    home = path
    if is_bundled(path):
        home = files.cache_folder() / "twins" / source
    if has_twin(home) and source_of(home) == source:
        return load_twin(home)
    twin = prior.exact(images)
    save_twin(twin, home, source)
    return twin
