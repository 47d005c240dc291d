"""``tessella info``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

import tessella
from tessella import config, data, files, kernel
from tessella.cli.checks import check_output
from tessella.cli.terminal import answer, say
from tessella.cli.verb_options import Info
from tessella.errors import InputError
from tessella.models import MODELS
from tessella.pipeline import bundled, locate, read_config, read_run_record
from tessella.pipeline.model_card import TITLES
from tessella.report import model_catalogue, run_summary
from tessella.report.html import write_report
from tessella.tokenizers import TOKENIZERS

EXTRAS = {
    "plots": ("matplotlib", "jinja2", "plotext"),
    "logs": ("tensorboard",),
    "wandb": ("wandb",),
    "web": ("fastapi", "uvicorn"),
    "data": ("datasets",),
}
"""Optional dependencies, and the modules they bring."""


def run(command: Info) -> int:
    """Describe a run, the table of models, or what is installed."""
    if command.models:
        if command.run or command.report is not None:
            raise InputError("--models is about no run: it goes with --json alone")
        _show_models(as_json=bool(command.json))
    elif command.run:
        _show_run(command)
    elif command.json or command.report is not None:
        raise InputError(
            "--json and --report are about a run: give it first, tessella info RUN --report"
        )
    else:
        _show_installation()
    return 0


def _show_models(as_json: bool) -> None:
    facts = model_catalogue.catalogue()
    if as_json:
        answer(files.json_text(facts))
    else:
        answer("\n".join(model_catalogue.render(facts)))


def _show_run(command: Info) -> None:
    """Describe a run as text, as JSON, or as a page."""
    if command.report is not None:
        _write_page(command, command.report)
        return
    facts = run_summary.describe(command.run)
    if command.json:
        answer(files.json_text(facts))
        return
    # https://no-color.org: any text in NO_COLOR switches colours off.
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    answer(run_summary.render(facts, shutil.get_terminal_size().columns, colour))


def _write_page(command: Info, named: tuple[str, ...]) -> None:
    if command.json or len(named) > 1:
        raise InputError("--report takes one file at most, and goes without --json")
    out = named[0] if named else None
    if out is not None and Path(out).suffix == ".html":  # another ending is refused below
        check_output(out, (".html",), bool(command.force))
    write_report(command.run, out, command.samples, say=say, force=bool(command.force))


def _about(name: str) -> str:
    """What a bundled model is: its recipe says it, or else its kind."""
    recipe = read_run_record(locate(name)).get("recipe") or {}
    # What a recipe says of itself may end with figures, which are those of another run.
    about = (recipe.get("about") or "").partition(":")[0].partition(" (give")[0]
    return about or TITLES[read_config(locate(name))["kind"]]


def _show_installation() -> None:
    """Versions, devices, and what there is to choose from."""
    answer(
        f"tessella {tessella.__version__}, torch {torch.__version__},"
        f" Python {platform.python_version()}"
    )
    devices = f"cpu ({torch.get_num_threads()} threads)"
    for number in range(torch.cuda.device_count()):
        devices += f", cuda:{number} {torch.cuda.get_device_name(number)}"
    answer(f"devices: {devices}")
    answer(f"compiled steps on the CPU: {kernel.describe()}")
    answer(f"models: {', '.join(MODELS)}")
    answer(f"tokenizers: {', '.join(TOKENIZERS)}")
    answer(f"data sources: {', '.join(data.SOURCES)}")
    answer("bundled models:")
    for name in bundled():
        answer(f"  {name:24} {_about(name)}")
    answer("recipes:")
    for name in config.recipe_names():
        answer(f"  {name:24} {config.load_recipe(name).about}")
    installed = []
    # An extra is there when all its modules are, whoever installed them.
    for extra, modules in EXTRAS.items():
        if all(importlib.util.find_spec(module) for module in modules):
            installed.append(extra)
    answer(f"extras installed: {', '.join(installed) or 'none'}")
