"""The cells of ``likelihood.toml``: a model, its data, a budget and a seed each.

A table ``[TABLE]`` holds ``data``, ``model`` and ``train`` of a recipe, which its cells share, and

- ``cells``: a table of recipe parts for each cell, over those of the table; or ``cells_of``, the
  name of another table whose cells are meant (their ``model`` and ``train``, not its own);
- ``variants``: parts over both, for each name once more: ``"15" = { train = { minutes = 15 } }``;
- ``seeds``: of the table, a cell or a variant: every cell is trained once with each of them, which
  sets ``train.seed`` and ``model.seed``. Without seeds a cell is trained once, as its recipe says;
- ``draws``: of the table: so many Bernoulli draws of every test image, see ``likelihood.py``;
- ``each_image``, ``in_bounds``: of the table, see :class:`Cell`.
"""

from __future__ import annotations

import fnmatch
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import likelihood_data

from tessella import config as configs
from tessella.config import Recipe
from tessella.errors import ConfigError

RUNS = harness.ROOT / "runs" / "likelihood"
LISTED = Path(__file__).with_name("likelihood.toml")
PARTS = ("data", "model", "tokenizer", "prior_of", "train")
"""The parts of a recipe that make a cell."""
KEYS = (*PARTS, "cells", "cells_of", "variants", "seeds", "draws", "each_image", "in_bounds")
"""What a table may hold."""

Settings = dict[str, Any]
"""Parts of a recipe as plain values."""


@dataclass(frozen=True)
class Cell:
    """A model to be trained on named data for so long.

    Args:
        table: its table in ``likelihood.toml``.
        name: of the cell in its table; cells that differ in their seed alone share it.
        recipe: what to train; the path of its data is relative to the folder of images, the
            tokenizer of a prior is another cell.
        in_bounds: whether to measure bits as ``bounds.py`` does, since the table compares pixels
            with codes.
        each_image: whether to keep the bits of each image, and the probabilities of the true
            level's neighbours, with the other results.
        seed: of one of several trainings; None where there is one alone.
        draws: Bernoulli draws of each test image over which its bits are averaged; more than one
            is for grey images that are binarized.
    """

    table: str
    name: str
    recipe: Recipe
    each_image: bool = False
    in_bounds: bool = False
    seed: int | None = None
    draws: int = 1

    @property
    def group(self) -> str:
        """``TABLE/CELL``, shared by the seeds of a cell."""
        return f"{self.table}/{self.name}"

    @property
    def id(self) -> str:
        """``TABLE/CELL``, or ``TABLE/CELL-seedN``."""
        if self.seed is None:
            return self.group
        return f"{self.group}-seed{self.seed}"

    @property
    def run(self) -> Path:
        """The directory in which it trains."""
        return RUNS / self.id

    @property
    def result(self) -> Path:
        """The file of its results."""
        return harness.results_path(f"likelihood/{self.id}")

    @property
    def bits_of_images(self) -> Path:
        """The file of the bits of each test image, beside its results."""
        return self.result.with_name(self.result.stem + ".safetensors")

    @property
    def settings(self) -> Settings:
        """The recipe as plain values, as JSON gives them back."""
        return plain(self.recipe)

    def located_recipe(self) -> Recipe:
        """The recipe with the paths at which its data and its tokenizer lie on this machine.

        Data that do not exist yet are made.
        """
        tokenizer = ""
        if self.recipe.prior_of:
            tokenizer = str(RUNS / self.recipe.prior_of)
        located = likelihood_data.located(self.recipe.data)
        return replace(self.recipe, data=located, prior_of=tokenizer)


def every_cell() -> list[Cell]:
    """All cells of ``likelihood.toml``, in its order.

    Raises:
        ConfigError: for settings that no recipe knows.
    """
    tables = tomllib.loads(LISTED.read_text(encoding="utf-8"))
    found: list[Cell] = []
    for name in tables:
        found.extend(cells_of_table(name, tables))
    return found


def cells_of_table(name: str, tables: Mapping[str, Settings]) -> Iterator[Cell]:
    """The cells of one table, each of them once for every variant and seed.

    Args:
        name: of the table.
        tables: all of them, by name.

    Raises:
        ConfigError: for a key that is not known.
    """
    table = tables[name]
    for key in table:
        if key not in KEYS:
            raise ConfigError(f"[{name}] has no key {key!r}; there are {', '.join(KEYS)}")
    cells = table.get("cells", {})
    if "cells_of" in table:
        cells = tables[table["cells_of"]]["cells"] | cells

    for variant, changes in table.get("variants", {"": {}}).items():
        found = []
        for label, settings in cells.items():
            # A cell changes what its table says, and a variant changes both.
            layers = [table, settings, changes]
            parts = merge_layers(layers)
            full_name = label
            if variant:
                full_name = f"{label}-{variant}"
            for seed in seeds_of(layers):
                # Strict: a misspelt key is an error here, not a setting without effect.
                recipe = configs.from_dict(Recipe, seeded(parts, seed), f"{name}.{label}")
                cell = Cell(
                    name,
                    full_name,
                    recipe,
                    each_image=table.get("each_image", False),
                    in_bounds=table.get("in_bounds", False),
                    seed=seed,
                    draws=table.get("draws", 1),
                )
                found.append(cell)
        # All cells with the first seed, then with the second: those that are compared run close
        # together, and what a table has is complete for some seeds wherever the list is stopped.
        yield from sorted(found, key=lambda cell: cell.seed or 0)


def seeds_of(layers: Sequence[Settings]) -> list[int | None]:
    """The seeds of a cell: the last layer that names some decides; None where none does."""
    seeds: list[int | None] = [None]
    for layer in layers:
        seeds = layer.get("seeds", seeds)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ConfigError(f"seeds must be different numbers, at least one, got {seeds}")
    return seeds


def seeded(parts: Settings, seed: int | None) -> Settings:
    """The parts of a recipe, trained with a seed: of the data order and of the weights."""
    if seed is None:
        return parts
    changed = {**parts, "train": {**parts.get("train", {}), "seed": seed}}
    for part in ("model", "tokenizer"):
        if part in parts:
            changed[part] = {**parts[part], "seed": seed}
    return changed


def merge_layers(layers: Sequence[Settings]) -> Settings:
    """The parts of a recipe, later layers over earlier ones."""
    merged: Settings = {}
    for part in PARTS:
        for layer in layers:
            if part not in layer:
                continue
            value = layer[part]
            if isinstance(value, dict):
                # A table keeps the keys that a later layer does not name.
                merged[part] = {**merged.get(part, {}), **value}
            else:
                merged[part] = value
    return merged


def plain(recipe: Recipe) -> Settings:
    """The parts of a recipe that make a cell, as JSON gives them back."""
    # The way through JSON turns tuples into lists, as in the file it is compared with.
    values: Settings = json.loads(json.dumps(configs.to_dict(recipe)))
    return {part: values[part] for part in PARTS if values[part]}


def state(cell: Cell) -> str:
    """``done``, ``changed``, ``new``, or how far its run is."""
    if cell.result.exists():
        row = harness.read_rows(cell.result)[0]
        if has_settings_of(cell, row["settings"]):
            return "done"
        return "changed"

    record = cell.run / "run.json"
    if not record.exists():
        return "new"
    facts = json.loads(record.read_text(encoding="utf-8"))
    if not has_settings_of(cell, facts["recipe"]):
        return "changed"
    if facts["status"] == "finished":
        return "trained"
    return "begun"


def minutes_of(cell: Cell) -> float:
    """Minutes that a cell has trained: those of its result, or of its run so far."""
    if cell.result.exists():
        return float(harness.read_rows(cell.result)[0]["minutes"])
    log = cell.run / "log.jsonl"
    if not log.exists():
        return 0.0
    # The record of a run is written at its end; its log every few steps.
    seconds = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        # A kill can leave half of the last line.
        if line.endswith("}"):
            seconds = max(seconds, json.loads(line)["seconds"])
    return seconds / 60


def has_settings_of(cell: Cell, settings: Settings) -> bool:
    """Whether settings are those of a cell.

    Keys that were added to recipes since count with their defaults. The folders of data and
    tokenizer do not count.
    """
    parts = {part: settings[part] for part in PARTS if settings.get(part)}
    recipe: Recipe = configs.from_dict(Recipe, parts)
    return without_folders(plain(recipe)) == without_folders(cell.settings)


def without_folders(settings: Settings) -> Settings:
    """Settings without the folders of data and tokenizer."""
    kind, _, path = settings["data"]["source"].partition(":")
    source = f"{kind}:{Path(path).name}"
    # Of a tokenizer its table and its cell remain.
    tokenizer = "/".join(Path(settings.get("prior_of", "")).parts[-2:])
    return {
        **settings,
        "data": {**settings["data"], "source": source},
        "prior_of": tokenizer,
    }


def find_cells(patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match a pattern, in their order; exits if there are none.

    A pattern that matches a name without its seed stands for all seeds.
    """
    every = every_cell()
    found = []
    for cell in every:
        names = (cell.id, cell.group)
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in names):
            found.append(cell)
    if not found:
        tables = ", ".join(dict.fromkeys(cell.table for cell in every))
        raise SystemExit(
            f"no cell is named {' or '.join(patterns)}; there are the tables {tables}, "
            "and the part list shows their cells"
        )
    return found
