"""The options of every verb, read by tyro: the field is the flag, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from tessella.cli.drawing_options import BatchSize, Drawing, Seed, Weights
from tessella.cli.engine_options import EngineOptions, UnitOptions
from tessella.cli.flags import Output, Within, sets_fields_of
from tessella.cli.option_types import (
    Device,
    ImageSource,
    ImportKind,
    Overrides,
    RunName,
    Split,
    Switch,
    Threads,
    TrainingSource,
    all_sources,
)
from tessella.config import TrainConfig
from tessella.sampling import WalkOrder


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every verb."""

    plugin: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], arg(metavar="FILE.py")] = ()
    """Python file that registers models, heads, tokenizers, quantizers or data sources of your own.
    It runs with all your rights."""
    quiet: Switch = 0
    """Print only what was asked for, warnings and errors: no progress, no notes."""


@dataclass(frozen=True, kw_only=True)
class Writing(Common):
    """Options of verbs that write files."""

    force: Switch = 0
    """Replace a file that tessella did not make."""


@dataclass(frozen=True, kw_only=True)
class Showing(Writing):
    """Options of verbs that show pictures in the terminal."""

    no_preview: Switch = 0
    """Show no pictures in the terminal."""


@dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """The whole chain on bundled real images, in minutes on a CPU.

    It trains a density model, a VQ-VAE and a prior on its codes, and draws samples of both.

    $ tessella demo
    $ tessella demo --out runs/demo --minutes 0.5
    """

    out: str = "runs/demo"
    """Directory for the three runs, the pictures and the table; an earlier demo is replaced."""
    minutes: Annotated[float, Within(0, 1e6, open_below=True)] = 1.2
    """Training minutes of the density model; VQ-VAE and prior take 0.7 and 0.5 of that."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""


# The flags of TrainConfig that are worth one; all of its fields can be set as train.KEY=VALUE.
@dataclass(frozen=True, kw_only=True)
@sets_fields_of(
    TrainConfig,
    # 0 means no such limit in a recipe, and is a mistake as the limit that was asked for.
    minutes=Annotated[float, Within(0, open_below=True)],
    steps=Annotated[int, Within(0, open_below=True)],
    epochs=Annotated[float, Within(0, open_below=True)],
    seed=Seed,
    device=Device,
    devices=Annotated[int, Within(1, 1024)],
    precision=Literal["auto", "32", "bf16"],
    threads=Threads,
    accumulate=Annotated[int, Within(1)],
    checkpointing=None,
    compile=None,
    board=None,
)
class Train(Common):
    """Train a density model or a tokenizer, or a prior on a trained tokenizer.

    $ tessella train digits
    $ tessella train digits --model transformer model.layers=6
    $ tessella train digits-vqvae --minutes 2
    $ tessella train digits-prior --tokenizer runs/digits-vqvae
    $ tessella train folder-vqvae --data folder:photos data.size=64
    $ tessella train my.toml model.layers=8 train.learning_rate=1e-3
    $ tessella train digits --plugin mine.py --model mine
    $ tessella train --resume runs/digits
    $ tessella train digits --start-or-resume --out runs/digits

    Exit status: 0 at the end; 130 after Ctrl-C or SIGHUP, 75 after SIGTERM or SIGUSR1: the run has
    saved its state, and goes on with --resume.
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]] = ""
    """A TOML file, or the name of a recipe that ships (tessella info lists them)."""
    overrides: Positional[Overrides] = ()
    """Values of the recipe to change, as table.key=value."""
    data: TrainingSource = ""
    """Data source."""
    tokenizer: str = ""
    """Run directory of the tokenizer whose codes a prior is trained on."""
    model: str = ""
    """Another density model than the recipe's (tessella info --models), with its default sizes."""
    out: str = ""
    """Run directory to create (default: runs/RECIPE, or runs/RECIPE-MODEL)."""
    resume: str = ""
    """Run directory to continue, from its newest checkpoint."""
    start_or_resume: Switch = 0
    """Go on with the run in the run directory if there is one, else start it: for a command that a
    queue repeats."""


@dataclass(frozen=True, kw_only=True)
class Plan(Writing):
    """Say what training a recipe takes: batch, memory, time and traffic, and how to set it up.

    Nothing is trained, no image is read and no GPU is needed. What a step takes is counted on two
    small batches; docs/scale.md says how, and what of it was measured.

    $ tessella plan digits
    $ tessella plan cifar10 --gpus 8 --gpu h100 train.batch=512
    $ tessella plan cifar10-prior --tokenizer cifar10-vqvae --gpus 1
    $ tessella plan folder-vqgan data.size=256 --gpus 8 --nodes 4 --network 25 --images 100000000
    """

    recipe: Positional[Annotated[str, arg(metavar="RECIPE")]]
    """A TOML file, or the name of a recipe that ships (tessella info lists them)."""
    overrides: Positional[Overrides] = ()
    """Values of the recipe to change, as table.key=value."""
    tokenizer: str = ""
    """For a prior: the run of its tokenizer, or the recipe of one that is not trained yet."""
    gpus: Annotated[int, Within(0, 1024)] = 0
    """GPUs of a machine; 0 plans for the processor of this one."""
    gpu: Literal["a100", "h100", "h200", "rtx4090"] = "h100"
    """Kind of the GPUs, for their memory and speed."""
    nodes: Annotated[int, Within(1, 4096)] = 1
    """Machines."""
    memory: Annotated[float, Within(0, 1e6)] = 0.0
    """Memory of a device in GB (10^9 bytes); 0 takes that of its kind."""
    network: Annotated[float, Within(0, 1e6, open_below=True)] = 12.5
    """What a machine sends to another one, in GB a second."""
    flops: Annotated[float, Within(0, 1e6)] = 0.0
    """Products of a device in TFLOP/s, at the precision of the run; 0 takes those of its kind."""
    images: Annotated[int, Within(0, 10**15)] = 0
    """Images that the run is to see, counting each as often as it is seen; 0 takes the limits of
    the recipe."""
    json: Annotated[str, Output(".json")] = ""
    """Write the plan as JSON too."""


@dataclass(frozen=True, kw_only=True)
class Sample(Showing):
    """Draw images from a model.

    A .npz or a directory is written as it is drawn: the same command continues a run that was
    stopped, and with a larger --n it adds to one.

    $ tessella sample digits
    $ tessella sample runs/x --n 64 --seed 7 --out samples.png
    $ tessella sample runs/x --n 50000 --out samples.npz
    $ tessella sample runs/x --n 16 --out pictures/
    $ tessella sample runs/x --n 1000000 --units 1024 --out drawn/
    $ tessella sample runs/masked --steps 8 --schedule cosine
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    n: Annotated[int, Within(1)] = 16
    """Images to draw."""
    out: Annotated[str, Output(".png", ".npz", "/")] = "samples.png"
    """A .png sheet, a .npz (uint8 [n, h, w, c] under arr_0), or a directory for single PNGs (name
    ending in /), which with --units are in tar files."""
    drawing: Drawing = field(default_factory=Drawing)
    device: Device = "auto"
    """Where to draw."""
    work: UnitOptions = field(default_factory=UnitOptions)


@dataclass(frozen=True, kw_only=True)
class Complete(Showing):
    """Keep a part of each image and draw the rest.

    In raster order, each symbol is drawn given all that stand before it. With --order known-first,
    which takes a model of the family any-order, it is drawn given all that is kept. A masked model
    sees all that is kept in either order.

    $ tessella complete digits --keep 0.5
    $ tessella complete runs/any-order --mask hole.png --order known-first
    $ tessella complete runs/x --data folder:photos --n 4 --variants 6 --out completed.png
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    keep: Annotated[float, Within(0, 1)] = 0.5
    """Share of the rows kept, from the top."""
    mask: str = ""
    """Image file of the same size, white where pixels are to be drawn; instead of --keep."""
    order: WalkOrder = "raster"
    """Which symbols come first: those further up, or those that are kept."""
    n: Annotated[int, Within(1)] = 8
    """Images to complete, from the start of the split."""
    variants: Annotated[int, Within(1)] = 4
    """Completions of each."""
    data: ImageSource = ""
    """Data source."""
    split: Split = "test"
    """Which images; all is every image of a folder."""
    out: Annotated[str, Output(".png")] = "completed.png"
    """PNG sheet: the image, what was kept, the completions."""
    drawing: Drawing = field(default_factory=Drawing)
    device: Device = "auto"
    """Where to draw."""


@dataclass(frozen=True, kw_only=True)
class Eval(Showing):
    """Measure a run on images: exact bits/dim with its standard error.

    Of a tokenizer, reconstruction and codebook use are measured; of a two-stage model both. The
    figures say how many of the images the run was trained on.

    $ tessella eval runs/x
    $ tessella eval runs/x --data npz:other.npz --split test --json figures.json
    $ tessella eval runs/x --data folder:others --split all
    $ tessella eval runs/x --against runs/y
    $ tessella eval runs/x --per-image images.csv
    $ tessella eval runs/x --weights int8 --against runs/x
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    data: ImageSource = ""
    """Data source."""
    split: Split = "test"
    """Which images; all is every image of a folder, for folders that were not trained on."""
    against: str = ""
    """Another run, measured on the same images: the mean difference and its standard error, image
    by image."""
    json: Annotated[str, Output(".json")] = ""
    """File for the figures as JSON."""
    per_image: Annotated[str, Output(".csv")] = ""
    """File for the values of every image, as .csv: nats, bits, bits/dim, mse, PSNR in dB, SSIM."""
    batch: BatchSize = 64
    """Images at a time."""
    weights: Weights = "own"
    """The density model of the run with its own weights, or with its hidden matrices rounded to
    int8 or bfloat16, which is another model; --against keeps its own."""
    device: Device = "auto"
    """Where to compute."""
    devices: Annotated[int, Within(1, 1024)] = 1
    """Devices (processes) that share the images; each image is measured once."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Tokenize(Common):
    """Encode images to codes on disk, for priors to train from; a run that was killed goes on.

    $ tessella tokenize runs/photos-vqvae --out codes
    $ tessella tokenize runs/photos-vqvae --data folder:others --split all --out codes/others
    $ tessella tokenize runs/photos-vqvae --engine ray --out codes
    $ tessella train folder-prior --data codes:codes --tokenizer runs/photos-vqvae data.flip=false
    """

    run: Positional[RunName]
    """Run directory of a tokenizer, or of a two-stage model."""
    overrides: Positional[Overrides] = ()
    """Data options to change, as data.key=value."""
    data: ImageSource = ""
    """Data source."""
    split: Literal["each", "train", "valid", "test", "all"] = "each"
    """Which images; each writes train, valid and test, to directories of these names."""
    out: str = "codes"
    """Directory of the codes."""
    mirrored: Switch = 0
    """Encode the mirror images as well, for training with data.flip=true."""
    workers: Annotated[int, Within(0, 1024)] = 0
    """Threads (on GPUs: one for each) that encode; 0 for as many as there are processors. Changes
    speed only."""
    device: Device = "auto"
    """Where to encode."""
    work: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, kw_only=True)
class Pack(Common):
    """Write images into tar files of the WebDataset convention; a run that was killed goes on.

    $ tessella shards folder:photos --out shards
    $ tessella shards folder:photos --out shards-64 data.size=64
    $ tessella shards mnist:mnist --out mnist-shards --images 5000
    $ tessella train folder-vqvae --data shards:shards data.stream=true train.workers=2
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE", help_behavior_hint=all_sources)]]
    """Data source. JPEG and PNG files of a folder are kept byte for byte; everything else becomes
    PNG."""
    overrides: Positional[Overrides] = ()
    """Data options, as data.key=value; with them the prepared images are written, as PNG."""
    out: str = "shards"
    """Folder of the shards, NAME-SPLIT-000000.tar, and of shards.json, which lists them."""
    name: str = ""
    """Beginning of the names of the shards; default: that of the source."""
    images: Annotated[int, Within(1)] = 1000
    """Images of a shard, at most."""
    megabytes: Annotated[int, Within(1, 1 << 20)] = 256
    """Size of the images of a shard, at most, in MiB (of arrays: before they are compressed)."""
    workers: Annotated[int, Within(0, 1024)] = 0
    """Threads that write; 0 for as many as there are processors. Changes speed only."""


@dataclass(frozen=True, kw_only=True)
class Verify(Writing):
    """Look through a data source: damaged images, copies, sizes, classes.

    $ tessella data verify folder:photos
    $ tessella data verify "shards:shards/photos-train-{000000..000009}.tar" --json damage.json
    """

    action: Positional[Annotated[Literal["verify"], arg(metavar="verify")]]
    """What to do."""
    source: Positional[Annotated[str, arg(metavar="SOURCE", help_behavior_hint=all_sources)]]
    """Data source."""
    overrides: Positional[Overrides] = ()
    """Data options, as data.key=value."""
    json: Annotated[str, Output(".json")] = ""
    """File for what was found, by name, up to a thousand of each kind."""


@dataclass(frozen=True, kw_only=True)
class Detokenize(Writing):
    """Decode codes on disk to images.

    $ tessella detokenize runs/photos-vqvae codes/valid --out decoded.npz
    $ tessella detokenize runs/photos-vqvae codes/valid --n 16 --out decoded.png
    """

    run: Positional[RunName]
    """Run directory of the tokenizer that made the codes, or of a two-stage model with it."""
    codes: Positional[Annotated[str, arg(metavar="CODES")]]
    """Directory of the codes."""
    n: Annotated[int, Within(0)] = 0
    """Images to decode, from the first one on; 0 for all."""
    out: Annotated[str, Output(".png", ".npz", "/")] = "decoded.npz"
    """A .png sheet, a .npz (uint8 [n, h, w, c] under arr_0), or a directory for single PNGs (name
    ending in /)."""
    batch: BatchSize = 64
    """Images at a time."""
    device: Device = "auto"
    """Where to decode."""


@dataclass(frozen=True, kw_only=True)
class Compress(Writing):
    """Compress image files without loss, with the exact twin of a density model.

    The twin is made from the run the first time. Names, sizes and pixels are kept; what cannot be
    kept is said before anything is written.

    $ tessella compress runs/x photos --out photos.tsl
    $ tessella compress runs/x one.png two.png --out both.tsl
    $ tessella compress runs/x shards:photos --units 1024 --out files/
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="[FILE-OR-FOLDER ...]")]] = ()
    """Image files, and folders with all images below them; with --units also shards:PATTERN."""
    out: Annotated[str, Output(".tsl", "/")] = "images.tsl"
    """The compressed file; with --units a folder of tar files with one of each image."""
    drop_metadata: Switch = 0
    """Go on where something of a file cannot be kept, such as EXIF data or 16 bits."""
    group: Annotated[int, Within(1, 1024)] = 64
    """Images (or tiles of larger ones) that share a stream: more are a little shorter, and slower
    to read one image from."""
    batch: BatchSize = 64
    """Pieces at a time; changes memory and speed only."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""
    work: UnitOptions = field(default_factory=UnitOptions)


@dataclass(frozen=True, kw_only=True)
class Decompress(Common):
    """Restore the images of a compressed file.

    The model is found by its id: among those that ship, in the cache, beside the file, in runs, or
    where --model says. Files of formats that lose pixels come back as PNG files.

    $ tessella decompress photos.tsl --out photos
    $ tessella decompress photos.tsl --out photos --model runs/x
    """

    archive: Positional[Annotated[str, arg(metavar="FILE.tsl")]]
    """The compressed file."""
    out: str = "decompressed"
    """Folder for the images; a new one, or an empty one."""
    model: str = ""
    """Run directory of the model, or a folder of such."""
    max_pixels: Annotated[int, Within(1, 1 << 62)] = 1 << 28
    """Most pixels that the images may have together."""
    batch: BatchSize = 64
    """Pieces at a time; changes memory and speed only."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Score(Writing):
    """How many bits images take, each for itself, as a compressed file would spend them.

    $ tessella score runs/x photos
    $ tessella score runs/x photos --out scores.csv --heat-maps maps
    $ tessella score runs/x shards:photos --engine ray --out scores/
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="[FILE-OR-FOLDER ...]")]] = ()
    """Image files, and folders with all images below them; with --units also shards:PATTERN."""
    out: Annotated[str, Output(".csv", "/")] = "scores.csv"
    """Table with a line for each image: name, height, width, bits, bits/dim. With --units a folder
    that holds scores.csv, and the lines of each unit."""
    heat_maps: str = ""
    """Folder for a PNG of each image that shows where its bits are; a new one, or an empty one."""
    batch: BatchSize = 64
    """Pieces at a time; changes memory and speed only."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""
    work: UnitOptions = field(default_factory=UnitOptions)


@dataclass(frozen=True, kw_only=True)
class Serve(Common):
    """A web page to play with models: draw, complete, see the bits, change codes, compress.

    It answers on this machine only, unless --host says otherwise. Needs the extra web.

    $ tessella serve digits
    $ tessella serve digits digits-codes runs/x --port 0
    """

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN [RUN ...]")]] = ()
    """Run directories, or names of bundled models: the only models that the page can use."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own can be reached by other machines."""
    port: Annotated[int, Within(0, 65535)] = 8000
    """Port to listen on; 0 finds a free one."""
    queue: Annotated[int, Within(1, 4096)] = 32
    """Requests that wait or are computed; more are told to come back (503)."""
    device: Device = "auto"
    """Where to compute."""
    threads: Threads = 0
    """CPU threads; 0 keeps torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Import(Writing):
    """Make a run of a checkpoint of another project.

    Sizes are read from the tensors; what tensors do not show is given as KEY=VALUE under the names
    of that project, unless the file or a config.json beside it says it. A prior on codes draws
    images once it has a tokenizer.

    $ tessella import taming-vqgan vqgan_imagenet_f16_1024.ckpt --out runs/vqgan
    $ tessella import llamagen-vq vq_ds16_c2i.pt --out runs/llamagen-vq
    $ tessella import llamagen-gpt c2i_B_256.pt --tokenizer runs/llamagen-vq --out runs/llamagen
    $ tessella import var-vqvae vae.safetensors v_patch_nums=[1,2,3,4]
    """

    kind: Positional[ImportKind]
    """What the checkpoint is."""
    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """The file (.safetensors, or .ckpt, .pt, .pth, .bin of torch), or a folder with it."""
    overrides: Positional[Overrides] = ()
    """What the tensors do not show, such as n_head=16 or image_size=512."""
    out: str = ""
    """Run directory to create (default: runs/KIND)."""
    tokenizer: str = ""
    """Run directory of the tokenizer whose codes a prior describes."""
    prefix: str = ""
    """Take only tensors whose names begin with this, and leave it away."""


@dataclass(frozen=True, kw_only=True)
class Export(Writing):
    """Write a model for other programs: ONNX files, exported programs of torch, or safetensors.

    Encoder and decoder of a tokenizer, a pass of a density model over a whole grid, and one cached
    step of a transformer are files of their own. Each is run after it is written and compared with
    the model; a README.md beside them shows how to use them.

    $ tessella export digits-codes --out exported
    $ tessella export runs/x --format torch-export --out exported
    """

    run: Positional[RunName]
    """Run directory, or the name of a bundled model."""
    format: Literal["onnx", "torch-export", "safetensors"] = "onnx"
    """What to write; onnx needs the extra export."""
    out: str = "exported"
    """Folder to create."""


@dataclass(frozen=True, kw_only=True)
class Info(Writing):
    """Show versions, devices and what there is; with RUN, what that run is.

    A run is shown as text with curves, as JSON, or as a page with pictures.

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
    """Write one HTML file with figures, curves, samples, reconstructions and codebook (default:
    RUN/report.html)."""
    samples: Annotated[int, Within(0, 64)] = 16
    """Images to draw for the report (fewer where that would take long); 0 for none."""
    models: Switch = 0
    """Every family of density models and every head: what it is, and its parameters on two known
    grids."""
    json: Switch = 0
    """Print the facts as JSON."""


@dataclass(frozen=True, kw_only=True)
class Check(Common):
    """Test what a registered class promises, or whether codes on disk are intact.

    There is a line for each contract, or shard of codes, and the status is 1 if one fails.

    $ tessella check gated-pixelcnn layers=1 hidden=8
    $ tessella check mine --plugin mine.py
    $ tessella check mine:images/ --plugin mine.py
    $ tessella check codes/train
    """

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """A density model, head, tokenizer, quantizer or data source, or a directory of codes."""
    overrides: Positional[Overrides] = ()
    """Arguments of its class, as key=value; small sizes make the check fast."""
    kind: Literal["", "model", "head", "tokenizer", "quantizer", "source"] = ""
    """Kind of class, where the name stands for several things."""


# In the order in which a newcomer meets them; tessella --help lists them so.
VERBS: dict[str, type[Common]] = {
    "demo": Demo,
    "train": Train,
    "plan": Plan,
    "sample": Sample,
    "complete": Complete,
    "eval": Eval,
    "shards": Pack,
    "data": Verify,
    "tokenize": Tokenize,
    "detokenize": Detokenize,
    "compress": Compress,
    "decompress": Decompress,
    "score": Score,
    "serve": Serve,
    "import": Import,
    "export": Export,
    "info": Info,
    "check": Check,
}
