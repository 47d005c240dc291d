"""``ts.train`` on arrays, and ``tessella train`` on recipes: two doors to one loop.

The story of a run, top to bottom: :func:`train` or :func:`train_recipe` makes a :class:`Job` of a
model and its images; :func:`_run` sets it up, starts or resumes it, trains, and leaves the best
weights in the model.
"""

from __future__ import annotations

import contextlib
import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from tessella import config as configs
from tessella import data, files
from tessella.config import Recipe, TrainConfig
from tessella.distributed import least_over_processes
from tessella.errors import ConfigError, DataError, InputError, unknown
from tessella.evaluation import save_seen, trained_on
from tessella.models import DensityModel, Hierarchy
from tessella.pipeline import class_count, load, load_model, load_weights, locate
from tessella.tokenizers import Tokenizer
from tessella.training import boards, build, launching, loop, prepare, schedule, signals
from tessella.training.announcing import announce, ending, report_data
from tessella.training.batch_size import check_batch, largest_batch, recorded_batch
from tessella.training.engine import compiled, create_fabric, kept_memory, threads
from tessella.training.expectation import expectation_of
from tessella.training.forecast import forecast
from tessella.training.prepare import Trainable, TrainingData
from tessella.training.progress import Progress
from tessella.training.resume import resume as resume_run
from tessella.training.run_directory import RunDirectory, environment
from tessella.training.sharding import ShardedStrategy, without_warnings_of_views
from tessella.training.stream import Items, Stream, is_stream
from tessella.training.tasks import Task
from tessella.training.train_keywords import TrainOptions

VALID_LIMIT = 1000
"""Held-out images that a validation during training looks at, at most."""

VALID_BYTES = 1 << 28
"""Bytes of memory that they take, at most."""

PREPARATION_SHARE = 0.5
"""Share of the minutes of a run that reading and encoding its images may use up."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A trained run."""

    path: Path
    progress: Progress
    interrupted: bool
    shown_names: Mapping[str, str] = field(default_factory=dict)
    """How messages name figures, where that differs from records: of codes, bits are per code."""
    status: int = 0
    """Exit status for a command: 0, or what :mod:`tessella.training.signals` says of a stop."""

    def __repr__(self) -> str:
        facts = [repr(str(self.path)), f"steps={self.progress.step}"]
        facts.append(f"seconds={self.progress.seconds:.0f}")
        # Before the first validation there is no best step.
        if self.figures:
            facts.append(f"best_step={self.progress.best_step}")
        for name, value in self.figures.items():
            shown = self.shown_names.get(name, name)
            facts.append(f"{shown}={value:.4g}")
        if self.interrupted:
            facts.append("interrupted=True")
        return f"Run({', '.join(facts)})"

    @property
    def figures(self) -> dict[str, float]:
        """Validation figures of the weights that were kept."""
        return self.progress.figures

    def load(self) -> Any:
        """The trained model; see :func:`tessella.load`."""
        return load(self.path)


@dataclass(frozen=True)
class Job:
    """One run to be made: which model, on which images, how, and where."""

    model: Trainable
    tokenizer: Tokenizer | None
    """Of a prior: makes its codes."""
    train: TrainingData
    valid: TrainingData
    config: TrainConfig
    recipe: Recipe | None
    """None for a run that was started on arrays."""
    out: Path
    resume: bool
    say: Say
    asked: float
    """Reading of the clock when the run was asked for; its minutes count from there."""

    def record(self) -> dict[str, object]:
        """The part of ``run.json`` that is known before training: recipe and data."""
        recipe: dict[str, object] = {"train": configs.to_dict(self.config)}
        if self.recipe is not None:
            recipe = configs.to_dict(self.recipe)
        return {
            "recipe": recipe,
            "data": {"train": self.train.identity, "valid": self.valid.identity},
            "overlap": _overlap(self.train, self.valid),
        }


def train(
    model: Trainable,
    images: object,
    *,
    out: Path | str,
    labels: object = None,
    valid: object = None,
    valid_labels: object = None,
    tokenizer: Tokenizer | None = None,
    resume: bool = False,
    say: Say = print,
    **options: Unpack[TrainOptions],
) -> Run:
    """Train a density model, a tokenizer, a prior on a tokenizer's codes, or a VAE.

    Args:
        model: trained in place: afterwards it holds the averaged weights of the best validation, in
            eval mode.
        images: ``uint8 [n, height, width, channels]``, or an :class:`~tessella.data.ImageSet`; for
            a density model also symbols of another integer type on its grid (for a hierarchy a
            tuple of them). An iterable that can be read again and again, such as a
            ``torch.utils.data.DataLoader``, gives batches of such images, or pairs of images and
            labels, in its own order; then ``valid`` is needed, and the run cannot be resumed.
        out: the run directory; it must not hold a run yet, unless ``resume`` is set.
        labels: class of each image ``[n]``, for a density model with classes.
        valid: held-out images; without them a tenth of ``images``, chosen by the seed, is held out.
        valid_labels: their classes.
        tokenizer: of a prior: images are encoded by it once, and the run saves both.
        resume: go on from the newest whole checkpoint in ``out``; where there is none, start again
            (``model`` must then be as it was).
        say: gets each line about size and time, and about the end.
        options: fields of :class:`tessella.config.TrainConfig`: ``minutes=``, ``steps=``,
            ``batch=``, ``learning_rate=``, ... Minutes count from this call, and include reading
            and encoding the images, validation and saving.

    Raises:
        InputError, ConfigError: for arguments that do not fit each other.
        TrainingError: when ``out`` holds a run already, or the loss is not finite (the last good
            state is kept).
        ArtifactError: when something cannot be written, or there is no run to resume.
    """
    asked = time.monotonic()
    config = _options(dict(options))
    _check_arguments(model, tokenizer, out, resume, say)
    prepare.check_images_argument(images)
    if valid is not None:
        prepare.check_images_argument(valid, "valid")
    out = Path(out)
    resume = resume or launching.goes_on_by_itself(out)
    # All that can be refused is refused before images are encoded, which may take minutes.
    boards.check_installed(config.board)
    _refuse_taken(out, resume)
    train_data, valid_data = _given_data(
        model, tokenizer, config, (images, labels), (valid, valid_labels), resume
    )
    job = Job(
        model=model,
        tokenizer=tokenizer,
        train=train_data,
        valid=valid_data,
        config=config,
        recipe=None,
        out=out,
        resume=resume,
        say=say,
        asked=asked,
    )
    return _run(job)


def train_recipe(recipe: Recipe, out: Path | str, resume: bool = False, say: Say = print) -> Run:
    """Train the model that a recipe describes, on the data it names.

    Args:
        recipe: see :func:`tessella.config.load_recipe`.
        out: the run directory.
        resume: go on from its newest whole checkpoint.
        say: gets each line about data, size and time, and about the end.

    Raises:
        ConfigError, DataError, InputError, TrainingError, ArtifactError: see :func:`train`.
    """
    asked = time.monotonic()
    out = Path(out)
    resume = resume or launching.goes_on_by_itself(out)
    # First what takes no time, then the images, then the model that must fit them.
    build.check_recipe(recipe)
    boards.check_installed(recipe.train.board)
    _refuse_taken(out, resume)
    # A resumed prior goes on with the tokenizer that its run holds.
    held = build.held_tokenizer(out, resume)
    tokenizer = None
    if recipe.prior_of:
        # Before images are read: decoding a folder takes long, and may be in vain.
        tokenizer = build.load_tokenizer(held or recipe.prior_of, recipe)
    images = build.load_split(recipe, "train")
    held_out = build.load_split(recipe, "valid")
    prepare.check_classes(images, held_out)
    if not len(held_out):
        raise DataError(f"{recipe.data.source} has no validation images")
    report_data(images, held_out, out, say)
    seen = None
    if tokenizer is not None:
        build.check_tokenizer(tokenizer, recipe, images)
        # A resumed run has these hashes already, and the run of the tokenizer may be gone.
        seen = None if held else trained_on(recipe.prior_of)
    model = build.build_model(recipe, images, tokenizer)
    drawn_anew = recipe.data.binarize == "dynamic"
    train_data = _split_data(
        model,
        images,
        tokenizer,
        condition_dropout=recipe.train.condition_dropout,
        flip=recipe.data.flip,
        binarize=drawn_anew,
        seen=seen,
    )
    with _named(f"the split valid of {held_out.name}"):
        valid_data = _split_data(model, held_out, tokenizer, hashed=not drawn_anew)
    job = Job(
        model=model,
        tokenizer=tokenizer,
        train=train_data,
        valid=valid_data,
        config=recipe.train,
        recipe=recipe,
        out=out,
        resume=resume,
        say=say,
        asked=asked,
    )
    return _run(job)


def _run(job: Job) -> Run:
    """Set up, start or resume, train, and leave the best weights in the model."""
    config = job.config
    record = job.record()
    build.check_sharding(config)
    task = _task_of(job)
    check_batch(job.train, config.batch)
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads(config.threads))
        stack.enter_context(kept_memory())
        stack.enter_context(without_warnings_of_views())
        stack.enter_context(task.adapted(config.checkpointing, config.condition_dropout))
        layout = launching.layout_of(config.devices)
        fabric = create_fabric(
            config.device,
            layout.devices,
            config.precision,
            layout.nodes,
            strategy=ShardedStrategy() if config.sharding == "full" else "ddp",
        )
        stop = signals.StopFlag()
        # A queue may send its signal while all is set up: the first step is then not taken.
        stack.enter_context(signals.setting(stop, signals.FROM_QUEUE))
        stack.enter_context(launching.ending_together(fabric))
        batch = _batch_of(job, task, layout)
        # From here on there may be several processes; all go through the same lines, and only the
        # first one writes and speaks.
        if layout.processes > 1:
            fabric.launch()
        if config.batch == 0:
            fits = least_over_processes(batch, fabric.device)
            job = _with_batch(job, fits * layout.processes, fabric.is_global_zero)
            config = job.config
            record = job.record()
        run = RunDirectory(job.out, fabric.is_global_zero, config.board)
        stack.callback(run.close)
        # A validation during training looks at a part; eval measures all of it.
        valid = job.valid.examples
        assert not isinstance(valid, Stream)
        valid = valid.first(VALID_LIMIT, VALID_BYTES)
        task.begin(job.train.examples.sample())
        session = loop.setup(fabric, task, job.train.examples, valid, config, run, job.say)
        session.stop = stop
        if job.recipe is not None:
            session.expectation = expectation_of(
                job.recipe, job.train.identity, task.describe(), task.metric
            )
        if job.resume:
            restored = resume_run(session, record, job.say)
        else:
            made = environment(fabric.device, fabric.world_size)
            run.start({**record, "task": task.describe(), "environment": made})
            restored = False
        if fabric.is_global_zero and not restored:
            _save_baseline(task, job)
        fabric.barrier()
        # Of a finished run that is resumed there is nothing to forecast.
        if session.share < 1:
            expected = forecast(fabric, task, session.examples, config.batch, config.accumulate)
            session.forecast_seconds = expected.step_seconds
            if fabric.is_global_zero:
                announce(session, record, expected)
        if config.compile:
            stack.enter_context(compiled(task.networks(), fabric.device))
        # A run that goes on has counted its preparation the first time.
        if not restored:
            _count_preparation(session, job)
        progress = loop.main(session)
        stopped = session.share < 1
        first = fabric.is_global_zero
    _take_best(job.model, job.out)
    if first:
        job.say(ending(task, progress, job.out, stopped))
        verdict = session.expectation.verdict(progress) if session.expectation else ""
        if verdict:
            job.say(verdict)
    status = stop.status if stopped else 0
    if launching.is_started_by_us(fabric):
        status = 0
    return Run(job.out, progress, stopped, {task.metric: task.shown_metric}, status)


def _task_of(job: Job) -> Task:
    """The task that trains the model of a job."""
    # The parameters of a model that is divided are replaced; the caller's own get the result.
    model = job.model
    if job.config.sharding == "full":
        model = copy.deepcopy(model)
    if job.recipe and job.recipe.adversarial:
        terms = job.recipe.adversarial
        return build.build_adversarial_task(model, terms, job.config, job.train)
    return build.build_task(model, job.tokenizer, job.train)


def _batch_of(job: Job, task: Task, layout: launching.ProcessLayout) -> int:
    """Images of a step of each process: what the configuration says, or what fits."""
    config = job.config
    if config.batch:
        return config.batch // layout.processes
    if job.recipe and job.recipe.adversarial:
        raise ConfigError(
            "train.batch=0 cannot know what the adversarial term will take once it begins: give"
            " the number of images"
        )
    # A run that goes on takes the batch that it has chosen, whatever would fit today.
    recorded = recorded_batch(job.out) if job.resume else 0
    if recorded:
        if recorded % layout.processes:
            raise ConfigError(
                f"the run has chosen train.batch={recorded}, which {layout.processes} processes"
                " cannot divide: resume it on a number of processes that divides it"
            )
        return recorded // layout.processes
    one_pass = largest_batch(task, job.train.examples, config, layout.devices)
    return one_pass * config.accumulate


def _with_batch(job: Job, batch: int, says: bool) -> Job:
    """A job whose record says which batch was chosen."""
    # A run that goes on keeps its number, and nothing was measured.
    was_recorded = job.resume and recorded_batch(job.out) > 0
    if says and not was_recorded:
        job.say(f"train.batch={batch} is the largest that fits")
    config = replace(job.config, batch=batch)
    recipe = job.recipe
    if recipe is not None:
        recipe = replace(recipe, train=config)
    return replace(job, config=config, recipe=recipe)


def _options(options: dict[str, object]) -> TrainConfig:
    """The configuration of keywords, which must all be known."""
    # Names of both kinds, so that a misspelt one finds its neighbour.
    others = {"images", "labels", "valid", "valid_labels", "tokenizer", "resume", "say", "out"}
    known = set(TrainOptions.__annotations__)
    for name in options:
        if name not in known:
            raise ConfigError(unknown("argument of train:", name, known | others))
    config: TrainConfig = configs.from_dict(TrainConfig, options, "train")
    if not (config.steps or config.epochs or config.minutes):
        raise ConfigError("training needs a limit: give steps=, epochs= or minutes=")
    return config


def _check_arguments(
    model: object, tokenizer: object, out: object, resume: object, say: object
) -> None:
    """Refuse arguments of wrong types before anything is done."""
    # The annotations say the same; at run time nothing enforces them.
    if getattr(model, "kind", None) not in build.TASKS:
        raise InputError(
            "train takes a density model, a tokenizer or a VAE (ts.create, ts.create_tokenizer,"
            f" ts.create_vae), got {type(model).__name__}"
        )
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"tokenizer must be a Tokenizer, such as ts.load(run), got {type(tokenizer).__name__}"
        )
    if not isinstance(out, (str, Path)) or not str(out):
        raise InputError(f"out must be the path of a run directory, got {out!r}")
    if not isinstance(resume, bool):
        raise InputError(f"resume must be True or False, got {resume!r}")
    if not callable(say):
        raise InputError(f"say must be a function of a line, got {say!r}")


def _refuse_taken(out: Path, resume: bool) -> None:
    """Check that a new run can begin, before images are decoded and other processes are started."""
    # LOCAL_RANK: this is one of the other processes, and the first one has begun the run.
    if not resume and "LOCAL_RANK" not in os.environ:
        RunDirectory(out).refuse_taken()


def _given_data(
    model: Trainable,
    tokenizer: Tokenizer | None,
    config: TrainConfig,
    given: tuple[object, object],
    held_out: tuple[object, object],
    resume: bool,
) -> tuple[TrainingData, TrainingData]:
    """Both splits of what a caller gave, as pairs of images and labels.

    Without held-out images a tenth of the training images is held out.
    """
    images, labels = given
    valid, valid_labels = held_out
    prepare.check_array_scale(model, tokenizer, images, "images")
    prepare.check_array_scale(model, tokenizer, valid, "valid")
    if is_stream(images):
        train_data = _stream_data(model, images, labels, valid, resume, config)
    else:
        if isinstance(images, data.ImageSet) and isinstance(valid, data.ImageSet):
            prepare.check_classes(images, valid)
        if valid is None:
            images, labels, valid, valid_labels = prepare.hold_out(images, labels, config.seed)
        train_data = _array_data(model, images, labels, tokenizer, config)
    if is_stream(valid):
        raise InputError("valid must be an array, an ImageSet or codes, not an iterable")
    with _named("valid"):
        valid_data = _array_data(model, valid, valid_labels, tokenizer, config)
    return train_data, valid_data


@contextlib.contextmanager
def _named(split: str) -> Iterator[None]:
    """Say in messages which images do not fit: the model was made for those of training."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{split}: {error}") from error


def _array_data(
    model: Trainable,
    images: object,
    labels: object,
    tokenizer: Tokenizer | None,
    config: TrainConfig,
) -> TrainingData:
    """One split of arrays or of an image set, checked and encoded."""
    pixels, tags = prepare.with_labels(model, images, labels)
    examples = prepare.prepare(model, pixels, tags, tokenizer, config.condition_dropout)
    return prepare.describe_data(examples, images)


def _stream_data(
    model: Trainable,
    images: Items,
    labels: object,
    valid: object,
    resume: bool,
    config: TrainConfig,
) -> TrainingData:
    """Training data of somebody else's iterable."""
    if resume:
        raise InputError(
            "a run on an iterable cannot be resumed: the iterable decides the order of its images,"
            " so the steps to come would not be those of an uninterrupted run;"
            " to be able to resume, give an array"
        )
    if valid is None:
        raise InputError(
            "give valid= too: no images can be held out of an iterable, which decides their order"
        )
    return prepare.prepare_stream(model, images, labels, config)


def _split_data(
    model: Trainable,
    images: data.ImageSet,
    tokenizer: Tokenizer | None,
    *,
    condition_dropout: float = 0.0,
    flip: bool = False,
    binarize: bool = False,
    hashed: bool = True,
    seen: np.ndarray | None = None,
) -> TrainingData:
    """One split of a recipe's images, checked and encoded.

    Args:
        condition_dropout, flip, binarize: random changes, of the training split.
        hashed: whether the images are what a model sees; False where pixels are drawn anew.
        seen: hashes of the images that the tokenizer was trained on.
    """
    # Labels that the model has no use for are left out, so that none are refused.
    labels = images.labels if class_count(model) else None
    examples = prepare.prepare(
        model, images.images, labels, tokenizer, condition_dropout, flip, binarize
    )
    hashes = None
    # Of images that are not stored, a hash would mean to decode them all beforehand.
    if hashed and not binarize and getattr(images.images, "hashed", True):
        hashes = images.hashes()
    return TrainingData(examples, images.identity(), hashes, images.skipped, seen)


def _overlap(train: TrainingData, valid: TrainingData) -> int | None:
    """Held-out images that are among the training images; None where those vary."""
    if train.hashes is None or valid.hashes is None:
        return None
    return int(np.isin(valid.hashes, train.hashes).sum())


def _save_baseline(task: Task, job: Job) -> None:
    """Keep with the run what its figures are compared to, and which images it has seen."""
    task.save_baseline(job.train.examples.sample(), job.out)
    hashes = job.train.hashes
    # A prior has seen, through its tokenizer, the images of both.
    seen = job.train.seen_by_tokenizer
    if seen is not None and hashes is not None:
        hashes = np.union1d(hashes, seen)
    # Of a prior whose tokenizer does not say what it has seen, nothing can be promised.
    unknown_to_us = task.describe().get("tokenizer") is not None and seen is None
    if hashes is not None and not unknown_to_us:
        save_seen(job.out, hashes)
    skipped = sorted({*job.train.skipped, *job.valid.skipped})
    if skipped:
        files.write_text(job.out / "skipped.txt", "\n".join([*skipped, ""]))


def _count_preparation(session: loop.Session, job: Job) -> None:
    """Count the time from the call to here towards the minutes of a run.

    At most half of the minutes: a run must not end before it has begun.
    """
    took = time.monotonic() - job.asked
    # 0 where the run is not limited by time.
    limit = 60 * job.config.minutes
    if limit and took > PREPARATION_SHARE * limit:
        if session.fabric.is_global_zero:
            job.say(
                f"note: preparing the images took {schedule.duration(took)} of the"
                f" {schedule.duration(limit)}: training gets {schedule.duration(limit / 2)}"
            )
        took = PREPARATION_SHARE * limit
    # One value for all processes: it drives the learning rate of the first step.
    session.progress.seconds = session.fabric.broadcast(took)


def _take_best(model: Trainable, out: Path) -> None:
    """Put the best weights, which are saved, into the model."""
    path = locate(out)
    # Of two stages the prior is what was trained.
    if model.kind == "density-model" and (path / "prior").is_dir():
        path = path / "prior"
    # They are read back rather than kept in memory: so what was saved is what the caller gets.
    best = load_model(path)
    load_weights(model, best.state_dict(), str(path))
    # Not among the weights, and set on the copy that was divided.
    if isinstance(best, (DensityModel, Hierarchy)):
        assert isinstance(model, (DensityModel, Hierarchy))
        model.null_class = best.null_class
    model.eval().to(torch.device("cpu"))
