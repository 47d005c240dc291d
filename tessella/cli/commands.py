"""What the verbs of the command line do. Imported once a verb runs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tessella
from tessella import config as configs
from tessella import data, files, kernel
from tessella.cli import options
from tessella.cli.demo import demo
from tessella.config import DataConfig, Recipe, TrainConfig
from tessella.errors import ArtifactError, ConfigError, DataError, InputError, unknown
from tessella.evaluation import as_scored, assess, check_comparable, compare, data_config
from tessella.models import MODELS
from tessella.pipeline import (
    CompletesImages,
    Generator,
    bundled,
    fingerprint,
    is_bundled,
    load,
    load_saved,
    locate,
    pick_device,
    require,
    write_card,
)
from tessella.report import model_catalogue, run_summary
from tessella.report.html import write_report
from tessella.storage import code_store, image_writer, pictures
from tessella.tokenizers import TOKENIZERS, Tokenizer
from tessella.training import train_recipe
from tessella.training.run_directory import RunDirectory, environment
from tessella.vae import VAE


def act_demo(chosen: options.Demo) -> int:
    """``tessella demo``."""
    _threads(chosen.threads)
    return 0 if demo(Path(chosen.out), chosen.minutes) else 130


def act_train(chosen: options.Train) -> int:
    """``tessella train``."""
    recipe, out = _resumed(chosen) if chosen.resume else _recipe(chosen)
    with _or_other_data(chosen):
        run = train_recipe(recipe, out, resume=bool(chosen.resume), say=_say)
    return 130 if run.interrupted else 0


def act_sample(chosen: options.Sample) -> int:
    """``tessella sample``."""
    generator = _sampled(chosen.run, chosen.device)
    out, n, drawing = _check_output(chosen.out, ".png", ".npz", "/"), chosen.n, chosen.drawing
    made = _made(generator, chosen.run, drawing) | {"n": n}
    height, width, channels = generator.image_grid.shape

    def images(first: int) -> Iterator[np.ndarray]:
        return _drawn(generator, drawing, n, first)

    done = _written(out, chosen.out, made, (height, width, channels), images, drawing.batch)
    _say(f"{done}{n} images of {height}x{width}, seed {drawing.seed}: {out}")
    return 0


def act_complete(chosen: options.Complete) -> int:
    """``tessella complete``."""
    if not 0 <= chosen.keep <= 1:
        raise InputError(f"--keep is a share of the rows, 0..1, got {chosen.keep}")
    if chosen.n < 1 or chosen.variants < 1:
        raise InputError(
            f"--n and --variants must be at least 1, got {chosen.n} and {chosen.variants}"
        )
    generator, out = _generator(chosen.run, chosen.device), _check_output(chosen.out, ".png")
    images = _images(chosen, generator).images[: chosen.n]
    height, width = generator.tokenizer.image_size
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: round(chosen.keep * height)] = True
    repeated = np.repeat(images, chosen.variants, axis=0)
    drawing = _drawing(generator, chosen.drawing, len(repeated))
    with image_writer.progress(len(repeated)) as watch:
        completed = generator.complete(repeated, known, chosen.drawing.seed, watch=watch, **drawing)
    masked = np.where(known.numpy()[None, :, :, None], images, 128).astype(np.uint8)
    rows = np.concatenate(
        [images[:, None], masked[:, None], _split(completed.cpu().numpy(), len(images))], axis=1
    )
    sheet = pictures.sheet(rows.reshape(-1, *images.shape[1:]), columns=2 + chosen.variants)
    made = _made(generator, chosen.run, chosen.drawing) | {
        "keep": chosen.keep,
        "split": chosen.split,
    }
    pictures.save_png(out, sheet, made)
    kept = (
        "what was kept, by its codes: its pixels come back as reconstructions"
        if generator.two_stage
        else "what was kept"
    )
    _say(
        f"{len(images)} images, {chosen.variants} completions each (image, {kept}, completions): {out}"
    )
    return 0


def act_eval(chosen: options.Eval) -> int:
    """``tessella eval``."""
    _threads(chosen.threads)
    for out, ending in ((chosen.json, ".json"), (chosen.per_image, ".csv")):
        if out:
            _check_output(out, ending)
    device, first = _processes(chosen.device, chosen.devices)
    path, model = locate(chosen.run), load(chosen.run, device)
    other = load(chosen.against, device) if chosen.against else None
    if other is not None:
        check_comparable(model, other)
    with _or_other_data(chosen):
        images = _images(chosen, model)
    result = assess(path, images, batch=chosen.batch, model=model)
    figures = {**result.figures, "run": Path(chosen.run).name}
    if other is not None:
        second = assess(locate(chosen.against), images, batch=chosen.batch, model=other)
        kept = {
            name: second.figures[name]
            for name in ("weights", "condition", "overlap")
            if name in second.figures
        }
        figures["against"] = {"run": Path(chosen.against).name, **kept, **compare(result, second)}
    if not first:
        return 0
    figures["made"] = environment(device, chosen.devices)
    _say(f"{figures['run']} on {images.name}, {images.split}:")
    told = {name: value for name, value in figures.items() if name not in ("run", "data", "made")}
    for label, value, unit in run_summary.figure_rows(told):
        _say(f"  {label:32} {value} {unit}".rstrip())
    if figures.get("baseline_bits_per_dim", math.inf) <= figures.get("bits_per_dim", 0.0):
        _say("note: this is no better than independent symbols; the model needs more training")
    if (figures.get("mean_image_psnr_db") or -math.inf) >= (figures.get("psnr_db") or math.inf):
        _say(
            "note: the reconstructions are no better than the mean image; the tokenizer needs more training"
        )
    for line in figures.get("diagnosis", []):
        _say(f"codes: {line}")
    if chosen.json:
        files.write_json(chosen.json, figures)
    if chosen.per_image:
        files.write_text(chosen.per_image, result.table())
    _renew_card(path, f"{images.name}, {images.split}", figures)
    return 0


def act_tokenize(chosen: options.Tokenize) -> int:
    """``tessella tokenize``."""
    tokenizer, out = _tokenizer(chosen.run, chosen.device), Path(chosen.out)
    for split in ("train", "valid", "test") if chosen.split == "each" else (chosen.split,):
        with _or_other_data(chosen):
            images = _images(replace(chosen, split=split), tokenizer)
        place = out / split if chosen.split == "each" else out
        with image_writer.progress(len(images)) as watch:
            made = code_store.tokenize(
                tokenizer,
                images,
                place,
                mirrored=bool(chosen.mirrored),
                workers=chosen.workers,
                watch=watch,
            )
        _say(f"{len(made)} images, {split}, {' and '.join(map(str, made.grids))}: {place}")
    return 0


def act_detokenize(chosen: options.Detokenize) -> int:
    """``tessella detokenize``."""
    tokenizer, out = (
        _tokenizer(chosen.run, chosen.device),
        _check_output(chosen.out, ".png", ".npz", "/"),
    )
    given = code_store.open_codes(chosen.codes, tokenizer)
    if chosen.n < 0 or chosen.n > len(given):
        raise InputError(
            f"--n must lie in 0..{len(given)}, the images that {chosen.codes} holds, got {chosen.n}"
        )
    n = chosen.n or len(given)
    made = {"model": given.tokenizer, "codes": given.identity()["sha256"], "seed": 0, "n": n}

    def images(first: int) -> Iterator[np.ndarray]:
        return code_store.decoded(given, tokenizer, first, n, chosen.batch)

    _written(out, chosen.out, made, (*given.image_size, tokenizer.channels), images, chosen.batch)
    _say(f"{n} images of {given.image_size[0]}x{given.image_size[1]}: {out}")
    return 0


def act_info(chosen: options.Info) -> int:
    """``tessella info``."""
    if chosen.models:
        if chosen.run or chosen.report is not None:
            raise InputError("--models is about no run: it goes with --json alone")
        facts = model_catalogue.catalogue()
        _say(files.json_text(facts) if chosen.json else "\n".join(model_catalogue.render(facts)))
        return 0
    if chosen.run:
        _describe_run(chosen)
        return 0
    if chosen.json or chosen.report is not None:
        raise InputError(
            "--json and --report are about a run: give it first, tessella info RUN --report"
        )
    _say(
        f"tessella {tessella.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    _say(
        f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', cuda:{i} {g}' for i, g in enumerate(gpus))}"
    )
    _say(f"compiled steps on the CPU: {kernel.describe()}")
    _say(f"models: {', '.join(MODELS)}")
    _say(f"tokenizers: {', '.join(TOKENIZERS)}")
    _say(f"data sources: {', '.join(data.SOURCES)}")
    _say(f"bundled models: {', '.join(bundled())}")
    _say("recipes:")
    for name in configs.recipe_names():
        _say(f"  {name:24} {configs.load_recipe(name).about}")
    extras = {"plots": ("matplotlib", "plotext"), "logs": ("tensorboard",)}
    there = [
        name for name, modules in extras.items() if all(map(importlib.util.find_spec, modules))
    ]
    _say(f"extras installed: {', '.join(there) or 'none'}")
    return 0


ACTIONS: dict[str, Callable[[Any], int]] = {
    "demo": act_demo,
    "train": act_train,
    "sample": act_sample,
    "complete": act_complete,
    "eval": act_eval,
    "tokenize": act_tokenize,
    "detokenize": act_detokenize,
    "info": act_info,
}


def _recipe(chosen: options.Train) -> tuple[Recipe, Path]:
    """The recipe that the options describe, and where to train it."""
    if not chosen.recipe:
        raise ConfigError(
            f"give a recipe ({', '.join(configs.recipe_names())}, or a .toml file), or --resume RUN"
        )
    named = [f'model.name="{chosen.model}"'] if chosen.model else []
    if chosen.model:
        _check_model(chosen)
    recipe = configs.load_recipe(chosen.recipe, [*named, *chosen.overrides])
    if chosen.data:
        recipe = replace(recipe, data=replace(recipe.data, source=chosen.data))
    if chosen.tokenizer:
        recipe = replace(recipe, prior_of=chosen.tokenizer)
    name = "-".join(filter(None, (Path(chosen.recipe).stem, chosen.model)))
    return _with_limits(recipe, chosen), Path(chosen.out or f"runs/{name}")


def _check_model(chosen: options.Train) -> None:
    """Refuse a --model that is not there, or has no place."""
    if chosen.model not in MODELS:
        raise ConfigError(unknown("model", chosen.model, MODELS))
    if configs.load_recipe(chosen.recipe).model is None:
        raise ConfigError(
            f"--model names a density model, and the recipe {chosen.recipe} trains a tokenizer"
        )
    if any(override.partition("=")[0].strip() == "model.name" for override in chosen.overrides):
        raise ConfigError("--model and model.name= say the same: give one of them")


def _resumed(chosen: options.Train) -> tuple[Recipe, Path]:
    """The recipe of a run to resume; only how long and where to train may change."""
    for name in ("recipe", "tokenizer", "model", "out"):
        if getattr(chosen, name) and not (name == "recipe" and "=" in chosen.recipe):
            raise ConfigError(
                f"--resume takes all but --data and training options from the run: leave {name} out"
            )
    path = Path(chosen.resume)
    stored = RunDirectory(path).facts().get("recipe", {})
    if "data" not in stored:
        raise ConfigError(
            f"{path} was trained on arrays: resume it with ts.train(..., resume=True)"
        )
    overrides = [*([chosen.recipe] if chosen.recipe else []), *chosen.overrides]
    for override in overrides:
        if not override.startswith("train."):
            raise ConfigError(f"--resume can only change train.*, got {override!r}")
    values = configs.apply_overrides({k: v for k, v in stored.items() if v is not None}, overrides)
    recipe: Recipe = configs.from_dict(Recipe, values)
    if chosen.data:  # the same images at another place, which their hashes will tell
        recipe = replace(recipe, data=replace(recipe.data, source=chosen.data))
    return _with_limits(recipe, chosen), path


def _with_limits(recipe: Recipe, chosen: options.Train) -> Recipe:
    """Training options from the command line. A limit given there replaces those of the recipe."""
    changes: dict[str, Any] = {}
    given = {name: getattr(chosen, name) for name in ("minutes", "steps", "epochs")}
    if any(value is not None for value in given.values()):
        for name, value in given.items():
            if value is not None and value <= 0:
                raise ConfigError(f"--{name} must be above 0, got {value}")
            changes[name] = value or 0
    for name in ("seed", "device", "devices", "precision", "threads", "accumulate"):
        if getattr(chosen, name) is not None:
            changes[name] = getattr(chosen, name)
    for name in ("checkpointing", "compile"):
        if getattr(chosen, name):
            changes[name] = True
    return replace(recipe, train=replace(recipe.train, **changes))


def _sampled(run: str, device: str) -> Generator | VAE:
    """A model that draws images."""
    model = load(run, pick_device(device))
    if isinstance(model, Tokenizer):
        raise InputError(
            f"{run} is a tokenizer, which draws no images: train a prior on its codes first"
        )
    return model


def _generator(run: str, device: str) -> Generator:
    """A model that completes images."""
    model = load_saved(run, pick_device(device))
    require(model, CompletesImages, run)
    assert isinstance(model, Generator)
    return model


def _tokenizer(run: str, device: str) -> Tokenizer:
    model = load(run, pick_device(device))
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    if not isinstance(tokenizer, Tokenizer) or tokenizer.of_pixels:
        raise InputError(
            f"{run} has no learned tokenizer, so it makes no codes: name the run of one"
        )
    return tokenizer


def _drawing(generator: Generator | VAE, drawing: options.Drawing, n: int) -> dict[str, Any]:
    """Options of the sampler."""
    if isinstance(generator, VAE):
        _refuse_symbol_options(drawing)
        return {"batch": drawing.batch}
    values = {
        name: getattr(drawing, name)
        for name in ("method", "temperature", "top_k", "top_p", "guidance", "batch")
    }
    if drawing.class_label is not None:
        values["cond"] = torch.full((1,), drawing.class_label).expand(max(n, 1))
        generator.prior.condition(values["cond"], max(n, 1))
    return values


def _written(
    out: Path,
    named: str,
    made: Mapping[str, Any],
    shape: tuple[int, int, int],
    images: Callable[[int], Iterator[np.ndarray]],
    batch: int,
) -> str:
    """Write images as a sheet, or as a run that goes on where it was killed; ``images`` gives those
    from a number on.

    Returns:
        What to say first, where nothing was left to do.
    """
    n = int(made["n"])
    if out.suffix == ".png" and not named.endswith("/"):
        pictures.save_png(out, pictures.sheet(np.concatenate(list(images(0)))), made)
        return ""
    with image_writer.opened(out, made, shape) as run:
        first, complete = run.resume(batch), run.finished
        if first and not complete:
            _say(f"resuming at image {first} of {n}")
        for batch_of_images in images(first) if first != n else ():
            run.append(batch_of_images)
        run.finish()
    return "nothing to do, there are " if complete else ""


def _drawn(
    generator: Generator | VAE, drawing: options.Drawing, n: int, first: int = 0
) -> Iterator[np.ndarray]:
    """Images from number ``first`` on, a batch at a time, with a line of progress."""
    with image_writer.progress(n, first) as watch:
        chosen = _drawing(generator, drawing, n)
        for images in generator.batches(n, drawing.seed, start=first, watch=watch, **chosen):
            yield images.cpu().numpy()


def _refuse_symbol_options(drawing: options.Drawing) -> None:
    """Refuse what only has a meaning where symbols are drawn one after another."""
    given = [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(drawing)
        if field.name not in ("seed", "batch") and getattr(drawing, field.name) != field.default
    ]
    if given:
        raise InputError(f"a VAE draws all pixels at once: leave out {', '.join(given)}")


def _images(
    chosen: options.Eval | options.Complete | options.Tokenize, model: Generator | Tokenizer | VAE
) -> data.ImageSet:
    """The images that a command works on: the run's own data, or other data prepared alike.

    Raises:
        ConfigError, InputError: for overrides of something else than data, or levels that are not
            the model's.
    """
    path = locate(chosen.run)
    levels = (
        model.priors[0].grid.levels if isinstance(model, Generator) and not model.two_stage else 0
    )
    levels = model.levels if isinstance(model, VAE) else levels
    values: dict[str, Any] = (
        configs.to_dict(data_config(path)) if not chosen.data else _prepared_like(path)
    )
    if chosen.data:
        values["source"] = chosen.data
        if levels:
            values["levels"] = levels
    changed = configs.apply_overrides({"data": values}, chosen.overrides)
    if set(changed) != {"data"}:
        raise ConfigError(f"only data.* can be changed here, got {', '.join(chosen.overrides)}")
    images = data.load(
        as_scored(configs.from_dict(DataConfig, changed["data"], "data")), chosen.split
    )
    if levels and images.levels != levels:
        raise InputError(
            f"the model knows {levels} levels, the data has {images.levels}: set data.levels={levels}"
        )
    return images


def _prepared_like(path: Path) -> dict[str, Any]:
    """How the images of a run were prepared, to prepare others alike."""
    recipe = (
        files.read_json(path / "run.json").get("recipe", {}) if (path / "run.json").exists() else {}
    )
    own, kept = (
        recipe.get("data", {}),
        ("size", "crop", "channels", "levels", "binarize", "binarize_seed"),
    )
    return {name: own[name] for name in kept if name in own}


def _made(generator: Generator | VAE, run: str, drawing: options.Drawing) -> dict[str, Any]:
    settings = {
        name: getattr(drawing, name)
        for name in ("method", "temperature", "top_k", "top_p", "guidance")
    }
    return {
        "tessella": tessella.__version__,
        "model": fingerprint(generator),
        "run": Path(run).name,
        "seed": drawing.seed,
        "class": drawing.class_label,
        **settings,
    }


def _split(images: np.ndarray, n: int) -> np.ndarray:
    """``[n * variants, ...]`` to ``[n, variants, ...]``."""
    return images.reshape(n, -1, *images.shape[1:])


def _processes(device: str, devices: int) -> tuple[torch.device, bool]:
    """Start so many processes that share the work; the device of this one, and whether it is the
    first."""
    if devices == 1:
        return pick_device(device), True
    from tessella.training.loop import create_fabric

    fabric = create_fabric(TrainConfig(device=device, devices=devices, precision="32"))
    fabric.launch()
    return fabric.device, fabric.is_global_zero


@contextlib.contextmanager
def _or_other_data(
    chosen: options.Tokenize | options.Train | options.Eval | options.Complete,
) -> Iterator[None]:
    """Say, where a run's own images are not where they were, that they can be named."""
    try:
        yield
    except DataError as error:
        own = not chosen.data and (not isinstance(chosen, options.Train) or chosen.resume)
        raise (
            DataError(f"{error}; if they lie elsewhere now, name them with --data")
            if own
            else error
        ) from error


def _check_output(out: str, *endings: str) -> Path:
    """Refuse an output that cannot be written, before any work is done. The ending ``/`` stands for
    a directory.

    Raises:
        InputError: when the name has none of the endings.
        ArtifactError: when its directory cannot be written to.
    """
    path, folder = Path(out), out.endswith("/")
    if (not folder and path.suffix not in endings) or (folder and "/" not in endings):
        raise InputError(f"the output must end in {' or '.join(endings)}, got {out!r}")
    if not folder and path.is_dir():
        raise InputError(f"{out} is a directory")
    files.make_directory(path if folder else path.parent)
    return path


def _describe_run(chosen: options.Info) -> None:
    """What a run is: as text, as JSON, or as a page."""
    if chosen.report is not None:
        if chosen.json or len(chosen.report) > 1:
            raise InputError("--report takes one file at most, and goes without --json")
        write_report(
            chosen.run, chosen.report[0] if chosen.report else None, chosen.samples, say=_say
        )
        return
    facts = run_summary.describe(chosen.run)
    if chosen.json:
        _say(files.json_text(facts))
        return
    terminal = sys.stdout.isatty()
    _say(
        run_summary.render(
            facts, shutil.get_terminal_size().columns, terminal and not os.environ.get("NO_COLOR")
        )
    )


def _renew_card(path: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Add figures to the card of a run; models that ship stay as they are."""
    if is_bundled(path) or not (path / "run.json").exists():
        return
    run = RunDirectory(path)
    facts = run.facts()
    shown = {
        key: value
        for key, value in figures.items()
        if key not in ("data", "run", "made") and value is not None
    }
    measured = {**facts.get("figures", {}), name: shown}
    try:
        run.update(figures=measured)
        write_card(path, {"validation": facts.get("progress", {}).get("figures", {}), **measured})
    except ArtifactError as error:
        _say(f"the figures are not on the card: {error}")


def _threads(threads: int) -> None:
    if threads < 0:
        raise ConfigError(f"--threads must be at least 0, got {threads}")
    if threads:
        torch.set_num_threads(threads)


def _say(line: str) -> None:
    """Print a line, once however many processes there are; names of files that are not UTF-8 get
    escapes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(line.encode(errors="backslashreplace").decode(), flush=True)
