"""Put the models of a finished demo into the package: ``python scripts/bundle.py runs/demo``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

BUNDLE = Path(__file__).resolve().parents[1] / "tessella" / "bundle"
NAMES = {"pixels": "digits", "vqvae": "digits-vqvae", "codes": "digits-codes"}
"""Bundled models by the stage of the demo that trained them."""
TRAINING_ONLY = (".lock", "checkpoints", "log.jsonl", "tensorboard")
"""Parts of a run directory that a finished model does not need."""
LIMIT = 1_000_000
"""Bytes that the bundled models may take together."""


def bundle(demo: Path) -> None:
    """Replace all bundled models by those of a demo; exits if they are too large."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    for stage, name in NAMES.items():
        run = BUNDLE / name
        shutil.copytree(demo / stage, run, ignore=shutil.ignore_patterns(*TRAINING_ONLY))
        clean_record(run / "run.json")

    # The package is downloaded by everybody, whether its models are used or not.
    size = 0
    for file in BUNDLE.rglob("*"):
        if file.is_file():
            size += file.stat().st_size
    if size > LIMIT:
        raise SystemExit(f"the bundle takes {size} bytes, more than {LIMIT}")
    print(f"{BUNDLE}: {size} bytes")


def clean_record(path: Path) -> None:
    """Take the paths of the machine that trained a run out of its record."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    # A bundled prior names its tokenizer by its place in the bundle.
    if facts["recipe"]["prior_of"]:
        facts["recipe"]["prior_of"] = NAMES["vqvae"]
    facts["environment"]["command"] = ["tessella", "demo"]
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    bundle(Path(sys.argv[1]))
