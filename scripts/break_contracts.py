"""Show that the contract tests, and those of heads, sampling and quantizers, can fail.

Breaks the code in a copy, one way at a time, and sees which tests notice:

    python scripts/break_contracts.py

Prints a line for each break and writes results/contracts.json; exits with 1 when a break goes unnoticed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What is broken: file, the code, what stands in its place.
BREAKS = {
    "the first layer sees its own pixel": (
        "models/gated_pixelcnn.py",
        'reach, "columns", exclusive=first',
        'reach, "columns", exclusive=False',
    ),
    "the first layer sees its own row": (
        "models/gated_pixelcnn.py",
        'reach, "rows", exclusive=first',
        'reach, "rows", exclusive=False',
    ),
    "a blind spot: the stacks are not linked": ("models/gated_pixelcnn.py", "sums = pointwise(self.link, v, plus=self.left(h), into=True)", "sums = self.left(h)"),
    "the class is left out of the cached step": ("models/gated_pixelcnn.py", "        if condition.labels is not None:\n            biases +=", "        if False:\n            biases +="),
    "windows are not emptied at the end of a row": ("models/gated_pixelcnn.py", "(state.row, state.first, state.windows)", "(state.row, state.first)"),
    "positions are left out of the cached step": ("models/gated_pixelcnn.py", "state.links[0] += positions[1]", "pass"),
    "a channel sees itself": ("models/output.py", "parts[c + 1 :] = [part + one for part, one in zip(parts[c + 1 :], later, strict=True)]", "parts[c:-1] = [part + one for part, one in zip(parts[c:-1], later, strict=True)]"),
    "a channel forgets the one before it in the step": ("models/output.py", "        if channel:\n            state.hidden", "        if False:\n            state.hidden"),
    "the last bin of the mixture is cut off": ("heads.py", "torch.where(x == self.levels - 1, above, inside)", "inside"),
    "the mixture's weights ignore the known channels": ("heads.py", "state.log_weights + LogisticMixture", "state.log_weights + 0 * LogisticMixture"),
    "noise is shifted by one symbol": ("noise.py", "counter=start * self._stride", "counter=(start + 1) * self._stride"),
    "all images share their noise": ("noise.py", "key=self.seed + image", "key=self.seed"),
    "symbols are drawn from flattened probabilities": ("sampling.py", "self.rule(distribution.table()) +", "0.8 * self.rule(distribution.table()) +"),
    "known symbols are drawn anew": ("sampling.py", "return torch.where(self.known[:, index], given,", "return torch.where(self.known[:, index] & False, given,"),
    "guidance uses the null class twice": ("sampling.py", "self.guidance * (given - free)", "self.guidance * (free - free)"),
    "a clone shares its tensors": ("nn/state.py", "lambda tensor, dim: tensor.clone()", "lambda tensor, dim: tensor"),
    "bits are nats": ("grid.py", "return nats / (LN2 * self.symbols)", "return nats / self.symbols"),
    "the null class is class 0": ("models/base.py", "torch.full((batch,), self.classes,", "torch.full((batch,), 0,"),
    "what is loaded has fresh weights": ("pipeline.py", "load_weights(module, files.read_tensors", "(lambda *a: None)(module, files.read_tensors"),
    "nearest codes are farthest": ("tokenizers/quantizers.py", ".min(", ".max("),
    "a code's gradient does not pass": ("tokenizers/quantizers.py", "(z - z.detach())", "(z.detach() - z.detach())"),
}  # fmt: skip


def main() -> int:
    rows = []
    for name, (file, code, instead) in BREAKS.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            for part in ("tessella", "tests"):
                shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", copy)
            path = copy / "tessella" / file
            text = path.read_text(encoding="utf-8")
            assert code in text, f"{name}: {file} has changed"
            path.write_text(text.replace(code, instead, 1), encoding="utf-8")
            failed = noticed(copy)
        rows.append({"broken": name, "file": file, "tests_that_fail": len(failed), "for_example": failed[:2]})
        print(f"{len(failed):4} tests notice: {name}", flush=True)
    (ROOT / "results" / "contracts.json").write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(not row["tests_that_fail"] for row in rows))


def noticed(copy: Path) -> list[str]:
    """The tests that fail in a copy of the project."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--maxfail", "3"]
    words += ["tests/contracts", *(f"tests/unit/test_{part}.py" for part in ("heads", "sampling", "quantizers"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    shown = subprocess.run(words, cwd=copy, capture_output=True, text=True, env=environment)
    return sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", shown.stdout, re.MULTILINE)))


if __name__ == "__main__":
    sys.exit(main())
