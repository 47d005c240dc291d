"""The compiled part: programs of steps and the search of codebooks, two small C++ files.

They are built when first needed, by a C++ compiler (``c++``, or what ``CXX`` names). Without one,
or with ``TESSELLA_KERNEL=0`` in the environment, everything runs in plain torch, slower, with equal
results up to rounding.

The library is kept in ``kernel/`` of the cache (``TESSELLA_CACHE``, else
``$XDG_CACHE_HOME/tessella``, else ``~/.cache/tessella``), under a name made of the source, the
compiler and the processor, so that it is built once for each. Loading a library runs its code, so
only the user may write there: the folder is created for the user alone (mode 0700), and a folder or
a file that belongs to somebody else, or that others can write, is not used. Beside the library lies
its SHA-256, which is compared before it is loaded: a damaged library is built again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from errno import ENOSPC
from functools import cache
from pathlib import Path

from tessella import files
from tessella.errors import ArtifactError, TessellaWarning

SOURCES = tuple(Path(__file__).parent / name for name in ("program.cpp", "search.cpp"))
HEADER = Path(__file__).parent / "vector.h"
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
WAYS = ((*FLAGS, "-march=native", "-fopenmp"), (*FLAGS, "-march=native"), FLAGS)
"""Flags that are tried in turn. OpenMP's threads are torch's own where both use the same
runtime."""

TIMEOUT = 120
"""Seconds that a compiler may take."""

BUILD_BYTES = 1 << 25
"""Free space that a build needs: 32 MiB. The library has a tenth of that."""


_notes: list[str] = []
"""Notes for the user on the library of this process."""


Arguments = list[type[ctypes.c_void_p] | type[ctypes.c_int64]]


class BuildError(Exception):
    """The library cannot be built here; the message says why."""


def available() -> bool:
    """Whether programs run compiled here.

    That needs a compiler whose library loads, and nobody who turned it off.
    """
    return os.environ.get("TESSELLA_KERNEL", "1") != "0" and library() is not None


def describe() -> str:
    """Say whether programs run compiled here, and why not."""
    if os.environ.get("TESSELLA_KERNEL", "1") == "0":
        return "no, TESSELLA_KERNEL=0 turns them off"
    if library() is None:
        return f"no: {_try()[1]}"
    return "; ".join(["yes", *_notes])


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None where it cannot be built."""
    return _try()[0]


@cache
def _try() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why."""
    name = os.environ.get("CXX", "c++")
    compiler = shutil.which(name)
    if compiler is None:
        return None, f"there is no C++ compiler {name} (CXX names one)"
    reason = ""
    # From the fastest on: not every compiler has OpenMP, or knows its own processor.
    for flags in WAYS:
        try:
            return _loaded(compiler, flags), ""
        except subprocess.CalledProcessError as error:
            # The first line says what is wrong, the others what follows from it.
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            first = lines[0] if lines else error.returncode
            reason = f"{compiler} {' '.join(flags)} failed: {first}"
        except subprocess.TimeoutExpired:
            return None, f"{compiler} took more than {TIMEOUT} s"
        except BuildError as error:
            return None, str(error)  # other flags would not help
        except (OSError, AttributeError) as error:
            reason = str(error)
    return None, reason


def _loaded(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The kept library, or one that is built now and kept."""
    path = _path(compiler, flags)
    keeps = path.is_absolute() and _is_private_folder(path.parent)
    if keeps and path.exists():
        with contextlib.suppress(OSError, AttributeError):
            if _is_as_written(path):
                return _declared(ctypes.CDLL(str(path)))
        if _digest_path(path).exists():  # not so of libraries that early versions left
            _say(f"the compiled kernel {path} is damaged: it is built again")
    with _workshop(path.parent if keeps else None) as workshop:
        # Built elsewhere and then copied: nobody finds half a library under its name.
        built = workshop / path.name
        command = [compiler, *flags, "-o", str(built), *map(str, SOURCES)]
        # Compilers write their temporary files to TMPDIR.
        environment = {**os.environ, "TMPDIR": str(workshop)}
        subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT, env=environment)
        loaded = _declared(ctypes.CDLL(str(built)))
        if keeps:
            _keep(built, path)
    return loaded


def _keep(built: Path, path: Path) -> None:
    """Copy a new library to the cache; where that fails, it serves this process alone."""
    content = built.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        # The hash first: a process that looks between the two writes builds the library, too.
        files.write_bytes(_digest_path(path), digest.encode(), private=True)
        files.write_bytes(path, content, private=True)
    except ArtifactError as error:
        cause = error.__cause__
        _serves_alone(str(error), is_full=isinstance(cause, OSError) and cause.errno == ENOSPC)


def _is_private_folder(folder: Path) -> bool:
    """Whether libraries can be kept in a folder, which is created for the user alone."""
    try:
        if not folder.exists() and not folder.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # whatever the umask
        if _is_private(folder, stat.S_ISDIR):
            return True
    except OSError as error:
        problem = f"cannot write {folder}: {files.reason(error)}"
        _serves_alone(problem, is_full=error.errno == ENOSPC)
        return False
    _say(
        f"{folder} is not used for the compiled kernel, which each process then builds: it must"
        " be a folder of yours that nobody else can write (chmod 700)"
    )
    return False


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder itself (no link) is the user's, and nobody else can write it.

    Args:
        is_kind: ``stat.S_ISREG`` or ``stat.S_ISDIR``.
    """
    # lstat: the link itself, not what somebody else made it point to.
    facts = path.lstat()
    is_own = facts.st_uid == os.geteuid()
    is_writable_by_others = bool(facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return is_kind(facts.st_mode) and is_own and not is_writable_by_others


def _is_as_written(path: Path) -> bool:
    """Whether a kept library is the user's, and has the content that it was written with."""
    digest = _digest_path(path)
    if not (_is_private(path, stat.S_ISREG) and _is_private(digest, stat.S_ISREG)):
        return False
    return digest.read_bytes() == files.sha256(path).encode()


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@contextlib.contextmanager
def _workshop(kept_in: Path | None) -> Iterator[Path]:
    """A folder to build in, on a disk that has the space.

    A compiler that runs out of space takes its time to find out, in every process.
    """
    candidates = [Path(tempfile.gettempdir())]
    if kept_in is not None:
        candidates.append(kept_in)
    for folder in candidates:
        # A place that cannot be written is passed over like a full one.
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder).free < BUILD_BYTES:
                continue
            workshop = tempfile.TemporaryDirectory(dir=folder, prefix=".build-")
            break
    else:
        places = " and ".join(str(folder) for folder in candidates)
        raise BuildError(f"there is no space to build the kernel: {places} are full")
    with workshop as path:
        yield Path(path)


def _serves_alone(problem: str, is_full: bool) -> None:
    """Note that the library was not kept; warn of a full disk, since each process builds it."""
    message = (
        f"the compiled kernel serves this process alone, and the next one builds it: {problem}"
    )
    _notes.append(message)
    if is_full:
        _say(message)


@cache
def _say(message: str) -> None:
    """Warn, once a process."""
    warnings.warn(message, TessellaWarning, stacklevel=2)


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the types of its functions.

    Raises:
        AttributeError: when it is another library.
    """
    # As in program.cpp and search.cpp: all numbers are int64, all tensors plain pointers.
    pointer = ctypes.c_void_p
    number = ctypes.c_int64
    run_arguments: Arguments = [pointer, number, number, number, pointer, number, number]
    nearest_arguments: Arguments = [pointer, pointer, number, number, number]
    nearest_arguments += [pointer, pointer, pointer, pointer, number]
    cluster_arguments: Arguments = [pointer, pointer, number, number, pointer, pointer, number]
    loaded.tessella_run.argtypes = run_arguments
    loaded.tessella_run.restype = number
    loaded.tessella_record_bytes.restype = number
    loaded.tessella_lane_bytes.restype = number
    loaded.tessella_nearest.argtypes = nearest_arguments
    loaded.tessella_nearest.restype = None
    loaded.tessella_cluster.argtypes = cluster_arguments
    loaded.tessella_cluster.restype = None
    return loaded


def _path(compiler: str, flags: tuple[str, ...]) -> Path:
    """Where the library is kept, named by all that it is made of."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT
    ).stdout
    # Another source, compiler, flag or processor is another library, never a stale one.
    facts = [source.read_bytes() for source in (*SOURCES, HEADER)]
    facts += [version, " ".join(flags).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]
    return files.cache_folder() / "kernel" / f"kernel-{name}.so"


def _processor() -> str:
    """The facts of the processor that ``-march=native`` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() + platform.machine()
    kinds = ("flags", "Features", "model name")
    lines = {line for line in cpuinfo.read_text().splitlines() if line.startswith(kinds)}
    return "".join(sorted(lines))
