"""The options of every verb, read by tyro: the field is the flag, its docstring the help."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from tessella.errors import InputError

RunName = Annotated[str, arg(metavar="RUN")]
Overrides = Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Demo:
    """The whole chain on bundled real images: density model, VQ-VAE, prior, samples of both.
    Minutes on a CPU.

    $ tessella demo
    $ tessella demo --out runs/demo --minutes 0.5
    """

    out: str = "runs/demo"
    """Directory for the three runs, the pictures and the table; it is replaced."""
    minutes: float = 1.2
    """Training minutes of the density model; VQ-VAE and prior take 0.7 and 0.5 of that."""
    threads: int = 0
    """CPU threads; 0 keeps torch's choice."""


@dataclass(frozen=True)
class Train:
    """Train a density model or a tokenizer, or a prior on a trained tokenizer.

    $ tessella train digits
    $ tessella train digits --model transformer model.layers=6
    $ tessella train digits-vqvae --minutes 2
    $ tessella train digits-prior --tokenizer runs/digits-vqvae
    $ tessella train folder-vqvae --data folder:photos data.size=64
    $ tessella train my.toml model.layers=8 train.learning_rate=1e-3
    $ tessella train --resume runs/digits
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]] = ""
    """A TOML file, or the name of a recipe that ships (tessella info lists them)."""
    overrides: Positional[Overrides] = ()
    """Values of the recipe to change, as table.key=value."""
    data: str = ""
    """Data source: digits, mnist:PATH, cifar10:PATH, npz:PATH or folder:PATH; of a prior also
    codes:PATH."""
    tokenizer: str = ""
    """Run directory of the tokenizer whose codes a prior is trained on."""
    model: str = ""
    """Another density model than the recipe's (tessella info --models); it takes its own default
    sizes then."""
    out: str = ""
    """Run directory to create; runs/RECIPE, or runs/RECIPE-MODEL, unless given."""
    resume: str = ""
    """Run directory to go on with, from its newest checkpoint."""
    minutes: float | None = None
    """Stop after so many minutes of training."""
    steps: int | None = None
    """Stop after so many optimizer steps."""
    epochs: float | None = None
    """Stop after so many passes over the training images."""
    seed: int | None = None
    """Seed of weights, data order, augmentation and dropout."""
    device: Device | None = None
    """Where to train."""
    devices: int | None = None
    """Devices (processes) to use."""
    precision: Literal["auto", "32", "bf16"] | None = None
    """Arithmetic; auto is bf16 on a GPU that has it and 32 elsewhere."""
    threads: int | None = None
    """CPU threads."""
    accumulate: int | None = None
    """Split each batch into so many passes, to save memory."""
    checkpointing: tyro.conf.UseCounterAction[int] = 0
    """Keep less of a density model for the gradient and compute it again: less memory, more
    time."""
    compile: tyro.conf.UseCounterAction[int] = 0
    """Compile the network: the first steps take a minute or two longer, the others less time."""


@dataclass(frozen=True)
class Drawing:
    """How symbols are drawn."""

    seed: int = 0
    """Image i has this seed plus i."""
    method: Literal["auto", "cached", "parallel", "naive"] = "auto"
    """Cached steps; passes over the whole grid until nothing changes; a pass for every symbol, the
    oracle. All draw the same images; auto takes the fastest."""
    temperature: float = 1.0
    """Divides the log-probabilities."""
    top_k: int = 0
    """Keep the so many likeliest levels of each symbol; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of levels whose probability reaches this."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; needs --class-label."""
    class_label: int | None = None
    """Class to draw, for a model with classes."""
    batch: int = 64
    """Images at a time; changes memory and speed only."""


@dataclass(frozen=True)
class Sample:
    """Draw images from a model.

    A .npz or a directory is written as it is drawn: the same command goes on with a run that was
    stopped, and with a larger --n it adds to one.

    $ tessella sample digits
    $ tessella sample runs/x --n 64 --seed 7 --out samples.png
    $ tessella sample runs/x --n 50000 --out samples.npz
    $ tessella sample runs/x --n 16 --out pictures/
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    n: int = 16
    """Images to draw."""
    out: str = "samples.png"
    """A .png sheet, a .npz (uint8 [n, h, w, c] under arr_0), or a directory for single PNGs (name
    ending in /)."""
    drawing: Drawing = field(default_factory=Drawing)
    device: Device = "auto"
    """Where to draw."""


@dataclass(frozen=True)
class Complete:
    """Keep part of each image, draw the rest in raster order. What is kept lower cannot influence
    what is drawn above it.

    $ tessella complete digits --keep 0.5
    $ tessella complete runs/x --data folder:photos --n 4 --variants 6 --out completed.png
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    keep: float = 0.5
    """Share of the rows kept, from the top."""
    n: int = 8
    """Images to complete, from the start of the split."""
    variants: int = 4
    """Completions of each."""
    data: str = ""
    """Data source; the run's own unless given."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """Which images; all is every image of a folder."""
    out: str = "completed.png"
    """PNG sheet: the image, what was kept, the completions."""
    drawing: Drawing = field(default_factory=Drawing)
    device: Device = "auto"
    """Where to draw."""


@dataclass(frozen=True)
class Eval:
    """Exact bits/dim with its standard error; of a tokenizer reconstruction and codebook use; of a
    two-stage model both. Says how many of the images the run was trained on.

    $ tessella eval runs/x
    $ tessella eval runs/x --data npz:other.npz --split test --json figures.json
    $ tessella eval runs/x --data folder:others --split all
    $ tessella eval runs/x --against runs/y
    $ tessella eval runs/x --per-image images.csv
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    data: str = ""
    """Data source; the run's own unless given."""
    split: Literal["train", "valid", "test", "all"] = "test"
    """Which images; all is every image of a folder, for folders that were not trained on."""
    against: str = ""
    """Another run, measured on the same images: the mean difference and its standard error, image
    by image."""
    json: str = ""
    """File for the figures as JSON."""
    per_image: str = ""
    """File for the values of every image, as .csv: nats, bits, bits/dim, mse, PSNR in dB, SSIM."""
    batch: int = 64
    """Images at a time."""
    device: Device = "auto"
    """Where to compute."""
    devices: int = 1
    """Devices (processes) that share the images; each image is measured once."""
    threads: int = 0
    """CPU threads; 0 keeps torch's choice."""


@dataclass(frozen=True)
class Tokenize:
    """Encode images to codes on disk, for priors to train from; a run that was killed goes on.

    $ tessella tokenize runs/photos-vqvae --out codes
    $ tessella tokenize runs/photos-vqvae --data folder:others --split all --out codes/others
    $ tessella train folder-prior --data codes:codes --tokenizer runs/photos-vqvae data.flip=false
    """

    run: Positional[RunName]
    """Run directory of a tokenizer, or of a two-stage model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    data: str = ""
    """Data source; the run's own unless given."""
    split: Literal["each", "train", "valid", "test", "all"] = "each"
    """Which images; each writes train, valid and test, to directories of these names."""
    out: str = "codes"
    """Directory of the codes."""
    mirrored: tyro.conf.UseCounterAction[int] = 0
    """Encode the mirror images as well, for training with data.flip=true."""
    workers: int = 0
    """Threads (on GPUs: one for each) that encode; 0 for as many as there are processors. Changes
    speed only."""
    device: Device = "auto"
    """Where to encode."""


@dataclass(frozen=True)
class Detokenize:
    """Decode codes on disk to images.

    $ tessella detokenize runs/photos-vqvae codes/valid --out decoded.npz
    $ tessella detokenize runs/photos-vqvae codes/valid --n 16 --out decoded.png
    """

    run: Positional[RunName]
    """Run directory of the tokenizer that made the codes, or of a two-stage model with it."""
    codes: Positional[Annotated[str, arg(metavar="CODES")]]
    """Directory of the codes."""
    n: int = 0
    """Images to decode, from the first one on; 0 for all."""
    out: str = "decoded.npz"
    """A .png sheet, a .npz (uint8 [n, h, w, c] under arr_0), or a directory for single PNGs (name
    ending in /)."""
    batch: int = 64
    """Images at a time."""
    device: Device = "auto"
    """Where to decode."""


@dataclass(frozen=True)
class Info:
    """Versions, devices, what is there; with RUN, what that run is: text, curves, or a page with
    pictures.

    $ tessella info
    $ tessella info --models
    $ tessella info runs/x
    $ tessella info runs/x --report
    $ tessella info digits --report digits.html
    $ tessella info runs/x --json
    """

    run: Positional[RunName] = ""
    """Run directory, or the name of a bundled model."""
    report: Annotated[tuple[str, ...] | None, arg(metavar="[FILE.html]")] = None
    """Write one HTML file with figures, curves, samples, reconstructions and codebook;
    RUN/report.html unless named."""
    samples: int = 16
    """Images to draw for the report (fewer where that would take long); 0 for none."""
    models: tyro.conf.UseCounterAction[int] = 0
    """Every family of density models and every head: what it is, and its parameters on two known
    grids."""
    json: tyro.conf.UseCounterAction[int] = 0
    """Print the facts as JSON."""


VERBS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "sample": Sample,
    "complete": Complete,
    "eval": Eval,
    "tokenize": Tokenize,
    "detokenize": Detokenize,
    "info": Info,
}


def parse(words: list[str]) -> Any:
    """The command as an instance of its class. Help is printed, and exits.

    Raises:
        InputError: for words that are no command.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _parse(words)
    except SystemExit as stop:
        if not stop.code:
            raise
        # The parser draws a box around several lines; a mistake is told in one.
        told = re.sub(r"[\u2500-\u257f\s]+", " ", said.getvalue()).strip()
        raise InputError(told) from None


def _parse(words: list[str]) -> Any:
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    if words and words[0] in VERBS:
        return tyro.cli(
            VERBS[words[0]],
            prog=f"tessella {words[0]}",
            args=_gathered(VERBS[words[0]], words[1:]),
            config=config,
        )
    about = "Images as discrete symbols: density models, tokenizers, priors; exact likelihoods, exact fast sampling."
    brief: dict[str, Any] = {
        verb: dataclasses.make_dataclass(cls.__name__, []) for verb, cls in VERBS.items()
    }
    for verb, cls in VERBS.items():
        brief[verb].__doc__ = (cls.__doc__ or "").split("\n")[0]
    return tyro.extras.subcommand_cli_from_dict(
        brief, prog="tessella", description=about, args=words or ["--help"]
    )


def _gathered(verb: Any, words: list[str]) -> list[str]:
    """Options first, then what is positional: key=value words may stand anywhere, which the parser
    would not take."""
    switches = {
        f"--{f.name}" for f in dataclasses.fields(verb) if "UseCounterAction" in str(f.type)
    } | {"--help"}
    if not any(re.match(r"\w+(\.\w+)*=", word) for word in words):
        return words
    options: list[str] = []
    positional: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            positional.append(word)
        elif word.startswith("--") and "=" not in word and word not in switches:
            options += [word, *itertools.islice(rest, 1)]
        else:
            options.append(word)
    return options + positional
