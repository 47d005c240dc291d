"""Show that the contract tests, and those of heads, sampling and quantizers, can fail.

Breaks the code in a copy, one way at a time, and sees which tests notice:

    python scripts/break_contracts.py [WORDS]      # all, or those whose line holds one of the words

Prints a line for each break and writes results/contracts.json; exits with 1 when a break goes
unnoticed.
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
    "a channel forgets the one before it in the step": ("models/output.py", "        if channel:\n            earlier", "        if False:\n            earlier"),
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
    "fvsbn: a symbol sees itself": ("models/fvsbn.py", "symbol // self.group < place", "symbol // self.group <= place"),
    "nade: a chunk forgets the one before": ("models/nade.py", "return torch.bmm(before.sigmoid(), decode).transpose(0, 1), running + added[-1]", "return torch.bmm(before.sigmoid(), decode).transpose(0, 1), added[-1]"),
    "nade: a symbol sees itself": ("models/nade.py", "torch.cat([running[None], running + added[:-1]])", "running + added"),
    "made: units of a degree see one place more": ("models/made.py", "return before <= seen_by[:, None]", "return before <= seen_by[:, None] + 1"),
    "made: the odds of the masks know the place itself": ("models/made.py", "F.log_softmax(wide.cumsum(dim=1) - wide, dim=-1)", "F.log_softmax(wide.cumsum(dim=1), dim=-1)"),
    "made: the odds of the masks are not carried along": ("models/made.py", "state.log_weights + state.told", "0 * state.log_weights + state.told"),
    "lstm: the step drops its cell": ("models/lstm.py", "            cell.copy_(new)\n", ""),
    "pixelcnn: channels see themselves": ("nn/channel_groups.py", "if own else of_inputs < of_outputs", "if own else of_inputs <= of_outputs"),
    "row-lstm: the row above is not widened in the field": ("models/row_lstm.py", '"columns", -REACH, REACH)', '"columns", 0, 0)'),
    "diagonal-bilstm: the right-to-left map is not moved down": ("models/diagonal_bilstm.py", "below = F.pad(right[: -self.diagonals.width], (0, 0, 0, 0, self.diagonals.width, 0))", "below = right"),
    "diagonal-bilstm: right-to-left states are a row late": ("models/diagonal_bilstm.py", "        if row:\n            self._right_to_left(state)", "        if row > 1:\n            self._right_to_left(state)"),
    "pixelcnn++: the first convolution sees its own pixel": ("models/pixelcnn_pp.py", "above, left = delayed(pixels, 1), delayed(pixels, 2)", "above, left = delayed(pixels, 1), pixels"),
    "pixelcnn++: a coarse row is not kept for its second half": ("models/pixelcnn_pp.py", "h = resize.grown_h[:, row % 2, column]", "h = resize.grown_h[:, 0, column]"),
    "pixelsnail: a pixel attends to itself": ("models/pixelsnail.py", "keys[:, :, :-1].contiguous(), values[:, :, :-1].contiguous()", "keys[:, :, 1:].contiguous(), values[:, :, 1:].contiguous()"),
    "transformer: attention looks ahead": ("nn/attention.py", "is_causal=True", "is_causal=False"),
    "transformer: keys are not turned in the cache": ("nn/attention.py", "cache[0, :, :, position], cache[1, :, :, position] = keys, values", "cache[0, :, :, position], cache[1, :, :, position] = turned[:, self.heads :], values"),
    "the condition's codes reach no row but the first": ("models/gated_pixelcnn.py", "layer.codes(state.codes[:, row])", "layer.codes(state.codes[:, 0])"),
    "ordinal logits are not the inverse's": ("heads.py", "return self._product(table, 1)", "return self._product(table, 0)"),
    "nearest codes are farthest": ("tokenizers/quantizers/search.py", "torch.min(block", "torch.max(block"),
    "a code's gradient does not pass": ("tokenizers/quantizers/codebook.py", "return gradients[0], None", "return 0 * gradients[0], None"),
}  # fmt: skip


def main() -> int:
    path = ROOT / "results" / "contracts.json"
    chosen = [
        name for name in BREAKS if not sys.argv[1:] or any(word in name for word in sys.argv[1:])
    ]
    rows = [
        row
        for row in json.loads(path.read_text())
        if row["broken"] in BREAKS and row["broken"] not in chosen
    ]
    for name in chosen:
        file, code, instead = BREAKS[name]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            for part in ("tessella", "tests"):
                shutil.copytree(
                    ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__")
                )
            shutil.copy(ROOT / "pyproject.toml", copy)
            source = copy / "tessella" / file
            text = source.read_text(encoding="utf-8")
            assert code in text, f"{name}: {file} has changed"
            source.write_text(text.replace(code, instead, 1), encoding="utf-8")
            failed = noticed(copy, file)
        rows.append(
            {
                "broken": name,
                "file": file,
                "tests_that_fail": len(failed),
                "for_example": failed[:2],
            }
        )
        print(f"{len(failed):4} tests notice: {name}", flush=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(not row["tests_that_fail"] for row in rows))


def noticed(copy: Path, file: str) -> list[str]:
    """The tests that fail in a copy of the project; where one family alone uses the file, of its
    tests."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "--maxfail",
        "3",
    ]
    own = copy / "tests" / "unit" / f"test_{Path(file).stem}.py"
    if file.startswith("models/") and (
        named := re.search(r'^    name = "(.*)"$', (copy / "tessella" / file).read_text(), re.M)
    ):
        words += [
            "tests/contracts/test_models.py",
            "-k",
            f"[{named[1]}- or -{named[1]}- or {own.stem}",
        ]
        words += [str(own.relative_to(copy))] if own.exists() else []
    else:
        words += [
            "tests/contracts",
            *(f"tests/unit/test_{part}.py" for part in ("heads", "sampling", "quantizers")),
        ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    shown = subprocess.run(words, cwd=copy, capture_output=True, text=True, env=environment)
    return sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+)", shown.stdout, re.MULTILINE)))


if __name__ == "__main__":
    sys.exit(main())
