"""Read the pickles of CIFAR-10 without trusting them.

A pickle is a program. It can call any function, and even one that calls nothing can request
gigabytes in six bytes. There are two safeguards: the instructions are first scanned, within limits,
without running them; then every name they ask for is looked up in a table of harmless stand-ins.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import NoReturn, cast

import numpy as np

from tessella.data.paths import one_line
from tessella.errors import DataError

MAX_INSTRUCTIONS = 1_000_000
"""Most instructions of one pickle; a batch of 10,000 images with names has about 50,000."""
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_TWO_LINES = ("GLOBAL", "INST")
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
"""Bytes of the length field of an argument, by kind of argument."""


class PickledDtype:
    """Stands in for ``numpy.dtype``: remembers the name of the type and ignores the rest."""

    def __init__(self, name: str | bytes = "", *flags: object) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: object) -> None:
        pass


class PickledArray:
    """Stands in for ``numpy.ndarray``, which must never unpickle state from a file."""

    def __init__(self, *arguments: object) -> None:
        self._state: object = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def as_bytes(self, name: str) -> np.ndarray:
        """The array as numpy; it must hold unsigned bytes in row-major order.

        Args:
            name: the file name, for messages.

        Raises:
            DataError: when it has another type or order, or its shape does not match its bytes.
        """
        try:
            # The format of numpy.ndarray.__reduce__; a damaged pickle can hold anything instead.
            state = cast(tuple[int, tuple[int, ...], PickledDtype, bool, object], self._state)
            _, shape, dtype, by_columns, raw = state
            if dtype.name not in ("u1", "|u1", "uint8") or by_columns or not isinstance(raw, bytes):
                raise ValueError("another type or order")
            return np.frombuffer(raw, np.uint8).reshape(shape)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{name}: data is not a row-major array of unsigned bytes") from error


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, text, numbers and stand-ins; refuses every other name."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        # Text that is stored once could be encoded again and again, so all the copies together may
        # not be larger than the file.
        self._encodable = len(content)
        self._allowed: dict[tuple[str, str], Callable[..., object]] = {
            ("numpy.core.multiarray", "_reconstruct"): PickledArray,
            ("numpy._core.multiarray", "_reconstruct"): PickledArray,
            ("numpy", "ndarray"): PickledArray,
            ("numpy", "dtype"): PickledDtype,
            ("_codecs", "encode"): self._encode,
        }

    def _encode(self, text: str, encoding: str | bytes) -> bytes:
        """Stands in for ``_codecs.encode``, for latin-1 only.

        Python 3 uses it to store bytes in the old protocols.
        """
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise pickle.UnpicklingError("it encodes more text than the file holds")
        return text.encode("latin-1")

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """The stand-in for a name; UnpicklingError for any name without one."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which a CIFAR-10 batch does not need"
            ) from None

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuse a reference to an object outside the pickle."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


def unpickle(content: bytes, name: str) -> object:
    """The object in a pickle, built from dicts, lists, text, numbers and stand-ins.

    Args:
        content: the bytes of the pickle.
        name: the file name, for messages.

    Raises:
        DataError: when it is damaged, asks for anything else, or for far more memory than its size.
    """
    try:
        check_instructions(content)
        return _Unpickler(content).load()
    except Exception as error:  # a damaged pickle can fail with an error of any class
        raise DataError(f"{name} is refused or damaged: {one_line(error)}") from error


def check_instructions(content: bytes) -> None:
    """Scan the instructions of a pickle without executing any.

    The unpickler allocates memory for the largest index of its memo, and for the length of an
    argument, before it checks that the bytes are there.

    Raises:
        pickle.UnpicklingError: for an unknown instruction, an argument that extends past the end, a
        memo index above :data:`MAX_INSTRUCTIONS`, or more instructions than that.
    """
    at = 0
    # A loop with an end: a pickle of nothing but one-byte instructions is bounded as well.
    for _ in range(MAX_INSTRUCTIONS):
        if at >= len(content):
            raise pickle.UnpicklingError("it ends without its last instruction")
        opcode = _OPCODES.get(content[at])
        if opcode is None:
            raise pickle.UnpicklingError(f"byte {at} is not a pickle instruction")
        start = at + 1
        at = _end_of_argument(content, start, opcode)
        if at > len(content):
            raise pickle.UnpicklingError("an argument is longer than the file")
        # pickle assigns memo indices consecutively, so a short file has no reason for a large one.
        # MEMOIZE takes the next free index and needs no check.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            argument = content[start:at]
            if opcode.name == "PUT":
                number = int(argument)  # decimal digits and a newline
            else:
                number = int.from_bytes(argument, "little")
            if not 0 <= number <= MAX_INSTRUCTIONS:
                raise pickle.UnpicklingError(f"it wants to remember {number:,} objects")
        if opcode.name == "STOP":
            return
    raise pickle.UnpicklingError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")


def _end_of_argument(content: bytes, start: int, opcode: pickletools.OpcodeInfo) -> int:
    """Offset of the end of an argument; past the end of the content if it is cut short."""
    if opcode.arg is None:
        return start
    size = opcode.arg.n
    if size >= 0:
        return start + size
    if size == pickletools.UP_TO_NEWLINE:
        end = start
        lines = 2 if opcode.name in _TWO_LINES else 1
        for _ in range(lines):
            newline = content.find(b"\n", end)
            end = newline + 1 if newline >= 0 else len(content) + 1
        return end
    # All other arguments begin with their length. A negative length, in four signed bytes, reads as
    # more than two billion here, which is past the end of the file.
    width = _LENGTH_BYTES[size]
    length = int.from_bytes(content[start : start + width], "little")
    return start + width + length
