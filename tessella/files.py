"""Files written whole or not at all: to a temporary name beside the target, flushed to disk, renamed."""

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
    """Write a text file atomically. See :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write plain values as indented JSON, atomically. See :func:`write_bytes`."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically. See :func:`write_bytes`."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write(Path(path), lambda temporary: save_file(whole, temporary, metadata={"format": "pt"}))


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
    """Read a safetensors file.

    Raises:
        ArtifactError: when it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read as safetensors: {error}") from error


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def directory(path: Path | str) -> Iterator[Path]:
    """A directory that appears under its name only once everything in it is on disk; one that is there is replaced.

    Raises:
        ArtifactError: when something in it could not be written; what stood under the name is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        old = path.with_name(f".{path.name}.old")
        if path.exists():
            path.rename(old)
        partial.rename(path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_directory(path: Path | str) -> Path:
    """Create a directory and check that it can be written to.

    Raises:
        ArtifactError: when it cannot.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".tessella-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"cannot write to {path}: {error.strerror or error}") from error
    return path


def _finite(value: Any) -> Any:
    """Plain values with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # Writers built on native code report a full disk as errors of their own.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ArtifactError(f"cannot write {path}: {reason}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
