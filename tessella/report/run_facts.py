"""The facts of a run directory as plain values.

Nothing is needed but the directory: a run that is still training, that has lost its weights or
never had a log is described as far as possible, and ``problems`` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from filelock import FileLock, Timeout
from torch import nn

from tessella import config as configs
from tessella.errors import ArtifactError, TessellaError
from tessella.files import TensorsHeader
from tessella.models import MODELS
from tessella.pipeline import (
    fingerprint,
    is_bundled,
    load_model,
    load_saved,
    locate,
    read_config,
    read_run_record,
)
from tessella.pipeline.building import Network, check_form, grids_of, outline_of
from tessella.pipeline.generator import grids_text
from tessella.pipeline.model_card import TITLES
from tessella.pipeline.run_record import (
    EnvironmentRecord,
    ProgressRecord,
    RunRecord,
    SittingRecord,
    SplitRecord,
)
from tessella.report.curves import NO_LOG, Entry, LogState, curves_of, read_log
from tessella.tokenizers import Tokenizer

T = TypeVar("T")

METRICS = ("valid/precedence", "valid/mse", "valid/bits_per_dim")
"""Figures that the best weights minimize, of logs that do not mark the best: the first logged."""

QUIET = 600.0
"""Seconds without a new line of the log after which a run that should be training is probably
dead."""


class TrainingFacts(TypedDict):
    """How a run was trained, and how far it is."""

    recipe: str
    about: str
    prior_of: str
    on_arrays: bool
    settings: dict[str, object]
    data_options: dict[str, object]
    steps: int
    seconds: float


class ValidationFacts(TypedDict):
    """Step and figures of the weights that were kept."""

    step: int | None
    figures: dict[str, object]


class RunFacts(TypedDict):
    """The facts of a run, as :func:`describe` returns them."""

    run: str
    name: str
    kind: str
    title: str
    status: str
    bundled: bool
    problems: list[str]
    model: dict[str, object] | None
    tokenizer: dict[str, object] | None
    weights: str | None
    data: dict[str, SplitRecord]
    training: TrainingFacts
    validation: ValidationFacts
    figures: dict[str, dict[str, object]]
    environment: EnvironmentRecord
    sittings: list[SittingRecord]
    log: LogState
    overlap: int | None
    bytes: int
    curves: dict[str, dict[str, list[float]]]
    next: list[str]


def describe(run: Path | str) -> RunFacts:
    """The facts of a run as JSON values.

    Args:
        run: path of a run directory, or the name of a bundled model.

    Returns:
        ``run``, ``name``, ``kind``, ``title``, ``status``, ``bundled``, ``problems`` (lines),
        ``model`` and ``tokenizer`` (configuration, grid and number of parameters; None where there
        is none), ``weights`` (fingerprint, or None), ``data`` (by split), ``overlap`` (validation
        images that are training images too, None where that is unknown), ``training`` (recipe,
        settings, steps, seconds), ``validation`` (step and figures of the best weights),
        ``figures`` (measured ones, by data set), ``environment``, ``sittings``, ``log`` (last step,
        age in seconds, lines that cannot be read), ``bytes`` on disk, ``next`` (commands),
        ``curves`` (name to ``step`` and ``value``, at most 600 points each).

    Raises:
        ArtifactError: when there is no run, or one of another format.
    """
    path = locate(run)
    problems: list[str] = []
    record = _record(path, problems)
    kind = _kind(path, record, problems)
    networks, weights = _networks(path, kind, record, problems)
    entries, log = _log(path, problems)
    # A run in training writes its log all the time, and its record only at the end.
    progress = _progress(record, entries)
    # The same entries without those that are null.
    environment = cast(EnvironmentRecord, _present(record.get("environment")))
    facts: RunFacts = {
        "run": str(run),
        "name": path.resolve().name,
        "kind": kind,
        "title": TITLES[kind],
        "status": _status(path, record),
        "bundled": is_bundled(path),
        "problems": problems,
        "model": _described(networks.get("model")),
        "tokenizer": _described(networks.get("tokenizer")),
        "weights": weights,
        "data": _present(record.get("data")),
        "training": _training(record, progress),
        "validation": {"step": progress.get("best_step"), "figures": progress.get("figures") or {}},
        "figures": _present(record.get("figures")),
        "environment": environment,
        "sittings": record.get("sittings") or [],
        "log": log,
        "overlap": record.get("overlap"),
        "bytes": _bytes(path),
        "curves": curves_of(entries),
        "next": [],
    }
    facts["next"] = _next(facts)
    return facts


def of_codes(facts: RunFacts) -> bool:
    """Whether the bits of a run are those of codes: its records name them as those of pixels."""
    return facts["kind"] in ("generator", "prior") or bool(facts["training"]["prior_of"])


def states_bound(facts: RunFacts) -> bool:
    """Whether the bits of a run are a bound: its records name them as exact ones."""
    name = (facts["model"] or {}).get("name")
    return isinstance(name, str) and name in MODELS and MODELS[name].states_bound


def _present(entries: Mapping[str, T | None] | None) -> dict[str, T]:
    """The entries of a mapping that are not null."""
    present = {}
    for name, value in (entries or {}).items():
        if value is not None:
            present[name] = value
    return present


def _record(path: Path, problems: list[str]) -> RunRecord:
    """The contents of ``run.json``; empty, with a problem, where it cannot be read."""
    try:
        return read_run_record(path)
    except ArtifactError as error:
        problems.append(str(error))
        return {}


def _kind(path: Path, record: RunRecord, problems: list[str]) -> str:
    """The kind of model; before the first is saved, of the one that is trained."""
    task = record.get("task")
    if (path / "config.json").exists() or not task:
        return read_config(path)["kind"]
    problems.append("training has not saved a model yet")
    kind = "generator" if task.get("tokenizer") else task.get("kind")
    if kind not in TITLES:
        raise ArtifactError(f"{path}/run.json trains a model of unknown kind {kind!r:.40}")
    return str(kind)


def _networks(
    path: Path, kind: str, record: RunRecord, problems: list[str]
) -> tuple[dict[str, nn.Module], str | None]:
    """The networks of a run, ``model`` and ``tokenizer``, and the fingerprint of its weights.

    Where weights are missing, the networks are outlines without memory and the fingerprint is None.
    """
    if (path / "config.json").exists():
        try:
            if kind == "prior":
                prior = load_model(path)
                return {"model": prior}, fingerprint(prior)
            # Loading checks the weights against their checksum.
            model = load_saved(path)
            networks = dict(model.components())
            # A prior is the model of its two stages.
            if "prior" in networks:
                networks["model"] = networks.pop("prior")
            return networks, fingerprint(model)
        except ArtifactError as error:
            problems.append(str(error))
    # Sizes and parameters are those of the configuration, which needs no weights.
    outlines: dict[str, nn.Module] = {}
    for role, (part_kind, config) in _configurations(path, kind, record, problems).items():
        source = f"the configuration of the {role}"
        try:
            check_form(part_kind, config, source)
            assert isinstance(config, Mapping)
            outlines[role] = outline_of(part_kind, config, TensorsHeader({}, {}), source)
        except ArtifactError as error:
            problems.append(str(error))
    return outlines, None


def _configurations(
    path: Path, kind: str, record: RunRecord, problems: list[str]
) -> dict[str, tuple[str, object]]:
    """Kinds and configurations of the networks of a run that is not whole, by role."""
    role = "tokenizer" if kind == "tokenizer" else "model"
    if not (path / "config.json").exists():
        # Without a saved model, what is known is what the run was to train.
        task = record.get("task") or {}
        return {role: (str(task.get("kind")), task.get("model"))}
    if kind != "generator":
        return {role: (kind, read_config(path)["model"])}
    found: dict[str, tuple[str, object]] = {}
    for role, folder in (("model", path / "prior"), ("tokenizer", path / "tokenizer")):
        if (folder / "config.json").exists():
            try:
                config = read_config(folder)
            except ArtifactError as error:
                problems.append(str(error))
                continue
            found[role] = (config["kind"], config["model"])
    return found


def _described(network: nn.Module | None) -> dict[str, object] | None:
    """Configuration, grid and size of a network."""
    if network is None:
        return None
    assert isinstance(network, Network)
    facts: dict[str, object] = {"name": network.name, **network.config()}
    facts["maps"] = _maps(network)
    facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    return facts


def _maps(network: Network) -> str:
    """The input and the output of a network, in words."""
    grids = grids_of(network)
    if isinstance(network, Tokenizer):
        height, width = network.image_size
        codes = ", ".join(map(str, grids))
        return f"images of {height}x{width}x{network.channels} to {codes}"
    return f"models {grids_text(grids)}"


def _training(record: RunRecord, progress: ProgressRecord) -> TrainingFacts:
    """How a run was trained: the recipe, its settings, and how far it is."""
    recipe = record.get("recipe") or {}
    about = recipe.get("about") or ""
    command = (record.get("environment") or {}).get("command") or []
    return {
        "recipe": _recipe_name(about, command),
        "about": about,
        "prior_of": recipe.get("prior_of") or "",
        "on_arrays": bool(recipe) and not recipe.get("data"),
        "settings": _present(recipe.get("train")),
        "data_options": _present(recipe.get("data")),
        "steps": progress.get("step") or 0,
        "seconds": progress.get("seconds") or 0.0,
    }


def _recipe_name(about: str, command: list[str]) -> str:
    """The recipe that ships and says of itself what the run says, or the one of the command."""
    # What a recipe says of itself is kept with the run, its name is not.
    if about:
        for name in configs.recipe_names():
            if configs.load_recipe(name).about == about:
                return name
    if "train" not in command:
        return ""
    words = command[command.index("train") + 1 :]
    if not words or words[0].startswith("-") or "=" in words[0]:
        return ""
    return Path(words[0]).stem


def _log(path: Path, problems: list[str]) -> tuple[list[Entry], LogState]:
    try:
        return read_log(path / "log.jsonl")
    except ArtifactError as error:
        problems.append(str(error))
        return [], NO_LOG


def _progress(record: RunRecord, entries: list[Entry]) -> ProgressRecord:
    """How far a run is: what it wrote at its end, or while it trains what its log says."""
    # A copy, which is filled from the log below.
    progress = (record.get("progress") or ProgressRecord()).copy()
    if record.get("status") != "running" or not entries:
        return progress
    progress["step"] = int(entries[-1]["step"])
    progress["seconds"] = 0.0
    # Not every line has the time.
    for entry in reversed(entries):
        if "seconds" in entry:
            progress["seconds"] = entry["seconds"]
            break
    best = _best(entries)
    if best:
        progress["best_step"] = int(best["step"])
        figures: dict[str, object] = {}
        for name, value in best.items():
            if name.startswith("valid/"):
                figures[name.removeprefix("valid/")] = value
        progress["figures"] = figures
    return progress


def _best(entries: list[Entry]) -> Entry | None:
    """The best validation: the last whose weights were kept.

    Logs of early versions do not mark it: there it has the least of the figure that was minimized.
    """
    for entry in reversed(entries):
        if "kept" in entry:
            return entry
    for metric in METRICS:
        measured = [entry for entry in entries if metric in entry]
        if measured:
            return min(measured, key=lambda entry: entry[metric])
    return None


def _status(path: Path, record: RunRecord) -> str:
    """How a run stands: what it says, except that one that says it is running may be killed."""
    status = str(record.get("status") or "saved")
    if status != "running" or not (path / ".lock").exists():
        return status
    try:
        # The process that trains holds the lock: if we get it, there is none.
        with FileLock(path / ".lock", timeout=0):
            return "killed"
    except (Timeout, OSError, NotImplementedError):
        return status


def _next(facts: RunFacts) -> list[str]:
    """The commands that make sense next."""
    run = facts["run"]
    status = facts["status"]
    # A process that was killed cannot say so; its log stops growing.
    quiet = (facts["log"]["age_seconds"] or 0) > QUIET
    if status in ("interrupted", "failed", "killed") or (status == "running" and quiet):
        # The command line has no arrays to resume with.
        if facts["training"]["on_arrays"]:
            return ["ts.train(..., resume=True) in Python"]
        command = f"tessella train --resume {run}"
        # What diverged once would diverge again.
        if status == "failed":
            command += " train.learning_rate=..."
        return [command]
    if facts["weights"] is None or facts["kind"] == "prior":
        return []
    commands = []
    if not facts["figures"]:
        commands.append(f"tessella eval {run}")
    if facts["kind"] == "tokenizer":
        commands.append(_train_a_prior(facts))
    else:
        commands.append(f"tessella sample {run}")
    return commands


def _train_a_prior(facts: RunFacts) -> str:
    """The command that trains a prior on a tokenizer, with the recipe for data of its kind."""
    source = str(facts["training"]["data_options"].get("source") or "")
    recipe = _prior_recipe(str(facts["training"]["recipe"]), source)
    command = f"tessella train {recipe}"
    # A source without a path is the recipe's.
    if ":" in source:
        command += f" --data {shlex.quote(source)}"
    return f"{command} --tokenizer {facts['run']}"


def _prior_recipe(tokenizer_recipe: str, source: str) -> str:
    """The recipe that ships for priors on data of the same kind; ``RECIPE`` where there is none."""
    if tokenizer_recipe in configs.recipe_names():
        with contextlib.suppress(TessellaError):
            source = configs.load_recipe(tokenizer_recipe).data.source
    # `folder:PATH` and `folder:photos` are data of one kind.
    kind = source.partition(":")[0]
    for name in configs.recipe_names():
        recipe = configs.load_recipe(name)
        if recipe.prior_of and recipe.data.source.partition(":")[0] == kind:
            return name
    return "RECIPE"


def _bytes(path: Path) -> int:
    """The size of all files of a run.

    Files that go while they are counted, as a run in training has them, count nothing.
    """
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total
