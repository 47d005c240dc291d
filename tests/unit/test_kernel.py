"""The compiled library in the cache: private, checked before it is loaded, mended."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessella import files, kernel
from tessella.errors import ArtifactError, TessellaWarning

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no C++ compiler")

Usage = namedtuple("Usage", "total used free")


QUICK = tuple(tuple(flag.replace("-O3", "-O0") for flag in flags) for flags in kernel.FLAG_SETS)
"""Flags of a build that takes a third of the time: here nothing is computed."""


@pytest.fixture(autouse=True, scope="module")
def quick_builds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "FLAG_SETS", QUICK)
        yield
    forget()


def forget() -> None:
    for function in (kernel.library, kernel._load_or_explain, kernel._warn_once):
        function.cache_clear()
    kernel._notes.clear()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, quick_builds: None) -> Path:
    """A cache with the library in it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSELLA_CACHE", str(cache))
        forget()
        assert kernel.available()
    forget()
    return cache


@pytest.fixture
def library(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library in a cache of the test's."""
    shutil.copytree(built, tmp_path / "cache")
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    forget()
    (path,) = (tmp_path / "cache" / "kernel").glob("*.so")
    yield path
    forget()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be compiled, so that only a kept library serves."""
    run = subprocess.run

    def refuse(command: list[str], **options: object) -> object:
        if "--version" not in command:
            raise subprocess.CalledProcessError(1, command, stderr=b"no compiler in this test")
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.usefixtures("no_compiler", "library")
def test_an_undamaged_library_is_loaded_without_a_compiler() -> None:
    assert kernel.available()


@pytest.mark.parametrize("umask", [0, 0o077])
def test_what_is_created_is_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "cache"))
    forget()
    before = os.umask(umask)
    try:
        assert kernel.available()
    finally:
        os.umask(before)
        forget()
    folder = tmp_path / "cache" / "kernel"
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert len(modes) == 2


DAMAGE = {
    "cut": lambda path: os.truncate(path, 5000),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
    "text": lambda path: path.write_text("this is no library"),
    "another library": lambda path: shutil.copy(sys.executable, path),
    "with another hash": lambda path: path.with_name(path.name + ".sha256").write_text("0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.usefixtures("no_compiler")
def test_a_damaged_library_is_not_loaded(library: Path, damage: str) -> None:
    DAMAGE[damage](library)
    with pytest.warns(TessellaWarning, match="is damaged: it is built again") as warned:
        assert not kernel.available()
    assert len(warned) == 1


@pytest.mark.usefixtures("no_compiler")
def test_a_library_without_its_hash_is_not_loaded(library: Path) -> None:
    library.with_name(library.name + ".sha256").unlink()
    assert not kernel.available()


def test_a_damaged_library_is_built_again_in_one_line_and_kept(library: Path) -> None:
    good = library.read_bytes()
    os.truncate(library, 4096)
    code = f"from tessella import kernel; kernel.FLAG_SETS = {QUICK}; assert kernel.available()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr.count("TessellaWarning: ") == 1
    assert len(library.read_bytes()) == len(good)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stderr


@pytest.mark.parametrize("what", ["folder", "library", "hash"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.usefixtures("no_compiler")
def test_what_others_can_write_is_not_loaded(library: Path, what: str, mode: int) -> None:
    digest = library.with_name(library.name + ".sha256")
    path = {"folder": library.parent, "library": library, "hash": digest}[what]
    path.chmod(path.stat().st_mode | mode)
    with pytest.warns(TessellaWarning, match="kernel"):
        assert not kernel.available()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["folder", "library"])
@pytest.mark.usefixtures("no_compiler")
def test_what_belongs_to_somebody_else_is_not_loaded(library: Path, what: str) -> None:
    os.chown(library.parent if what == "folder" else library, 12345, 12345)
    with pytest.warns(TessellaWarning, match="kernel"):
        assert not kernel.available()


@pytest.mark.usefixtures("no_compiler")
def test_a_link_is_not_followed_to_a_library(library: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.so"
    library.rename(target)
    library.symlink_to(target)
    with pytest.warns(TessellaWarning, match="damaged"):
        assert not kernel.available()


def test_full_disks_are_noticed_before_a_compiler_is_called(
    library: Path, monkeypatch: pytest.MonkeyPatch, no_compiler: None
) -> None:
    library.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1, 1, 0))
    assert not kernel.available()
    assert "no space to build the kernel" in kernel.describe()


def test_a_full_temporary_folder_builds_in_the_cache(
    library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library.unlink()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "nowhere"))
    usage = shutil.disk_usage
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda folder: Usage(1, 1, 0) if "nowhere" in str(folder) else usage(folder),
    )
    assert kernel.available()
    assert library.exists()


def test_a_cache_that_cannot_be_written_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TESSELLA_CACHE", str(tmp_path / "file"))
    forget()
    assert "serves this process alone" in kernel.describe()
    forget()


def test_an_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flags that build for any processor must not be tried instead.
    monkeypatch.setenv("TESSELLA_KERNEL_MARCH", "no-such-processor")
    forget()
    assert not kernel.available()
    assert "-march=no-such-processor" in kernel.describe()
    forget()


def test_a_full_cache_is_said_once(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.unlink()

    def full(path: Path, data: bytes, private: bool = False) -> None:
        raise ArtifactError(f"cannot write {path}") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.warns(TessellaWarning, match="serves this process alone") as warned:
        assert kernel.available()
    assert len(warned) == 1
