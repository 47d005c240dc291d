"""What every test has: checked annotations, one thread, and the folder of real data where there is
one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_package

collect_ignore = ["golden"]
"""Scripts and data, which tests run and read; they are no modules of tests."""

# Before the first import of the package. A function that returns something else than its annotation
# fails its test. A wrong argument only warns, since refusing it with a message of its own is the
# function's task, and is tested. An int will do for a float. The cost is lost in the noise of the
# suite's time; TESSELLA_CHECK_TYPES=0 switches it off.
if os.environ.get("TESSELLA_CHECK_TYPES", "1") != "0":
    beartype_package(
        "tessella", conf=BeartypeConf(violation_param_type=UserWarning, is_pep484_tower=True)
    )

# One thread a worker, so that workers do not fight over cores; a test that needs more sets them and
# puts them back.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images of folders go to a temporary folder, never to that of the user.

    TESSELLA_TEST_CACHE names one that holds a compiled kernel already.
    """
    folder = os.environ.get("TESSELLA_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSELLA_CACHE", folder)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real image files: TESSELLA_TEST_DATA, or ``shared/data`` beside the repository;
    without it, skip."""
    folder = Path(
        os.environ.get("TESSELLA_TEST_DATA")
        or Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: TESSELLA_TEST_DATA names the one with the real images")
    return folder


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    """Forget the plugins that a test loaded: where one is loaded, unknown names are not refused."""
    yield
    for name in [name for name in sys.modules if name.startswith("tessella_plugin_")]:
        del sys.modules[name]
