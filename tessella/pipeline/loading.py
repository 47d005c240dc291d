"""Loading models: runs by their path, bundled models by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import torch

from tessella import files
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaWarning, unknown
from tessella.models import DensityModel, Hierarchy, Prior
from tessella.pipeline.building import BUILDERS, Network, build
from tessella.pipeline.generator import Generator
from tessella.pipeline.saved_model import NOUNS, SavedModel
from tessella.pipeline.saving import read_config
from tessella.pipeline.weights import load_weights
from tessella.tokenizers import Tokenizer, create_tokenizer

M = TypeVar("M")
BundledGenerator = Literal[
    "cifar10-codes", "digits", "digits-codes", "mnist", "mnist-codes", "photos"
]
BundledTokenizer = Literal["digits-vqvae"]


def bundled() -> list[str]:
    """Names of the small trained models that ship with the package: the folders of its bundle."""
    # Some distributions leave the models out of the package.
    folder = resources.files("tessella") / "bundle"
    if not folder.is_dir():
        return []
    return sorted(item.name for item in folder.iterdir() if (item / "config.json").is_file())


def is_bundled(path: Path) -> bool:
    """Whether a directory is one of the models that ship."""
    return path.resolve().parent == Path(str(resources.files("tessella") / "bundle")).resolve()


def locate(run: Path | str) -> Path:
    """The directory of a run: a path, or the name of a bundled model.

    Raises:
        InputError: when it is no path at all.
        ArtifactError: when there is neither.
    """
    if not isinstance(run, (str, Path)):
        raise InputError(
            "a run is the path of its directory, or the name of a bundled model; got "
            f"{type(run).__name__}"
        )
    # A directory comes first: users may give their runs the names of bundled models.
    # A folder of pictures may have such a name as well, but is no run.
    path = Path(run)
    is_bundled_name = str(run) in bundled()
    if path.is_dir() and (_is_of_a_run(path) or not is_bundled_name):
        return path
    if is_bundled_name:
        return Path(str(resources.files("tessella") / "bundle" / str(run)))
    if path.exists():
        raise ArtifactError(f"{run} is a file; a run is a directory with a config.json")
    raise ArtifactError(
        f"no run directory at {run}, and " + unknown("bundled model", str(run), bundled())
    )


def _is_of_a_run(folder: Path) -> bool:
    """Whether a folder has a file that only runs have, finished or not."""
    return any((folder / name).exists() for name in ("config.json", "run.json"))


@overload
def load(run: BundledGenerator, device: torch.device | str = "cpu") -> Generator: ...
@overload
def load(run: BundledTokenizer, device: torch.device | str = "cpu") -> Tokenizer: ...
@overload
def load(run: Path | str, device: torch.device | str = "cpu", *, expect: Callable[..., M]) -> M: ...
@overload
def load(run: Path | str, device: torch.device | str = "cpu") -> Any: ...
def load(
    run: Path | str,
    device: torch.device | str = "cpu",
    *,
    expect: Callable[..., object] | None = None,
) -> object:
    """Load a run directory or a bundled model.

    Args:
        run: path of a directory, or the name of a bundled model.
        device: where to put it.
        expect: the class that it must be, :class:`Generator`, :class:`~tessella.Tokenizer` or
            :class:`~tessella.VAE`. A type checker cannot know what a directory holds: with
            ``expect=`` it does, without it the result passes for anything.

    Returns:
        A :class:`Generator` for a density model or a two-stage model, a tokenizer for a tokenizer,
        a VAE for a VAE; in eval mode.

    Raises:
        ArtifactError: when it is missing, damaged, incomplete, or of another format version.
        InputError: when it is not what was expected.

    >>> load("digits", expect=Generator).sample(2).shape
    torch.Size([2, 8, 8, 1])
    """
    model = load_saved(run, device)
    if expect is not None:
        # Typed as callable, because a type checker refuses abstract classes as type[...].
        wanted = cast(type, expect)
        if not isinstance(model, wanted):
            raise InputError(f"{run} is {NOUNS[model.kind]}, not a {wanted.__name__}")
    return model


def load_saved(run: Path | str, device: torch.device | str = "cpu") -> SavedModel:
    """Load a run, for callers that ask for capabilities.

    As :func:`load`, with the type of :mod:`tessella.pipeline.saved_model`.
    """
    path = locate(run)
    kind = read_config(path)["kind"]
    if kind == "prior":
        raise ArtifactError(
            f"{path} is one half of a two-stage model: load the directory above it, "
            "or import it with its tokenizer"
        )
    try:
        # Each part is loaded as its kind, so that two swapped directories are noticed.
        if kind == "generator":
            tokenizer = cast(Tokenizer, _load_network(path / "tokenizer", "tokenizer"))
            prior = cast(Prior, _load_network(path / "prior", "prior"))
            return Generator(tokenizer, prior).to(device)
        network = _load_network(path, kind)
        # Codes of several grids mean nothing without the tokenizer that made them.
        if isinstance(network, Hierarchy):
            raise ArtifactError(f"{path} is a prior on codes without its tokenizer")
        # A density model on pixels is a generator whose tokenizer is the identity.
        if isinstance(network, DensityModel):
            return pixel_generator(network).to(device)
        return network.to(device)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from error


def load_model(run: Path | str) -> Network:
    """Load one network: a tokenizer, a VAE, or a prior without its tokenizer.

    Raises:
        ArtifactError: see :func:`load`.
    """
    path = locate(run)
    return _load_network(path, read_config(path)["kind"])


def pixel_generator(prior: DensityModel) -> Generator:
    """The generator of a density model on pixels: its tokenizer is the identity.

    Raises:
        ConfigError: when its grid cannot be one of pixels (more than four channels or 256 levels).
    """
    grid = prior.grid
    tokenizer = create_tokenizer(
        "identity",
        image_size=(grid.height, grid.width),
        channels=grid.channels,
        levels=grid.levels,
    )
    return Generator(tokenizer, prior)


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
    # `auto` takes what there is.
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


INTERCHANGEABLE = {"density-model", "prior"}


def _load_network(path: Path, kind: str) -> Network:
    """Load the network in one directory, which must be of a kind."""
    config = read_config(path)
    found = config["kind"]
    # The prior of a two-stage model and a density model on pixels differ in name only.
    if found != kind and {found, kind} != INTERCHANGEABLE:
        raise ArtifactError(f"{path} is a {found}, not a {kind}")
    if found not in BUILDERS:
        raise ArtifactError(f"{path} is a {found}: it has no weights")
    weights = path / "model.safetensors"
    # Only the header so far: tensors are read once the network is known to fit them.
    header = files.read_tensors_header(weights)
    network = build(found, config["model"], header, str(path))
    if "sha256" not in header.metadata:
        warnings.warn(
            f"{weights} carries no checksum, so damage to it cannot be noticed; save the model "
            "again to add one",
            TessellaWarning,
            stacklevel=2,
        )
    load_weights(network, files.read_tensors(weights), str(path))
    # No dropout, and codebooks that stand still.
    return network.eval()
