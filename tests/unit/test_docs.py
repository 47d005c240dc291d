"""The parts of the documentation that are made from the program."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

import tessella
from tessella.cli.flags import flags
from tessella.cli.verb_options import VERBS
from tessella.config import load_recipe, recipe_names
from tessella.models import MODELS

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "docs" / "_extensions" / "program_reference.py"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The extension of Sphinx, without Sphinx: the tests need its texts only."""
    modules = ("docutils", "sphinx", "sphinx.application", "sphinx.util", "sphinx.util.docutils")
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name in ("docutils.nodes", "sphinx.application.Sphinx"):
        parent, attribute = name.rsplit(".", 1)
        monkeypatch.setattr(sys.modules[parent], attribute, object, raising=False)
    monkeypatch.setattr(
        sys.modules["sphinx.util.docutils"], "SphinxDirective", object, raising=False
    )
    spec = importlib.util.spec_from_file_location("program_reference_under_test", EXTENSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_verb_and_option_is_in_the_reference(reference: types.ModuleType) -> None:
    text = "\n".join(reference.command_line())
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert list(sections) == ["Options", *VERBS] or list(sections) == [*VERBS]
    common = text.split("## demo")[0]
    for verb, options in VERBS.items():
        for flag in flags(options):
            if flag.is_positional:
                continue
            where = common if flag.name in ("--plugin", "--quiet") else sections[verb]
            assert f":::{{option}} {flag.name}" in where, f"{verb} {flag.name}"


def test_an_option_says_what_it_takes_and_its_default(reference: types.ModuleType) -> None:
    text = "\n".join(reference.verb_section("sample", set()))
    assert ":::{option} --n INT\nImages to draw. (default: 16)\n:::" in text
    # What tyro adds for its own sake is left out.
    assert "None" not in text
    assert "repeatable" not in text
    assert "tessella sample runs/x --n 64 --seed 7 --out samples.png" in text


def test_every_key_of_a_recipe_is_in_the_reference(reference: types.ModuleType) -> None:
    text = "\n".join(reference.recipe_tables())
    assert "`train.optimizer`\n: one of `adamw`, `muon`; default `adamw`" in text
    assert "`data.flip`\n: true or false; default `false`" in text
    assert ":class:" not in text
    keys = re.findall(r"^`(\w+\.\w+)`$", text, re.MULTILINE)
    explained = re.findall(r"^`(\w+\.\w+)`\n: .+\n\n  \S", text, re.MULTILINE)
    assert explained == keys


def test_the_examples_of_the_extension_hold(reference: types.ModuleType) -> None:
    result = doctest.testmod(reference)
    assert result.attempted
    assert not result.failed


def test_every_recipe_says_what_it_is(reference: types.ModuleType) -> None:
    text = "\n".join(reference.recipes())
    for name in recipe_names():
        assert f"`{name}`\n: " in text
        assert load_recipe(name).about
    # Hyphens in plain text would become a dash.
    assert "`--data mnist:PATH`" in text
    assert not re.search(r"[^`]--\w", text)


def test_registered_classes_are_documented_by_name(reference: types.ModuleType) -> None:
    text = "\n".join(reference.registered("models.MODELS"))
    for name, cls in MODELS.items():
        assert f"### `{name}`" in text
        assert f".. autoclass:: {cls.__module__}.{cls.__qualname__}" in text


def test_every_public_name_is_in_the_python_reference() -> None:
    pages = [
        page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference/python").glob("*.md")
    ]
    text = "\n".join(pages)
    documented = re.findall(r"^\.\. (?:\w+:)?\w+:: tessella\.(\w+)$", text, re.MULTILINE)
    assert sorted(documented) == sorted(tessella.__all__)
