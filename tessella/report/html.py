"""A run as one HTML file that needs nothing else.

It shows figures, curves, samples, reconstructions, the codebook, and how the run was made. Pictures
are PNG in data URIs, curves are inline SVG in the colour of the text; there are no scripts and no
outside addresses. The same run gives the same file, except for the date in it. Without matplotlib
the page has no plots, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

import tessella
from tessella import data, files
from tessella.errors import InputError, TessellaError, check_integer
from tessella.evaluation import as_scored, check_fit, data_config, tokenizer_steps_of
from tessella.pipeline import (
    SavedModel,
    is_bundled,
    learned_tokenizer,
    load_saved,
    locate,
)
from tessella.report import run_summary
from tessella.report.codebook_figures import CodebookSection, codebooks, rebuilt
from tessella.report.curve_plots import MISSING_MATPLOTLIB, can_plot, curve_plots
from tessella.report.figure_text import Row
from tessella.report.sample_figures import DrawsSymbols, affordable, sample_pictures
from tessella.report.svg import Picture

__all__ = ["affordable", "write_report"]

MOST_SAMPLES = 64
"""Samples on a page, at most."""


@dataclass
class _Parts:
    """The contents of a page beside the facts of the run.

    Args:
        pictures: in the order of the page.
        codebook: the section on codes; None where there is none.
        notes: lines on what is missing.
    """

    pictures: list[Picture] = field(default_factory=list)
    codebook: CodebookSection | None = None
    notes: list[str] = field(default_factory=list)


def write_report(
    run: Path | str,
    out: Path | str | None = None,
    samples: int = 16,
    seed: int = 0,
    say: Callable[[str], None] = print,
    force: bool = False,
) -> Path:
    """Write the page of a run.

    Args:
        run: path of a run directory, or the name of a bundled model.
        out: the file, ending in ``.html``; without it ``report.html`` in the run directory.
        samples: images to draw, at most 64, and fewer where the model is slow; 0 for none.
        seed: of the first sample; sample i has this seed plus i.
        say: where a line about the file goes.
        force: replace a file that was not made here.

    Returns:
        The file that was written.

    Raises:
        InputError: for a file name or a number of samples that is not allowed.
        ArtifactError: when there is no run, or the file cannot be written.
    """
    path = locate(run)
    # Refusals come first: describing a run reads all of its weights.
    target = _target(path, out, samples)
    files.check_replaceable(target, force)
    facts = run_summary.describe(run)
    # Before the model draws, which may take a while.
    files.make_directory(target.parent)
    model = None
    if facts["weights"] is not None and facts["kind"] != "prior":
        model = load_saved(path)
    # Whole in memory, then written: a page is never half there.
    parts = _parts(path, model, samples, seed)
    text = _page(facts, parts)
    files.write_text(target, text)
    say(f"{target}: {len(text) / 1e6:.2f} MB, one file that needs nothing else")
    if not can_plot():
        say(f"note: the page has no plots, since {MISSING_MATPLOTLIB}")
    return target


def _target(path: Path, out: Path | str | None, samples: int) -> Path:
    """Where the page goes, once all arguments are checked."""
    check_integer("samples", samples, 0, MOST_SAMPLES)
    if out is None and is_bundled(path):
        raise InputError(
            f"{path.name} ships with the package: name another file, --report {path.name}.html"
        )
    target = path / "report.html"
    if out is not None:
        target = Path(out)
    if target.suffix != ".html" or target.is_dir():
        raise InputError(f"the report must be a file ending in .html, got {str(out)!r}")
    return target


def _parts(path: Path, model: SavedModel | None, samples: int, seed: int) -> _Parts:
    """Everything on the page that needs the weights."""
    parts = _Parts()
    if model is None:
        parts.notes.append("There are no pictures: the weights cannot be loaded.")
        return parts
    # A VAE has neither codes to show nor symbols to complete.
    tokenizer = learned_tokenizer(model)
    if tokenizer is None and not isinstance(model, DrawsSymbols):
        parts.notes.append("There are no pictures of a VAE yet: see tessella sample.")
        return parts
    images = _own_images(path, model, parts.notes)
    if isinstance(model, DrawsSymbols):
        parts.pictures += sample_pictures(model, images, samples, seed, parts.notes)
    # A tokenizer from outside may lack what a picture needs; the page has its other parts.
    if tokenizer is not None:
        try:
            if images is not None:
                parts.pictures.append(rebuilt(tokenizer, images))
            steps = tokenizer_steps_of(path, model.kind)
            parts.codebook = codebooks(tokenizer, images, steps)
        except TessellaError as error:
            parts.notes.append(f"Some pictures of the tokenizer are missing: {error}")
    return parts


def _own_images(path: Path, model: SavedModel, notes: list[str]) -> data.ImageSet | None:
    """Images of the run's own data, of the test split where there is one.

    Where there are none, a note says why.
    """
    reason = "it holds no test or validation images"
    # Images that were not trained on; the test split is the better one.
    for split in ("test", "valid"):
        try:
            found = data.load(as_scored(data_config(path)), split)
            if len(found):
                check_fit(model, path.name, found)
                return found
        except TessellaError as error:
            reason = str(error)
    notes.append(
        "There are no pictures of the run's own data, and nothing was measured on it here: "
        f"{reason}"
    )
    return None


def _page(facts: run_summary.RunFacts, parts: _Parts) -> str:
    """The text of the page."""
    # Imported where it is used: the command line imports this module before every verb.
    from jinja2 import Environment, StrictUndefined

    # In the package, also where that is a zip file.
    templates = resources.files("tessella.report") / "templates"
    source = (templates / "report.html").read_text(encoding="utf-8")
    # Names of files and classes come from users, so everything is escaped.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    configuration: dict[str, object] = {**run_summary.networks(facts)}
    training = facts["training"]
    configuration["training"] = {**training["settings"], "data": training["data_options"]}
    notes = [*facts["problems"], *parts.notes]
    plots = []
    if can_plot():
        plots = curve_plots(facts["curves"], run_summary.of_codes(facts))
    else:
        notes.append(
            f"There are no plots of the curves and of the codes' use: {MISSING_MATPLOTLIB}"
        )
    return environment.from_string(source).render(
        facts=facts,
        status=run_summary.status_line(facts),
        figures=_figure_tables(facts),
        plots=plots,
        pictures=parts.pictures,
        book=parts.codebook,
        notes=notes,
        details=_details(facts),
        configuration=files.json_text(configuration),
        version=tessella.__version__,
        date=_now(),
    )


def _figure_tables(facts: run_summary.RunFacts) -> list[tuple[str, list[Row]]]:
    """Tables of figures under what they were measured on."""
    tables = []
    # Measured figures first: those of training are of other images, and of a chosen step.
    for name, figures in facts["figures"].items():
        tables.append((run_summary.measured_on(facts, name), run_summary.figure_rows(figures)))
    best = facts["validation"]
    if best["figures"]:
        title = f"validation images, during training; the best, at step {best['step'] or 0:,}"
        tables.append((title, run_summary.validation_rows(facts)))
    return tables


def _details(facts: run_summary.RunFacts) -> list[tuple[str, list[str]]]:
    """The run in words, by label."""
    rows = []
    for role, part in run_summary.networks(facts).items():
        rows.append((role, run_summary.model_lines(part)))
    if facts["weights"]:
        rows.append(("weights", [f"fingerprint {facts['weights']}"]))
    if facts["data"]:
        rows.append(("data", run_summary.data_lines(facts)))
    if facts["training"]["settings"]:
        rows.append(("trained", run_summary.training_lines(facts["training"])))
    if facts["environment"]:
        rows.append(("made with", run_summary.environment_lines(facts)))
    return rows


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
