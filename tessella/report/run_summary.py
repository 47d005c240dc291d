"""What a run is: the facts of a run directory as plain values, and as text for people, with its
curves.

:func:`describe` gathers the facts and needs nothing but the directory: a run that is still
training, that has lost its weights or never had a log is described as far as it goes, and
``problems`` says what is missing. :func:`render` lays them out for a terminal.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from tessella import config as configs
from tessella import files
from tessella.errors import ArtifactError, TessellaError
from tessella.grid import Grid
from tessella.models import DensityModel, from_config
from tessella.pipeline import (
    Generator,
    fingerprint,
    is_bundled,
    load,
    load_model,
    locate,
    read_config,
)
from tessella.pipeline.model_card import TITLES
from tessella.pipeline.run_record import read_run_record
from tessella.report.curves import curves_of, draw, read_log
from tessella.tokenizers import Tokenizer, codebook_health, create_tokenizer
from tessella.vae import VAE

METRICS = ("valid/precedence", "valid/mse", "valid/bits_per_dim")
"""Figures that the best weights minimize, of logs that do not mark the best: the first logged."""

QUIET = 600.0
"""Seconds without a new line of the log after which a run that should be training probably is
not."""

UNITS = {
    "images": ("images", ""),
    "bits_per_dim": ("code length", "bits/dim"),
    "bits_per_code": ("code length", "bits/code"),
    "bits_per_image": ("code length", "bits/image"),
    "bits_per_image_dim": ("code length by image dimension", "bits/dim of the image"),
    "nats_per_image": ("code length", "nats/image"),
    "bound_bits_per_dim": ("bits of the images, at most", "bits/dim"),
    "pixel_bits_per_dim": ("pixels given the codes", "bits/dim"),
    "code_bits_per_dim": ("codes", "bits/dim of the image"),
    "baseline_bits_per_dim": ("independent symbols", "bits/dim"),
    "mse": ("squared error", "(0..255)²"),
    "psnr_db": ("PSNR", "dB"),
    "mean_image_psnr_db": ("PSNR of the mean image", "dB"),
    "ssim": ("SSIM", ""),
    **codebook_health.UNITS,
    "scored_grid": ("scored grid", ""),
    "condition": ("condition", ""),
}
"""What a figure is called, and its unit. Others go by their own name."""

UNTOLD = ("weights", "diagnosis")
"""Figures that have no row: they are told elsewhere."""


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
    path, problems = locate(run), list[str]()
    stored = _stored(path, problems)
    kind = _kind(path, stored, problems)
    modules, weights = _modules(path, kind, stored, problems)
    entries, log = read_log(path / "log.jsonl")
    progress = _progress(stored, entries)
    tokenizer = modules.get("tokenizer")
    facts = {
        "run": str(run),
        "name": path.resolve().name,
        "kind": kind,
        "title": TITLES[kind],
        "status": _status(path, stored),
        "bundled": is_bundled(path),
        "problems": problems,
        "model": _described(modules["model"]) if "model" in modules else None,
        "tokenizer": _described(tokenizer) if tokenizer is not None else None,
        "weights": weights,
        "data": stored.get("data") or {},
        "training": _training(stored, progress),
        "validation": {"step": progress.get("best_step"), "figures": progress.get("figures") or {}},
        "figures": stored.get("figures") or {},
        "environment": stored.get("environment") or {},
        "sittings": stored.get("sittings") or [],
        "log": log,
        "overlap": stored.get("overlap"),
        "bytes": _bytes(path),
        "curves": curves_of(entries),
    }
    return facts | {"next": _next(facts)}


def render(facts: Mapping[str, Any], width: int = 80, colour: bool = False) -> str:
    """The facts as text for people, with the curves.

    Args:
        facts: what :func:`describe` returns.
        width: columns of the terminal.
        colour: whether the curves may have colours, as on a terminal.
    """
    width = max(40, width)
    lines = [f"{facts['name']}: {facts['title']}", ""]
    for label, texts in _sections(facts):
        for i, text in enumerate(texts):
            indent = f"{label if i == 0 else '':12}"
            # Commands are there to be copied, so they stay in one line.
            lines += [indent + text] if label == "next" else _wrapped(text, width, indent)
    text = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    drawn = draw(facts["curves"], width, colour)
    return f"{text}\n\n{drawn}" if drawn else text


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Measured figures as rows ``(what, value ± standard error, unit)``, rounded to what the error
    allows.

    >>> figure_rows({"psnr_db": 25.2845, "psnr_db_se": 0.0218, "images": 10000})
    [('PSNR', '25.285 ± 0.022', 'dB'), ('images', '10,000', '')]
    """
    rows = []
    of_codes = "bits_per_code" in figures
    for name, value in figures.items():
        told_beside = (name == "codebook_size" and "codebook_used" in figures) or (
            name == "bits_per_dim" and of_codes
        )
        if (
            value is None
            or name in UNTOLD
            or told_beside
            or (name.endswith("_se") and name[:-3] in figures)
        ):
            continue
        if isinstance(value, Mapping):
            rows += _nested_rows(name, value, "bits_per_code" if of_codes else "bits_per_dim")
            continue
        of, _, number = name.partition("/")
        label, unit = UNITS.get(of, (of.replace("_", " "), ""))
        label += f", codebook {number}" if number else ""
        if name == "baseline_bits_per_dim" and of_codes:
            label, unit = "independent codes", "bits/code"
        if name == "codebook_used" and figures.get("codebook_size"):
            unit = f"of {figures['codebook_size']:,}"
        rows.append((label, shown(value, figures.get(f"{name}_se")), unit))
    return rows


def _nested_rows(
    name: str, values: Mapping[str, Any], bits: str = "bits_per_dim"
) -> list[tuple[str, str, str]]:
    """Rows of the figures that are tables themselves: images that were trained on, and the
    difference to another run.

    >>> _nested_rows("overlap", {"identical": 3, "mirrored": 0, "first": [0, 1, 5]})
    [('of these trained on', '3', 'images, and 0 mirrored')]
    >>> _nested_rows("against", {"run": "b", "ssim": {"difference": 0.0213, "difference_se": 0.0012}})
    [('SSIM minus b', '0.0213 ± 0.0012', '')]
    """
    if name == "overlap":
        told = f"images, and {shown(values.get('mirrored'))} mirrored"
        return [("of these trained on", shown(values.get("identical")), told)]
    rows = []
    for metric, told in values.items():
        if isinstance(told, Mapping) and "difference" in told:
            metric = bits if metric == "bits_per_dim" else metric
            label, unit = UNITS.get(metric, (metric.replace("_", " "), ""))
            value = shown(told["difference"], told.get("difference_se"))
            rows.append((f"{label} minus {values.get('run', '')}", value, unit))
    seen = values.get("overlap") or {}
    if seen:
        rows.append(
            (f"of these {values.get('run', '')} trained on", shown(seen["identical"]), "images")
        )
    if "bits" in values:
        rows.append(("bits", "not compared", f"({values['bits']})"))
    return rows


def measured_on(facts: Mapping[str, Any], name: str) -> str:
    """What figures were measured on, and whether with the weights that are here now."""
    weights = facts["figures"][name].get("weights")
    stale = weights and facts["weights"] and weights != facts["weights"]
    return f"{name} (with other weights, {weights}: measure again)" if stale else name


def shown(value: Any, error: Any = None) -> str:
    """A number for people: with its standard error to two digits of that, else to four digits.

    >>> shown(84.8512, 0.2013), shown(4253), shown(0.15737), shown(433.2)
    ('84.85 ± 0.20', '4,253', '0.1574', '433.2')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(error, (int, float)) and math.isfinite(error) and error > 0:
        digits = max(0, 1 - math.floor(math.log10(error)))
        return f"{value:,.{digits}f} ± {error:,.{digits}f}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def lasted(seconds: float) -> str:
    """A time for people.

    >>> lasted(42.4), lasted(905.6), lasted(7300)
    ('42 s', '15 min 6 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60} s"
        if whole < 3600
        else f"{whole // 3600} h {whole % 3600 // 60} min"
    )


def _sections(facts: Mapping[str, Any]) -> Iterable[tuple[str, list[str]]]:
    """Labels and the lines beside them."""
    yield "run", [f"{facts['run']}, {_size(facts['bytes'])} on disk"]
    yield "status", [status_line(facts), *facts["problems"]]
    for part in ("model", "tokenizer"):
        if facts[part]:
            yield part, model_lines(facts[part])
    if facts["weights"]:
        yield "weights", [f"fingerprint {facts['weights']}"]
    if facts["data"]:
        yield "data", data_lines(facts)
    if facts["training"]["settings"]:
        yield "trained", training_lines(facts["training"])
    if facts["validation"]["figures"]:
        best = ", ".join(
            " ".join(part for part in row if part)
            for row in figure_rows(facts["validation"]["figures"])
        )
        yield "validation", [f"{best}; best, at step {facts['validation']['step'] or 0:,}"]
    for name, figures in facts["figures"].items():
        rows = [
            f"  {what:32}{value:>18} {unit}".rstrip() for what, value, unit in figure_rows(figures)
        ]
        yield "measured", [measured_on(facts, name), *(" " + row for row in rows)]
    if facts["environment"]:
        yield "made with", environment_lines(facts)
    if facts["next"]:
        yield "next", facts["next"]


def status_line(facts: Mapping[str, Any]) -> str:
    """How a run stands."""
    training, log, status = facts["training"], facts["log"], facts["status"]
    done = (
        f"{training['steps']:,} steps in {lasted(training['seconds'])}" if training["steps"] else ""
    )
    if status == "saved":
        return (
            "ships with the package"
            if facts["bundled"]
            else "a saved model, without a record of its training"
        )
    if status == "running":
        age = log["age_seconds"]
        quiet = (
            "its log has no line yet"
            if age is None
            else f"the last line of its log is {lasted(age)} old"
        )
        gone = "; the process may be gone: resume it" if age is not None and age > QUIET else ""
        return ", ".join(part for part in ("running", done, quiet) if part) + gone
    cut = f"; {log['unreadable']} lines of the log cannot be read" if log["unreadable"] else ""
    ships = "; ships with the package" if facts["bundled"] else ""
    return (f"{status}, {done}" if done else status) + ships + cut


def model_lines(part: Mapping[str, Any]) -> list[str]:
    """A model or tokenizer in words."""
    sizes = part.get("sizes") or {
        name: value
        for name, value in part.items()
        if name not in ("name", "image_size", "channels", "maps", "grid")
    }
    sizes = {**sizes, **sizes.get("options", {})}
    untold = ("parameters", "levels", "options")
    told = [
        f"{name} {value}" for name, value in sizes.items() if name not in untold and value != ""
    ]
    head = [f"{part['head']['name']} head"] if isinstance(part.get("head"), Mapping) else []
    classes = [f"{part['classes']} classes"] if part.get("classes") else []
    words = [str(part["name"]), *head, *classes, *told]
    return [f"{', '.join(words)}; {_millions(part['parameters'])} parameters", part["maps"]]


def data_lines(facts: Mapping[str, Any]) -> list[str]:
    """What a run was trained on, in words."""
    lines, identities = [], facts["data"]
    for split, data in identities.items():
        skipped = f", {data['skipped']} files skipped" if data.get("skipped") else ""
        shape = "x".join(str(side) for side in data.get("shape", []))
        levels = data.get("preprocessing", {}).get("levels")
        of = f" of {levels} levels" if levels else ""
        source = data.get("source", "arrays")
        lines.append(
            f"{split}: {source}, {data.get('count', 0):,} images of {shape}{of}, "
            f"sha256 {str(data.get('sha256', ''))[:16]}{skipped}"
        )
    rule = next((data["split_rule"] for data in identities.values() if data.get("split_rule")), "")
    lines += [f"split: {rule}"] if rule else []
    if facts["overlap"]:
        lines.append(
            f"{facts['overlap']:,} validation images are, pixel for pixel, training images too"
        )
    return lines


def training_lines(training: Mapping[str, Any]) -> list[str]:
    """How a run was trained, in words."""
    settings, recipe = training["settings"], training["recipe"]
    lines = [f"recipe {recipe}"] if recipe else [training["about"]] if training["about"] else []
    if training["prior_of"]:
        lines.append(f"on the codes of {training['prior_of']}")
    limits = [
        f"{shown(settings[name])} {name}"
        for name in ("steps", "epochs", "minutes")
        if settings.get(name)
    ]
    names = (
        "batch",
        "learning_rate",
        "weight_decay",
        "average",
        "seed",
        "precision",
        "threads",
        "devices",
    )
    told = [f"{name.replace('_', ' ')} {settings[name]:g}" if isinstance(settings[name], float) else
            f"{name.replace('_', ' ')} {settings[name]}" for name in names if name in settings]  # fmt: skip
    return [*lines, f"until {', '.join(limits) or 'stopped'}; {', '.join(told)}"]


def environment_lines(facts: Mapping[str, Any]) -> list[str]:
    """Versions and machine of a run, its command and its sittings, in words."""
    made, lines = facts["environment"], []
    names = {
        "tessella": "tessella",
        "torch": "torch",
        "python": "Python",
        "system": "",
        "device": "",
    }
    told = [f"{label} {made[name]}".strip() for name, label in names.items() if name in made]
    counts = [(made[name], name) for name in ("cores", "threads") if made.get(name)]
    told += [f"{count} {name.removesuffix('s') if count == 1 else name}" for count, name in counts]
    told += [f"{made['world_size']} processes"] if made.get("world_size", 1) > 1 else []
    lines.append(", ".join(told))
    if made.get("started"):
        lines.append(f"started {made['started']}")
    if made.get("command"):
        lines.append("command: " + " ".join(str(word) for word in made["command"]))
    for sitting in facts["sittings"]:
        then = sitting.get("environment", {})
        lines.append(
            f"resumed at step {sitting.get('step', 0):,}, {then.get('started', '')}, {then.get('device', '')}"
        )
    return lines


def _stored(path: Path, problems: list[str]) -> dict[str, Any]:
    """The contents of ``run.json``, empty where there is none."""
    try:
        return read_run_record(path)
    except ArtifactError as error:
        problems.append(str(error))
        return {}


def _kind(path: Path, stored: Mapping[str, Any], problems: list[str]) -> str:
    if (path / "config.json").exists() or "task" not in stored:
        return str(read_config(path)["kind"])
    problems.append("training has not saved a model yet")
    task = stored["task"]
    return "generator" if task.get("tokenizer") else str(task["kind"])


def _modules(
    path: Path, kind: str, stored: Mapping[str, Any], problems: list[str]
) -> tuple[dict[str, nn.Module], str | None]:
    """The parts of a run, and the fingerprint of the weights; without weights, the parts as they
    were configured."""
    if (path / "config.json").exists():
        try:
            whole = load_model(path) if kind == "prior" else load(path)
            return _parts(whole), fingerprint(whole)
        except ArtifactError as error:
            problems.append(str(error))
    built: dict[str, nn.Module] = {}
    for name, config in _configurations(path, kind, stored).items():
        try:
            built[name] = create_tokenizer(**config) if name == "tokenizer" else from_config(config)
        except (TessellaError, KeyError, TypeError) as error:
            problems.append(
                f"the configuration of the {name} does not describe one this version knows: {error}"
            )
    return built, None


def _parts(whole: Any) -> dict[str, nn.Module]:
    if not isinstance(whole, Generator):
        return {"tokenizer" if isinstance(whole, Tokenizer) else "model": whole}
    return {"model": whole.prior} | ({"tokenizer": whole.tokenizer} if whole.two_stage else {})


def _configurations(path: Path, kind: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations of the parts, from what is there."""
    if not (path / "config.json").exists():
        return {"tokenizer" if kind == "tokenizer" else "model": stored["task"]["model"]}
    if kind != "generator":
        return {"tokenizer" if kind == "tokenizer" else "model": read_config(path).get("model", {})}
    folders = {"model": path / "prior", "tokenizer": path / "tokenizer"}
    return {
        name: read_config(at).get("model", {})
        for name, at in folders.items()
        if (at / "config.json").exists()
    }


def _described(module: nn.Module) -> dict[str, Any]:
    """Configuration, grid and size of a part."""
    parameters = sum(p.numel() for p in module.parameters())
    if isinstance(module, (DensityModel, VAE)):
        return {
            "name": module.name,
            **module.config(),
            "maps": f"models {module.grid}",
            "parameters": parameters,
        }
    assert isinstance(module, Tokenizer)
    height, width = module.image_size
    grids: list[Grid] = list(module.grids())
    maps = (
        f"images of {height}x{width}x{module.channels} to {', '.join(str(grid) for grid in grids)}"
    )
    return {"name": module.name, **module.config(), "maps": maps, "parameters": parameters}


def _training(stored: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, Any]:
    recipe = stored.get("recipe") or {}
    about = recipe.get("about") or ""
    return {
        "recipe": _recipe_name(about, (stored.get("environment") or {}).get("command") or []),
        "about": about,
        "prior_of": recipe.get("prior_of") or "",
        "on_arrays": bool(recipe) and not recipe.get("data"),
        "settings": recipe.get("train") or {},
        "data_options": recipe.get("data") or {},
        "steps": progress.get("step", 0),
        "seconds": progress.get("seconds", 0.0),
    }


def _recipe_name(about: str, command: list[str]) -> str:
    """Which of the recipes that ship says so of itself, or the one that the command named."""
    same = (
        name
        for name in configs.recipe_names()
        if about and configs.load_recipe(name).about == about
    )
    words = command[command.index("train") + 1 :] if "train" in command else []
    given = words[0] if words and not words[0].startswith("-") and "=" not in words[0] else ""
    return next(same, Path(given).stem)


def _progress(stored: Mapping[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """How far a run is: what it wrote at its end, or while it trains what its log says."""
    progress = dict(stored.get("progress") or {})
    if stored.get("status") != "running" or not entries:
        return progress
    progress["step"] = entries[-1]["step"]
    progress["seconds"] = next((e["seconds"] for e in reversed(entries) if "seconds" in e), 0.0)
    # A validation that was the best so far says so; logs of earlier versions do not.
    measured = [entry for entry in entries if "kept" in entry]
    if not measured:
        logged = {name for entry in entries for name in entry}
        metric = next((name for name in METRICS if name in logged), METRICS[-1])
        measured = [entry for entry in entries if isinstance(entry.get(metric), (int, float))]
        measured.sort(key=lambda entry: entry[metric], reverse=True)
    if measured:
        best = measured[-1]
        figures = {
            name.removeprefix("valid/"): value
            for name, value in best.items()
            if name.startswith("valid/")
        }
        progress |= {"best_step": best["step"], "figures": figures}
    return progress


def _status(path: Path, stored: Mapping[str, Any]) -> str:
    """How a run stands: what it says, but for one that says it is running and was killed."""
    status = str(stored.get("status") or "saved")
    if status != "running" or not (path / ".lock").exists():
        return status
    try:
        with FileLock(path / ".lock", timeout=0):  # which the process that trains holds
            return "killed"
    except (Timeout, OSError, NotImplementedError):
        return status


def _next(facts: Mapping[str, Any]) -> list[str]:
    """What to type next."""
    run, quiet = facts["run"], (facts["log"]["age_seconds"] or 0) > QUIET
    if facts["status"] in ("interrupted", "failed", "killed") or (
        facts["status"] == "running" and quiet
    ):
        if facts["training"]["on_arrays"]:
            return ["ts.train(..., resume=True) in Python"]
        lower = " train.learning_rate=..." if facts["status"] == "failed" else ""
        return [f"tessella train --resume {run}{lower}"]
    if facts["weights"] is None or facts["kind"] == "prior":
        return []
    use = f"tessella sample {run}" if facts["kind"] != "tokenizer" else _prior_of(facts)
    return [*([] if facts["figures"] else [f"tessella eval {run}"]), use]


def _prior_of(facts: Mapping[str, Any]) -> str:
    """How to train a prior on a tokenizer: with the recipe that goes with its own, on its own
    data."""
    recipe = str(facts["training"].get("recipe") or "")
    named = recipe.replace("-vqvae", "-prior") if recipe.endswith("-vqvae") else "RECIPE"
    source = str(facts["training"]["data_options"].get("source") or "")
    told = f" --data {shlex.quote(source)}" if ":" in source else ""
    return f"tessella train {named}{told} --tokenizer {facts['run']}"


def _bytes(path: Path) -> int:
    """Of all files of a run. One that goes while they are counted, as a run in training has them,
    counts nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e5 else f"{count:,}"
