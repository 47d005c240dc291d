"""The frequencies of the golden twins, and files, are the same however they are computed."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tessella import kernel

GOLDEN = Path(__file__).parents[1] / "golden"

needs_kernel = pytest.mark.skipif(not kernel.available(), reason="needs a C++ compiler")
needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="these instruction sets are those of x86"
)


def computed(*options: str, **variables: str) -> dict[str, str]:
    """The digests that a process of its own computes."""
    command = [sys.executable, str(GOLDEN / "exact_tables.py"), *options]
    result = subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    digests: dict[str, str] = json.loads(result.stdout)
    return digests


EXPECTED = json.loads((GOLDEN / "exact_tables.json").read_text())
if not importlib.util.find_spec("constriction"):
    # Without the entropy coder there are no files, but all tables.
    EXPECTED = {name: digest for name, digest in EXPECTED.items() if name.endswith("tables")}


@needs_kernel
@pytest.mark.parametrize(("batch", "threads"), [("1", "2"), ("7", "1"), ("32", "2")])
def test_compiled_for_this_processor(batch: str, threads: str):
    assert computed("--batch", batch, "--threads", threads) == EXPECTED


@needs_kernel
@needs_x86
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_compiled_for_other_processors(march: str):
    assert computed("--batch", "7", TESSELLA_KERNEL_MARCH=march) == EXPECTED


def test_in_torch():
    assert computed("--batch", "32", TESSELLA_KERNEL="0") == EXPECTED


def test_in_torch_with_the_simplest_instructions():
    variables = {"TESSELLA_KERNEL": "0", "ATEN_CPU_CAPABILITY": "default"}
    assert computed("--batch", "7", **variables) == EXPECTED
