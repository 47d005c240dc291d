"""What is compiled: programs (``tessella.nn.stepping.program``) and the search of codebooks: two
small C++ files, built when first needed.

It needs a C++ compiler (``c++``, or what ``CXX`` names). Without one, or with ``TESSELLA_KERNEL=0``
in the environment, everything runs in plain torch, slower, with the same results to rounding. The
library lies in ``kernel/`` of the cache (``TESSELLA_CACHE``, else ``$XDG_CACHE_HOME/tessella``,
else ``~/.cache/tessella``) under a name made of the source, the compiler and the processor, so that
it is built once for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tessella.errors import ArtifactError
from tessella.files import cache_folder, write_bytes

SOURCES = tuple(Path(__file__).parent / name for name in ("program.cpp", "search.cpp"))
HEADER = Path(__file__).parent / "vector.h"
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
WAYS = ((*FLAGS, "-march=native", "-fopenmp"), (*FLAGS, "-march=native"), FLAGS)
"""Flags that are tried in turn. OpenMP's threads are torch's own where both use the same
runtime."""
TIMEOUT = 120
"""Seconds that a compiler may take."""


def available() -> bool:
    """Whether programs run compiled here: a compiler is there, its library loads, and nobody turned
    it off."""
    return os.environ.get("TESSELLA_KERNEL", "1") != "0" and library() is not None


def describe() -> str:
    """Whether programs run compiled here, and why not."""
    if os.environ.get("TESSELLA_KERNEL", "1") == "0":
        return "no, TESSELLA_KERNEL=0 turns them off"
    return "yes" if library() is not None else f"no: {_try()[1]}"


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it cannot be built."""
    return _try()[0]


@cache
def _try() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None, f"there is no C++ compiler {os.environ.get('CXX', 'c++')} (CXX names one)"
    reason = ""
    for flags in WAYS:
        try:
            return _declared(_loaded(compiler, flags)), ""
        except subprocess.CalledProcessError as error:
            told = error.stderr.decode(errors="replace").strip().splitlines()
            reason = f"{compiler} {' '.join(flags)} failed: {told[0] if told else error.returncode}"
        except subprocess.TimeoutExpired:
            return None, f"{compiler} took more than {TIMEOUT} s"
        except OSError as error:
            reason = str(error)
    return None, reason


def _loaded(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    path = _path(compiler, flags)
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged: made anew below
            with contextlib.suppress(OSError):
                path.unlink()
    with tempfile.TemporaryDirectory() as workshop:
        made = Path(workshop) / path.name
        command = [compiler, *flags, "-o", str(made), *map(str, SOURCES)]
        subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT)
        loaded = ctypes.CDLL(str(made))
        if path.is_absolute():
            with contextlib.suppress(
                ArtifactError
            ):  # with no place to keep it, it serves this process
                write_bytes(path, made.read_bytes())
    return loaded


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.tessella_run.argtypes = [pointer, number, number, number, pointer, number, number]
    loaded.tessella_run.restype = number
    loaded.tessella_record_bytes.restype = number
    loaded.tessella_lane_bytes.restype = number
    loaded.tessella_nearest.argtypes = [
        pointer,
        pointer,
        number,
        number,
        number,
        *[pointer] * 4,
        number,
    ]
    loaded.tessella_nearest.restype = None
    loaded.tessella_cluster.argtypes = [pointer, pointer, number, number, pointer, pointer, number]
    loaded.tessella_cluster.restype = None
    return loaded


def _path(compiler: str, flags: tuple[str, ...]) -> Path:
    """Where the library is kept."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT
    ).stdout
    facts = [*(source.read_bytes() for source in (*SOURCES, HEADER)), version]
    facts += [" ".join(flags).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]
    return cache_folder() / "kernel" / f"kernel-{name}.so"


def _processor() -> str:
    """What ``-march=native`` depends on."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor() + platform.machine()
    lines = told.read_text().splitlines()
    return "".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    )
