"""The compiled library in the cache: private, checked before it is loaded, mended."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessella import files, kernel
from tessella.errors import ArtifactError, TessellaWarning
from tessella.kernel.compilation import SOURCES, WHEEL_PROCESSORS, wheel_libraries

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


@pytest.fixture
def wheel(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a wheel's libraries, with one that any processor serves."""
    folder = tmp_path / "built"
    folder.mkdir()
    shutil.copy(library, folder / "kernel-any.so")
    library.unlink()
    monkeypatch.setattr(kernel, "WHEEL_FOLDER", folder)
    processors = {"better": frozenset({"no-such-instructions"}), "any": frozenset()}
    monkeypatch.setattr(kernel, "WHEEL_PROCESSORS", {platform.machine(): processors})
    monkeypatch.delenv("TESSELLA_KERNEL_MARCH", raising=False)
    return folder


@pytest.mark.usefixtures("no_compiler", "wheel")
def test_the_library_of_a_wheel_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.available()
    assert kernel.describe() == "yes; kernel-any.so of the installed wheel"
    # Another processor than that at hand was asked for.
    monkeypatch.setenv("TESSELLA_KERNEL_MARCH", "x86-64")
    forget()
    assert not kernel.available()


@pytest.mark.usefixtures("no_compiler")
def test_without_openmp_the_library_of_a_wheel_has_one_thread(wheel: Path) -> None:
    (wheel / "kernel-any.so").rename(wheel / "kernel-any-one-thread.so")
    assert kernel.describe() == "yes; kernel-any-one-thread.so of the installed wheel"


def test_a_library_of_a_wheel_that_does_not_serve_is_built_and_said_so_in_one_line(
    wheel: Path,
) -> None:
    (wheel / "kernel-any.so").write_bytes(b"damaged")
    said = kernel.describe()
    assert said.startswith(
        "yes; compiled here, since the libraries of the installed wheel do not work: "
    )
    assert "\n" not in said


def test_a_wheel_names_the_flags_of_this_processor() -> None:
    names = {name for processors in WHEEL_PROCESSORS.values() for name in processors}
    assert {"x86-64-v3", "armv8-a"} <= names
    # These names are those of Linux, which are not always the compiler's.
    if platform.machine() == "x86_64" and Path("/proc/cpuinfo").exists():
        assert "sse2" in kernel._instruction_sets()


@pytest.fixture
def hook(tmp_path: Path) -> Any:
    """The hook of the build of a wheel."""
    pytest.importorskip("hatchling")
    path = Path(__file__).parents[2] / "scripts" / "wheel_kernel.py"
    spec = importlib.util.spec_from_file_location("wheel_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_data_of(hook: Any, version: str = "standard") -> dict[str, Any]:
    """What the hook makes of the data of a wheel that is built."""
    build_data: dict[str, Any] = {"pure_python": True, "tag": None, "force_include": {}}
    root = str(Path(__file__).parents[2])
    builder = hook.KernelHook(root, {}, None, None, "", "wheel")
    builder.initialize(version, build_data)
    assert all(Path(built).exists() for built in build_data["force_include"])
    builder.finalize(version, build_data, "")
    assert not any(Path(built).exists() for built in build_data["force_include"])
    return build_data


def test_a_wheel_is_pure_unless_the_kernel_is_asked_for(
    hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pure = {"pure_python": True, "tag": None, "force_include": {}}
    monkeypatch.delenv(hook.VARIABLE, raising=False)
    assert build_data_of(hook) == pure
    monkeypatch.setenv(hook.VARIABLE, "1")
    assert build_data_of(hook, "editable") == pure


def test_a_wheel_with_the_kernel_has_the_tag_of_its_platform(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A compiler that writes what it was asked for.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo "$@" > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv(hook.VARIABLE, "1")
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("sysconfig.get_platform", lambda: "linux-x86_64")
    build_data = build_data_of(hook)
    assert build_data["tag"] == "py3-none-linux_x86_64"
    assert build_data["pure_python"] is False
    assert sorted(build_data["force_include"].values()) == [
        f"tessella/kernel/built/kernel-{name}.so"
        for name in ("x86-64-v3-one-thread", "x86-64-v3", "x86-64-v4-one-thread", "x86-64-v4")
    ]
    compiler.write_text("#!/bin/sh\necho what is wrong >&2; exit 1\n")
    with pytest.raises(RuntimeError, match="what is wrong"):
        build_data_of(hook)
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        build_data_of(hook)


CROSS_COMPILER = "aarch64-linux-gnu-g++"


@pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None,
    reason=f"there is no {CROSS_COMPILER} (Debian: apt-get install g++-aarch64-linux-gnu)",
)
def test_the_kernel_compiles_for_arm(tmp_path: Path) -> None:
    library = tmp_path / "kernel.so"
    (march,) = WHEEL_PROCESSORS["aarch64"]
    flags = wheel_libraries(march)[f"kernel-{march}.so"]
    command = [CROSS_COMPILER, *flags, "-o", str(library), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The number of 64-bit ARM among the machines of ELF files.
    assert library.read_bytes()[18:20] == bytes([183, 0])


def test_a_full_cache_is_said_once(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.unlink()

    def full(path: Path, data: bytes, private: bool = False) -> None:
        raise ArtifactError(f"cannot write {path}") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.warns(TessellaWarning, match="serves this process alone") as warned:
        assert kernel.available()
    assert len(warned) == 1
