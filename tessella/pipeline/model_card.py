"""The model card: what a saved model is and what was measured on it, as a Markdown file beside its
weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TITLES = {
    "density-model": "Autoregressive density model on pixels",
    "prior": "Autoregressive prior on codes",
    "tokenizer": "Image tokenizer",
    "generator": "Two-stage image model: tokenizer and prior",
    "vae": "Variational autoencoder of images",
}

USES = {
    "density-model": "generator = ts.load(PATH)\nimages = generator.sample(16, seed=0)       # uint8 [16, h, w, c]\n"
    "bits = generator.bits_per_dim(images)        # exact, per image",
    "generator": "generator = ts.load(PATH)\nimages = generator.sample(16, seed=0)       # uint8 [16, h, w, c]\n"
    "codes = generator.tokenizer.encode(images)   # int64",
    "tokenizer": "tokenizer = ts.load(PATH)\ncodes = tokenizer.encode(images)             # uint8 in, int64 out\n"
    "images = tokenizer.decode(codes)",
    "vae": "vae = ts.load(PATH)\nimages = vae.sample(16, seed=0)             # uint8 [16, h, w, c]\n"
    "bits = vae.bits_per_dim(images)              # an upper bound, per image",
    "prior": "generator = ts.load(PATH_OF_THE_DIRECTORY_ABOVE)",
}


def card(kind: str, config: Mapping[str, Any], figures: Mapping[str, Any] | None) -> str:
    """The text of a card.

    Args:
        kind: ``density-model``, ``prior``, ``tokenizer``, ``generator`` or ``vae``.
        config: the configuration, shown as JSON.
        figures: measured numbers by name; nested mappings become sections. None when nothing was
            measured.
    """
    lines = ["---", "library_name: tessella", "tags: [images, autoregressive, discrete]", "---", ""]
    lines += [
        f"# {TITLES[kind]}",
        "",
        "```python",
        "import tessella as ts",
        "",
        USES[kind],
        "```",
        "",
    ]
    lines += ["## Figures", ""]
    if figures:
        lines += _table(figures)
    else:
        lines += [
            "Nothing was measured when this card was written; `tessella eval PATH` measures and renews it."
        ]
    lines += ["", "## Configuration", "", "```json", json.dumps(config, indent=2), "```", ""]
    return "\n".join(lines)


def _table(figures: Mapping[str, Any]) -> list[str]:
    plain = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    lines = [
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {_shown(value)} |" for name, value in plain.items()),
    ]
    for name, value in figures.items():
        if isinstance(value, Mapping):
            lines += ["", f"### {name}", "", *_table(value)]
    return lines


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
