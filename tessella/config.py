"""Recipes: what to train, on what, for how long. Frozen dataclasses with strict keys, importable
without torch.

A recipe is a TOML file, or the name of one that ships with the package. It has the tables
``[data]``, ``[train]`` and one of ``[model]`` (a density model; with a ``tokenizer`` run a prior on
its codes), ``[tokenizer]`` (with ``[adversarial]`` for a VQGAN) and ``[vae]``::

    [data]
    source = "digits"
    levels = 17

    [model]
    name = "gated-pixelcnn"
    layers = 4

    [train]
    minutes = 1

Any value can be overridden from the command line as ``table.key=value``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tessella.errors import ConfigError, unknown


@dataclass(frozen=True)
class DataConfig:
    """The source of the images, and what is done to them before they are symbols.

    Raises:
        ConfigError: for a value that no source can honour.
    """

    source: str = "digits"
    """A registered data source, ``NAME`` or ``NAME:PATH``, such as ``digits`` or ``folder:photos``
    (:data:`tessella.data.SOURCES` lists them)."""
    size: str = ""
    """Output size ``64`` or ``HEIGHTxWIDTH``; empty keeps the size of the source (folders need
    one)."""
    crop: Literal["center", "squash", "tiles"] = "center"
    """How images meet ``size``: scale and cut the centre, scale both sides freely, or cut tiles
    without scaling."""
    channels: int = 0
    """1 (grey), 3 (RGB) or 4 (RGBA); 0 keeps what the source has (RGB for folders)."""
    levels: int = 0
    """Values a pixel can take in the model; 0 means the source's own (17 for digits, 2 when
    binarized, else 256). 256 also says that small values in an array are meant as they are."""
    binarize: Literal["", "fixed", "dynamic"] = ""
    """One Bernoulli(v/255) draw for good, or a new draw each epoch (training split only)."""
    binarize_seed: int = 0
    """Seed of the fixed draw."""
    bits: str = ""
    """``HEIGHTxWIDTH`` of images packed eight pixels to a byte, row by row (npz with
    two-dimensional uint8)."""
    flip: bool = False
    """Mirror half of the training images, drawn anew each epoch."""
    limit: int = 0
    """Use only the first so many images of a split; 0 means all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", str(self.size))  # 64 is a size as well as "64"
        self.check()

    def check(self) -> None:
        """Raise :class:`ConfigError` for a value that no source can honour."""
        if not isinstance(self.source, str):
            raise ConfigError(
                f"data.source must be text such as 'digits' or 'folder:photos', got {self.source!r}"
            )
        for key in ("channels", "levels", "binarize_seed", "limit"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"data.{key} must be a whole number, got {value!r}")
        self._check_choice("crop", ("center", "squash", "tiles"))
        self._check_choice("binarize", ("", "fixed", "dynamic"))
        self._check_choice("channels", (0, 1, 3, 4))
        if self.levels != 0 and not 2 <= self.levels <= 256:
            raise ConfigError(
                f"data.levels must be 0 (the source's own) or a number of 2..256, got {self.levels}"
            )
        if self.limit < 0 or self.binarize_seed < 0:
            raise ConfigError("data.limit and data.binarize_seed must not be negative")
        for key in ("size", "bits"):
            # The same form is read in tessella.data, which comes after this in a run.
            text = getattr(self, key)
            if not isinstance(text, str) or not _SIZE.fullmatch(text.strip()):
                raise ConfigError(
                    f"data.{key} must be a number of pixels like 64, or HEIGHTxWIDTH like 48x64, "
                    f"got {text!r}"
                )
        if not self.size and self.crop == "tiles":
            raise ConfigError(
                "data.crop=tiles needs data.size, the size of a tile, for example data.size=64"
            )

    def _check_choice(self, key: str, allowed: tuple[object, ...]) -> None:
        value = getattr(self, key)
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed)
            raise ConfigError(f"data.{key} must be one of {choices}, got {value!r}")


_SIZE = re.compile(r"([1-9]\d{0,9}(x[1-9]\d{0,9})?)?")
"""A number of pixels, HEIGHTxWIDTH, or nothing; ten digits are more than any image has."""


@dataclass(frozen=True)
class ModelConfig:
    """A density model: a registered name, a head, and the sizes that the model's class takes."""

    name: str = "gated-pixelcnn"
    head: str = "categorical"
    conditional: bool = False
    """Condition on the labels of the data."""
    seed: int = 0
    finer: Mapping[str, Any] = field(default_factory=dict)
    """Of a prior on several grids: the sizes (and ``name``) that differ for the grids after the
    first."""
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer: a registered name and the sizes that its class takes."""

    name: str = "vqvae"
    seed: int = 0
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder: the sizes that its class takes."""

    seed: int = 0
    sizes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AdversarialConfig:
    """What makes a VQGAN of a tokenizer's training: a perceptual and an adversarial term (Esser et
    al. 2021)."""

    perceptual: str = ""
    """File of weights of the perceptual distance (see :mod:`tessella.training.perceptual`); empty
    leaves it out."""
    perceptual_weight: float = 1.0
    weight: float = 0.8
    """Of the adversarial term, times the adaptive weight of equation 7."""
    start: float = 0.5
    """When discriminator and adversarial term begin: a share of the run below 1, else a number of
    steps."""
    layers: int = 3
    """Convolutions of the discriminator that halve sides: 1 judges patches of 16x16 pixels, 2 of
    34x34, 3 of 70x70."""
    hidden: int = 64
    """Channels of its first convolution."""
    tolerance: float = 0.5
    """Rise of the validation's mean squared error over the least before, as a share of it, that is
    put up with; a larger one is a takeover by the discriminator, and is taken back."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "weight", "start", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"adversarial.{name} must be at least 0, got {getattr(self, name)}"
                )
        if self.layers < 1 or self.hidden < 1:
            raise ConfigError(
                f"adversarial.layers and adversarial.hidden must be at least 1, got {self.layers} and {self.hidden}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The run ends at the first of the limits given; at least one is needed."""

    steps: int = 0
    """Optimizer steps; 0 means no such limit."""
    epochs: float = 0.0
    """Passes over the training split; 0 means no such limit."""
    minutes: float = 0.0
    """Wall-clock minutes of training; 0 means no such limit."""
    batch: int = 64
    """Images of one optimizer step, over all devices."""
    accumulate: int = 1
    """Split each batch into so many passes, to save memory. The codebook of a VQ-VAE takes a step
    each pass."""
    checkpointing: bool = False
    """Keep only what enters each part of a density model for the gradient and compute the rest
    again: less memory, more time."""
    compile: bool = False
    """Compile the network with torch.compile, which needs a C++ compiler: the first steps take a
    minute or two longer, the others less time."""
    learning_rate: float = 2e-3
    """Peak of the schedule: linear warm-up, then half a cosine to a hundredth."""
    warmup: int = 50
    """Steps of warm-up."""
    weight_decay: float = 0.01
    """AdamW's decay, on matrices only."""
    l2: float = 0.0
    """Half the sum of squares of the matrices' elements, times this, joins the loss: a penalty in
    the loss's own unit (bits/dim of a density model), where ``weight_decay`` shrinks all weights
    alike, however little the loss has to say of them."""
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    average: float = 0.998
    """Decay of the averaged weights, which are the ones validated and saved; 0 switches averaging
    off."""
    condition_dropout: float = 0.1
    """Share of training images whose class is replaced by the null class."""
    validate_every: int = 0
    """Steps between validations; 0 picks about twenty in the run, fewer where they would take over
    a tenth of its minutes."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one at every validation."""
    seed: int = 0
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    devices: int = 1
    """Devices (processes) to use."""
    precision: str = "auto"
    """``32``, ``bf16``, or ``auto``: bf16 on a GPU that has it, 32 elsewhere."""
    threads: int = 0
    """CPU threads; 0 keeps torch's choice."""

    def __post_init__(self) -> None:
        at_least_one = ("batch", "accumulate", "devices")
        above_zero = ("learning_rate",)
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            least = 1 if name in at_least_one else 0
            if not (value > 0 if name in above_zero else value >= least) or not math.isfinite(
                value
            ):
                wanted = "above 0" if name in above_zero else f"at least {least}"
                raise ConfigError(f"train.{name} must be {wanted}, got {value}")
        if not 0 <= self.average < 1 or not 0 <= self.condition_dropout <= 1:
            raise ConfigError(
                "train.average must lie in [0, 1) and train.condition_dropout in [0, 1]"
            )


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    model: ModelConfig | None = None
    tokenizer: TokenizerConfig | None = None
    vae: VAEConfig | None = None
    adversarial: AdversarialConfig | None = None
    """Further terms of the loss of a ``vqgan``."""
    prior_of: str = ""
    """Run directory of the tokenizer whose codes ``model`` is a prior for; a recipe that ships says
    ``TOKENIZER``."""
    about: str = ""
    """What the recipe is and what it was measured to reach."""

    def __post_init__(self) -> None:
        if sum(table is not None for table in (self.model, self.tokenizer, self.vae)) != 1:
            raise ConfigError(
                "a recipe needs exactly one of the tables [model], [tokenizer] and [vae]"
            )
        if self.adversarial and self.tokenizer is None:
            raise ConfigError(
                "the table [adversarial] is for training a tokenizer: it needs a [tokenizer] table"
            )
        if self.prior_of and self.model is None:
            raise ConfigError("prior_of names the tokenizer of a prior: it needs a [model] table")
        if not (self.train.steps or self.train.epochs or self.train.minutes):
            raise ConfigError(
                "training needs a limit: set train.steps, train.epochs or train.minutes"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON-able values."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Build a configuration dataclass from plain values, refusing unknown keys and wrong types.

    Raises:
        ConfigError: naming the key, its place, what is allowed there and the nearest match.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the recipe'} must be a table, got {values!r}")
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    # The tables of models and tokenizers take the sizes of the class they name, which only that
    # class can check.
    free = "sizes" in known
    built: dict[str, Any] = {}
    given = values.get("sizes", {}) if free else {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}.sizes must be a table, got {given!r}")
    sizes: dict[str, Any] = dict(given)
    for key, value in values.items():
        place = f"{where}.{key}" if where else key
        if key == "sizes" and free:
            continue
        if key in known:
            built[key] = _convert(hints[key], value, place)
        elif free:
            sizes[key] = value
        else:
            raise ConfigError(unknown(f"key in {where or 'the recipe'}:", key, known))
    if free:
        built["sizes"] = sizes
    return cls(**built)


NAMES = ("model.name", "tokenizer.name")


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``table.key=value`` overrides.

    Args:
        name: path of a TOML file, or the name of a recipe that ships with the package (see
            :func:`recipe_names`).
        overrides: for example ``["train.minutes=5", "model.layers=8"]``; values are read as TOML.
            Another ``model.name`` than the recipe's takes the default sizes of that model.

    Raises:
        ConfigError: for an unknown name or key, a file that is not TOML, or a value of the wrong
            type.
    """
    values, overrides = _read(name), list(overrides)
    named = apply_overrides({}, [o for o in overrides if o.partition("=")[0].strip() in NAMES])
    for table, own in (("model", ModelConfig), ("tokenizer", TokenizerConfig)):
        given, read = named.get(table, {}), values.get(table, {})
        if isinstance(read, Mapping) and given and given["name"] != read.get("name"):
            known = {f.name for f in dataclasses.fields(own)} - {"sizes"}
            values[table] = {key: value for key, value in read.items() if key in known}
    return from_dict(Recipe, apply_overrides(values, overrides))


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("tessella") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Nested plain values with ``table.key=value`` overrides applied."""
    result = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override has the form table.key=value, got {override!r}")
        *tables, key = path.strip().split(".")
        place = result
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{override!r}: {table!r} is a value, not a table")
        place[key] = _value(text.strip())
    return result


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {name}: {error}") from error
    elif name in recipe_names():
        text = (resources.files("tessella") / "recipes" / f"{name}.toml").read_text(
            encoding="utf-8"
        )
    else:
        raise ConfigError(
            unknown("recipe", name, recipe_names()) + "; or give the path of a .toml file"
        )
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error


def _value(text: str) -> Any:
    """Read an override's value as TOML; bare words are strings."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(hint: Any, value: Any, place: str) -> Any:
    """Check one value against its annotation."""
    options = (
        [option for option in get_args(hint) if option is not type(None)]
        if type(None) in get_args(hint)
        else None
    )
    if options:
        return None if value is None else _convert(options[0], value, place)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, place)  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(
                f"{place} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}"
            )
        return value
    if get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} must be a table, got {value!r}")
        return dict(value)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis and isinstance(value, (list, tuple)):
            return tuple(_convert(kinds[0], item, place) for item in value)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise ConfigError(f"{place} must be a list of {len(kinds)} values, got {value!r}")
        return tuple(_convert(kind, item, place) for kind, item in zip(kinds, value, strict=True))
    return _plain(hint, value, place)


def _plain(hint: type, value: Any, place: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # size = 64
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        raise ConfigError(f"{place} must be of type {hint.__name__}, got {value!r}")
    return value
