"""Where the images of the cells of ``likelihood.py`` lie, and those that are made on demand.

Data are found in the folder ``TESSELLA_TEST_DATA``. What is made of them lies in
``runs/likelihood/data``, which git ignores: parts of the Kodak photographs, natural crops, and
CIFAR-10 with original pixels. A description lies beside every file that was made; results hold it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cifar10_and_crops
import harness
import numpy as np
from cifar10_and_crops import Arrays, Choice
from natural_crops import split_tiles

from tessella import files
from tessella.config import DataConfig

DATA = Path(os.environ.get("TESSELLA_TEST_DATA", harness.ROOT.parent / "shared" / "data"))
MADE = harness.ROOT / "runs" / "likelihood" / "data"

PHOTOGRAPHS = ("imagenet_sample.zip", "bsds500.zip", "kodak24.zip")

Description = dict[str, object]
"""What an npz file was made of, and the SHA-256 of its arrays."""


def _natural_crops() -> tuple[Arrays, Description]:
    arrays = split_tiles([DATA / "kodak24.zip", DATA / "bsds500.zip"])
    photographs = int(arrays["test_photographs"].max()) + 1
    return arrays, {"train_images": len(arrays["train_images"]), "test_photographs": photographs}


def _originals() -> tuple[Arrays, Description]:
    return cifar10_and_crops.build(DATA, Choice())


def _originals_and_crops() -> tuple[Arrays, Description]:
    return cifar10_and_crops.build(DATA, Choice(PHOTOGRAPHS))


def _originals_crops_and_jpeg() -> tuple[Arrays, Description]:
    return cifar10_and_crops.build(DATA, Choice(PHOTOGRAPHS, jpeg=True))


RECIPES: dict[str, Callable[[], tuple[Arrays, Description]]] = {
    "natural-crops.npz": _natural_crops,
    "cifar10-originals.npz": _originals,
    "cifar10-originals-and-crops.npz": _originals_and_crops,
    "cifar10-originals-crops-and-jpeg.npz": _originals_crops_and_jpeg,
}
"""The files that are made, by the name that a cell gives them."""


def located(config: DataConfig) -> DataConfig:
    """The data of a cell, with the path at which they lie on this machine.

    What does not exist yet is made.
    """
    kind, _, path = config.source.partition(":")
    if not path:
        return config
    place = DATA / path
    if path.startswith("kodak-"):
        # The photographs come in one archive, and a cell names how many it trains on.
        place = kodak(int(path.removeprefix("kodak-")))
    elif path in RECIPES:
        place = made(path)
    return replace(config, source=f"{kind}:{place}")


def made(name: str) -> Path:
    """The file of a name in ``RECIPES``, made where it does not exist yet."""
    place = MADE / name
    if place.exists() and _description_path(name).exists():
        return place
    print(f"  making {place}", flush=True)
    MADE.mkdir(parents=True, exist_ok=True)
    arrays, description = RECIPES[name]()
    # The file first, under another name: an interruption must not leave half of one.
    # Not compressed: a run would spend its first minutes on unpacking.
    unfinished = MADE / f"unfinished-{name}"
    np.savez(unfinished, **arrays)
    unfinished.replace(place)
    described = {"name": name, **description, "sha256": cifar10_and_crops.fingerprint(arrays)}
    files.write_json(_description_path(name), described)
    return place


def description(config: DataConfig) -> Description | None:
    """What the file that a cell names was made of; None where it was not made here."""
    name = Path(config.source.partition(":")[2]).name
    if name not in RECIPES:
        return None
    found: Description = json.loads(_description_path(name).read_text(encoding="utf-8"))
    return found


def photographs_of_test(config: DataConfig) -> np.ndarray | None:
    """The photograph of each test image, where an npz file says so: int32 ``[n]``."""
    kind, _, path = config.source.partition(":")
    if kind != "npz":
        return None
    with np.load(path) as arrays:
        if "test_photographs" not in arrays:
            return None
        photographs: np.ndarray = arrays["test_photographs"]
    return photographs


def _description_path(name: str) -> Path:
    return (MADE / name).with_suffix(".json")


def kodak(count: int) -> Path:
    """Unpack a part of ``kodak24.zip``; returns its folder.

    The first ``count`` photographs (15 at most) are to train on, 3 others to validate with and 6 to
    test on; these two do not depend on ``count``.
    """
    place = MADE / f"kodak-{count}"
    with zipfile.ZipFile(DATA / "kodak24.zip") as archive:
        names = sorted(archive.namelist())
        splits = {"train": names[:count], "valid": names[15:18], "test": names[18:]}
        for split, members in splits.items():
            folder = place / split
            folder.mkdir(parents=True, exist_ok=True)
            for name in members:
                # Files that are rewritten would have to be decoded anew.
                if not (folder / name).exists():
                    files.write_bytes(folder / name, archive.read(name))
    return place
