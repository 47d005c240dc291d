"""The entropy coder: against a coder of a few lines of integers, and against what it may cost."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from tessella.codec import entropy_coder
from tessella.codec.entropy_coder import TOTAL, SymbolDecoder, encode_intervals
from tessella.errors import BitstreamError, InputError

pytest.importorskip("constriction", reason="the entropy coder is an optional library")


def tables(count: int, levels: int, sharp: float, seed: int = 0) -> np.ndarray:
    """Frequencies, ``int64 [count, levels]``."""
    shares = np.random.default_rng(seed).dirichlet(np.full(levels, sharp), count)
    frequencies = 1 + np.floor(shares * (TOTAL - levels)).astype(np.int64)
    frequencies[np.arange(count), frequencies.argmax(axis=1)] += TOTAL - frequencies.sum(axis=1)
    return frequencies


def drawn(frequencies: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symbols drawn from frequencies, their starts and their frequencies."""
    count = len(frequencies)
    ends = frequencies.cumsum(axis=1)
    slots = np.random.default_rng(seed).integers(0, TOTAL, count)
    symbols = (ends <= slots[:, None]).sum(axis=1)
    rows = np.arange(count)
    chosen = frequencies[rows, symbols]
    return symbols, ends[rows, symbols] - chosen, chosen


def encoded_by_hand(starts: np.ndarray, frequencies: np.ndarray) -> bytes:
    """The coder as docs/format.md defines it."""
    state = 1 << 24
    words = b""
    for start, frequency in zip(starts.tolist()[::-1], frequencies.tolist()[::-1], strict=True):
        if state >= frequency << 40:
            words += (state & 0xFFFFFFFF).to_bytes(4, "little")
            state >>= 32
        state = (state // frequency << 24) + state % frequency + start
    return words + state.to_bytes((state.bit_length() + 7) // 8, "little")


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 5000])
@pytest.mark.parametrize("sharp", [0.01, 1.0])
def test_streams_are_those_of_the_definition(levels: int, sharp: float) -> None:
    frequencies = tables(300, levels, sharp)
    symbols, starts, chosen = drawn(frequencies)
    stream = encode_intervals(starts, chosen, levels)
    assert stream == encoded_by_hand(starts, chosen)
    decoder = SymbolDecoder(stream)
    found = [decoder.decode(frequencies[at : at + 7]) for at in range(0, 300, 7)]
    decoder.finish()
    assert np.array_equal(np.concatenate(found), symbols)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_every_interval_can_be_encoded(levels: int) -> None:
    # The least and the greatest frequencies, at either end and in the middle.
    least = np.ones(levels, dtype=np.int64)
    for large in range(levels):
        frequencies = least.copy()
        frequencies[large] += TOTAL - levels
        starts = frequencies.cumsum() - frequencies
        stream = encode_intervals(starts, frequencies, levels)
        assert stream == encoded_by_hand(starts, frequencies)
        decoder = SymbolDecoder(stream)
        assert decoder.decode(np.tile(frequencies, (levels, 1))).tolist() == list(range(levels))
        decoder.finish()


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("sharp", [1e-3, 0.05, 10.0])
@pytest.mark.parametrize("count", [1, 40, 20_000])
def test_a_stream_is_as_long_as_the_model_says(levels: int, sharp: float, count: int) -> None:
    _, starts, chosen = drawn(tables(count, levels, sharp))
    bits = 8 * len(encode_intervals(starts, chosen, levels))
    information = float((24 - np.log2(chosen)).sum())
    assert bits >= information
    assert bits <= information * 1.0005 + 32


def test_symbols_without_information_cost_nothing() -> None:
    starts = np.zeros(50_000, dtype=np.int64)
    assert len(encode_intervals(starts, starts + TOTAL - 1, 2)) == 4


def test_a_stream_that_ends_early_or_late_is_refused() -> None:
    frequencies = tables(200, 17, 1.0)
    symbols, starts, chosen = drawn(frequencies)
    stream = encode_intervals(starts, chosen, 17)
    decoder = SymbolDecoder(stream)
    decoder.decode(frequencies[:-1])
    with pytest.raises(BitstreamError, match="more than the symbols"):
        decoder.finish()
    decoder = SymbolDecoder(stream)
    decoder.decode(frequencies)
    with pytest.raises(BitstreamError, match="fewer symbols"):
        decoder.decode(frequencies[:50])
    for wrong in (b"", b"\1\2\3", b"\1\2\3\0", bytes(8)):
        with pytest.raises(BitstreamError):
            SymbolDecoder(wrong)
    assert len(symbols) == 200


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 256, 257, 70_000])
def test_packed_symbols_come_back(levels: int) -> None:
    symbols = np.random.default_rng(0).integers(0, levels, 101)
    stream = entropy_coder.pack(symbols, levels)
    assert len(stream) == math.ceil(101 * math.ceil(math.log2(levels)) / 8)
    assert np.array_equal(entropy_coder.unpack(stream, 101, levels), symbols)
    with pytest.raises(BitstreamError, match="length"):
        entropy_coder.unpack(stream + b"\0", 101, levels)


def test_packed_symbols_are_checked() -> None:
    with pytest.raises(BitstreamError, match="not below 17"):
        entropy_coder.unpack(b"\xff\xf8", 3, 17)
    with pytest.raises(BitstreamError, match="zeros"):
        entropy_coder.unpack(b"\x00\x01", 3, 17)


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(InputError, match="pip install"):
        encode_intervals(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64), 4)
