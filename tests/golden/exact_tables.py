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
    "lstm-predicted": {
        "grid": ts.Grid(5, 6, 3, 256),
        "head": "logistic-mixture",
        "layers": 1,
        "hidden": 8,
        "components": 2,
        "predictor": True,
        "predictor_hidden": 6,
    },
}
"""The golden twins by name, which begins with that of the family. Together they use every operation
and activation."""


def images(twin: ExactModel) -> torch.Tensor:
    """The images whose symbols are predicted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(twin.grid.levels, (IMAGES, *twin.grid.shape), generator=generator)
    return x if twin.network.predictor is None else of_all_contrasts(x)


def of_all_contrasts(x: torch.Tensor) -> torch.Tensor:
    """Images of fewer and fewer bits, so that activities of all sizes occur."""
    return x >> (torch.arange(len(x)) % 8).view(-1, 1, 1, 1)


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


def make(names: list[str]) -> None:
    """Make the twins of these names."""
    for name in names:
        options = MODELS[name]
        model = ts.create(name.removesuffix("-predicted"), seed=0, **options).eval()
        calibration = None
        with torch.no_grad():
            if model.predictor is None:
                for parameter in model.parameters():
                    # As large as the weights of a trained model, so that predictions vary.
                    parameter.mul_(1.5)
            else:
                calibration = fit_predictor(model)
        twin = model.exact(calibration)
        save_twin(twin, TWINS / name)


def fit_predictor(model: ts.DensityModel) -> torch.Tensor:
    """Fit a model's predictor, and give its corrections weights; returns the images it has seen."""
    generator = torch.Generator().manual_seed(1)
    shape = (400, *model.grid.shape)
    x = of_all_contrasts(torch.randint(model.grid.levels, shape, generator=generator))
    model.fit_predictor(x)
    assert model.predictor is not None
    # Fitting has set these to zero.
    for weights in [*model.output_weights(), *model.predictor.last.parameters()]:
        weights.copy_(0.3 * torch.randn(weights.shape, generator=generator))
    return x


def main() -> None:
    """Print the digests, or make everything anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--make", nargs="*", help="make new twins, all or some, and digests")
    parser.add_argument("--digests", action="store_true", help="make new digests of the old twins")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.make is not None:
        make(options.make or list(MODELS))
    if options.make is not None or options.digests:
        DIGESTS.write_text(json.dumps(digests(IMAGES), indent=2) + "\n")
    else:
        print(json.dumps(digests(options.batch)))


if __name__ == "__main__":
    main()
