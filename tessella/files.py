"""Files written whole or not at all: to a temporary name beside the target, flushed to disk,
renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.errors import ArtifactError

if TYPE_CHECKING:
    import torch


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        ArtifactError: naming the file and the reason; the old file, if any, is untouched.
    """
    _write(Path(path), lambda temporary: temporary.write_bytes(data))


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically; names of files that are not UTF-8 get escapes. See
    :func:`write_bytes`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Write plain values as indented JSON, atomically. See :func:`write_bytes`."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Plain values as indented JSON, null for what is no number. Names that are not UTF-8 come back
    as they were."""
    told = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return told if _encodes(told) else json.dumps(_finite(value), indent=2, allow_nan=False)


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors with their SHA-256 in its metadata, atomically. See
    :func:`write_bytes`."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", "sha256": _digest(whole)}

    def write(temporary: Path) -> None:
        save_file(whole, temporary, metadata=metadata)
        _sort_metadata(temporary)

    _write(Path(path), write)


def append_line(path: Path | str, line: str) -> None:
    """Append a line of text. A process that is killed can leave a part of it, without its end.

    Raises:
        ArtifactError: naming the file and the reason.
    """
    try:
        with Path(path).open("ab") as file:
            file.write(line.encode() + b"\n")
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from error


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: when it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error


def read_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """Read a safetensors file, and check it where :func:`write_tensors` wrote it.

    Raises:
        ArtifactError: when it is missing or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, file.get_tensors()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except Exception as error:
        # Readers built on native code report a damaged header as errors of several kinds.
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error
    if "sha256" in metadata and metadata["sha256"] != _digest(tensors):
        raise ArtifactError(f"{path} is damaged: its tensors are not the ones that were written")
    return tensors


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path | str) -> None:
    """Wait until a file, or the list of names of a directory, is on disk.

    Raises:
        ArtifactError: when it cannot be brought there.
    """
    try:
        _flush(Path(path))
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from error


@contextlib.contextmanager
def directory(path: Path | str) -> Iterator[Path]:
    """A directory that appears under its name only once everything in it is on disk; one that is
    there is replaced.

    What is in it must be written with the functions above, which wait until each file is on disk.

    Raises:
        ArtifactError: when something in it could not be written; what stood under the name is
            untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for folder in [*(item for item in partial.rglob("*") if item.is_dir()), partial]:
            _flush(folder)
        _replace(path, partial)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_directory(path: Path | str) -> None:
    """Remove a directory; a process that is killed meanwhile leaves none under its name that is
    only partly there.

    What cannot be removed stays, which is no error.
    """
    path = Path(path)
    gone = path.with_name(f".{path.name}.partial")
    with contextlib.suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone)


def sweep(folder: Path | str, name: str = "*") -> None:
    """Clear away what a killed process left half written in a folder, and put back what it was
    about to replace.

    Args:
        folder: may be missing.
        name: of the files or directories that were being written, as a pattern. What goes is
            ``.NAME.partial``, ``.NAME.PID.partial`` and the directory ``.NAME.old``; nothing else
            is touched.

    Raises:
        ArtifactError: when it cannot be removed.
    """
    try:
        for old in [path for path in Path(folder).glob(f".{name}.old") if path.is_dir()]:
            whole = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            shutil.rmtree(old) if whole.exists() else old.rename(whole)
        for partial in {
            *Path(folder).glob(f".{name}.partial"),
            *Path(folder).glob(f".{name}.*.partial"),
        }:
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot clear {folder}: {_reason(error)}") from error


def cache_folder() -> Path:
    """Where what can be made again is kept: ``TESSELLA_CACHE``, else ``$XDG_CACHE_HOME/tessella``,
    else ``~/.cache/tessella``."""
    if own := os.environ.get("TESSELLA_CACHE"):
        return Path(os.path.expanduser(own))  # noqa: PTH111 - does not raise where there is no home
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(base) / "tessella"


def make_directory(path: Path | str) -> Path:
    """Create a directory and check that it can be written to.

    Raises:
        ArtifactError: when it cannot.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write to {path}: {_reason(error)}") from error
    return path


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    """Plain values with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of contiguous tensors; nothing is copied."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sort_metadata(path: Path) -> None:
    """Give the metadata of a safetensors file, which its writer shuffles, an order: equal tensors
    make equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file in a directory of its own, where writers may leave temporary files of theirs,
    and move it out."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        temporary = partial / path.name
        write(temporary)
        temporary.chmod(
            partial.stat().st_mode & 0o666
        )  # some writers make files that only the owner may read
        _flush(temporary)
        temporary.replace(path)
        if not path.parent.name.endswith(
            ".partial"
        ):  # else directory() does so, once for all files
            _flush(path.parent)
    except Exception as error:
        # Writers built on native code report a full disk as errors of their own.
        raise ArtifactError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(path: Path, partial: Path) -> None:
    """Rename a directory to ``path``, and remove what stood there; after a kill in between,
    :func:`sweep` helps."""
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
