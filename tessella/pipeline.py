"""A tokenizer and a prior on its codes are one generator; saving and loading of models.

A pixel model is a two-stage model whose tokenizer is the identity, so there is one class for both. A saved model is a
directory: ``config.json``, ``model.safetensors`` and ``README.md`` (its card); a two-stage model holds two such
directories, ``tokenizer`` and ``prior``. Nothing but JSON and safetensors is ever loaded.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import tessella
from tessella import files, sampling
from tessella.card import card
from tessella.errors import ArtifactError, ConfigError, InputError, TessellaError, TessellaWarning, unknown
from tessella.grid import Grid
from tessella.models import DensityModel, from_config
from tessella.models.condition import Cond
from tessella.noise import check_seed
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.tokenizers.base import check_images

FORMAT = 1
"""Version of the layout of saved models and run directories."""


class Generator:
    """Images from a prior and a tokenizer. Warns of a head that gives an order to codes, see :func:`warn_of_order`.

    Args:
        tokenizer: images to symbols and back.
        prior: a density model on the tokenizer's grid.

    Raises:
        ConfigError: when the prior's grid is not the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, prior: DensityModel) -> None:
        if tokenizer.grid() != prior.grid:
            raise ConfigError(
                "this prior does not fit its tokenizer: "
                f"the prior models {prior.grid}, the tokenizer makes {tokenizer.grid()}"
            )
        self.tokenizer, self.prior = tokenizer.eval(), prior.eval()
        warn_of_order(tokenizer, prior)

    @property
    def two_stage(self) -> bool:
        """Whether the symbols are codes of a learned tokenizer rather than pixels."""
        return not self.tokenizer.of_pixels

    @property
    def image_grid(self) -> Grid:
        """The images as a grid of pixels with 256 levels."""
        height, width = self.tokenizer.image_size
        return Grid(height, width, self.tokenizer.channels, 256)

    def sample(self, n: int = 16, seed: int = 0, **options: Any) -> torch.Tensor:
        """Draw images: ``uint8 [n, height, width, channels]``. Options as in :func:`tessella.sample`."""
        drawn = list(self.batches(n, seed, **options))
        if not drawn:
            raise InputError(f"start must lie below n, {n}: there is nothing to draw")
        return torch.cat(drawn)

    def batches(
        self,
        n: int = 16,
        seed: int = 0,
        batch: int = sampling.BATCH,
        start: int = 0,
        cond: Cond = None,
        watch: Callable[[float], object] | None = None,
        **options: Any,
    ) -> Iterator[torch.Tensor]:
        """Draw images batch by batch, in the memory of one batch however many there are.

        Args:
            n, seed: image ``i`` of ``n`` has the seed ``seed + i``.
            batch: images drawn at a time.
            start: the first image to draw, to go on with a run: image ``start`` is the first that is yielded.
            cond: class or codes of each of the ``n`` images, see :data:`Cond`.
            watch: called once a row with the images drawn so far, of the batch at work the share of its symbols.
            options: ``method`` and the rule as in :func:`tessella.stream`; ``x`` and ``known`` are symbols,
                ``[n, height, width, channels]``.

        Yields:
            ``uint8 [batch, height, width, channels]``, the last one shorter where ``batch`` does not divide.

        Raises:
            InputError: at the first iteration, for an argument that does not fit.
        """
        for name, value, least in (("n", n, 1), ("batch", batch, 1), ("start", start, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                kind = "a positive integer" if least else "an integer of at least 0"
                raise InputError(f"{name} must be {kind}, got {value!r}")
        check_seed(seed, n)
        condition = self.prior.condition(cond, n) if cond is not None else None
        given = {name: options.pop(name) for name in ("x", "known") if name in options}
        sampler = sampling.Sampler(self.prior, **options)
        for first in range(start, n, batch):
            rows = range(first, min(first + batch, n))
            of_rows = None if condition is None else condition.select(torch.arange(rows.start, rows.stop))
            kept = {name: symbols[rows.start : rows.stop] for name, symbols in given.items()}
            for index, symbols in sampler.stream(len(rows), seed + first, of_rows, **kept):  # noqa: B007
                if watch is not None:
                    watch(first + len(rows) * index / self.prior.grid.symbols)
            yield self.tokenizer.decode(symbols)

    def stream(self, n: int = 16, seed: int = 0, **options: Any) -> Iterator[tuple[int, torch.Tensor]]:
        """Draw images and watch: ``(symbols in place, uint8 images)``. Options as in :func:`tessella.stream`."""
        for index, symbols in sampling.stream(self.prior, n, seed, **options):
            yield index, self.tokenizer.decode(symbols)

    def complete(self, images: Any, known: Any, seed: int = 0, **options: Any) -> torch.Tensor:
        """Keep the known part of images, draw the rest.

        In a two-stage model a code is kept when all pixels of its cell are known, and what comes back is decoded: the
        known pixels are reconstructions. As in :func:`tessella.complete`, known symbols cannot influence earlier
        ones.

        Args:
            images: ``uint8 [n, height, width, channels]``.
            known: ``bool [height, width]`` or ``[n, height, width, channels]``, of pixels.
            seed, options: as in :func:`tessella.complete`; ``watch`` as in :meth:`batches`.
        """
        symbols = self.encode(images)
        mask = torch.as_tensor(known)
        if mask.dtype != torch.bool:
            raise InputError(f"known must be boolean, got {mask.dtype}: write known.bool()")
        known = self._known_symbols(mask, len(symbols))
        return torch.cat(list(self.batches(len(symbols), seed, x=symbols, known=known, **options)))

    def encode(self, images: Any) -> torch.Tensor:
        """Images to the symbols that the prior models, checked for their size: ``int64 [n, h, w, depth]``."""
        images = check_images(images, self.tokenizer.channels)
        if tuple(images.shape[1:3]) != tuple(self.tokenizer.image_size):
            height, width = self.tokenizer.image_size
            raise InputError(f"the model takes images of {height}x{width}, got {images.shape[1]}x{images.shape[2]}")
        return self.tokenizer.encode(images)

    def log_prob(self, images: Any, cond: Cond = None) -> torch.Tensor:
        """Exact log-probability in nats of the symbols of each image: ``[n]``.

        Of a pixel model this is the probability of the image (at the model's levels); of a two-stage model that of
        its codes.
        """
        return self.prior.log_prob(self.encode(images), cond)

    def bits_per_dim(self, images: Any, cond: Cond = None) -> torch.Tensor:
        """Bits per symbol of the prior's grid: ``[n]``; see :meth:`log_prob`."""
        return -self.prior.grid.bits_per_dim(self.log_prob(images, cond))

    def to(self, device: torch.device | str) -> Generator:
        """Move both parts to a device."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    def save(self, directory: Path | str, figures: Mapping[str, Any] | None = None) -> None:
        """Save to a directory, see the module's docstring.

        Args:
            figures: measured numbers for the card, as :func:`tessella.evaluate` returns them.

        Raises:
            ArtifactError: when it cannot be written.
        """
        save_generator(self.tokenizer, self.prior, directory, figures)

    def _known_symbols(self, known: torch.Tensor, n: int) -> torch.Tensor:
        height, width = self.tokenizer.image_size
        if known.shape not in ((height, width), (n, height, width, self.tokenizer.channels)):
            raise InputError(
                f"known must have shape [{height}, {width}] or [{n}, {height}, {width}, {self.tokenizer.channels}], "
                f"got {list(known.shape)}"
            )
        grid, factor = self.prior.grid, self.tokenizer.stride
        if not self.two_stage:
            return known if known.dim() == 4 else known[:, :, None].expand(n, *grid.shape)
        whole = known.all(-1) if known.dim() == 4 else known.expand(n, height, width)
        padding = (0, grid.width * factor - width, 0, grid.height * factor - height)
        cells = F.pad(whole, padding, value=True).unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).all(4).all(2)
        return cells[..., None].expand(n, *grid.shape)


def warn_of_order(tokenizer: Tokenizer, prior: DensityModel) -> None:
    """Warn where the prior's head takes neighbouring levels to be alike, and its levels are codes, which have no order.

    The warning is a :class:`TessellaWarning` at the place that called the caller.
    """
    if prior.head.ordered and not tokenizer.of_pixels:
        warnings.warn(
            f"the prior's head {prior.head.name!r} takes neighbouring levels to be alike, and the codes of a tokenizer "
            'have no order; a prior on codes wants head="categorical" (in a recipe: model.head = "categorical")',
            TessellaWarning,
            stacklevel=3,
        )


def save_generator(
    tokenizer: Tokenizer, prior: DensityModel, directory: Path | str, figures: Mapping[str, Any] | None = None
) -> None:
    """Save the two parts of a generator; see :meth:`Generator.save`.

    Raises:
        ArtifactError: when they cannot be written.
    """
    path = files.make_directory(directory)
    if tokenizer.of_pixels:
        _save_part(prior, path, "density-model", figures)
        return
    _save_part(tokenizer, path / "tokenizer", "tokenizer", None)
    _save_part(prior, path / "prior", "prior", None)
    config = _header("generator") | {"parts": ["tokenizer", "prior"]}
    files.write_json(path / "config.json", config)
    parts = {"tokenizer": tokenizer.config(), "prior": prior.config()}
    files.write_text(path / "README.md", card("generator", parts, figures))


def save_model(
    model: DensityModel | Tokenizer, directory: Path | str, figures: Mapping[str, Any] | None = None
) -> None:
    """Save one tokenizer, or one density model without a tokenizer.

    Raises:
        ArtifactError: when it cannot be written.
    """
    kind = "tokenizer" if isinstance(model, Tokenizer) else "density-model"
    _save_part(model, files.make_directory(directory), kind, figures)


def write_card(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the card of a saved model anew, with these figures.

    Raises:
        ArtifactError: when it cannot be read or written.
    """
    config = read_config(path)
    parts = {name: read_config(path / name)["model"] for name in config.get("parts", [])}
    files.write_text(path / "README.md", card(config["kind"], parts or config["model"], figures))


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
    raise ArtifactError(f"no run directory at {run}, and " + unknown("bundled model", str(run), bundled()))


def load(run: Path | str, device: torch.device | str = "cpu") -> Generator | Tokenizer:
    """Load a run directory or a bundled model.

    Args:
        run: path of a directory, or the name of a bundled model.
        device: where to put it.

    Returns:
        A :class:`Generator` for a density model or a two-stage model, a tokenizer for a tokenizer; in eval mode.

    Raises:
        ArtifactError: when it is missing, damaged, incomplete, or of another format version.
    """
    path = locate(run)
    kind = read_config(path)["kind"]
    if kind == "prior":
        raise ArtifactError(f"{path} is one half of a two-stage model: load the directory above it")
    try:
        if kind == "generator":
            return Generator(_load_tokenizer(path / "tokenizer"), _load_prior(path / "prior")).to(device)
        model = load_model(path)
        return model.to(device) if isinstance(model, Tokenizer) else pixel_generator(model).to(device)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from error


def load_model(run: Path | str) -> DensityModel | Tokenizer:
    """Load one part: a tokenizer, or a density model without its tokenizer.

    Raises:
        ArtifactError: see :func:`load`.
    """
    path = locate(run)
    return _load_tokenizer(path) if read_config(path)["kind"] == "tokenizer" else _load_prior(path)


def pixel_generator(prior: DensityModel) -> Generator:
    """The generator of a density model on pixels: its tokenizer is the identity.

    Raises:
        ConfigError: when its grid cannot be one of pixels (more than four channels or 256 levels).
    """
    grid = prior.grid
    size = (grid.height, grid.width)
    return Generator(create_tokenizer("identity", image_size=size, channels=grid.channels, levels=grid.levels), prior)


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a saved model, its format and kind checked.

    Raises:
        ArtifactError: when it is missing, not ours, or of another version.
    """
    if not (path / "config.json").exists():
        hint = "; training has not saved a model yet" if (path / "checkpoints").exists() else ""
        raise ArtifactError(f"{path} is no saved model: it has no config.json{hint}")
    config = files.read_json(path / "config.json")
    if not isinstance(config, dict) or "format" not in config or "kind" not in config:
        raise ArtifactError(f"{path}/config.json was not written by tessella: it has no format and kind")
    if config["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {config['format']}; tessella {tessella.__version__} reads format {FORMAT}"
        )
    kinds = ("density-model", "prior", "tokenizer", "generator")
    if config["kind"] not in kinds:
        raise ArtifactError(f"{path}/config.json: " + unknown("kind", config["kind"], kinds))
    return config


def pick_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, or ``auto``, which is CUDA where there is one.

    Raises:
        ConfigError: for another name, or a device that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this machine has no CUDA device: leave --device out or give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def fingerprint(model: Generator | nn.Module) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all weights: says which model made a file."""
    parts = [model.tokenizer, model.prior] if isinstance(model, Generator) else [model]
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Put weights into a module; every name and shape must fit.

    Raises:
        ArtifactError: naming what is missing, left over, or of another shape.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    kinds = [
        f"{name} is {weights[name].dtype} instead of {own[name].dtype}"
        for name in sorted(own.keys() & weights.keys())
        if own[name].dtype != weights[name].dtype
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing tensors", missing),
            ("unknown tensors", extra),
            ("tensors of a wrong shape", shapes),
            ("tensors of a wrong type", kinds),
        )
        if names
    ]
    if problems:
        raise ArtifactError(f"{where} does not fit its configuration: {'; '.join(problems)}")
    module.load_state_dict(dict(weights))


def _header(kind: str) -> dict[str, Any]:
    return {"format": FORMAT, "kind": kind, "tessella": tessella.__version__}


def _save_part(module: DensityModel | Tokenizer, path: Path, kind: str, figures: Mapping[str, Any] | None) -> None:
    config = module.config() if isinstance(module, DensityModel) else {"name": module.name} | module.config()
    files.write_tensors(path / "model.safetensors", module.state_dict())
    files.write_json(path / "config.json", _header(kind) | {"model": config})
    files.write_text(path / "README.md", card(kind, config, figures))


def _load_prior(path: Path) -> DensityModel:
    config = read_config(path)
    if config["kind"] not in ("density-model", "prior"):
        raise ArtifactError(f"{path} is a {config['kind']}, not a density model")
    return _load_part(path, config, from_config)


def _load_tokenizer(path: Path) -> Tokenizer:
    config = read_config(path)
    if config["kind"] != "tokenizer":
        raise ArtifactError(f"{path} is a {config['kind']}, not a tokenizer")
    return _load_part(path, config, lambda values: create_tokenizer(**values))


def _load_part(path: Path, config: Mapping[str, Any], build: Any) -> Any:
    try:
        module = build(config["model"])
    except (KeyError, TypeError, TessellaError) as error:
        raise ArtifactError(f"{path}/config.json does not describe a model this version knows: {error}") from error
    load_weights(module, files.read_tensors(path / "model.safetensors"), str(path))
    return module.eval()
