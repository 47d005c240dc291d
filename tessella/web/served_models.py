"""The models that are served: those named on the command line, loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tessella.errors import unknown
from tessella.files import JSONValue
from tessella.grid import Grid
from tessella.models.hierarchy import GRIDS
from tessella.pipeline import (
    CompletesImages,
    DrawsImages,
    Generator,
    SavedModel,
    class_count,
    learned_tokenizer,
    load_saved,
    locate,
    pixel_levels,
    read_run_record,
)
from tessella.pipeline.model_card import TITLES
from tessella.pipeline.run_record import train_split
from tessella.pipeline.saved_model import states_bound
from tessella.web.refusals import NoSuchModel


@dataclass(frozen=True)
class ServedModel:
    """A model under the name that clients know.

    Args:
        name: the last part of the run's path, made unique.
        run: as it was named on the command line.
        model: what the run holds.
        classes: names of the classes that it is conditioned on.
        about: what its recipe says of it.
    """

    name: str
    run: str
    model: SavedModel
    classes: tuple[str, ...]
    about: str

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels of its images."""
        height, width, channels = self.model.image_grid.shape
        return height, width, channels

    @property
    def abilities(self) -> list[str]:
        """What the page can do with it."""
        able = []
        if isinstance(self.model, DrawsImages):
            able.append("draw")
        if isinstance(self.model, CompletesImages) and self.model.completes:
            able.append("complete")
        is_exact = not states_bound(self.model)
        if isinstance(self.model, Generator) and is_exact:
            able.append("bits")
        if learned_tokenizer(self.model) is not None and self.model.kind != "vae":
            able.append("codes")
        # A file is coded by the exact twin of one density model.
        if isinstance(self.model, Generator) and len(self.model.priors) == 1 and is_exact:
            able.append("compress")
        return able

    @property
    def lacks(self) -> str:
        """Why the page cannot do the rest with it; empty where it can do everything that fits."""
        if self.model.kind == "vae":
            return "A VAE only draws: it has no symbols, and so no bits, no codes and no files."
        if states_bound(self.model):
            return "A masked model states no exact probabilities, and so no bits and no files."
        if not isinstance(self.model, DrawsImages):
            if len(self.grids()) > GRIDS:
                return "A tokenizer alone draws nothing: train a next-scale prior on its codes."
            return (
                "A tokenizer alone draws nothing: train a prior on its codes, or serve a two-stage"
                " model."
            )
        if "complete" not in self.abilities:
            return "Codes of many scales have no compressed file, and no part of them can be kept."
        if "compress" not in self.abilities:
            return "Codes of several grids have no compressed file."
        return ""

    def facts(self) -> dict[str, JSONValue]:
        """What the page needs to know of it."""
        height, width, channels = self.size
        parameters = 0
        for network in self.model.components().values():
            parameters += sum(weights.numel() for weights in network.parameters())
        has_null_class = isinstance(self.model, Generator) and self.model.prior.null_class
        return {
            "name": self.name,
            "run": self.run,
            "kind": self.model.kind,
            "title": TITLES[self.model.kind],
            "about": self.about,
            "height": height,
            "width": width,
            "channels": channels,
            "levels": pixel_levels(self.model) or 256,
            "grids": [_grid_facts(grid) for grid in self.grids()],
            "classes": list(self.classes),
            "guidance": bool(self.classes) and has_null_class,
            "rules": isinstance(self.model, CompletesImages),
            "parameters": parameters,
            "lacks": self.lacks,
            "abilities": list(self.abilities),
        }

    def grids(self) -> tuple[Grid, ...]:
        """The grids of symbols that an image becomes, coarse to fine."""
        return self.model.tokenizer.grids()


def _grid_facts(grid: Grid) -> JSONValue:
    return {
        "height": grid.height,
        "width": grid.width,
        "depth": grid.channels,
        "levels": grid.levels,
    }


class ServedModels:
    """All models that are served, by name.

    Args:
        runs: run directories, or names of bundled models.
        device: where to load them.

    Raises:
        ArtifactError: when one cannot be loaded.
    """

    def __init__(self, runs: Iterable[str], device: torch.device) -> None:
        self._models: dict[str, ServedModel] = {}
        for run in runs:
            served = _loaded(run, device, taken=set(self._models))
            self._models[served.name] = served

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def named(self, name: str) -> ServedModel:
        """The model of a name.

        Raises:
            NoSuchModel: with the names that there are.
        """
        if name not in self._models:
            raise NoSuchModel(unknown("model", name[:80], self._models))
        return self._models[name]


def _loaded(run: str, device: torch.device, taken: set[str]) -> ServedModel:
    folder: Path = locate(run)
    model = load_saved(run, device)
    record = read_run_record(folder)
    recipe = record.get("recipe") or {}
    # What a recipe says of itself may end with figures, which are those of another run.
    about = (recipe.get("about") or "").partition(":")[0].partition(" (give")[0]
    # Numbers, unless the run knows names.
    names = [str(name) for name in train_split(record).get("classes") or []]
    count = class_count(model)
    if len(names) != count:
        names = [str(number) for number in range(count)]
    base = folder.resolve().name
    name = base
    number = 2
    while name in taken:
        name = f"{base}-{number}"
        number += 1
    return ServedModel(name, run, model, tuple(names), about)
