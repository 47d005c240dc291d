"""Make ``.venv`` and install Tessella into it: ``python3 scripts/bootstrap.py [run|test|docs]``.

Standard library only, and safe to call before every command: a stamp in ``.venv`` holds a hash of
``pyproject.toml``, of this script and of the Python version, and while it fits nothing is done.
Otherwise:

1. ``.venv`` is made, or kept where it works. If the calling Python already has a recent torch (a
   GPU image), that one is used; a virtual environment made from a virtual environment does not see
   the packages of the first, so their folders are written into a ``.pth`` file.
2. Otherwise torch is installed, alone and first. ``TESSELLA_TORCH_INDEX`` names an extra index to
   prefer, such as the address of an index that has the small build without CUDA.
3. Everything else is installed under a constraint that keeps this torch; that it did is checked.

The syntax is that of Python 3.6, annotations quoted, so that an old Python answers with one line
and no SyntaxError.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".tessella-stamp"
UNFINISHED = VENV / ".tessella-unfinished"
"""Present while packages are installed.

Found at the start, it says that a set-up was cut off: .venv is made anew.
"""

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 11)
TORCH = "2.13.0"
GROUPS = {
    "run": ("plots", "web", "compress"),
    "test": ("plots", "web", "compress", "hub", "export", "data", "dev"),
    "docs": ("plots", "web", "compress", "hub", "export", "data", "dev", "docs"),
}
"""Extras of pyproject.toml that a set-up installs; each group contains the ones before it."""

LINES_SHOWN = 12
"""Lines of a command that failed which are shown."""

PROBE = """
import json, os, sys
found = {"version": sys.version, "torch": "", "error": "", "home": ""}
try:
    import torch
    found["torch"] = str(torch.__version__)
    found["home"] = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
except Exception as error:
    found["error"] = "%s: %s" % (type(error).__name__, error)
names = ("site-packages", "dist-packages")
folders = [p for p in sys.path if os.path.basename(p) in names and os.path.isdir(p)]
found["folders"] = sorted(set(folders), key=folders.index)
print(json.dumps(found))
"""
"""Run by a Python to describe itself and its torch."""


class SetupError(Exception):
    """The set-up cannot go on; the message says why and what to do."""


def python_problem(version: "tuple[int, ...]") -> str:
    """Why this Python cannot run Tessella, in one line; empty if it can."""
    if version >= LEAST_PYTHON:
        return ""
    least = ".".join(str(part) for part in LEAST_PYTHON)
    found = ".".join(str(part) for part in version[:3])
    way_out = "give another one: make demo PYTHON=python3.12"
    return f"Tessella needs Python {least} or newer and this is {found}; {way_out}"


def recent_enough(torch: str) -> bool:
    """Whether Tessella runs on a version of torch.

    A preview of the least version is older than that version.

    >>> [recent_enough(version) for version in ("2.13.0+cpu", "2.11.0a0+git123", "2.10.1", "")]
    [True, False, False, False]
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(a|b|rc|\.dev)?", torch)
    if not match:
        return False
    # The third part is missing in "2.11".
    release = tuple(int(part or 0) for part in match.groups()[:3])
    least = (*LEAST_TORCH, 0)
    is_preview = match.group(4) is not None
    return release > least or (release == least and not is_preview)


def stamp_key(pyproject: bytes, script: bytes, python: str) -> str:
    """One hash of everything that a finished set-up was made from."""
    digest = hashlib.sha256()
    # Hashes have one length, so that parts of "ab" and "" differ from "a" and "b".
    for part in (pyproject, script, python.encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def stamped(text: str, key: str, group: str) -> bool:
    """Whether the text of a stamp says that ``group`` is installed from what ``key`` stands for."""
    try:
        stamp = json.loads(text)
        return bool(stamp["key"] == key) and group in stamp["groups"]
    except (ValueError, KeyError, TypeError):
        return False


def requirements(pyproject: "dict[str, Any]", group: str) -> "list[str]":
    """The lines that pip has to install: the package's dependencies and the group's extras."""
    project = pyproject["project"]
    extras = project.get("optional-dependencies", {})
    lines = list(project["dependencies"])
    for extra in GROUPS[group]:
        lines.extend(extras[extra])
    return lines


def borrowed_folders(found: "dict[str, Any]") -> "list[str]":
    """Package folders of the calling Python that a new ``.venv`` shall see.

    There are none unless its torch is recent enough.
    """
    if not recent_enough(found["torch"]):
        return []
    folders = list(found["folders"])
    # torch may come from a folder of another name, which PYTHONPATH gives.
    if found["home"] not in folders:
        folders.append(found["home"])
    return folders


def main(arguments: "list[str]") -> int:
    """Set up the group that the arguments name (``run`` by default); returns the exit status."""
    problem = python_problem(sys.version_info[:3])
    group = "run"
    if arguments:
        group = arguments[0]
    if not problem and (len(arguments) > 1 or group not in GROUPS):
        problem = "usage: python3 scripts/bootstrap.py [{}]".format("|".join(GROUPS))
    if problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        with one_at_a_time():
            pyproject = (ROOT / "pyproject.toml").read_bytes()
            key = stamp_key(pyproject, Path(__file__).read_bytes(), sys.version)
            text = ""
            # A stamp without a Python belongs to a .venv that somebody has half deleted.
            if STAMP.is_file() and PYTHON.exists():
                text = STAMP.read_text(encoding="utf-8")
            if not stamped(text, key, group):
                set_up(group, key)
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next call starts over", file=sys.stderr)
        return 130
    except (SetupError, OSError) as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    return 0


def set_up(group: str, key: str) -> None:
    """Bring ``.venv`` to hold a group, and stamp it."""
    start = time.monotonic()
    # From here on .venv is not what the stamp says.
    STAMP.unlink(missing_ok=True)
    if UNFINISHED.exists() or not usable():
        create()
    UNFINISHED.touch()
    try:
        install(group)
    except SetupError:
        # pip gave up in good order, so what is installed can stay.
        UNFINISHED.unlink()
        raise
    names = list(GROUPS)
    groups = names[: names.index(group) + 1]
    # Renamed when it is complete, so that an interruption leaves no half of a stamp.
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps({"key": key, "groups": groups}), encoding="utf-8")
    temporary.replace(STAMP)
    UNFINISHED.unlink()
    say(f"{VENV.name} is ready ({time.monotonic() - start:.0f} s)")


def usable() -> bool:
    """Whether ``.venv`` exists, works and has this version of Python."""
    try:
        return bool(probe(PYTHON)["version"] == sys.version)
    except SetupError:
        return False


def create() -> None:
    """Make ``.venv`` anew.

    It sees the calling Python's packages if there is a recent torch among them.
    """
    python = calling_python()
    found = probe(python)
    folders = borrowed_folders(found)
    again = ""
    if VENV.exists():
        again = " anew"
    torch = ""
    if folders:
        torch = f" and its torch {found['torch']}"
    say(f"making {VENV.name}{again} with Python {sys.version.split()[0]}{torch}")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    UNFINISHED.touch()

    command = [str(python), "-m", "venv"]
    if folders:
        command.append("--system-site-packages")
    command.append(str(VENV))
    try:
        run(command, f"could not make {VENV}")
    except SetupError:
        # Some distributions ship Python without ensurepip; the calling Python's pip can work on a
        # .venv that has none.
        if not works([str(python), "-m", "pip", "--version"]):
            raise
        run([*command, "--without-pip"], f"could not make {VENV}")
    if folders:
        # Made from a virtual environment, .venv would not see the packages of that one.
        lines = "".join(f"{folder}\n" for folder in folders)
        (packages() / "calling_python.pth").write_text(lines, encoding="utf-8")


def calling_python() -> Path:
    """The Python that runs this script; if that is the one of ``.venv``, the one it came from."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        # .venv is about to be deleted.
        return Path(getattr(sys, "_base_executable", sys.executable))
    return Path(sys.executable)


def install(group: str) -> None:
    """Install torch if there is none, then everything else beside it, then the package itself."""
    # Not at the top: an old Python lacks it and must still print its one line.
    import tomllib

    before = probe(PYTHON)
    if not recent_enough(before["torch"]):
        install_torch()
        before = probe(PYTHON)
    if not recent_enough(before["torch"]):
        fault = before["error"] or f"it is version {before['torch']}"
        raise SetupError(
            f"torch is installed and cannot be used: {fault}\nDelete {VENV} and try again."
        )
    constraints = VENV / "constraints.txt"
    constraints.write_text(f"torch=={before['torch']}\n", encoding="utf-8")
    say(f"installing what runs beside torch {before['torch']} ({group})")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pip("the dependencies", "-c", str(constraints), *requirements(pyproject, group))
    link_package()

    # A constraint names a version, and an index can have several builds of it.
    after = probe(PYTHON)
    if (after["torch"], after["home"]) != (before["torch"], before["home"]):
        raise SetupError(
            "installing the dependencies changed torch from {torch} in {home}".format(**before)
            + " to {torch} in {home} {error}\n".format(**after)
            + "Delete .venv and report which package asked for it."
        )


def install_torch() -> None:
    """Install torch alone, so that no other package has a say in which build it is."""
    index = os.environ.get("TESSELLA_TORCH_INDEX", "")
    source = ""
    options = []
    if index:
        source = f" from {index}"
        options = ["--extra-index-url", index]
    say(f"installing torch {TORCH}{source} (the largest part; once)")
    nvidia = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
    if sys.platform == "linux" and not nvidia and not index:
        say(
            "  no NVIDIA GPU here: TESSELLA_TORCH_INDEX may name an index with a build without "
            "CUDA, which is smaller"
        )
    pip(f"torch {TORCH}", *options, f"torch=={TORCH}")


def link_package() -> None:
    """Install the package in editable mode, or put the repository on the path.

    The second way is taken where pip cannot build the package, for want of an index.
    """
    try:
        pip("the package", "--no-deps", "--editable", str(ROOT))
    except SetupError:
        (packages() / "tessella.pth").write_text(f"{ROOT}\n", encoding="utf-8")
        say(
            "  pip cannot build the package here, so there is no `tessella` command: use "
            f"`{PYTHON} -m tessella`"
        )


def pip(what: str, *arguments: str) -> None:
    """Let pip install into ``.venv``."""
    command = [str(PYTHON), "-m", "pip"]
    # Without ensurepip .venv has no pip, and that of the calling Python works on it.
    if not works([*command, "--version"]):
        command = [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    hint = (
        "Without a package index, `PYTHONPATH=. python3 -m tessella` runs on what that Python "
        "already has."
    )
    run([*command, "install", *arguments], f"pip could not install {what}", hint)


def run(command: "list[str]", failure: str, hint: str = "") -> None:
    """Run a command, showing its large downloads.

    Raises:
        SetupError: if it fails; with ``failure``, its last lines, and ``hint``.
    """
    environment = {
        **os.environ,
        # A user's setting to install into the home folder would go before .venv.
        "PIP_USER": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    lines = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            large = re.search(r"Downloading ([\w.]+-[\w.+]+).*\(([\d.]+ [MG]B)\)", line)
            if large:
                say("  downloading {} ({})".format(*large.groups()))
    if process.returncode:
        tail = "".join(f"\n    {line}" for line in lines[-LINES_SHOWN:] if line)
        message = f"{failure}; its last lines were:{tail}"
        if hint:
            message += f"\n{hint}"
        raise SetupError(message)


def works(command: "list[str]") -> bool:
    """Whether a command runs and succeeds."""
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


def probe(python: Path) -> "dict[str, Any]":
    """Version and package folders of a Python, and its torch.

    Raises:
        SetupError: if it does not run.
    """
    try:
        output = subprocess.run(
            [str(python), "-c", PROBE], capture_output=True, text=True, check=True
        ).stdout
        # A sitecustomize may print something before.
        return dict(json.loads(output.strip().splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise SetupError(f"{python} does not run: {error}") from error


def packages() -> Path:
    """The folder of packages of ``.venv``."""
    return VENV / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"


@contextlib.contextmanager
def one_at_a_time() -> "Iterator[None]":
    """Wait while another set-up of this checkout runs."""
    # Not at the top: Windows has no such module.
    import fcntl

    with (ROOT / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    """Print one line of progress."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
