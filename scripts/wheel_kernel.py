"""A hook of hatchling that puts the compiled kernel into a wheel, if that is asked for.

    TESSELLA_WHEEL_KERNEL=1 python -m build --wheel

Without the variable the wheel is the same for all platforms, and the kernel is compiled when it is
first needed. With it the wheel has a library for each of the processors that
``tessella/kernel/compilation.py`` names, and the tag of the platform that it was built on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "TESSELLA_WHEEL_KERNEL"


class KernelHook(BuildHookInterface[Any]):
    """Compiles the kernel and adds it to the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the libraries to the wheel that is about to be built.

        Raises:
            RuntimeError: when there is no compiler, or it fails.
        """
        # An editable installation is used where it was made, which compiles for its processor.
        if os.environ.get(VARIABLE, "0") in ("", "0") or version == "editable":
            return
        compilation = _load_compilation(Path(self.root))
        machine = platform.machine()
        if machine not in compilation.WHEEL_PROCESSORS or platform.system() != "Linux":
            known = ", ".join(compilation.WHEEL_PROCESSORS)
            here = f"{platform.system()} on {machine}"
            raise RuntimeError(f"{VARIABLE} is for Linux on {known}, and this is {here}")
        self._folder = Path(tempfile.mkdtemp())
        try:
            for march in compilation.WHEEL_PROCESSORS[machine]:
                for name, flags in compilation.wheel_libraries(march).items():
                    built = self._folder / name
                    _compile(flags, compilation.SOURCES, built)
                    build_data["force_include"][str(built)] = f"tessella/kernel/built/{name}"
        except RuntimeError:
            # A build that fails does not come to `finalize`.
            shutil.rmtree(self._folder)
            raise
        build_data["pure_python"] = False
        # The libraries use nothing of Python, so any version of it will do.
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, once it is in the wheel."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            shutil.rmtree(folder)


def _load_compilation(root: Path) -> ModuleType:
    # Importing the package would import what it depends on, and nothing is installed yet.
    path = root / "tessella" / "kernel" / "compilation.py"
    spec = importlib.util.spec_from_file_location("kernel_compilation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(flags: tuple[str, ...], sources: tuple[Path, ...], out: Path) -> None:
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, *flags, "-o", str(out), *map(str, sources)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"{VARIABLE} needs a C++ compiler (CXX names one): {error}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
