"""Tables in the documents are those of the files under results/."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_of_the_models_are_the_measured_ones() -> None:
    filled = runpy.run_path(str(ROOT / "scripts" / "model_tables.py"))["filled"]
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert "±" in text
    assert filled(text) == text, "run python scripts/model_tables.py"
