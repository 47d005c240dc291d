"""A few of many files held open, read by any number of threads at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path

from tessella.data.paths import reason
from tessella.errors import DataError

MOST_OPEN = 64
"""Files held open; a process may open about a thousand, and a set has any number of shards."""


class _OpenFile:
    """A file that is closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self.descriptor)


class OpenFiles:
    """Reads pieces of files, and keeps those read last open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """``size`` bytes from an offset; fewer at the end of the file.

        Raises:
            DataError: when the file cannot be read.
        """
        # The local name keeps the file open, even if another thread drops it meanwhile.
        try:
            file = self._file(path)
            piece = os.pread(file.descriptor, size, offset)
            if len(piece) == size or not piece:
                return piece
            # One call reads 2 GiB at most, and networks deliver less.
            pieces = [piece]
            done = len(piece)
            while piece and done < size:
                piece = os.pread(file.descriptor, size - done, offset + done)
                pieces.append(piece)
                done += len(piece)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {reason(error)}") from error
        return b"".join(pieces)

    def _file(self, path: Path) -> _OpenFile:
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = _OpenFile(path)
                self._open[path] = file
            self._open.move_to_end(path)
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
            return file
