"""The compiled kernel: small C++ files, for programs of steps, walks and codebook search.

They are compiled on first use, with ``c++`` or the compiler named by ``CXX``. Without a compiler,
or with ``TESSELLA_KERNEL=0`` in the environment, everything runs in plain torch: slower, but with
the same results up to rounding; programs of integers with the same results to the bit.

Some wheels have the library for common processors: if that at hand is one of them, nothing is
compiled. Else it is built for the processor at hand. ``TESSELLA_KERNEL_MARCH`` names another one,
in the words of the compiler's ``-march``, such as ``x86-64``: tests compare what different
instruction sets give.

The library is cached in the folder ``kernel/`` of the cache (``TESSELLA_CACHE``, else
``$XDG_CACHE_HOME/tessella``, else ``~/.cache/tessella``). Its name is a hash of the source, the
compiler and the processor, so it is built once for each combination. Loading a library runs its
code, so nobody but the user may be able to write it. The folder is created for the user alone (mode
0700), and a folder or file that belongs to somebody else, or that others can write, is not used.
Next to the library is its SHA-256, which is compared before loading; a damaged library is rebuilt.
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
from tessella.kernel.compilation import (
    FLAGS,
    HEADERS,
    OPENMP,
    SOURCES,
    WHEEL_FOLDER,
    WHEEL_PROCESSORS,
    wheel_libraries,
)

FLAG_SETS = ((*FLAGS, "-march=native", OPENMP), (*FLAGS, "-march=native"), FLAGS)
"""Compiler flags, tried one after the other. If both use the same OpenMP runtime, the kernel shares
torch's threads."""

TIMEOUT = 120
"""Time limit for the compiler, in seconds."""

BUILD_BYTES = 1 << 25
"""Free disk space that a build needs: 32 MiB, about ten times the size of the library."""

_notes: list[str] = []
"""Remarks about the library of this process, for :func:`describe`."""


Arguments = list[type[ctypes.c_void_p] | type[ctypes.c_int64]]
"""Argument types of a C function."""


class BuildError(Exception):
    """The library cannot be built on this machine; the message says why."""


def available() -> bool:
    """Whether programs run compiled in this process.

    They do if the library can be built and loaded, and ``TESSELLA_KERNEL`` does not disable it.
    """
    # Test the variable first, so that nothing is compiled if the kernel is disabled.
    return os.environ.get("TESSELLA_KERNEL", "1") != "0" and library() is not None


def describe() -> str:
    """Say whether programs run compiled in this process, and if not, why."""
    if os.environ.get("TESSELLA_KERNEL", "1") == "0":
        return "no, TESSELLA_KERNEL=0 turns them off"
    if library() is None:
        return f"no: {_load_or_explain()[1]}"
    return "; ".join(["yes", *_notes])


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, built if necessary; None if it cannot be built."""
    return _load_or_explain()[0]


@cache
def _load_or_explain() -> tuple[ctypes.CDLL | None, str]:
    """The library and an empty string, or None and the reason."""
    from_wheel = _library_of_wheel()
    if from_wheel is not None:
        return from_wheel, ""
    name = os.environ.get("CXX", "c++")
    compiler = shutil.which(name)
    if compiler is None:
        return None, f"there is no C++ compiler {name} (CXX names one)"
    # Some compilers lack OpenMP, or -march=native: try with fewer flags.
    reason = ""
    for flags in _flag_sets():
        try:
            return _loaded(compiler, flags), ""
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            first = lines[0] if lines else error.returncode
            reason = f"{compiler} {' '.join(flags)} failed: {first}"
        except subprocess.TimeoutExpired:
            return None, f"{compiler} took more than {TIMEOUT} s"
        except BuildError as error:
            # Other flags would not help.
            return None, str(error)
        except (OSError, AttributeError) as error:
            reason = str(error)
    return None, reason


def _library_of_wheel() -> ctypes.CDLL | None:
    """The library that the wheel brought along; None where it has none for this processor."""
    # Whoever names a processor wants that one.
    if not WHEEL_FOLDER.is_dir() or "TESSELLA_KERNEL_MARCH" in os.environ:
        return None
    reason = "this processor lacks instructions that they use"
    for march, needed in WHEEL_PROCESSORS.get(platform.machine(), {}).items():
        if not needed <= _instruction_sets():
            continue
        for name in wheel_libraries(march):
            try:
                loaded = _with_signatures(ctypes.CDLL(str(WHEEL_FOLDER / name)))
            except (OSError, AttributeError) as error:
                reason = str(error)
                continue
            _notes.append(f"{name} of the installed wheel")
            return loaded
    _notes.append(
        f"compiled here, since the libraries of the installed wheel do not work: {reason}"
    )
    return None


def _instruction_sets() -> frozenset[str]:
    """The instruction sets of the processor, in the words of Linux; none where it does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()


def _flag_sets() -> list[tuple[str, ...]]:
    """:data:`FLAG_SETS`, or those for the processor that ``TESSELLA_KERNEL_MARCH`` names."""
    processor = os.environ.get("TESSELLA_KERNEL_MARCH", "native")
    if processor == "native":
        return list(FLAG_SETS)
    named = []
    for flags in FLAG_SETS:
        # Flags for any processor would quietly give something else than what was asked for.
        if "-march=native" in flags:
            chosen = [flag.replace("-march=native", f"-march={processor}") for flag in flags]
            named.append(tuple(chosen))
    return named


def _loaded(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Load the cached library, or build a new one and cache it.

    Raises:
        BuildError: when there is no space to build.
        subprocess.CalledProcessError, subprocess.TimeoutExpired: when the compiler fails.
        OSError, AttributeError: when the new library cannot be loaded.
    """
    path = _library_path(compiler, flags)
    can_cache = path.is_absolute() and _is_private_folder(path.parent)
    if can_cache and path.exists():
        # A library that does not load is treated like a damaged one.
        with contextlib.suppress(OSError, AttributeError):
            if _is_intact(path):
                return _with_signatures(ctypes.CDLL(str(path)))
        # Early versions wrote no hash; those libraries are rebuilt without a warning.
        if _digest_path(path).exists():
            _warn_once(f"the compiled kernel {path} is damaged: it is built again")
    with _build_folder(path.parent if can_cache else None) as build_folder:
        built = build_folder / path.name
        command = [compiler, *flags, "-o", str(built), *map(str, SOURCES)]
        # Compilers write their temporary files to TMPDIR.
        environment = {**os.environ, "TMPDIR": str(build_folder)}
        subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT, env=environment)
        loaded = _with_signatures(ctypes.CDLL(str(built)))
        if can_cache:
            _store(built, path)
    return loaded


def _store(built: Path, path: Path) -> None:
    """Copy a new library to the cache; if that fails, only this process uses it."""
    content = built.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        # Write the hash first. A process that looks between the two writes finds no library, and
        # builds its own.
        files.write_bytes(_digest_path(path), digest.encode(), private=True)
        files.write_bytes(path, content, private=True)
    except ArtifactError as error:
        cause = error.__cause__
        _note_not_cached(str(error), is_full=isinstance(cause, OSError) and cause.errno == ENOSPC)


def _is_private_folder(folder: Path) -> bool:
    """Whether libraries can be cached in a folder, which is created if it does not exist."""
    try:
        if not folder.exists() and not folder.is_symlink():
            folder.mkdir(parents=True, exist_ok=True)
            # mkdir's mode would be subject to the umask.
            folder.chmod(0o700)
        if _is_private(folder, stat.S_ISDIR):
            return True
    except OSError as error:
        problem = f"cannot write {folder}: {files.reason(error)}"
        _note_not_cached(problem, is_full=error.errno == ENOSPC)
        return False
    _warn_once(
        f"{folder} is not used for the compiled kernel, which each process then builds: it must"
        " be a folder of yours that nobody else can write (chmod 700)"
    )
    return False


def _is_private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder belongs to the user, and nobody else can write it.

    Args:
        path: the file or folder; symbolic links do not count.
        is_kind: ``stat.S_ISREG`` or ``stat.S_ISDIR``.
    """
    # lstat does not follow links.
    facts = path.lstat()
    is_own = facts.st_uid == os.geteuid()
    is_writable_by_others = bool(facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return is_kind(facts.st_mode) and is_own and not is_writable_by_others


def _is_intact(path: Path) -> bool:
    """Whether a cached library belongs to the user and matches its hash."""
    digest = _digest_path(path)
    if not (_is_private(path, stat.S_ISREG) and _is_private(digest, stat.S_ISREG)):
        return False
    return digest.read_bytes() == files.sha256(path).encode()


def _digest_path(path: Path) -> Path:
    """The file next to a library that holds its SHA-256."""
    return path.with_name(f"{path.name}.sha256")


@contextlib.contextmanager
def _build_folder(kept_in: Path | None) -> Iterator[Path]:
    """A temporary folder to build in, on a disk with enough space.

    Args:
        kept_in: the cache, used if there is no space for temporary files elsewhere.

    Raises:
        BuildError: when all disks are full.
    """
    # Check beforehand: a compiler takes long to notice a full disk, and every process would try.
    candidates = [Path(tempfile.gettempdir())]
    if kept_in is not None:
        candidates.append(kept_in)
    for folder in candidates:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(folder).free < BUILD_BYTES:
                continue
            build_folder = tempfile.TemporaryDirectory(dir=folder, prefix=".build-")
            break
    else:
        places = " and ".join(str(folder) for folder in candidates)
        raise BuildError(f"there is no space to build the kernel: {places} are full")
    with build_folder as path:
        yield Path(path)


def _note_not_cached(problem: str, is_full: bool) -> None:
    """Note that the library was not cached, and warn if the reason is a full disk."""
    message = (
        f"the compiled kernel serves this process alone, and the next one builds it: {problem}"
    )
    _notes.append(message)
    if is_full:
        _warn_once(message)


@cache
def _warn_once(message: str) -> None:
    """Issue a warning, at most once per process for the same message."""
    warnings.warn(message, TessellaWarning, stacklevel=2)


def _with_signatures(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the signatures of a library's functions to ctypes, and return the library.

    Raises:
        AttributeError: when it lacks one of the functions.
    """
    # These follow the declarations in program.cpp, walk.cpp, integer.cpp and search.cpp.
    pointer = ctypes.c_void_p
    number = ctypes.c_int64
    run_arguments: Arguments = [pointer, number, number, number, pointer, number, number]
    integer_arguments: Arguments = [*run_arguments[:-1], pointer]
    nearest_arguments: Arguments = [pointer, pointer, number, number, number]
    nearest_arguments += [pointer, pointer, pointer, pointer, number]
    cluster_arguments: Arguments = [pointer, pointer, number, number, pointer, pointer, number]
    loaded.tessella_run.argtypes = run_arguments
    loaded.tessella_run.restype = number
    loaded.tessella_run_integers.argtypes = integer_arguments
    loaded.tessella_run_integers.restype = number
    walk_arguments: Arguments = [pointer, number, number, pointer, number, number, number, pointer]
    loaded.tessella_walk.argtypes = walk_arguments
    loaded.tessella_walk.restype = number
    loaded.tessella_walk_layout.restype = ctypes.c_char_p
    loaded.tessella_mixture_size.argtypes = [number, number]
    loaded.tessella_mixture_size.restype = number
    loaded.tessella_record_bytes.restype = number
    loaded.tessella_lane_bytes.restype = number
    loaded.tessella_layout.restype = ctypes.c_char_p
    loaded.tessella_integer_layout.restype = ctypes.c_char_p
    loaded.tessella_nearest.argtypes = nearest_arguments
    loaded.tessella_nearest.restype = None
    loaded.tessella_cluster.argtypes = cluster_arguments
    loaded.tessella_cluster.restype = None
    return loaded


def _library_path(compiler: str, flags: tuple[str, ...]) -> Path:
    """Path of the cached library, whose name is a hash of everything it depends on."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT
    ).stdout
    facts = [source.read_bytes() for source in (*SOURCES, *HEADERS)]
    facts += [version, " ".join(flags).encode(), _processor().encode()]
    name = hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]
    return files.cache_folder() / "kernel" / f"kernel-{name}.so"


def _processor() -> str:
    """The properties of the processor on which ``-march=native`` depends."""
    # Only Linux has this file; elsewhere the name of the processor must do.
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() + platform.machine()
    kinds = ("flags", "Features", "model name")
    lines = {line for line in cpuinfo.read_text().splitlines() if line.startswith(kinds)}
    return "".join(sorted(lines))
