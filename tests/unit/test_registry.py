"""Classes from outside: tables by name, plugin files and installed plugins."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from tessella import registry
from tessella.errors import ConfigError
from tessella.registry import Registry, load_plugin


class Animal(ABC):
    @abstractmethod
    def sound(self) -> str: ...


class Dog(Animal):
    def sound(self) -> str:
        return "woof"


class Wolf(Dog): ...


@pytest.fixture
def animals() -> Registry[type[Animal]]:
    table: Registry[type[Animal]] = Registry("animal", base=Animal)
    table.register("dog")(Dog)
    return table


def test_a_registry_reads_like_a_dictionary_in_order_of_registration(
    animals: Registry[type[Animal]],
) -> None:
    animals.register("wolf")(Wolf)
    assert list(animals) == ["dog", "wolf"]
    assert dict(animals.items()) == {"dog": Dog, "wolf": Wolf}
    assert "dog" in animals
    assert "cat" not in animals
    assert animals.get("cat") is None
    with pytest.raises(KeyError):
        animals["cat"]


def test_the_class_learns_its_name(animals: Registry[type[Animal]]) -> None:
    animals.register("wolf")(Wolf)
    assert (Dog.name, Wolf.name) == ("dog", "wolf")  # type: ignore[attr-defined]


def test_a_second_class_of_one_name_is_refused(animals: Registry[type[Animal]]) -> None:
    with pytest.raises(ConfigError, match=r"animal 'dog' exists already.*another name"):
        animals.register("dog")(Wolf)
    assert animals["dog"] is Dog


def test_a_class_defined_again_takes_its_own_place(animals: Registry[type[Animal]]) -> None:
    again = type("Dog", (Animal,), {"sound": Dog.sound, "__module__": Dog.__module__})
    animals.register("dog")(again)
    assert animals["dog"] is again


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param(int, "must be a class that derives from Animal", id="other-base"),
        pytest.param(len, "must be a class that derives from Animal", id="no-class"),
        pytest.param(Animal, "must define sound", id="abstract"),
    ],
)
def test_what_cannot_serve_is_refused(
    animals: Registry[type[Animal]], entry: type[Animal], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        animals.register("x")(entry)


def test_a_name_must_be_given(animals: Registry[type[Animal]]) -> None:
    with pytest.raises(ConfigError, match="registered under a name, got <class"):
        animals.register(Dog)  # type: ignore[arg-type]


def test_an_unknown_name_is_explained(animals: Registry[type[Animal]]) -> None:
    assert animals.get_or_explain("dog") is Dog
    with pytest.raises(ConfigError, match=r"unknown animal 'dgo'; did you mean 'dog'\? Known: dog"):
        animals.get_or_explain("dgo")


class EntryPoint:
    """An entry point as ``importlib.metadata`` gives it."""

    def __init__(self, name: str, table: Registry[type[Animal]] | None) -> None:
        self.name = name
        self.table = table

    def load(self) -> None:
        if self.table is None:
            raise ImportError("no module of that name")
        self.table.register("wolf")(Wolf)


def test_installed_plugins_are_loaded_for_a_name_nobody_knows(
    animals: Registry[type[Animal]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [EntryPoint("broken", None), EntryPoint("wolves", animals)]
    asked = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return found

    monkeypatch.setattr(registry, "_looked_for_plugins", False)
    monkeypatch.setattr(registry, "_installed", {})
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert animals["dog"] is Dog
    assert asked == []
    assert animals["wolf"] is Wolf
    with pytest.raises(ConfigError, match="plugin 'broken' failed to load: ImportError: no module"):
        animals.get_or_explain("cat")
    assert asked == ["tessella.plugins"]


def test_a_plugin_file_is_run_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 0\n")
    module = load_plugin(file)
    assert module.A().x == 0
    assert load_plugin(str(file)) is module
    other = tmp_path / "elsewhere" / "mine.py"
    other.parent.mkdir()
    other.write_text("A = 1\n")
    assert load_plugin(other).A == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("mine.py", "1 / 0", "cannot be loaded: ZeroDivisionError", id="raises"),
        pytest.param("mine.py", "def f(", "cannot be loaded: SyntaxError", id="syntax"),
        pytest.param("mine.txt", "A = 1", r"a Python file \(.py\) that exists", id="no-python"),
        pytest.param("", "", r"a Python file \(.py\) that exists", id="missing"),
    ],
)
def test_a_plugin_that_cannot_be_run_is_an_error_of_ours(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plugin(tmp_path / (name or "nowhere.py"))


def test_the_registry_imports_without_torch() -> None:
    code = "import sys, tessella.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
