"""Headers with names: kept bit for bit, refused where they lead outside, and read alike by the
reference decoder."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tessella as ts
from tessella.codec.container import (
    HAS_FILES,
    IS_LIST,
    IS_LOSSY,
    IS_WIDE,
    CodedStream,
    Contents,
    ImageRun,
    read_container,
    write_container,
)
from tessella.codec.file_names import names_problem, read_names, written_names
from tessella.codec.tiles import ImageShape
from tessella.codec.varints import ByteReader
from tessella.errors import BitstreamError

SCRIPT = Path(__file__).parents[1] / "golden" / "decode_reference.py"
GRID = ts.Grid(4, 4, 1, 16)

LISTS = [
    ["a.png"],
    ["000.png", "001.png", "010.png", "01.png", "0.png"],
    ["a", "aa", "aaa", "aaaa", "b"],
    ["x/y/z.png", "x/y.png", "é/ü.png", "e\u0301.png"],
    [os.fsdecode(b"\xff.png"), os.fsdecode(b"\xfe\xff.png")],
]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    # Python does this for a script that is run: its other half lies beside it.
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("decode_reference_of_names", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("names", LISTS)
def test_names_come_back(names: list[str], reference: ModuleType) -> None:
    data = written_names(names)
    assert read_names(ByteReader(data, len(data)), len(names)) == names
    assert len(data) <= sum(3 + len(os.fsencode(name)) for name in names)
    # The header of the reference has the names as bytes.
    run = ImageRun(len(names), ImageShape(4, 4, 1), 2)
    flags = HAS_FILES | IS_LIST
    header = Contents(bytes(16), 1, GRID, 1, flags, [run], names).written()
    found = reference.read_header(reference.Reader(header + bytes(100)), 1000)
    assert found.names == [os.fsencode(name) for name in names]
    assert found.raw == header


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["/etc/x"], "out of the folder"),
        (["../x"], "out of the folder"),
        (["a/../b"], "out of the folder"),
        (["a/./b"], "out of the folder"),
        (["a//b"], "out of the folder"),
        (["a/"], "out of the folder"),
        ([""], "out of the folder"),
        (["a\\b"], "out of the folder"),
        (["C:x"], "out of the folder"),
        (["a\0b"], "out of the folder"),
        (["a", "b", "a"], "twice"),
        (["a/b", "a"], "of a file and of a folder"),
        (["a" * 5000], "more than 4096 bytes"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(names: list[str], message: str) -> None:
    assert message in names_problem(names)
    data = written_names(names)
    reader = ByteReader(data + bytes(9), len(data) + 9)
    with pytest.raises(BitstreamError, match=rf"{message}|the length of a name"):
        read_names(reader, len(names))


def test_sizes_of_pictures_are_in_the_header(reference: ModuleType) -> None:
    runs = [
        ImageRun(2, ImageShape(4, 4, 1), 2, picture=(16, 15)),
        ImageRun(1, ImageShape(4, 4, 1), 5, picture=(13, 16)),
    ]
    flags = IS_LIST | IS_WIDE | IS_LOSSY
    contents = Contents(bytes(16), 1, GRID, 64, flags, runs, tokenizer=b"12345678")
    header = contents.written()
    assert reference.read_header(reference.Reader(header + bytes(100)), 1000).raw == header
    container = read_container(write_container(header, [SAMPLE]))
    assert container.contents.runs == runs
    assert container.contents.tokenizer == b"12345678"
    with pytest.raises(BitstreamError, match="688 pixels"):
        read_container(write_container(header, [SAMPLE]), max_pixels=687)


SAMPLE = CodedStream(b"\1\2\3\4", False, bytes(8))
"""A stream that is never decoded."""
