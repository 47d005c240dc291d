"""Recipes: what to train, on what, for how long.

They are frozen dataclasses with strict keys, importable without torch. A recipe is a TOML file, or
the name of one that ships with the package. It has the tables ``[data]``, ``[train]`` and one of
``[model]`` (a density model; with a ``tokenizer`` run a prior on its codes), ``[tokenizer]`` (with
``[adversarial]`` for a VQGAN) and ``[vae]``; ``[expected]`` has its measured learning curve::

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
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from tessella import files, names
from tessella.config.adversarial_config import AdversarialConfig as AdversarialConfig
from tessella.config.expected import ExpectedConfig as ExpectedConfig
from tessella.config.expected import check_curve as check_curve
from tessella.config.values import plain_value
from tessella.errors import ArtifactError, ConfigError, unknown

LARGEST_BATCH = 1 << 20
"""Most images of an optimizer step."""

RECIPE_BYTES = 1 << 20
"""Largest recipe that is read."""

C = TypeVar("C")


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
    stream: bool = False
    """Decode images each time they are needed, instead of once into a file: for sets that are too
    large for that (``shards:`` and ``hf:``)."""
    columns: str = ""
    """``IMAGE`` or ``IMAGE,LABEL``: the columns of a table (``hf:``); empty finds them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", str(self.size))  # 64 is a size as well as "64"
        self.check()

    def check(self) -> None:
        """Raise :class:`ConfigError` for a value that no source can honour."""
        if not isinstance(self.source, str):
            raise ConfigError(
                f"data.source must be text such as 'digits' or 'folder:photos', got {self.source!r}"
            )
        # Configurations are made in Python too, where nothing has looked at the types.
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
        if self.stream and self.binarize:
            raise ConfigError(
                "data.binarize does not go with data.stream=true: it is drawn for all images at"
                " once; leave out one of the two"
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
    """A registered density model."""
    head: str = "categorical"
    """A registered head."""
    conditional: bool = False
    """Condition on the labels of the data."""
    seed: int = 0
    """Seed of the initial weights."""
    finer: Mapping[str, object] = field(default_factory=dict)
    """Of a prior on several grids: the sizes (and ``name``) that differ for the grids after the
    first."""
    sizes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer: a registered name and the sizes that its class takes."""

    name: str = "vqvae"
    """A registered tokenizer."""
    seed: int = 0
    """Seed of the initial weights."""
    sizes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class VAEConfig:
    """A variational autoencoder: the sizes that its class takes."""

    seed: int = 0
    """Seed of the initial weights."""
    sizes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The run ends at the first of the limits given; at least one is needed."""

    steps: int = 0
    """Optimizer steps; 0 means no such limit."""
    epochs: float = 0.0
    """Passes over the training split; 0 means no such limit."""
    minutes: float = 0.0
    """Wall-clock minutes for everything once PyTorch is loaded: reading the data, training,
    validation and saving; 0 means no such limit."""
    batch: int = 64
    """Images of one optimizer step, over all devices; 0 takes as many as fit into memory."""
    accumulate: int = 1
    """Split each batch into so many passes, to save memory. The codebook of a VQ-VAE takes a step
    each pass."""
    checkpointing: bool = False
    """Keep only what enters each part of a density model for the gradient and compute the rest
    again: less memory, more time."""
    compile: bool = False
    """Compile the network with torch.compile, which needs a C++ compiler: the first steps take a
    minute or two longer, the others less time."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` moves the hidden matrices of a density model or a tokenizer by orthogonalized
    momentum, and AdamW the rest; ``adamw`` moves everything. Muon wants a large ``learning_rate``,
    of 0.005 to 0.01."""
    learning_rate: float = 2e-3
    """Peak of the schedule: linear warm-up, then half a cosine to a hundredth."""
    warmup: int = 50
    """Steps of warm-up; fewer where that would be more than a twentieth of the run."""
    weight_decay: float = 0.01
    """Share by which a step shrinks matrices, times the rate; vectors are left alone."""
    l2: float = 0.0
    """Half the sum of squares of the matrices' elements, times this, joins the loss: a penalty in
    the loss's own unit (bits/dim of a density model), where ``weight_decay`` shrinks all weights
    alike, however little the loss has to say of them."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decays of AdamW's averages of the gradient and of its square."""
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
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What to do at a step whose gradient is not finite: end the run with the state before it,
    leave the step out, or go back to the weights of the newest checkpoint; then the run goes on
    with the images that follow."""
    nonfinite_in_a_row: int = 5
    """Steps in a row that may be left out, or go back; one more ends the run."""
    nonfinite_in_all: int = 100
    """The same, over the whole run."""
    seed: int = 0
    """Seed of data order, augmentation and dropout. That of the initial weights stands in the table
    of the network, such as ``model.seed``."""
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    devices: int = 1
    """Devices (processes) to use."""
    sharding: Literal["none", "full"] = "none"
    """``full`` divides weights, gradients and the optimizer's averages among the devices; with
    ``none`` each has all of them."""
    precision: str = "auto"
    """``32``, ``bf16``, or ``auto``: bf16 on a GPU that has it, 32 elsewhere."""
    threads: int = 0
    """CPU threads; 0 keeps torch's choice."""
    workers: int = 0
    """Threads that read the images of the next steps ahead, for images that are decoded each time
    (``data.stream``) or lie on a slow disk; changes speed only."""
    board: Literal["auto", "none", "tensorboard", "wandb"] = "auto"
    """Who shows the run while it trains: ``tensorboard`` and ``wandb`` (Weights & Biases) get the
    figures of the log, and pictures with each best model; ``auto`` gives TensorBoard the figures
    where it is installed."""

    def __post_init__(self) -> None:
        # Every number has a least value in common; what else holds of a few follows below.
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            _check_train_number(name, value)
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"train.optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"train.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.board not in BOARDS:
            raise ConfigError(f"train.board must be one of {', '.join(BOARDS)}, got {self.board!r}")
        # A decay of 1 would keep the first value for ever.
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise ConfigError(f"train.betas must lie in [0, 1), got {list(self.betas)}")
        if not 0 <= self.average < 1:
            raise ConfigError(f"train.average must lie in [0, 1), got {self.average}")
        if not 0 <= self.condition_dropout <= 1:
            raise ConfigError(
                f"train.condition_dropout must lie in [0, 1], got {self.condition_dropout}"
            )


BOARDS = ("auto", "none", "tensorboard", "wandb")
CHOICES = {"sharding": ("none", "full"), "on_nonfinite": ("stop", "skip", "rollback")}
AT_LEAST_ONE = ("accumulate", "devices")
MOST_STEPS = 10**12
"""Most steps of a run: at a thousand a second it would take thirty years."""
MOST = {
    "steps": MOST_STEPS,
    "warmup": MOST_STEPS,
    "validate_every": MOST_STEPS,
    "checkpoint_every": MOST_STEPS,
    "nonfinite_in_a_row": MOST_STEPS,
    "nonfinite_in_all": MOST_STEPS,
    "batch": LARGEST_BATCH,
    "accumulate": LARGEST_BATCH,
    "devices": 1024,
    "threads": 4096,
    "workers": 1024,
    "seed": names.LARGEST_SEED,
}
"""Largest values of numbers of :class:`TrainConfig`."""


def _check_train_number(name: str, value: float) -> None:
    # 0 switches a thing off, or leaves the choice to tessella, where that has a meaning.
    least = 1 if name in AT_LEAST_ONE else 0
    wanted = f"at least {least}"
    good = value >= least
    if name == "learning_rate":
        wanted = "above 0"
        good = value > 0
    # Before anything makes a float of it, which overflows for an integer of 400 digits.
    if name in MOST and value > MOST[name]:
        raise ConfigError(f"train.{name} must be at most {MOST[name]}, got {value}")
    if not good or not math.isfinite(value):
        raise ConfigError(f"train.{name} must be finite and {wanted}, got {value}")


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
    expected: ExpectedConfig | None = None
    prior_of: str = ""
    """Run directory of the tokenizer whose codes ``model`` is a prior for; a recipe that ships says
    ``TOKENIZER``."""
    about: str = ""
    """What the recipe is and what it was measured to reach."""

    def __post_init__(self) -> None:
        # One run trains one network: the table that is there says which.
        tables = [self.model, self.tokenizer, self.vae]
        if tables.count(None) != len(tables) - 1:
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
        if self.expected:
            check_curve(self.expected.curve)
        # Sizes are bounded here, before anything of them is built.
        if self.model:
            names.check_sizes("model", {"seed": self.model.seed, **self.model.sizes})
            names.check_sizes("model.finer", self.model.finer)
        if self.tokenizer:
            names.check_sizes("tokenizer", {"seed": self.tokenizer.seed, **self.tokenizer.sizes})
        if self.vae:
            names.check_sizes("vae", {"seed": self.vae.seed, **self.vae.sizes})


def to_dict(config: object) -> dict[str, object]:
    """A configuration dataclass as plain JSON-able values."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    return dataclasses.asdict(config)


def from_dict(cls: type[C], values: object, where: str = "") -> C:
    """Build a configuration dataclass from plain values, refusing unknown keys and wrong types.

    Args:
        cls: a dataclass of this module.
        values: a table, as TOML or JSON gives it.
        where: name of the table, for messages.

    Raises:
        ConfigError: naming the key, its place, what is allowed there and the nearest match.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the recipe'} must be a table, got {values!r}")
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    # The tables of models and tokenizers take the sizes of the class they name, which stand beside
    # the other keys and are gathered in the field ``sizes``.
    open_ended = "sizes" in known
    built: dict[str, object] = {}
    sizes: dict[str, object] = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else str(key)
        if key == "sizes" and open_ended:
            # Saved records hold the sizes gathered, recipes beside the other keys.
            if not isinstance(value, Mapping):
                raise ConfigError(f"{place} must be a table, got {value!r}")
            sizes |= value
        elif key in known:
            built[key] = _convert(hints[key], value, place)
        elif open_ended:
            sizes[key] = value
        else:
            raise ConfigError(unknown(f"key in {where or 'the recipe'}:", key, known))
    if open_ended:
        built["sizes"] = sizes
    return cls(**built)


NAMES = ("model.name", "tokenizer.name")
"""Keys that choose a class, and with it which sizes there are."""


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply ``table.key=value`` overrides.

    Names of models, heads and tokenizers, and the sizes they take, are checked against the source
    of the package, so that a misspelling is found before torch is imported.

    Args:
        name: path of a TOML file, or the name of a recipe that ships with the package (see
            :func:`recipe_names`).
        overrides: for example ``["train.minutes=5", "model.layers=8"]``; values are read as TOML.
            Another ``model.name`` than the recipe's takes the default sizes of that model.

    Raises:
        ConfigError: for an unknown name or key, a file that is not TOML, or a value of the wrong
            type.
    """
    values = _read(name)
    overrides = list(overrides)
    # Another class than the recipe's is looked for first: it decides which sizes are meant.
    chosen: list[str] = []
    for override in overrides:
        if override.partition("=")[0].strip() in NAMES:
            chosen.append(override)
    named = apply_overrides({}, chosen)
    for table, config in (("model", ModelConfig), ("tokenizer", TokenizerConfig)):
        given = named.get(table)
        read = values.get(table, {})
        if not isinstance(given, Mapping) or not isinstance(read, Mapping):
            continue
        if given["name"] != read.get("name"):
            # The sizes in the file are those of another class.
            known = {f.name for f in dataclasses.fields(config)} - {"sizes"}
            values[table] = {key: value for key, value in read.items() if key in known}
    recipe = from_dict(Recipe, apply_overrides(values, overrides))
    check_names(recipe)
    return recipe


def check_names(recipe: Recipe) -> None:
    """Check the names of models, heads and tokenizers, and their sizes, without importing torch.

    Raises:
        ConfigError: with the nearest match.
    """
    if recipe.model:
        names.check("model", recipe.model.name, recipe.model.sizes, recipe.model.head)
        # The models of finer grids may be of another family.
        finer = dict(recipe.model.finer)
        finer_name = str(finer.pop("name", recipe.model.name))
        names.check("model", finer_name, finer, recipe.model.head)
    if recipe.tokenizer:
        sizes = recipe.tokenizer.sizes
        names.check("tokenizer", recipe.tokenizer.name, sizes)
        # The options go to the constructor of the quantizer, whose name has a default.
        options = sizes.get("options", {})
        quantizer = sizes.get("quantizer")
        if quantizer is None:
            quantizer = names.default("tokenizer", recipe.tokenizer.name, "quantizer")
        if isinstance(quantizer, str) and isinstance(options, Mapping):
            names.check("quantizer", quantizer, options)
    if recipe.vae:
        names.check("vae", "vae", recipe.vae.sizes)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    found: list[str] = []
    for file in (resources.files("tessella") / "recipes").iterdir():
        if file.name.endswith(".toml"):
            found.append(file.name.removesuffix(".toml"))
    return sorted(found)


def apply_overrides(values: Mapping[str, object], overrides: Iterable[str]) -> dict[str, object]:
    """Nested plain values with ``table.key=value`` overrides applied."""
    # Tables are copied, so that what was given stays as it is.
    result: dict[str, object] = {}
    for key, value in values.items():
        result[key] = dict(value) if isinstance(value, Mapping) else value
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"an override has the form table.key=value, got {override!r}")
        *tables, key = path.strip().split(".")
        # Walk down to the table that holds the key, creating it where it is missing.
        place = result
        for table in tables:
            inner = place.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{override!r}: {table!r} is a value, not a table")
            place = inner
        place[key] = _value(text.strip())
    return result


def _read(name: str) -> dict[str, object]:
    """The tables of a recipe file, or of a recipe that ships."""
    path = Path(name)
    # A file of the name of a recipe that ships is the one that is meant.
    if path.suffix == ".toml" or path.is_file():
        text = _read_file(path)
    elif name in recipe_names():
        recipe = resources.files("tessella") / "recipes" / f"{name}.toml"
        text = recipe.read_text(encoding="utf-8")
    else:
        raise ConfigError(
            unknown("recipe", name, recipe_names()) + "; or give the path of a .toml file"
        )
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error


def _read_file(path: Path) -> str:
    try:
        return files.read_bytes(path, RECIPE_BYTES).decode()
    except (ArtifactError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error


def _value(text: str) -> object:
    """Read an override's value as TOML; bare words are strings."""
    # On a command line nobody wants to quote the quotes of a string.
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _convert(hint: object, value: object, place: str) -> object:
    """Check one value against its annotation."""
    if type(None) in get_args(hint):
        # TABLE | None
        inner = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _convert(inner[0], value, place)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, place)
    origin = get_origin(hint)
    if origin is Literal:
        allowed = get_args(hint)
        if value not in allowed:
            raise ConfigError(
                f"{place} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
            )
        return value
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{place} must be a table, got {value!r}")
        return dict(value)
    if origin is tuple:
        return _convert_list(get_args(hint), value, place)
    assert isinstance(hint, type)
    return plain_value(hint, value, place)


def _convert_list(kinds: tuple[object, ...], value: object, place: str) -> tuple[object, ...]:
    """Check a list against the annotation of a tuple."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{place} must be a list, got {value!r}")
    # tuple[int, ...]: as many as there are.
    if kinds[-1] is Ellipsis:
        return tuple(_convert(kinds[0], item, place) for item in value)
    if len(value) != len(kinds):
        raise ConfigError(f"{place} must be a list of {len(kinds)} values, got {value!r}")
    converted: list[object] = []
    for kind, item in zip(kinds, value, strict=True):
        converted.append(_convert(kind, item, place))
    return tuple(converted)
