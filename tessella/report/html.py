"""A run as one HTML file that needs nothing else: figures, curves, samples, reconstructions,
codebook, how it was made.

Pictures are PNG in data URIs, curves are inline SVG in the colour of the text; there are no scripts
and no outside addresses. The same run gives the same file, but for the date in it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tessella
from tessella import data, files
from tessella.errors import InputError, TessellaError
from tessella.evaluation import as_scored, data_config
from tessella.pipeline import Generator, is_bundled, load, locate
from tessella.report import run_summary
from tessella.report.codebook_figures import codebooks, rebuilt
from tessella.report.curves import Curves, after_start, panels, thinned
from tessella.report.svg import Picture, columns, sheet, some, svg, which
from tessella.tokenizers import Tokenizer
from tessella.vae import VAE

MOST_SAMPLES = 64
"""Samples on a page, at most."""

MOST_SYMBOLS = 20_000
"""Grids with more symbols are not sampled for a page: each symbol is a step."""

WORK = 2e11
"""Multiplications that samples may take: about ten seconds on two cores."""

EXTRA_PLOTS = (
    ("learning rate", {"learning_rate": "training"}),
    ("squared error of training batches, scale 0..1", {"mse": "training"}),
    ("perplexity of the codes", {"perplexity": "training", "valid/code_perplexity": "validation"}),
    ("codes used on the validation images", {"valid/codebook_used": "validation"}),
    ("share of the most frequent code", {"valid/code_top_share": "validation"}),
    ("change of the codes' use between validations", {"valid/usage_drift": "validation"}),
    ("gradient norm", {"gradient_norm": "training"}),
)
"""Plots beside those of loss and validation, where their curves are there."""


def write_report(
    run: Path | str,
    out: Path | str | None = None,
    samples: int = 16,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page of a run.

    Args:
        run: path of a run directory, or the name of a bundled model.
        out: the file, ending in ``.html``; without it ``report.html`` in the run directory.
        samples: images to draw, at most 64, and fewer where the model is slow; 0 for none.
        seed: of the first sample; sample i has this seed plus i.
        say: where a line about the file goes.

    Returns:
        The file that was written.

    Raises:
        InputError: without matplotlib or jinja2, or for a name or number that will not do.
        ArtifactError: when there is no run, or the file cannot be written.
    """
    path = locate(run)
    target = _target(path, out, samples)
    facts = run_summary.describe(run)
    files.make_directory(target.parent)
    loadable = facts["weights"] is not None and facts["kind"] != "prior"
    text = _fill(facts, *_pictures(path, load(path) if loadable else None, samples, seed))
    files.write_text(target, text)
    say(f"{target}: {len(text) / 1e6:.2f} MB, one file that needs nothing else")
    return target


def _target(path: Path, out: Path | str | None, samples: int) -> Path:
    """Where the page goes, after all that could be wrong was checked."""
    for module in ("matplotlib", "jinja2"):
        if not _installed(module):
            raise InputError(f'the report needs {module}: pip install "tessella[plots]"')
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"samples must lie in 0..{MOST_SAMPLES}, got {samples}")
    if out is None and is_bundled(path):
        raise InputError(
            f"{path.name} ships with the package: name a file of your own, --report {path.name}.html"
        )
    target = path / "report.html" if out is None else Path(out)
    if target.suffix != ".html" or target.is_dir():
        raise InputError(f"the report must be a file ending in .html, got {str(out)!r}")
    return target


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        return False


def _pictures(
    path: Path, model: Generator | Tokenizer | VAE | None, samples: int, seed: int
) -> tuple[list[Picture], dict[str, Any] | None, list[str]]:
    """Pictures that need the weights, the codebook, and lines on what is missing."""
    if model is None:
        return [], None, ["There are no pictures: the weights cannot be loaded."]
    if isinstance(model, VAE):
        return [], None, ["There are no pictures of a VAE yet: see tessella sample."]
    notes: list[str] = []
    images = _own_images(path, notes)
    pictures = _drawn(model, images, samples, seed, notes) if isinstance(model, Generator) else []
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    book = None
    if not tokenizer.of_pixels:
        try:
            pictures += [rebuilt(tokenizer, images)] if images is not None else []
            book = codebooks(tokenizer, images)
        except TessellaError as error:
            notes.append(f"Part of the pictures of the tokenizer are missing: {error}")
    return pictures, book, notes


def _own_images(path: Path, notes: list[str]) -> data.ImageSet | None:
    """Images of the run's own data, of the test split where there is one; else a note says why
    not."""
    reason = "it holds no test or validation images"
    for split in ("test", "valid"):
        try:
            found = data.load(as_scored(data_config(path)), split)
        except TessellaError as error:
            reason = str(error)
            continue
        if len(found):
            return found
    notes.append(
        f"There are no pictures of the run's own data, and nothing was measured on it here: {reason}"
    )
    return None


def affordable(generator: Generator, wanted: int) -> int:
    """How many images to draw so that it takes seconds: a function of the model alone, so that
    pages repeat."""
    symbols = generator.symbols
    parameters = sum(p.numel() for p in generator.prior.parameters())
    if symbols > MOST_SYMBOLS:
        return 0
    return min(wanted, max(1, int(WORK / (symbols * max(1, parameters)))))


def _drawn(
    generator: Generator, images: data.ImageSet | None, samples: int, seed: int, notes: list[str]
) -> list[Picture]:
    """Samples, and completions where there are images to complete."""
    n, classes = affordable(generator, samples), generator.classes
    if not samples:
        return []
    if not n:
        notes.append(
            f"There are no samples: {generator.priors[-1].grid} takes long; tessella sample draws them."
        )
        return []
    labels = torch.arange(n) % classes if classes else None
    drawn = generator.sample(n, seed, cond=labels).numpy()
    by_class = f", of classes 0 to {min(n, classes) - 1} in turn" if classes else ""
    seeds = f"seeds {seed} to {seed + n - 1}" if n > 1 else f"seed {seed}"
    pictures = [
        sheet(
            "Samples", drawn, columns(drawn, n), f"{n} images, {seeds}, nothing adjusted{by_class}."
        )
    ]
    if images is not None and not classes and n >= 12:
        pictures.append(_completed(generator, images, seed))
    return pictures


def _completed(generator: Generator, images: data.ImageSet, seed: int) -> Picture:
    """Four images of which the upper half is kept, three completions each."""
    given = some(images, 4)
    height, width = given.shape[1:3]
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: height // 2] = True
    drawn = (
        generator.complete(given.repeat(3, axis=0), known, seed)
        .numpy()
        .reshape(len(given), 3, *given.shape[1:])
    )
    masked = np.where(known.numpy()[None, :, :, None], given, 128).astype(np.uint8)
    rows = np.concatenate([given[:, None], masked[:, None], drawn], axis=1)
    how = (
        "as reconstructions, since their codes are kept"
        if generator.two_stage
        else "pixel by pixel"
    )
    note = f"Each row: an image of {which(images)}, what is kept of it ({how}), three completions."
    return sheet("Completions", rows.reshape(-1, *given.shape[1:]), 5, note)


def _plots(curves: Curves) -> list[str]:
    """The curves of training as SVG."""
    plots = []
    for title, named in (*panels(curves), *EXTRA_PLOTS):
        there = {
            name: label
            for name, label in named.items()
            if len(curves.get(name, {}).get("step", [])) > 1
        }
        if there:
            plots.append(svg(title, _curve_drawer(curves, there)))
    return plots


def _curve_drawer(curves: Curves, named: Mapping[str, str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        heights: list[float] = []
        for name, label in named.items():
            curve, smooth = curves[name], thinned(curves[name], 80)
            if label == "validation":
                axes.plot(
                    curve["step"],
                    curve["value"],
                    "o-",
                    color="#cc6611",
                    label=label,
                    markersize=3,
                    linewidth=1,
                )
            else:
                axes.plot(curve["step"], curve["value"], color="#4477aa", alpha=0.35, linewidth=0.8)
                axes.plot(
                    smooth["step"], smooth["value"], color="#4477aa", label=label, linewidth=1.5
                )
            heights += after_start(smooth)["value"]
        low, high = min(heights), max(heights)
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("step")
        if len(named) > 1:
            axes.legend(frameon=False)

    return draw


def _fill(
    facts: Mapping[str, Any],
    pictures: Sequence[Picture],
    book: Mapping[str, Any] | None,
    notes: Sequence[str],
) -> str:
    """The text of the page."""
    from jinja2 import Environment, StrictUndefined

    source = (resources.files("tessella.report") / "templates" / "report.html").read_text(
        encoding="utf-8"
    )
    page = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    configuration = {name: facts[name] for name in ("model", "tokenizer") if facts[name]}
    configuration["training"] = {
        **facts["training"]["settings"],
        "data": facts["training"]["data_options"],
    }
    return page.from_string(source).render(
        facts=facts,
        status=run_summary.status_line(facts),
        figures=_figures(facts),
        plots=_plots(facts["curves"]),
        pictures=pictures,
        book=book,
        notes=[*facts["problems"], *notes],
        details=_details(facts),
        configuration=json.dumps(configuration, indent=2, ensure_ascii=False),
        version=tessella.__version__,
        date=_now(),
    )


def _figures(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Tables of figures under what they were measured on."""
    best = facts["validation"]
    tables = [
        (run_summary.measured_on(facts, name), run_summary.figure_rows(figures))
        for name, figures in facts["figures"].items()
    ]
    if best["figures"]:
        name = f"validation images, during training; the best, at step {best['step'] or 0:,}"
        tables.append((name, run_summary.figure_rows(best["figures"])))
    return tables


def _details(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What the run is, in words, by label."""
    rows = [
        (part, run_summary.model_lines(facts[part]))
        for part in ("model", "tokenizer")
        if facts[part]
    ]
    rows += [("weights", [f"fingerprint {facts['weights']}"])] if facts["weights"] else []
    rows += [("data", run_summary.data_lines(facts))] if facts["data"] else []
    rows += (
        [("trained", run_summary.training_lines(facts["training"]))]
        if facts["training"]["settings"]
        else []
    )
    rows += [("made with", run_summary.environment_lines(facts))] if facts["environment"] else []
    return rows


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
