"""The entropy coder: symbols and their frequencies to bytes, and back.

It is the range variant of asymmetric numeral systems (J. Duda, "Asymmetric numeral systems", 2013,
arXiv:1311.2540) with a state of 64 bits, words of 32 bits and frequencies that sum to 2^24, as
constriction implements it. The state begins at 2^24, so that a decoder notices at once when it
reads beyond the end. Frequencies are used exactly as they are: constriction gives each of ``n``
levels one unit and divides the rest by weight, so the weights ``frequency - 1`` of an exact twin
come out without rounding (``docs/format.md``, "Coded streams").
"""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from tessella.errors import BitstreamError, InputError

TOTAL = 1 << 24
"""Sum of the frequencies of a symbol."""

FIRST_STATE = 1 << 24
"""State of the coder before the first symbol is encoded, and after the last is decoded."""


def coder_library() -> ModuleType:
    """The library of the entropy coder.

    Raises:
        InputError: when it is not installed.
    """
    try:
        # Its submodules are made by native code and are found as attributes only.
        return importlib.import_module("constriction").stream
    except ImportError as error:
        raise InputError(
            'compressed files need constriction: pip install "tessella[compress]", or '
            '"constriction>=0.5,<0.6"'
        ) from error


def encode_intervals(starts: np.ndarray, frequencies: np.ndarray, levels: int) -> bytes:
    """Encode symbols, each given as an interval of ``[0, TOTAL)``.

    Args:
        starts: sums of the frequencies of smaller symbols, ``int64 [n]``.
        frequencies: frequencies of the symbols themselves, ``int64 [n]``, at least 1.
        levels: values that a symbol can take.

    Returns:
        the final state after all words, as one little-endian number without leading zeros: at most
        four bytes more than the information of the symbols.
    """
    library = coder_library()
    coder = library.stack.AnsCoder(np.array([FIRST_STATE], dtype=np.uint32))
    if len(starts):
        symbols, weights = _few_levels(starts, frequencies, levels)
        family = library.model.Categorical(perfect=False)
        coder.encode_reverse(symbols, family, weights)
    words: np.ndarray = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


def _few_levels(
    starts: np.ndarray, frequencies: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols of two or three levels with the same intervals.

    What lies below and above an interval does not matter to the encoder, so whole tables need not
    be kept until the symbols are encoded, from the last to the first.

    Returns:
        ``int32 [n]`` and the weights of their levels, ``float64 [n, 2 or 3]``.
    """
    below = starts
    above = TOTAL - starts - frequencies
    is_first = below == 0
    is_last = above == 0
    if levels == 2:
        symbols = np.where(is_first, 0, 1)
        # One of the two is nothing: the interval lies at an end.
        other = below + above
        shares = [np.where(is_first, frequencies, other), np.where(is_first, other, frequencies)]
    else:
        # A level has at least one unit, so an interval at an end leaves two units beside it.
        symbols = np.where(is_first, 0, np.where(is_last, 2, 1))
        shares = [
            np.where(is_first, frequencies, np.where(is_last, 1, below)),
            np.where(is_first, 1, np.where(is_last, below - 1, frequencies)),
            np.where(is_first, above - 1, np.where(is_last, frequencies, above)),
        ]
    weights = np.stack(shares, axis=1).astype(np.float64) - 1.0
    return symbols.astype(np.int32), weights


class SymbolDecoder:
    """Decodes the symbols of a stream, in the order in which they were encoded.

    Args:
        stream: what :func:`encode_intervals` returned.

    Raises:
        BitstreamError: when the bytes cannot be those of a stream.
    """

    def __init__(self, stream: bytes) -> None:
        library = coder_library()
        if len(stream) < 4 or stream[-1] == 0:
            raise BitstreamError("a stream is damaged: it does not end as one")
        padded = stream + bytes(-len(stream) % 4)
        words = np.frombuffer(padded, dtype="<u4").astype(np.uint32)
        self._coder = library.stack.AnsCoder(words)
        self._family = library.model.Categorical(perfect=False)

    def decode(self, frequencies: np.ndarray) -> np.ndarray:
        """The next symbols.

        Args:
            frequencies: ``int64 [n, levels]``, at least 1, in rows that sum to ``TOTAL``.

        Returns:
            ``int64 [n]``.

        Raises:
            BitstreamError: when the stream ended before.
        """
        weights = frequencies.astype(np.float64) - 1.0
        symbols: np.ndarray = self._coder.decode(self._family, weights)
        words, state = self._coder.pos()
        # No encoder was ever in such a state.
        if words == 0 and state < FIRST_STATE:
            raise BitstreamError("a stream is damaged: it holds fewer symbols than its images have")
        return symbols.astype(np.int64)

    def finish(self) -> None:
        """Check that the stream ends here.

        Raises:
            BitstreamError: when it does not.
        """
        words, state = self._coder.pos()
        if words != 0 or state != FIRST_STATE:
            raise BitstreamError(
                "a stream is damaged: it holds more than the symbols of its images"
            )


def pack(symbols: np.ndarray, levels: int) -> bytes:
    """Symbols as they are, each in as few bits as the largest needs, the highest bit first.

    Args:
        symbols: ``int64 [n]``, in ``[0, levels)``.
        levels: values that a symbol can take.
    """
    width = (levels - 1).bit_length()
    places = np.arange(width - 1, -1, -1)
    bits = (symbols[:, None] >> places) & 1  # [n, width]
    return np.packbits(bits.astype(np.uint8)).tobytes()


def packed_length(count: int, levels: int) -> int:
    """Bytes that :func:`pack` takes for ``count`` symbols."""
    return (count * (levels - 1).bit_length() + 7) // 8


def unpack(stream: bytes, count: int, levels: int) -> np.ndarray:
    """The symbols that :func:`pack` packed, ``int64 [count]``.

    Raises:
        BitstreamError: when the bytes are too few or too many, or a symbol is not below ``levels``.
    """
    if len(stream) != packed_length(count, levels):
        raise BitstreamError("a stream is damaged: its length is not that of its images")
    width = (levels - 1).bit_length()
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8))
    if bits[count * width :].any():
        raise BitstreamError("a stream is damaged: it does not end with zeros")
    by_symbol = bits[: count * width].reshape(count, width)
    symbols = np.zeros(count, dtype=np.int64)
    for place in range(width):
        symbols = 2 * symbols + by_symbol[:, place]
    if count and int(symbols.max()) >= levels:
        raise BitstreamError(f"a stream is damaged: a symbol is not below {levels}")
    return symbols
