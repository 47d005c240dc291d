"""The source of the compiled kernel, how it is compiled, and for which processors a wheel has it.

The build of a wheel loads this file before anything is installed, so it imports nothing else of the
package.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = tuple(FOLDER / name for name in ("program.cpp", "walk.cpp", "integer.cpp", "search.cpp"))
HEADERS = tuple(FOLDER / name for name in ("program.h", "functions.h", "tables.h", "vector.h"))
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
OPENMP = "-fopenmp"

WHEEL_FOLDER = FOLDER / "built"
"""Where the libraries of a wheel lie; a pure wheel has none."""

_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

WHEEL_PROCESSORS: dict[str, dict[str, frozenset[str]]] = {
    "x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3},
    "aarch64": {"armv8-a": frozenset()},
}
"""For each machine the processors that a wheel is built for, in the words of ``-march``, the best
one first, and the flags in ``/proc/cpuinfo`` that a processor needs for each."""


def wheel_libraries(march: str) -> dict[str, tuple[str, ...]]:
    """The files of a wheel for one processor, each with the flags it is compiled with.

    Where there is no OpenMP runtime, the second one still loads, and runs in one thread.
    """
    flags = (*FLAGS, f"-march={march}")
    return {f"kernel-{march}.so": (*flags, OPENMP), f"kernel-{march}-one-thread.so": flags}
