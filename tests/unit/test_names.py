"""Names read from the source are those that the registries and constructors really have."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest

import tessella as ts
from tessella import names
from tessella.errors import ConfigError
from tessella.tokenizers import TOKENIZERS
from tessella.tokenizers.quantizers import QUANTIZERS
from tessella.vae import VAE

TABLES: dict[str, Any] = {
    "model": ts.MODELS,
    "head": ts.HEADS,
    "tokenizer": TOKENIZERS,
    "quantizer": QUANTIZERS,
    "vae": {"vae": VAE},
}


@pytest.mark.parametrize("kind", names.PLACES)
def test_the_source_names_what_the_registry_holds(kind: str) -> None:
    assert set(names.known(kind)) == set(TABLES[kind])


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, table in TABLES.items() for name in table]
)
def test_the_sizes_are_the_parameters_of_the_constructor(kind: str, name: str) -> None:
    known = names.known(kind)[name]
    parameters = set(inspect.signature(TABLES[kind][name]).parameters) - names.FROM_DATA
    assert known is None or known == parameters


def test_a_class_registered_in_this_process_is_known() -> None:
    names.check("model", "gated-pixelcnn", ["layers"], "categorical")
    with pytest.raises(ConfigError, match="unknown model 'mine'"):
        names.check("model", "mine", [])


def test_nothing_is_refused_where_plugins_may_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tessella_plugin_x", sys)
    names.check("model", "mine", ["anything"])
