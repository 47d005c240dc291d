"""The compiled form of programs (``tessella.nn.program``): a small C++ file, built when it is first needed.

It needs a C++ compiler (``c++``, or what ``CXX`` names). Without one, or with ``TESSELLA_KERNEL=0`` in the environment,
everything runs in plain torch, slower, with the same results to rounding. The library lies in ``kernel/`` of the cache
(``TESSELLA_CACHE``, else ``$XDG_CACHE_HOME/tessella``, else ``~/.cache/tessella``) under a name made of the source, the
compiler and the processor, so that it is built once for each.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tessella.files import cache_folder

SOURCE = Path(__file__).parent / "program.cpp"
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
THREADED = ("-fopenmp",)
"""Tried first: OpenMP, whose threads are torch's own where both use the same runtime."""
TIMEOUT = 120
"""Seconds that a compiler may take."""


def available() -> bool:
    """Whether programs run compiled here: a compiler is there, its library loads, and nobody turned it off."""
    return os.environ.get("TESSELLA_KERNEL", "1") != "0" and library() is not None


def describe() -> str:
    """Whether programs run compiled here, and why not."""
    if os.environ.get("TESSELLA_KERNEL", "1") == "0":
        return "no, TESSELLA_KERNEL=0 turns them off"
    compiler = os.environ.get("CXX", "c++")
    if library() is not None:
        return f"yes, built with {compiler}"
    found = shutil.which(compiler)
    return (
        f"no, {found} failed on {SOURCE.name}" if found else f"no, there is no C++ compiler {compiler} (CXX names one)"
    )


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it cannot be built."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or not SOURCE.exists():
        return None
    for flags in ((*FLAGS, *THREADED), FLAGS):
        try:
            return _declared(ctypes.CDLL(str(_built(compiler, flags))))
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.tessella_run.argtypes = [pointer, number, number, number, pointer, number, number]
    loaded.tessella_run.restype = None
    loaded.tessella_record_bytes.restype = number
    return loaded


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """The library file, compiled unless it is there already."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT).stdout
    facts = [SOURCE.read_bytes(), version, " ".join(flags).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]
    folder = cache_folder() / "kernel"
    path = folder / f"program-{name}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as workshop:
            made = Path(workshop) / path.name
            subprocess.run(
                [compiler, *flags, "-o", str(made), str(SOURCE)], capture_output=True, check=True, timeout=TIMEOUT
            )
            made.replace(path)
    return path


def _processor() -> str:
    """What ``-march=native`` depends on."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor() + platform.machine()
    lines = told.read_text().splitlines()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
