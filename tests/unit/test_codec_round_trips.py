"""Images that are compressed come back, whatever their size, and in the same bytes each time."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_twin import FakeTwin, rows_of

import tessella as ts
from tessella.codec import tiles
from tessella.codec.container import read_container
from tessella.codec.group_walk import in_order, intervals
from tessella.codec.tiles import ImageShape
from tessella.errors import BitstreamError, InputError

pytest.importorskip("constriction", reason="the entropy coder is an optional library")

GRIDS = [
    ts.Grid(4, 4, 1, 256),
    ts.Grid(8, 6, 3, 256),
    ts.Grid(5, 4, 1, 2),
    ts.Grid(4, 4, 3, 16),
    ts.Grid(4, 4, 1, 17),
    ts.Grid(3, 5, 2, 600),
    ts.Grid(1, 1, 1, 2),
]
SIZES = [(1, 1, 1), (1, 9, 3), (13, 5, 4), (4, 4, 1), (9, 1, 2), (8, 6, 3), (4, 4, 7)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_images_of_the_size_of_the_model(grid: ts.Grid) -> None:
    twin = FakeTwin(grid)
    for values in (rows_of(7, grid.shape, grid.levels), rows_of(1, grid.shape, grid.levels)):
        data = ts.compress(values, twin)
        back = ts.decompress(data, twin)
        assert isinstance(back, torch.Tensor)
        assert back.dtype == torch.int64
        assert torch.equal(back, values)
        if grid.levels <= 256:
            short = ts.compress(values.to(torch.uint8).numpy(), twin)
            back = ts.decompress(short, twin)
            assert isinstance(back, torch.Tensor)
            assert back.dtype == torch.uint8
            assert torch.equal(back, values.to(torch.uint8))
            assert len(short) == len(data)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_images_of_any_sizes(grid: ts.Grid) -> None:
    twin = FakeTwin(grid)
    images = [rows_of(1, size, grid.levels, seed)[0] for seed, size in enumerate(SIZES)]
    data = ts.compress(images, twin, group=5)
    back = ts.decompress(data, twin, batch=2)
    assert isinstance(back, list)
    assert len(back) == len(images)
    for one, other in zip(images, back, strict=True):
        assert torch.equal(one, other)
    for place, image in enumerate(images):
        single = ts.decompress(ts.compress([image], twin), twin)
        assert torch.equal(single[0], image), place


@pytest.mark.parametrize("grid", [GRIDS[1], GRIDS[2]], ids=str)
def test_the_bytes_do_not_depend_on_the_batch(grid: ts.Grid) -> None:
    twin = FakeTwin(grid)
    images = [rows_of(1, size, grid.levels, seed)[0] for seed, size in enumerate(SIZES)]
    data = ts.compress(images, twin, group=33)
    for batch in (1, 7, 32):
        assert ts.compress(images, twin, group=33, batch=batch) == data
        back = ts.decompress(data, twin, batch=batch)
        for one, other in zip(images, back, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("sharp", [1, 8, 32])
@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2], GRIDS[3]], ids=str)
def test_streams_are_as_long_as_the_twin_says(grid: ts.Grid, sharp: int) -> None:
    twin = FakeTwin(grid, sharp)
    images = rows_of(100, grid.shape, grid.levels)
    container = read_container(ts.compress(images, twin))
    assert len(container.streams) == 2
    for number, stream in enumerate(container.streams):
        pieces = container.layout.group(number, 64)
        coded = tiles.coded_symbols(grid, pieces)
        x = images[64 * number : 64 * number + 64].flatten(1).numpy()
        _, frequencies = intervals(twin, x, coded, batch=64)
        information = float((24 - np.log2(in_order(frequencies, coded))).sum())
        assert 8 * len(stream.data) <= information * 1.0005 + 32


def test_noise_hardly_expands() -> None:
    dice = torch.Generator().manual_seed(0)
    for levels in (256, 16, 2):
        twin = FakeTwin(ts.Grid(16, 16, 3, levels))
        noise = torch.randint(0, levels, (40, 16, 16, 3), generator=dice).to(torch.uint8)
        data = ts.compress(noise, twin)
        assert len(data) <= 1.005 * noise.numel() * (levels - 1).bit_length() / 8 + 64
        assert torch.equal(ts.decompress(data, twin), noise)  # type: ignore[arg-type]


def test_what_lies_outside_of_an_image_is_not_coded() -> None:
    grid = ts.Grid(4, 4, 3, 256)
    for size, count in [((1, 1, 1), 1), ((5, 6, 3), 90), ((4, 4, 4), 64), ((1, 7, 1), 7)]:
        layout = tiles.Layout(grid, [(1, ImageShape(*size))])
        coded = tiles.coded_symbols(grid, layout.group(0, 100))
        assert coded.mask.sum() == count


def test_constant_images_are_short() -> None:
    twin = FakeTwin(ts.Grid(8, 8, 1, 2), sharp=32, steep=32)
    data = ts.compress(torch.zeros(10, 40, 40, 1, dtype=torch.uint8), twin, group=1024)
    assert len(data) < 60
    assert not ts.decompress(data, twin).any()  # type: ignore[union-attr]


def test_a_small_image_has_a_small_header() -> None:
    twin = FakeTwin(ts.Grid(8, 8, 1, 256))
    assert len(ts.compress(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), twin)) <= 50


def test_fewer_levels_take_symbols_or_the_values_that_they_are_drawn_with() -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 17))
    symbols = torch.arange(17).reshape(1, 17, 1, 1).to(torch.uint8)
    drawn = ((symbols.long() * 255 * 2 + 16) // 32).to(torch.uint8)
    for values in (symbols, drawn):
        back = ts.decompress(ts.compress(values, twin), twin)
        assert torch.equal(back, values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"0\.\.16.*got 0\.\.17"):
        ts.compress(symbols + symbols // 16, twin)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 4, 4, 1), "must be integers"),
        (torch.zeros(4, 4, 1, dtype=torch.uint8), "must have shape"),
        (torch.zeros(0, 4, 4, 1, dtype=torch.uint8), "at least one pixel"),
        ([], "no images"),
        ([torch.zeros(4, 4, dtype=torch.uint8)], r"images\[0\] must have shape"),
        (torch.full((1, 4, 4, 1), -1), "got -1..-1"),
        (torch.full((1, 4, 4, 1), 256), "got 256..256"),
        (torch.zeros(1, 1, 1, 256, dtype=torch.uint8), "256 channels"),
    ],
)
def test_what_cannot_be_compressed_is_refused(images: object, message: str) -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 256))
    with pytest.raises(InputError, match=message):
        ts.compress(images, twin)  # type: ignore[arg-type]


def test_sizes_of_groups_and_batches_are_checked() -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 256))
    image = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    for wrong in ({"group": 0}, {"group": 1025}, {"batch": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ts.compress(image, twin, **wrong)
    data = ts.compress(image, twin)
    with pytest.raises(InputError, match="batch"):
        ts.decompress(data, twin, batch=0)


class CountingTwin(FakeTwin):
    """Counts the pieces that were stepped."""

    pieces = 0

    def init_state(self, batch: int, cond: object = None) -> torch.Tensor:
        self.pieces += batch
        return super().init_state(batch, cond)


def test_one_image_costs_its_group(tmp_path: Path) -> None:
    twin = CountingTwin(ts.Grid(4, 4, 1, 256))
    images = rows_of(50, (4, 4, 1), 256).to(torch.uint8)
    path = tmp_path / "images.tsl"
    path.write_bytes(ts.compress(images, twin, group=8))
    archive = ts.Archive(path, twin)
    assert len(archive) == 50
    assert archive.names == ()
    twin.pieces = 0
    assert torch.equal(archive[17], images[17])
    assert twin.pieces == 8
    assert torch.equal(archive[-1], images[49])
    assert twin.pieces == 10
    assert torch.equal(torch.stack(list(archive)), images)
    with pytest.raises(IndexError):
        archive[50]


def test_an_image_can_lie_in_several_groups() -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 256))
    images = [rows_of(1, (10, 11, 3), 256, seed)[0] for seed in range(3)]
    archive = ts.Archive(ts.compress(images, twin, group=10), twin)
    for number in (2, 0, 1):
        assert torch.equal(archive[number], images[number])


def test_data_may_be_any_bytes() -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 256))
    image = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    data = ts.compress(image, twin)
    for form in (bytearray(data), memoryview(data)):
        assert torch.equal(ts.decompress(form, twin), image)
    with pytest.raises(BitstreamError, match="bytes"):
        ts.decompress(io.BytesIO(data), twin)  # type: ignore[arg-type]


def test_a_model_that_needs_a_class_is_refused() -> None:
    twin = FakeTwin(ts.Grid(4, 4, 1, 4))
    twin.classes = 3
    with pytest.raises(InputError, match="condition_dropout"):
        ts.compress(torch.zeros(1, 4, 4, 1, dtype=torch.uint8), twin)


def test_a_file_costs_what_a_real_twin_says() -> None:
    model = ts.load("digits").priors[0]
    twin = model.exact()
    images = ts.sample(model, n=70, seed=3)
    data = ts.compress(images, twin)
    assert torch.equal(ts.decompress(data, twin), images)  # type: ignore[arg-type]
    bits = -float(twin.log_prob(images).sum()) / math.log(2)
    header = len(read_container(data).header)
    assert 8 * len(data) <= bits * 1.0005 + 2 * (32 + 80) + 8 * (header + 4)
    assert ts.compress(images, twin, batch=9) == data
