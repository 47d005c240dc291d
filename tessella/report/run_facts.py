"""The facts of a run directory as plain values.

Nothing is needed but the directory: a run that is still training, that has lost its weights or
never had a log is described as far as it goes, and ``problems`` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from tessella import config as configs
from tessella.errors import ArtifactError, TessellaError
from tessella.files import TensorsHeader
from tessella.pipeline import (
    Component,
    fingerprint,
    is_bundled,
    load_model,
    load_saved,
    locate,
    read_config,
    read_run_record,
)
from tessella.pipeline.building import check_form, outline_of
from tessella.pipeline.model_card import TITLES
from tessella.report.curves import Entry, curves_of, read_log

METRICS = ("valid/precedence", "valid/mse", "valid/bits_per_dim")
"""Figures that the best weights minimize, of logs that do not mark the best: the first logged."""

QUIET = 600.0
"""Seconds without a new line of the log after which a run that should be training is probably
dead."""


def describe(run: Path | str) -> dict[str, Any]:
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
    facts = {
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
        "figures": record.get("figures") or {},
        "environment": _present(record.get("environment")),
        "sittings": record.get("sittings") or [],
        "log": log,
        "overlap": record.get("overlap"),
        "bytes": _bytes(path),
        "curves": curves_of(entries),
    }
    return facts | {"next": _next(facts)}


def _present(entries: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a mapping that are not null."""
    return {name: value for name, value in (entries or {}).items() if value is not None}


def _record(path: Path, problems: list[str]) -> dict[str, Any]:
    """The contents of ``run.json``; empty, with a problem, where it cannot be read."""
    try:
        return read_run_record(path)
    except ArtifactError as error:
        problems.append(str(error))
        return {}


def _kind(path: Path, record: Mapping[str, Any], problems: list[str]) -> str:
    """The kind of model; before the first is saved, of the one that is trained."""
    task = record.get("task")
    if (path / "config.json").exists() or not task:
        return str(read_config(path)["kind"])
    problems.append("training has not saved a model yet")
    kind = "generator" if task.get("tokenizer") else task.get("kind")
    if kind not in TITLES:
        raise ArtifactError(f"{path}/run.json trains a model of unknown kind {kind!r:.40}")
    return str(kind)


def _networks(
    path: Path, kind: str, record: Mapping[str, Any], problems: list[str]
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
            outlines[role] = outline_of(part_kind, config, TensorsHeader({}, {}), source)
        except ArtifactError as error:
            problems.append(str(error))
    return outlines, None


def _configurations(
    path: Path, kind: str, record: Mapping[str, Any], problems: list[str]
) -> dict[str, tuple[str, Any]]:
    """Kinds and configurations of the networks of a run that is not whole, by role."""
    role = "tokenizer" if kind == "tokenizer" else "model"
    if not (path / "config.json").exists():
        task = record["task"]
        return {role: (str(task["kind"]), task.get("model"))}
    if kind != "generator":
        return {role: (kind, read_config(path).get("model"))}
    found = {}
    for role, folder in (("model", path / "prior"), ("tokenizer", path / "tokenizer")):
        if (folder / "config.json").exists():
            try:
                config = read_config(folder)
            except ArtifactError as error:
                problems.append(str(error))
                continue
            found[role] = (str(config["kind"]), config.get("model"))
    return found


def _described(network: nn.Module | None) -> dict[str, Any] | None:
    """Configuration, grid and size of a network."""
    if network is None:
        return None
    assert isinstance(network, Component)
    facts: dict[str, Any] = {"name": network.name, **network.config()}
    facts["maps"] = _maps(network)
    facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    return facts


def _maps(network: Component) -> str:
    """What a network makes of what, in words."""
    if network.kind == "tokenizer":
        image: Any = network
        height, width = image.image_size
        codes = ", ".join(str(grid) for grid in image.grids())
        return f"images of {height}x{width}x{image.channels} to {codes}"
    model: Any = network
    # A hierarchy has several grids, all other models have one.
    grids = model.grids if hasattr(model, "grids") else (model.grid,)
    return "models " + " and ".join(str(grid) for grid in grids)


def _training(record: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, Any]:
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


def _log(path: Path, problems: list[str]) -> tuple[list[Entry], dict[str, Any]]:
    try:
        return read_log(path / "log.jsonl")
    except ArtifactError as error:
        problems.append(str(error))
        return [], {"step": 0, "age_seconds": None, "unreadable": 0}


def _progress(record: Mapping[str, Any], entries: list[Entry]) -> dict[str, Any]:
    """How far a run is: what it wrote at its end, or while it trains what its log says."""
    progress = dict(record.get("progress") or {})
    if record.get("status") != "running" or not entries:
        return progress
    progress["step"] = entries[-1]["step"]
    progress["seconds"] = 0.0
    # Not every line has the time.
    for entry in reversed(entries):
        if "seconds" in entry:
            progress["seconds"] = entry["seconds"]
            break
    best = _best(entries)
    if best:
        progress["best_step"] = best["step"]
        progress["figures"] = {}
        for name, value in best.items():
            if name.startswith("valid/"):
                progress["figures"][name.removeprefix("valid/")] = value
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


def _status(path: Path, record: Mapping[str, Any]) -> str:
    """How a run stands: what it says, except that one that says it is running may be killed."""
    status = str(record.get("status") or "saved")
    if status != "running" or not (path / ".lock").exists():
        return status
    try:
        # The process that trains holds the lock: whoever gets it knows that there is none.
        with FileLock(path / ".lock", timeout=0):
            return "killed"
    except (Timeout, OSError, NotImplementedError):
        return status


def _next(facts: Mapping[str, Any]) -> list[str]:
    """What to type next."""
    run = facts["run"]
    status = facts["status"]
    # A process that was killed cannot say so; its log stops growing.
    quiet = (facts["log"]["age_seconds"] or 0) > QUIET
    if status in ("interrupted", "failed", "killed") or (status == "running" and quiet):
        # The command line has no arrays to resume with.
        if facts["training"]["on_arrays"]:
            return ["ts.train(..., resume=True) in Python"]
        lower = " train.learning_rate=..." if status == "failed" else ""
        return [f"tessella train --resume {run}{lower}"]
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


def _train_a_prior(facts: Mapping[str, Any]) -> str:
    """The command that trains a prior on a tokenizer, with the recipe for data of its kind."""
    source = str(facts["training"]["data_options"].get("source") or "")
    recipe = _prior_recipe(str(facts["training"]["recipe"]), source)
    data = f" --data {shlex.quote(source)}" if ":" in source else ""
    return f"tessella train {recipe}{data} --tokenizer {facts['run']}"


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
