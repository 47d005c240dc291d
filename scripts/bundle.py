"""Put the models of a finished demo into the package: python scripts/bundle.py runs/demo"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

NAMES = {"pixels": "digits", "vqvae": "digits-vqvae", "codes": "digits-codes"}
LIMIT = 1_000_000
"""Bytes that the bundled models may take together."""


def main(demo: Path) -> None:
    bundle = Path(__file__).resolve().parents[1] / "tessella" / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    for stage, name in NAMES.items():
        shutil.copytree(
            demo / stage,
            bundle / name,
            ignore=shutil.ignore_patterns("checkpoints", "log.jsonl", "tensorboard"),
        )
        facts = json.loads((bundle / name / "run.json").read_text())
        # What ships names its tokenizer by its place in the bundle.
        facts["recipe"]["prior_of"] = "digits-vqvae" if facts["recipe"]["prior_of"] else ""
        facts["environment"]["command"] = ["tessella", "demo"]
        (bundle / name / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    if size > LIMIT:
        raise SystemExit(f"the bundle takes {size} bytes, more than {LIMIT}")
    print(f"{bundle}: {size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
