"""A type checker knows the keywords of models and of sampling."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """
import tessella as ts

model = ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers=2, hidden=8)
ts.sample(model, n=4, seed=0, temperature=0.9, top_k=5, top_p=0.9, guidance=1.0, method="cached")
for index, x in ts.stream(model, n=1, every=8, top_k=1):
    print(index, x.shape)
ts.replay(model, ts.sample(model, n=1), temperature=1.0)
"""

WRONG = {
    'ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layrs=2)': "layrs",
    'ts.create("gated-pixelcnn", ts.Grid(8, 8, 1, 17), layers="2")': "layers",
    "ts.sample(model, n=4, temprature=0.9)": "temprature",
    "ts.sample(model, n=4, temperature=None)": "temperature",
    'ts.sample(model, n=4, method="cashed")': "method",
    'ts.sample(model, n=4, seed="x")': "seed",
    "ts.stream(model, topk=3)": "topk",
    "ts.complete(model, x, known, tempature=1.0)": "tempature",
    "ts.replay(model, x, top_q=0.5)": "top_q",
}


@pytest.mark.slow
def test_mypy_finds_misspelt_keywords_and_nothing_else(tmp_path: Path) -> None:
    lines = [*RIGHT.strip().splitlines(), "x = known = ts.sample(model, n=1)", *WRONG]
    file = tmp_path / "user.py"
    file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent"]
    command += [f"--cache-dir={tmp_path / 'cache'}", "--ignore-missing-imports", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    first_wrong = len(lines) - len(WRONG) + 1
    found = {}
    for line in done.stdout.splitlines():
        match = re.match(r".*user\.py:(\d+): error: (.*)", line)
        if match:
            found[int(match[1])] = match[2]
    assert list(found) == list(range(first_wrong, len(lines) + 1)), done.stdout
    for message, word in zip(found.values(), WRONG.values(), strict=True):
        assert word in message
