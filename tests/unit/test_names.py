"""Names read from the source are those that the registries and constructors really have."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from typing import Any

import pytest

import tessella as ts
from tessella import names
from tessella.errors import ConfigError
from tessella.models import NextScale
from tessella.tokenizers import TOKENIZERS
from tessella.tokenizers.quantizers import QUANTIZERS
from tessella.tokenizers.reconstructing import CodebookOptions
from tessella.vae import VAE

TABLES: dict[str, Any] = {
    # Not in the registry, since it is no model of one grid.
    "model": {**ts.MODELS, NextScale.name: NextScale},
    "head": ts.HEADS,
    "tokenizer": TOKENIZERS,
    "quantizer": QUANTIZERS,
    "vae": {"vae": VAE},
    "source": ts.SOURCES,
}


def sizes_of(cls: Any) -> set[str]:
    """Parameters of a constructor that recipes set; of an object of options, its fields."""
    hints = typing.get_type_hints(cls.__init__)
    sizes: set[str] = set()
    for parameter in set(inspect.signature(cls).parameters) - names.FROM_DATA:
        kinds = [hints.get(parameter), *typing.get_args(hints.get(parameter))]
        options = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if options:
            sizes |= {field.name for field in dataclasses.fields(options[0])}
        else:
            sizes.add(parameter)
    return sizes


@pytest.mark.parametrize("kind", names.PLACES)
def test_the_source_names_what_the_registry_holds(kind: str) -> None:
    assert set(names.known(kind)) == set(TABLES[kind])


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table]
)
def test_the_sizes_are_the_parameters_of_the_constructor(kind: str, name: str) -> None:
    known = names.known(kind)[name]
    assert known is None or known == sizes_of(TABLES[kind][name])


def test_a_class_registered_in_this_process_is_known() -> None:
    names.check("model", "gated-pixelcnn", ["layers"], "categorical")
    with pytest.raises(ConfigError, match="unknown model 'mine'"):
        names.check("model", "mine", [])


def test_nothing_is_refused_where_plugins_may_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tessella_plugin_x", sys)
    names.check("model", "mine", ["anything"])


def test_a_name_of_any_kind_is_looked_for_in_all_tables() -> None:
    for name in ("made", "ordinal", "vqvae", "fsq", "npz:images.npz"):
        names.check_registered(name)
    with pytest.raises(ConfigError, match="did you mean 'made'"):
        names.check_registered("mdae")
    with pytest.raises(ConfigError, match="unknown head 'made'"):
        names.check_registered("made", "head")


def test_the_default_of_an_option_is_read_from_the_source() -> None:
    assert names.default("tokenizer", "vqvae", "quantizer") == CodebookOptions().quantizer
    assert names.default("tokenizer", "vqvae", "hidden") is None
    assert names.default("tokenizer", "nothing", "quantizer") is None
