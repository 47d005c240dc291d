"""Loading models: runs by their path, bundled models by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from tessella import files
from tessella.errors import ArtifactError, ConfigError, TessellaError, unknown
from tessella.models import DensityModel, Hierarchy, Prior, prior_from_config
from tessella.pipeline.generator import Generator
from tessella.pipeline.saving import read_config
from tessella.pipeline.weights import load_weights
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.vae import VAE, create_vae


def bundled() -> list[str]:
    """Names of the small trained models that ship with the package."""
    folder = resources.files("tessella") / "bundle"
    return sorted(f.name for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []


def is_bundled(path: Path) -> bool:
    """Whether a directory is one of the models that ship."""
    return path.resolve().parent == Path(str(resources.files("tessella") / "bundle")).resolve()


def locate(run: Path | str) -> Path:
    """The directory of a run: a path, or the name of a bundled model.

    Raises:
        ArtifactError: when there is neither.
    """
    path = Path(run)
    if path.is_dir():
        return path
    if str(run) in bundled():
        return Path(str(resources.files("tessella") / "bundle" / str(run)))
    if path.exists():
        raise ArtifactError(f"{run} is a file; a run is a directory with a config.json")
    raise ArtifactError(
        f"no run directory at {run}, and " + unknown("bundled model", str(run), bundled())
    )


def load(run: Path | str, device: torch.device | str = "cpu") -> Generator | Tokenizer | VAE:
    """Load a run directory or a bundled model.

    Args:
        run: path of a directory, or the name of a bundled model.
        device: where to put it.

    Returns:
        A :class:`Generator` for a density model or a two-stage model, a tokenizer for a tokenizer,
        a VAE for a VAE; in eval mode.

    Raises:
        ArtifactError: when it is missing, damaged, incomplete, or of another format version.
    """
    path = locate(run)
    kind = read_config(path)["kind"]
    if kind == "prior":
        raise ArtifactError(f"{path} is one half of a two-stage model: load the directory above it")
    try:
        if kind == "generator":
            return Generator(_load_tokenizer(path / "tokenizer"), _load_prior(path / "prior")).to(
                device
            )
        model = load_model(path)
        if isinstance(model, Hierarchy):
            raise ArtifactError(f"{path} is a prior on codes without its tokenizer")
        return (
            pixel_generator(model).to(device)
            if isinstance(model, DensityModel)
            else model.to(device)
        )
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from error


def load_model(run: Path | str) -> Prior | Tokenizer | VAE:
    """Load one part: a tokenizer, a VAE, or a prior without its tokenizer.

    Raises:
        ArtifactError: see :func:`load`.
    """
    path = locate(run)
    loaders: dict[str, Callable[[Path], Any]] = {"tokenizer": _load_tokenizer, "vae": _load_vae}
    loaded: Prior | Tokenizer | VAE = loaders.get(read_config(path)["kind"], _load_prior)(path)
    return loaded


def pixel_generator(prior: DensityModel) -> Generator:
    """The generator of a density model on pixels: its tokenizer is the identity.

    Raises:
        ConfigError: when its grid cannot be one of pixels (more than four channels or 256 levels).
    """
    grid = prior.grid
    size = (grid.height, grid.width)
    return Generator(
        create_tokenizer("identity", image_size=size, channels=grid.channels, levels=grid.levels),
        prior,
    )


def pick_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, or ``auto``, which is CUDA where there is one.

    Raises:
        ConfigError: for another name, or a device that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "this machine has no CUDA device: leave --device out or give --device cpu"
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _load_prior(path: Path) -> Prior:
    config = read_config(path)
    if config["kind"] not in ("density-model", "prior"):
        raise ArtifactError(f"{path} is a {config['kind']}, not a density model")
    return _load_part(path, config, prior_from_config)


def _load_tokenizer(path: Path) -> Tokenizer:
    config = read_config(path)
    if config["kind"] != "tokenizer":
        raise ArtifactError(f"{path} is a {config['kind']}, not a tokenizer")
    return _load_part(path, config, lambda values: create_tokenizer(**values))


def _load_vae(path: Path) -> VAE:
    return _load_part(path, read_config(path), _build_vae)


def _build_vae(config: Mapping[str, Any]) -> VAE:
    return create_vae(**{name: value for name, value in config.items() if name != "name"})


def _load_part(path: Path, config: Mapping[str, Any], build: Any) -> Any:
    try:
        module = build(config["model"])
    except (KeyError, TypeError, TessellaError) as error:
        raise ArtifactError(
            f"{path}/config.json does not describe a model this version knows: {error}"
        ) from error
    load_weights(module, files.read_tensors(path / "model.safetensors"), str(path))
    return module.eval()
