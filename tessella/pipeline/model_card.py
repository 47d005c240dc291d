"""The model card: Markdown beside the weights that says what the model is and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tessella import files
from tessella.models import MODELS

TITLES = {
    "density-model": "Autoregressive density model on pixels",
    "prior": "Autoregressive prior on codes",
    "tokenizer": "Image tokenizer",
    "generator": "Two-stage image model: tokenizer and prior",
    "vae": "Variational autoencoder of images",
}
"""Kinds of saved models, as a ``config.json`` names them, and what to call them."""

USES = {
    "density-model": """\
generator = ts.load(PATH)
images = generator.sample(16, seed=0)  # uint8 [16, h, w, c]
bits = generator.bits_per_dim(images)  # exact, per image""",
    "generator": """\
generator = ts.load(PATH)
images = generator.sample(16, seed=0)  # uint8 [16, h, w, c]
codes = generator.tokenizer.encode(images)  # int64""",
    "tokenizer": """\
tokenizer = ts.load(PATH)
codes = tokenizer.encode(images)  # uint8 in, int64 out
images = tokenizer.decode(codes)""",
    "vae": """\
vae = ts.load(PATH)
images = vae.sample(16, seed=0)  # uint8 [16, h, w, c]
bits = vae.bits_per_dim(images)  # an upper bound, per image""",
    "prior": "generator = ts.load(PATH_OF_THE_DIRECTORY_ABOVE)",
}
"""Lines of Python that show how to use each kind."""

PUBLISHED = {
    "bits_per_dim": "bits per dimension",
    "bits_per_code": "bits per code",
    "bits_per_image_dim": "bits of the codes per image dimension",
    "bound_bits_per_dim": "bits per dimension, estimate of an upper bound",
    "bound_bits_per_code": "bits per code, estimate of an upper bound",
    "nats_per_image": "nats per image",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
}
"""Figures that stand in the metadata of a card, and what they are."""

MASKED_TITLES = {
    "density-model": "Masked model of pixels, with a bound on probabilities",
    "prior": "Masked prior on codes, with a bound on probabilities",
}
"""Titles of models that state a bound instead of exact probabilities."""

MASKED_USE = """\
generator = ts.load(PATH)
images = generator.sample(16, seed=0)  # uint8 [16, h, w, c]
nats = generator.any_order_bound(images)  # estimate of a lower bound on log p, per image"""
"""Lines of Python that show how to use such a model of pixels."""

DRAWING = ("density-model", "generator", "vae")
"""Kinds of saved models that draw images by themselves."""

NOTHING_MEASURED = (
    "Nothing was measured when this card was written; `tessella eval PATH` measures and renews it."
)


def card(
    kind: str,
    config: object,
    figures: Mapping[str, object] | None,
    sections: Mapping[str, str] | None = None,
) -> str:
    """The text of a card.

    Args:
        kind: ``density-model``, ``prior``, ``tokenizer``, ``generator`` or ``vae``.
        config: the configuration, shown as JSON.
        figures: measured numbers by name; nested mappings become sections. None when nothing was
            measured.
        sections: further sections, Markdown by heading, which come before the figures.
    """
    title = TITLES[kind]
    use = USES[kind]
    if _states_bound(config):
        title = MASKED_TITLES.get(kind, title)
        figures = _named_as_bound(kind, figures)
        if kind == "density-model":
            use = MASKED_USE
    # The lines between `---` are what model hubs read.
    lines = [
        "---",
        "library_name: tessella",
        "tags: [images, autoregressive, discrete]",
        *_metadata(kind, figures or {}),
        "---",
        "",
        f"# {title}",
        "",
        "```python",
        "import tessella as ts",
        "",
        use,
        "```",
        "",
    ]
    for heading, text in (sections or {}).items():
        lines += [f"## {heading}", "", text.strip(), ""]
    lines += ["## Figures", ""]
    # A card without figures says how to get them.
    if figures:
        lines += _table(figures)
    else:
        lines.append(NOTHING_MEASURED)
    lines += ["", "## Configuration", "", "```json", files.json_text(config), "```", ""]
    return "\n".join(lines)


def _states_bound(config: object) -> bool:
    """Whether a configuration is that of a model which states a bound on probabilities."""
    if not isinstance(config, Mapping):
        return False
    # That of two stages holds those of both.
    if "prior" in config:
        return _states_bound(config["prior"])
    name = config.get("name")
    # Tokenizers have other names.
    return isinstance(name, str) and name in MODELS and MODELS[name].states_bound


def _named_as_bound(kind: str, figures: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Figures, of which the bits of the validation have the name of a bound.

    Records of runs have one name for all models.
    """
    validation = (figures or {}).get("validation")
    if not isinstance(validation, Mapping) or "bits_per_dim" not in validation:
        return figures
    named = dict(validation)
    name = "bound_bits_per_dim" if kind == "density-model" else "bound_bits_per_code"
    named[name] = named.pop("bits_per_dim")
    return {**(figures or {}), "validation": named}


def _metadata(kind: str, figures: Mapping[str, object]) -> list[str]:
    """Lines of YAML on the task of a model, and on what was measured, as the Hub reads them."""
    lines = []
    task = "image-feature-extraction"
    if kind in DRAWING:
        task = "unconditional-image-generation"
        lines.append(f"pipeline_tag: {task}")
    results = []
    for section in (figures, *figures.values()):
        if isinstance(section, Mapping):
            results += _results(task, section)
    if results:
        index = [{"name": TITLES[kind], "results": results}]
        # JSON is YAML.
        lines.append(f"model-index: {files.json_text(index, indent=None)}")
    return lines


def _results(task: str, figures: Mapping[str, object]) -> list[dict[str, object]]:
    """An entry of a ``model-index``, where it is known which images were measured."""
    data = figures.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("source"), str):
        return []
    metrics = []
    for name, what in PUBLISHED.items():
        value = figures.get(name)
        if isinstance(value, float) and math.isfinite(value):
            metrics.append({"type": name, "name": what, "value": value})
    if not metrics:
        return []
    source = data["source"]
    # A source is a kind and a place, such as npz:cifar10.npz.
    dataset = {"type": source.split(":", 1)[0], "name": source}
    if isinstance(data.get("split"), str):
        dataset["split"] = data["split"]
    return [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]


def _table(figures: Mapping[str, object]) -> list[str]:
    """Figures as a table, and the nested ones as tables under separate headings."""
    lines = ["| figure | value |", "|---|---|"]
    sections = []
    # Sections come after the table, since Markdown has no nested tables.
    for name, value in figures.items():
        # A comparison with another run, or the identity of the images.
        if isinstance(value, Mapping):
            sections += ["", f"### {name}", "", *_table(value)]
        else:
            lines.append(f"| {name} | {_shown(value)} |")
    return lines + sections


def _shown(value: object) -> str:
    # Enough to compare models; `run.json` keeps all digits.
    return f"{value:.5g}" if isinstance(value, float) else str(value)
