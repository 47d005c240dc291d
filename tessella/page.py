"""A run as one HTML file that needs nothing else: figures, curves, samples, reconstructions, codebook, how it was made.

Pictures are PNG in data URIs, curves are inline SVG in the colour of the text; there are no scripts and no outside
addresses. The same run gives the same file, but for the date in it.
"""

from __future__ import annotations

import base64
import colorsys
import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tessella
from tessella import data, files, overview, report
from tessella.curves import Curves, after_start, panels, thinned
from tessella.errors import InputError, TessellaError
from tessella.evaluation import as_scored, data_config
from tessella.pipeline import Generator, is_bundled, load, locate
from tessella.tokenizers import Tokenizer
from tessella.tokenizers.quantizers import CodeUsage

MOST_SAMPLES = 64
"""Samples on a page, at most."""

MOST_SYMBOLS = 20_000
"""Grids with more symbols are not sampled for a page: each symbol is a step."""

WORK = 2e11
"""Multiplications that samples may take: about ten seconds on two cores."""

USAGE_PIXELS = 2**20
"""Pixels of the images whose codes are counted: 1024 images of 32x32."""

MOST_CODES = 1024
"""Codes in the atlas."""

ERROR_GAIN = 4
"""Error maps are so many times brighter than the errors."""

INK = "#010203"
"""Drawn in this colour, then replaced by the colour of the page's text."""

EXTRA_PLOTS = (
    ("learning rate", {"learning_rate": "training"}),
    ("squared error of training batches, scale 0..1", {"mse": "training"}),
    ("perplexity of the codes", {"perplexity": "training", "valid/code_perplexity": "validation"}),
    ("codes used on the validation images", {"valid/codebook_used": "validation"}),
    ("gradient norm", {"gradient_norm": "training"}),
)
"""Plots beside those of loss and validation, where their curves are there."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    title: str
    uri: str
    note: str = ""
    width: int = 0
    """Pixels."""


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
    facts = overview.describe(run)
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
        raise InputError(f"{path.name} ships with the package: name a file of your own, --report {path.name}.html")
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
    path: Path, model: Generator | Tokenizer | None, samples: int, seed: int
) -> tuple[list[Picture], dict[str, Any] | None, list[str]]:
    """Pictures that need the weights, the codebook, and lines on what is missing."""
    if model is None:
        return [], None, ["There are no pictures: the weights cannot be loaded."]
    notes: list[str] = []
    images = _own_images(path, notes)
    pictures = _drawn(model, images, samples, seed, notes) if isinstance(model, Generator) else []
    tokenizer = model.tokenizer if isinstance(model, Generator) else model
    book = None
    if not tokenizer.of_pixels:
        try:
            pictures += [_rebuilt(tokenizer, images)] if images is not None else []
            book = _codebook(tokenizer, images)
        except TessellaError as error:
            notes.append(f"Part of the pictures of the tokenizer are missing: {error}")
    return pictures, book, notes


def _own_images(path: Path, notes: list[str]) -> data.ImageSet | None:
    """Images of the run's own data, of the test split where there is one; else a note says why not."""
    reason = "it holds no test or validation images"
    for split in ("test", "valid"):
        try:
            found = data.load(as_scored(data_config(path)), split)
        except TessellaError as error:
            reason = str(error)
            continue
        if len(found):
            return found
    notes.append(f"There are no pictures of the run's own data, and nothing was measured on it here: {reason}")
    return None


def affordable(generator: Generator, wanted: int) -> int:
    """How many images to draw so that it takes seconds: a function of the model alone, so that pages repeat."""
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
        notes.append(f"There are no samples: {generator.priors[-1].grid} takes long; tessella sample draws them.")
        return []
    labels = torch.arange(n) % classes if classes else None
    drawn = generator.sample(n, seed, cond=labels).numpy()
    by_class = f", of classes 0 to {min(n, classes) - 1} in turn" if classes else ""
    seeds = f"seeds {seed} to {seed + n - 1}" if n > 1 else f"seed {seed}"
    pictures = [_sheet("Samples", drawn, _columns(drawn, n), f"{n} images, {seeds}, nothing adjusted{by_class}.")]
    if images is not None and not classes and n >= 12:
        pictures.append(_completed(generator, images, seed))
    return pictures


def _completed(generator: Generator, images: data.ImageSet, seed: int) -> Picture:
    """Four images of which the upper half is kept, three completions each."""
    given = _some(images, 4)
    height, width = given.shape[1:3]
    known = torch.zeros(height, width, dtype=torch.bool)
    known[: height // 2] = True
    drawn = generator.complete(given.repeat(3, axis=0), known, seed).numpy().reshape(len(given), 3, *given.shape[1:])
    masked = np.where(known.numpy()[None, :, :, None], given, 128).astype(np.uint8)
    rows = np.concatenate([given[:, None], masked[:, None], drawn], axis=1)
    how = "as reconstructions, since their codes are kept" if generator.two_stage else "pixel by pixel"
    note = f"Each row: an image of {_which(images)}, what is kept of it ({how}), three completions."
    return _sheet("Completions", rows.reshape(-1, *given.shape[1:]), 5, note)


def _rebuilt(tokenizer: Tokenizer, images: data.ImageSet) -> Picture:
    """Originals, reconstructions, errors, codes, one below another."""
    height, width = _size(images)
    given = _some(images, max(2, min(8, 640 // width)))
    symbols = tokenizer.encode(given)
    back = tokenizer.decode(symbols, (height, width)).cpu().numpy()
    errors = np.abs(given.astype(np.int16) - back).max(axis=3, keepdims=True) * ERROR_GAIN
    rows = [_rgb(given), _rgb(back), _rgb(errors.clip(0, 255).astype(np.uint8))]
    rows.append(code_map(symbols[..., 0].cpu().numpy(), tokenizer.grid().levels, tokenizer.stride, (height, width)))
    note = (
        f"Images of {_which(images)}. From above: the image, its reconstruction, the largest absolute error of a "
        f"pixel's channels times {ERROR_GAIN}, its codes (a colour each)."
    )
    return _sheet("Reconstructions", np.concatenate(rows), len(given), note)


def code_map(symbols: np.ndarray, levels: int, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Codes ``[n, h, w]`` as pictures ``uint8 [n, *size, 3]``, a colour for each code."""
    tones = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.45 + 0.5 * (i % 3) / 2, 0.6 + 0.4 * (i % 2)) for i in range(levels)
    ]
    palette = (np.array(tones) * 255).round().astype(np.uint8)
    large = palette[symbols].repeat(stride, axis=1).repeat(stride, axis=2)
    return large[:, : size[0], : size[1]]


def _codebook(tokenizer: Tokenizer, images: data.ImageSet | None) -> dict[str, Any] | None:
    """How much the codes are used, and what each decodes to."""
    usage = CodeUsage(tokenizer.grid().levels)
    if images is not None:
        height, width = _size(images)
        counted = _some(images, max(1, USAGE_PIXELS // (height * width)))
        usage.update(tokenizer.encode(counted))
        where = f"{len(counted):,} images of {_which(images)}"
        rows = [
            ("codes used", f"{usage.used:,} of {len(usage.counts):,}"),
            ("never used", f"{len(usage.counts) - usage.used:,}"),
            ("perplexity", f"{usage.perplexity:.1f}"),
            ("entropy", f"{usage.entropy_bits:.3f} bits a code"),
        ]
        counts = usage.counts.numpy()
    else:
        kept = getattr(getattr(tokenizer, "quantizer", None), "counts", None)
        if not isinstance(kept, torch.Tensor):
            return None
        counts, where, rows = kept.detach().cpu().numpy(), "moving averages of the training batches", []
    return {"where": where, "rows": rows, "histogram": _histogram(counts), "atlas": atlas(tokenizer, counts)}


def atlas(tokenizer: Tokenizer, counts: np.ndarray) -> Picture:
    """What each code decodes to where all around it is the same code; the most used first, unused ones crossed out."""
    order = np.argsort(-counts, kind="stable")[:MOST_CODES]
    side, stride, depth = 5, tokenizer.stride, tokenizer.grid().channels
    symbols = torch.zeros(len(order), side, side, depth, dtype=torch.int64)
    symbols[..., 0] = torch.from_numpy(order)[:, None, None]
    decoded = tokenizer.decode(symbols, (side * stride, side * stride)).cpu().numpy()
    middle = slice(side // 2 * stride, (side // 2 + 1) * stride)
    columns, least = (32, 16) if len(order) > 128 else (16, 32)
    factor = max(1, least // stride)
    cells = _rgb(decoded[:, middle, middle]).repeat(factor, axis=1).repeat(factor, axis=2)
    for cell, count in zip(cells, counts[order], strict=True):
        if not count:
            at = np.arange(len(cell))
            cell[at, at] = cell[at, at[::-1]] = (220, 40, 40)
    note = "Each code where all its neighbours are the same code; the most used first, row by row."
    note += " Codes crossed out in red were not used." if not counts[order].all() else ""
    note += f" The first {MOST_CODES:,} of {len(counts):,}." if len(counts) > MOST_CODES else ""
    note += " The first of several codes of a place; the others are code 0." if depth > 1 else ""
    return _picture("What the codes decode to", report.sheet(cells, columns, 1), note)


def _histogram(counts: np.ndarray) -> str:
    ordered = np.sort(counts)[::-1].astype(float)
    used = ordered[ordered > 0]
    at = np.linspace(0, len(used) - 1, min(len(used), MOST_CODES)).round().astype(int)

    def draw(axes: Any) -> None:
        axes.fill_between(at, used[at], used.min() * 0.5, step="mid", color="#4477aa", linewidth=0)
        axes.set_yscale("log")
        axes.set_ylim(used.min() * 0.5, used.max() * 1.5)
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_xlabel("codes, the most used first")
        axes.set_ylabel("times used")

    return _svg("How often each code is used", draw) if len(used) else ""


def _plots(curves: Curves) -> list[str]:
    """The curves of training as SVG."""
    plots = []
    for title, named in (*panels(curves), *EXTRA_PLOTS):
        there = {name: label for name, label in named.items() if len(curves.get(name, {}).get("step", [])) > 1}
        if there:
            plots.append(_svg(title, _curve_drawer(curves, there)))
    return plots


def _curve_drawer(curves: Curves, named: Mapping[str, str]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        heights: list[float] = []
        for name, label in named.items():
            curve, smooth = curves[name], thinned(curves[name], 80)
            if label == "validation":
                axes.plot(curve["step"], curve["value"], "o-", color="#cc6611", label=label, markersize=3, linewidth=1)
            else:
                axes.plot(curve["step"], curve["value"], color="#4477aa", alpha=0.35, linewidth=0.8)
                axes.plot(smooth["step"], smooth["value"], color="#4477aa", label=label, linewidth=1.5)
            heights += after_start(smooth)["value"]
        low, high = min(heights), max(heights)
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("step")
        if len(named) > 1:
            axes.legend(frameon=False)

    return draw


def _svg(title: str, draw: Callable[[Any], None]) -> str:
    """A plot as an inline SVG element whose lines and letters have the colour of the text around it."""
    import matplotlib
    from matplotlib.figure import Figure

    inked: Any = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(dict.fromkeys(inked, INK))
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9})
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue())


def _inlined(svg: str) -> str:
    """An SVG file as an element of a page: without what only a file needs, and without names that plots share."""
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", body)
    body = re.sub(r'<g id="[\w.]+_\d+">', "<g>", body).replace(INK, "currentColor")
    body = re.sub(r'font-family: [^;"]*', "font-family: inherit", body)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return re.sub(r'<svg ([^>]*?)(width|height)="[^"]*" ?([^>]*?)(width|height)="[^"]*" ?', r"<svg \1\3", body, count=1)


def _sheet(title: str, images: np.ndarray, columns: int, note: str) -> Picture:
    return _picture(title, report.sheet(_rgb(images) if images.shape[3] == 2 else images, columns), note)


def _picture(title: str, pixels: np.ndarray, note: str) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(title, uri, note, pixels.shape[1])


def _columns(images: np.ndarray, n: int) -> int:
    """Images in a row: about twice as many as rows, as a page is wider than high; rows are full where they can be."""
    wanted = max(1, int(np.ceil(np.sqrt(2 * n * images.shape[1] / images.shape[2]))))
    full = [columns for columns in range(wanted, min(n, 2 * wanted) + 1) if n % columns == 0]
    return full[0] if full else min(n, wanted)


def _rgb(images: np.ndarray) -> np.ndarray:
    """Images of any number of channels with three: grey repeated, alpha left out, the first of two."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)


def _size(images: data.ImageSet) -> tuple[int, int]:
    """Height and width. Images may be read piece by piece, so no more of them are asked for than needed."""
    height, width = np.asarray(images.images[:1]).shape[1:3]
    return height, width


def _some(images: data.ImageSet, n: int) -> np.ndarray:
    """So many images, spread evenly over the split: neighbours in a folder are often alike."""
    places = np.unique(np.linspace(0, len(images) - 1, min(n, len(images))).round().astype(int))
    return np.concatenate([np.asarray(images.images[at : at + 1]) for at in places.tolist()])


def _which(images: data.ImageSet) -> str:
    return f"{images.name}, {images.split}"


def _fill(
    facts: Mapping[str, Any], pictures: Sequence[Picture], book: Mapping[str, Any] | None, notes: Sequence[str]
) -> str:
    """The text of the page."""
    from jinja2 import Environment, StrictUndefined

    source = (resources.files("tessella") / "templates" / "report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    configuration = {name: facts[name] for name in ("model", "tokenizer") if facts[name]}
    configuration["training"] = {**facts["training"]["settings"], "data": facts["training"]["data_options"]}
    return page.from_string(source).render(
        facts=facts,
        status=overview.status_line(facts),
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
        (overview.measured_on(facts, name), overview.figure_rows(figures)) for name, figures in facts["figures"].items()
    ]
    if best["figures"]:
        name = f"validation images, during training; the best, at step {best['step'] or 0:,}"
        tables.append((name, overview.figure_rows(best["figures"])))
    return tables


def _details(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What the run is, in words, by label."""
    rows = [(part, overview.model_lines(facts[part])) for part in ("model", "tokenizer") if facts[part]]
    rows += [("weights", [f"fingerprint {facts['weights']}"])] if facts["weights"] else []
    rows += [("data", overview.data_lines(facts))] if facts["data"] else []
    rows += [("trained", overview.training_lines(facts["training"]))] if facts["training"]["settings"] else []
    rows += [("made with", overview.environment_lines(facts))] if facts["environment"] else []
    return rows


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
