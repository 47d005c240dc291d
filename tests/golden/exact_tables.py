"""Prints two SHA-256 for each golden twin: of all its frequency tables for 32 images, and of a file
that holds these images.

    python tests/golden/exact_tables.py --batch 7 --threads 2

The digests do not depend on the batch, the number of threads, the kernel or the processor:
``exact_tables.json`` beside this file holds them. ``--make`` makes the twins and the digests anew,
for a new version of the arithmetic.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

import tessella as ts
from tessella.exact import ExactModel, load_twin, save_twin

HERE = Path(__file__).parent
TWINS = HERE / "twins"
DIGESTS = HERE / "exact_tables.json"
IMAGES = 32

MODELS: dict[str, dict[str, Any]] = {
    "gated-pixelcnn": {"grid": ts.Grid(5, 4, 1, 2), "classes": 2, "layers": 2, "hidden": 8},
    "pixelcnn++": {
        "grid": ts.Grid(4, 4, 3, 256),
        "head": "logistic-mixture",
        "filters": 8,
        "embedding": 0,
        "components": 3,
    },
    "pixelsnail": {
        "grid": ts.Grid(4, 5, 1, 16),
        "head": "ordinal",
        "blocks": 1,
        "channels": 16,
        "residual_channels": 8,
        "heads": 2,
    },
    "transformer": {"grid": ts.Grid(4, 4, 1, 32), "layers": 2, "width": 16, "heads": 2},
    "pixelcnn": {"grid": ts.Grid(5, 4, 3, 4), "layers": 2, "hidden": 9, "last": 12},
    "row-lstm": {"grid": ts.Grid(4, 4, 1, 5), "layers": 1, "hidden": 8, "last": 16},
    "diagonal-bilstm": {"grid": ts.Grid(4, 4, 2, 3), "layers": 1, "hidden": 8, "last": 16},
    "lstm": {"grid": ts.Grid(4, 4, 1, 4), "layers": 2, "hidden": 16},
}
"""The golden twins. Together they use every operation and activation."""


def images(twin: ExactModel) -> torch.Tensor:
    """The images whose symbols are predicted."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(twin.grid.levels, (IMAGES, *twin.grid.shape), generator=generator)


def digest_of_tables(twin: ExactModel, batch: int) -> str:
    """SHA-256 of all frequencies, predicted ``batch`` images at a time."""
    x = images(twin)
    labels = torch.arange(IMAGES) % (twin.classes + 1)
    frequencies = []
    for start in range(0, IMAGES, batch):
        part = slice(start, start + batch)
        cond = {"class": labels[part]} if twin.classes else None
        condition = twin.condition(cond, len(x[part]))
        frequencies.append(twin(x[part], condition))
    everything = torch.cat(frequencies).numpy().astype("<i8")
    return hashlib.sha256(everything.tobytes()).hexdigest()


def digest_of_file(twin: ExactModel, batch: int) -> str:
    """SHA-256 of a file of the images, encoded and decoded ``batch`` images at a time."""
    x = images(twin)
    data = ts.compress(x, twin, batch=batch)
    if batch > 1:
        # One image at a time takes long, and the encoder has stepped in this way already.
        decoded = torch.as_tensor(ts.decompress(data, twin, batch=batch)).long()
        assert torch.equal(decoded, x)
    return hashlib.sha256(data).hexdigest()


def digests(batch: int) -> dict[str, str]:
    """The digests of every golden twin, by its name and what they are of."""
    found = {}
    for name in MODELS:
        twin = load_twin(TWINS / name)
        found[f"{name} tables"] = digest_of_tables(twin, batch)
        # Files need the entropy coder of the extra `compress`.
        if importlib.util.find_spec("constriction"):
            found[f"{name} file"] = digest_of_file(twin, batch)
    return found


def make() -> None:
    """Make the twins."""
    for name, options in MODELS.items():
        model = ts.create(name, seed=0, **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # As large as the weights of a trained model, so that predictions vary.
                parameter.mul_(1.5)
        twin = model.exact()
        save_twin(twin, TWINS / name)


def main() -> None:
    """Print the digests, or make everything anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--make", action="store_true", help="make new twins and digests")
    parser.add_argument("--digests", action="store_true", help="make new digests of the old twins")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.make:
        make()
    if options.make or options.digests:
        DIGESTS.write_text(json.dumps(digests(IMAGES), indent=2) + "\n")
    else:
        print(json.dumps(digests(options.batch)))


if __name__ == "__main__":
    main()
