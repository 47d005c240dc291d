"""``ts.train`` on arrays, and ``tessella train`` on recipes: two ways into the same loop."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessella import config as configs
from tessella import data, files
from tessella.config import AdversarialConfig, Recipe, TrainConfig
from tessella.data.decoded_cache import StoredImages
from tessella.data.hashes import image_hashes
from tessella.errors import ArtifactError, ConfigError, DataError, InputError, TrainingError
from tessella.evaluation import save_seen, trained_on
from tessella.grid import Grid
from tessella.models import DensityModel, Prior, create_prior
from tessella.pipeline import (
    Generator,
    class_count,
    load,
    load_model,
    load_weights,
    locate,
    pixel_generator,
)
from tessella.storage import code_store
from tessella.tokenizers import Tokenizer, create_tokenizer
from tessella.training import checkpoint, loop
from tessella.training.adversarial import AdversarialTask
from tessella.training.examples import Examples
from tessella.training.prepare import prepare
from tessella.training.run_directory import Progress, RunDirectory, environment
from tessella.training.tasks import DensityTask, Task, TokenizerTask
from tessella.training.vae_task import VAETask
from tessella.vae import VAE, create_vae

VALID_LIMIT = 1000
"""Held-out images that a validation during training looks at, at most."""

VALID_BYTES = 1 << 28
"""Bytes of memory that they take, at most."""


@dataclass(frozen=True)
class Run:
    """A trained run."""

    path: Path
    progress: Progress
    interrupted: bool

    @property
    def figures(self) -> dict[str, float]:
        """Validation figures of the weights that were kept."""
        return self.progress.figures

    def load(self) -> Generator | Tokenizer | VAE:
        """The trained model."""
        return load(self.path)


@dataclass(frozen=True)
class _Part:
    """One split: what a step sees of it, which images it is, a hash of each (None where they vary),
    files left out."""

    examples: Examples
    identity: dict[str, Any]
    hashes: np.ndarray | None
    skipped: tuple[str, ...] = ()
    seen: np.ndarray | None = None
    """Hashes of the images that its tokenizer was trained on; None where there is none, or it does
    not say."""


def train(
    model: Prior | Tokenizer | VAE,
    images: Any,
    *,
    out: Path | str,
    labels: Any = None,
    valid: Any = None,
    valid_labels: Any = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Run:
    """Train a density model, a tokenizer, a prior on a tokenizer's codes, or a VAE.

    Args:
        model: trained in place: afterwards it holds the averaged weights of the best validation, in
            eval mode.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`; for
            a density model also symbols of another integer type on its grid (for a hierarchy a
            tuple of them).
        out: the run directory; it must not hold a run yet, unless ``resume`` is set.
        labels: class of each image ``[n]``, for a density model with classes.
        valid, valid_labels: held-out images; without them a tenth of ``images``, chosen by the
            seed, is held out.
        tokenizer: of a prior: images are encoded by it once, and the run saves both.
        resume: go on from the newest whole checkpoint in ``out``; where there is none, start again
            (``model`` must then be as it was).
        say: where a line about size and time, and about the end, goes.
        options: fields of :class:`tessella.config.TrainConfig`: ``minutes=``, ``steps=``,
            ``batch=``, ``learning_rate=``, ...

    Raises:
        InputError, ConfigError: for arguments that do not fit each other.
        TrainingError: when ``out`` holds a run already, or the loss is not finite (the last good
            state is kept).
        ArtifactError: when something cannot be written, or there is no run to resume.
    """
    config: TrainConfig = configs.from_dict(TrainConfig, options, "train")
    if not (config.steps or config.epochs or config.minutes):
        raise ConfigError("training needs a limit: give steps=, epochs= or minutes=")
    _refuse_taken(out, resume)
    if isinstance(images, data.ImageSet) and isinstance(valid, data.ImageSet):
        _check_classes(images, valid)
    if valid is None:
        images, labels, valid, valid_labels = _hold_out(images, labels, config.seed)
    learned = _of_arrays(prepare(model, *_pair(model, images, labels), tokenizer, config), images)
    held_out = _of_arrays(
        prepare(model, *_pair(model, valid, valid_labels), tokenizer, config), valid
    )
    recipe = {"train": configs.to_dict(config)}
    return _run(model, tokenizer, learned, held_out, config, Path(out), recipe, resume, say)


def train_recipe(
    recipe: Recipe, out: Path | str, resume: bool = False, say: Callable[[str], None] = print
) -> Run:
    """Train what a recipe describes, on the data it names, into the run directory ``out``.

    Raises:
        ConfigError, DataError, InputError, TrainingError, ArtifactError: see :func:`train`.
    """
    if recipe.prior_of == "TOKENIZER":
        raise ConfigError(
            "this recipe trains a prior on the codes of a tokenizer: name its run with --tokenizer RUN"
        )
    if recipe.data.source.endswith(":PATH"):
        raise ConfigError(f"this recipe needs images: name them with --data {recipe.data.source}")
    if recipe.prior_of and recipe.data.binarize == "dynamic":
        raise ConfigError('a prior trains on codes made once: take binarize = "fixed"')
    _refuse_taken(out, resume)
    if recipe.prior_of and not resume:
        locate(recipe.prior_of)
    images, held_out = _split(recipe, "train"), _split(recipe, "valid")
    _check_classes(images, held_out)
    if not len(held_out):
        raise DataError(f"{recipe.data.source} has no validation images")
    # A resumed prior goes on with the tokenizer that its run holds, once that is whole.
    own = Path(out) / "tokenizer"
    kept = resume and (own / "config.json").exists()
    if skipped := sorted({*images.skipped, *held_out.skipped}):
        more = (
            f"; {len(skipped) - 3} more, all in {Path(out) / 'skipped.txt'}"
            if len(skipped) > 3
            else ""
        )
        say(
            f"{len(skipped)} file{'s' if len(skipped) > 1 else ''} skipped: {'; '.join(skipped[:3])}{more}"
        )
    say(f"split: {images.recipe['split_rule']}")
    model, tokenizer = _build(recipe, images, str(own) if kept else recipe.prior_of)
    conditional = class_count(model) > 0
    flip, draw = recipe.data.flip, recipe.data.binarize == "dynamic"
    labels = (images.labels, held_out.labels) if conditional else (None, None)
    examples = prepare(model, images.images, labels[0], tokenizer, recipe.train, flip, draw)
    valid = prepare(model, held_out.images, labels[1], tokenizer, recipe.train)
    # A resumed prior has these already, and its tokenizer's own run may be gone.
    seen = trained_on(recipe.prior_of) if recipe.prior_of and not kept else None
    learned = _Part(
        examples, images.identity(), None if draw else images.hashes(), images.skipped, seen
    )
    validated = _Part(
        valid, held_out.identity(), None if draw else held_out.hashes(), held_out.skipped
    )
    facts = configs.to_dict(recipe)
    return _run(model, tokenizer, learned, validated, recipe.train, Path(out), facts, resume, say)


def _build(
    recipe: Recipe, images: data.ImageSet, prior_of: str
) -> tuple[Prior | Tokenizer | VAE, Tokenizer | None]:
    """The model of a recipe for these images, and the tokenizer of a prior."""
    height, width, channels = images.images.shape[1:]
    if recipe.tokenizer:
        named = recipe.tokenizer
        if {"image_size", "channels"} & set(named.sizes):
            raise ConfigError(
                "the tokenizer's image_size and channels follow from data.size and data.channels"
            )
        sizes = {"image_size": (height, width), "channels": channels} | dict(named.sizes)
        return create_tokenizer(named.name, seed=named.seed, **sizes), None
    if recipe.vae:
        if {"image_size", "channels", "levels"} & set(recipe.vae.sizes):
            raise ConfigError(
                "the VAE's image_size, channels and levels follow from the table [data]"
            )
        shape = {"image_size": (height, width), "channels": channels, "levels": images.levels}
        return create_vae(seed=recipe.vae.seed, **shape, **recipe.vae.sizes), None
    assert recipe.model is not None
    tokenizer = None
    grids: tuple[Grid, ...] = (Grid(height, width, channels, images.levels),)
    if prior_of:
        loaded = load(prior_of)
        if not isinstance(loaded, Tokenizer):
            kind = "VAE" if isinstance(loaded, VAE) else "density model"
            raise ConfigError(
                f"--tokenizer (prior_of) must name the run of a tokenizer; {recipe.prior_of} is a {kind}"
            )
        tokenizer = loaded
        if (tuple(tokenizer.image_size), tokenizer.channels) != ((height, width), channels):
            raise ConfigError(
                f"the tokenizer {recipe.prior_of} was trained on images of {tokenizer.image_size[0]}x"
                f"{tokenizer.image_size[1]}x{tokenizer.channels}, the data has {height}x{width}x{channels}"
            )
        grids = tokenizer.grids()
    classes = images.classes if recipe.model.conditional else 0
    if recipe.model.conditional and not classes:
        raise ConfigError(f"model.conditional needs labels, and {recipe.data.source} has none")
    named_model = recipe.model
    reserved = {"grid", "grids", "classes", "codes"} & set(named_model.sizes)
    if reserved:
        raise ConfigError(
            f"model.{min(reserved)} follows from the data: leave it out (model.conditional = true uses labels)"
        )
    sizes = dict(named_model.sizes) | {"seed": named_model.seed, "finer": named_model.finer}
    model = create_prior(named_model.name, grids, named_model.head, classes, **sizes)
    return model, tokenizer


def _split(recipe: Recipe, split: str) -> data.ImageSet:
    """The images of a split, or their codes where the source is codes on disk."""
    kind, _, path = recipe.data.source.partition(":")
    if kind != "codes":
        return data.load(recipe.data, split)
    if not recipe.prior_of:
        raise ConfigError(
            "codes are for a prior: name the tokenizer that made them with --tokenizer RUN"
        )
    return code_store.load_split(path, split)


def _of_arrays(examples: Examples, images: Any) -> _Part:
    """Examples made of arrays or an image set, with what they are."""
    if isinstance(images, data.ImageSet):
        return _Part(examples, images.identity(), images.hashes(), images.skipped)
    if isinstance(images, code_store.CodeSet):
        return _Part(examples, images.identity(), images.hashes())
    first = examples.variants[0]
    shape = {"count": len(first), "shape": list(first.shape[1:])}
    if isinstance(images, StoredImages):
        return _Part(examples, {**shape, "sha256": images.sha256}, images.hashes)
    assert isinstance(first, torch.Tensor)
    digest = hashlib.sha256(first.contiguous().numpy().tobytes()).hexdigest()
    pixels = np.asarray(images)
    return _Part(
        examples,
        {**shape, "sha256": digest},
        image_hashes(pixels) if pixels.dtype == np.uint8 else None,
    )


def _refuse_taken(out: Path | str, resume: bool) -> None:
    """Check that a new run can begin, before images are decoded and other processes are started."""
    if not resume and "LOCAL_RANK" not in os.environ:
        RunDirectory(out).refuse_taken()


def _check_classes(images: data.ImageSet, held_out: data.ImageSet) -> None:
    """That a number means the same class in both."""
    if images.label_names and held_out.label_names and images.label_names != held_out.label_names:
        raise InputError(
            f"the training images have the classes {', '.join(images.label_names)}, "
            f"the validation images {', '.join(held_out.label_names)}: give both the same"
        )


def _pair(model: Prior | Tokenizer | VAE, images: Any, labels: Any) -> tuple[Any, Any]:
    """Images and labels; an image set brings its own labels, for a model that has classes."""
    if not isinstance(images, data.ImageSet):
        return images, labels
    conditional = class_count(model) > 0
    return images.images, images.labels if labels is None and conditional else labels


def _hold_out(images: Any, labels: Any, seed: int) -> tuple[Any, Any, Any, Any]:
    n = len(images)
    if n < 2:
        raise InputError(f"training needs at least 2 images, got {n}")
    if isinstance(images, (StoredImages, data.ImageSet, code_store.CodeSet)):
        raise InputError(
            'give valid= too, for example data.load(config, "valid"): images of a source come divided'
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    held, rest = np.sort(order[: max(1, n // 10)]), np.sort(order[max(1, n // 10) :])
    images = np.asarray(images)
    if labels is None:
        return images[rest], None, images[held], None
    labels = np.asarray(labels)
    return images[rest], labels[rest], images[held], labels[held]


def _run(
    model: Prior | Tokenizer | VAE,
    tokenizer: Tokenizer | None,
    learned: _Part,
    held_out: _Part,
    config: TrainConfig,
    out: Path,
    recipe: dict[str, Any],
    resume: bool,
    say: Callable[[str], None],
) -> Run:
    """Set up, start or resume, train, and leave the best weights in ``model``."""
    if not isinstance(model, (Tokenizer, VAE)):
        if isinstance(model, DensityModel) and model.conditioning.codes is not None:
            raise ConfigError(
                "a model conditioned on codes trains beside the prior of those: give a ts.Hierarchy of both"
            )
        model.null_class = model.null_class and not (model.classes and not config.condition_dropout)
    elif config.checkpointing:
        raise ConfigError(
            "train.checkpointing serves density models: leave it out for a tokenizer or a VAE"
        )
    examples, valid = learned.examples, held_out.examples.first(VALID_LIMIT, VALID_BYTES)
    identities = {"train": learned.identity, "valid": held_out.identity}
    facts = {"recipe": recipe, "data": identities, "overlap": _overlap(learned, held_out)}
    with _threads(config.threads), contextlib.ExitStack() as stack:
        if not isinstance(model, (Tokenizer, VAE)):
            stack.callback(setattr, model, "checkpointing", model.checkpointing)
            model.checkpointing = model.checkpointing or config.checkpointing
        fabric = loop.create_fabric(config)
        if config.devices > 1:
            fabric.launch()
        task = _task(model, tokenizer, examples, config, recipe)
        run = stack.enter_context(
            contextlib.closing(RunDirectory(out, writes=fabric.is_global_zero))
        )
        session = loop.setup(fabric, task, examples, valid, config, run)
        restored = resume and _resume(session, facts, say)
        described = _describe(session)
        if not resume:
            run.start(
                {
                    **facts,
                    "task": task.describe(),
                    "environment": environment(fabric.device, fabric.world_size),
                }
            )
        if not restored and fabric.is_global_zero:
            _save_baseline(task, learned, out)
            if skipped := sorted({*learned.skipped, *held_out.skipped}):
                files.write_text(out / "skipped.txt", "\n".join([*skipped, ""]))
        fabric.barrier()
        if fabric.is_global_zero:
            if facts["overlap"]:
                say(
                    f"note: {facts['overlap']} validation images are, pixel for pixel, training images too"
                )
            if not _finished(session):
                say(described)
                if isinstance(task, AdversarialTask):
                    say(task.about())
        if config.compile:
            stack.enter_context(loop.compiled(task.networks(), fabric.device))
        progress = loop.main(session)
    _take_best(model, out)
    stopped = loop.passed(config, progress, len(examples)) < 1
    if fabric.is_global_zero:
        ending = (
            f"interrupted: tessella train --resume {out} goes on" if stopped else f"saved to {out}"
        )
        say(f"step {progress.step}, {progress.seconds:.0f} s: best {task.metric} {progress.best:.4f} at step "
            f"{progress.best_step}; {ending}")  # fmt: skip
    return Run(out, progress, stopped)


def _overlap(learned: _Part, held_out: _Part) -> int | None:
    """How many held-out images are among the images learned from; None where those are drawn anew
    each time."""
    if learned.hashes is None or held_out.hashes is None:
        return None
    return int(np.isin(held_out.hashes, learned.hashes).sum())


def _save_baseline(task: Task, learned: _Part, out: Path) -> None:
    """Keep with the run what its figures are compared to, and which images it, and its tokenizer,
    have seen."""
    task.save_baseline(learned.examples, out)
    two_stage = task.describe().get("tokenizer") is not None
    if learned.hashes is not None and (learned.seen is not None or not two_stage):
        save_seen(
            out,
            learned.hashes if learned.seen is None else np.union1d(learned.hashes, learned.seen),
        )


def _task(
    model: Prior | Tokenizer | VAE,
    tokenizer: Tokenizer | None,
    examples: Examples,
    config: TrainConfig,
    recipe: Mapping[str, Any],
) -> Task:
    if isinstance(model, Tokenizer):
        if not recipe.get("adversarial"):
            return TokenizerTask(model)
        terms: AdversarialConfig = configs.from_dict(
            AdversarialConfig, recipe["adversarial"], "adversarial"
        )
        height, width = examples.variants[0].shape[1:3]
        return AdversarialTask(model, terms, config, len(examples), (height, width))
    if isinstance(model, VAE):
        return VAETask(model)
    if tokenizer is None and isinstance(model, DensityModel) and examples.pixels:
        tokenizer = pixel_generator(model).tokenizer
    return DensityTask(model, tokenizer)


def _resume(session: loop.Session, facts: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Go back to the newest whole checkpoint; False where there is none and the run starts again.

    Raises:
        TrainingError: for other data or another model.
        ArtifactError: when there is no run, or it cannot be written.
    """
    run, fabric = session.run, session.fabric
    before, now = run.facts(), environment(fabric.device, fabric.world_size)
    if changed := _changed(before["data"], facts["data"]):
        raise TrainingError(
            f"{run.path} was trained on other images than there are now ({'; '.join(changed)}): "
            "put them back, or train anew with another --out"
        )
    if before["task"] != session.task.describe():
        raise TrainingError(f"{run.path} trains another model: {before['task']}")
    run.lock()
    run.sweep()
    fabric.barrier()
    lines = _restore(session)
    restored = bool(session.checkpoints)
    run.cut_log(session.progress.step)
    if _finished(session):
        more = "give more --steps, --epochs or --minutes to go on"
        lines.append(f"{run.path} is finished after step {session.progress.step}: {more}")
    for name in ("threads", "world_size", "device", "torch"):
        if now[name] != before["environment"][name]:
            lines.append(
                f"note: {name} was {before['environment'][name]} and is {now[name]}: "
                "the run will not repeat bit for bit"
            )
    for line in lines if fabric.is_global_zero else []:
        say(line)
    if (
        restored
        and session.progress.best_step == session.progress.step
        and before["status"] in ("running", "failed")
    ):
        loop.keep(session)  # the last sitting may have ended before it had saved this one
    if before["status"] != "finished" or not _finished(session):
        sittings = [
            *before.get("sittings", []),
            {"step": session.progress.step, "environment": now},
        ]
        run.update(status="running", recipe=facts["recipe"], sittings=sittings)
    return restored


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the images differ; what does not change them, such as their place, is free to."""
    return [
        f"{split} {name} was {str(before[split][name])[:16]} and is {str(now[split][name])[:16]}"
        for split in ("train", "valid")
        for name in ("count", "shape", "sha256", "classes")
        if name in before[split] and before[split][name] != now[split].get(name)
    ]


def _restore(session: loop.Session) -> list[str]:
    """Take up the newest whole checkpoint, where there is one. Returns what there is to say about
    it."""
    try:
        tensors, state, problems = checkpoint.newest(session.run.path)
    except ArtifactError as error:
        if (session.run.path / "config.json").exists():
            raise ArtifactError(
                f"{error}; the model it holds stays as it is: train anew with another --out"
            ) from error
        return [f"{error}; starting again from the beginning"]
    checkpoint.restore(tensors, session.task.module, session.average.module, session.optimizer)
    best = state["progress"]["best"]
    session.progress = Progress(
        **(state["progress"] | {"best": math.inf if best is None else best})
    )
    session.task.recall(state.get("memory", {}))
    session.checkpoints = [session.progress.step]
    return [f"skipped a checkpoint: {problem}" for problem in problems]


def _finished(session: loop.Session) -> bool:
    return loop.passed(session.config, session.progress, len(session.examples)) >= 1


def _describe(session: loop.Session) -> str:
    """One line on what is about to happen."""
    config, measured = session.config, loop.forecast(session)
    limits = {"steps": config.steps, "epochs": config.epochs, "minutes": config.minutes}
    given = ", ".join(f"{value:g} {name}" for name, value in limits.items() if value)
    return (
        f"{measured.parameters / 1e6:.3g} M parameters, {len(session.examples)} training images, "
        f"{measured.memory_bytes / 2**20:.0f} MiB, {measured.step_seconds:.3g} s a step, "
        f"about {measured.epoch_seconds:.3g} s an epoch of {math.ceil(len(session.examples) / config.batch)} steps; "
        f"{'resuming at step ' + str(session.progress.step) + ', ' if session.progress.step else ''}until {given}"
    )


def _take_best(model: Prior | Tokenizer | VAE, out: Path) -> None:
    path = locate(out)
    if not isinstance(model, Tokenizer) and (path / "prior").is_dir():
        path = path / "prior"
    load_weights(model, load_model(path).state_dict(), str(path))
    model.eval().to("cpu")


@contextlib.contextmanager
def _threads(threads: int) -> Iterator[None]:
    """So many CPU threads, for the time of a run."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        yield
    finally:
        torch.set_num_threads(before)
