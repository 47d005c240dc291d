"""Find what is registered under a name, and test the contracts of its kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from tessella import data
from tessella.config import DataConfig
from tessella.contracts import (
    any_order_contracts,
    density_model_contracts,
    masked_contracts,
    quantizer_contracts,
    source_contracts,
    tokenizer_contracts,
)
from tessella.contracts.contract import Options, Outcome, run
from tessella.errors import ConfigError, unknown
from tessella.heads import HEADS
from tessella.models import MODELS, NextScale, size_names
from tessella.tokenizers import TOKENIZERS
from tessella.tokenizers.quantizers import QUANTIZERS

HEAD_MODELS = ("independent", "gated-pixelcnn", "lstm")
"""Models that a head is tested with: the simplest one, one of pixels and one of sequences."""

TABLES: dict[str, Mapping[str, object]] = {
    "model": MODELS,
    "head": HEADS,
    "tokenizer": TOKENIZERS,
    "quantizer": QUANTIZERS,
    "source": data.SOURCES,
}
"""What has contracts, by the word for it."""


def kinds_of(name: str) -> list[str]:
    """The kinds of things registered under a name, as keys of :data:`TABLES`.

    The name of a source may carry its path.
    """
    found = []
    for kind, table in TABLES.items():
        key = name
        # Only sources are written NAME:PATH.
        if kind == "source":
            key = name.partition(":")[0]
        if key in table:
            found.append(kind)
    return found


def check(name: str, kind: str = "", **options: object) -> Iterator[Outcome]:
    """Test every contract of what is registered under a name.

    Args:
        name: a registered model, head, tokenizer, quantizer, or a source with its path.
        kind: ``model``, ``head``, ``tokenizer``, ``quantizer`` or ``source``, where the name stands
            for several of them.
        options: arguments of its class that differ from the defaults; of a source, of
            :class:`~tessella.config.DataConfig`. Small sizes make the check fast.

    Yields:
        An outcome as soon as each contract is tested.

    Raises:
        ConfigError: for a name or a kind that is not known; at the first iteration, for an option
            that is not known, or with a value that the class refuses.
    """
    if name == NextScale.name:
        raise ConfigError("next-scale models several grids, and contracts are of models of one")
    kinds = kinds_of(name)
    if kind:
        if kind not in TABLES:
            raise ConfigError(unknown("kind", kind, TABLES))
        # Nothing is left where the name is registered for other kinds only.
        kinds = [found for found in kinds if found == kind]
    if not kinds:
        known: list[str] = []
        for table in TABLES.values():
            known += table
        raise ConfigError(unknown(kind or "registered name", name, known))
    if len(kinds) > 1:
        raise ConfigError(f"{name!r} is a {' and a '.join(kinds)}: say which with kind=")
    return _CHECKS[kinds[0]](name, options)


def _check_model(name: str, options: Options) -> Iterator[Outcome]:
    # A model must keep its promises with any head that it takes, and a head with any model.
    joint_too = MODELS.get_or_explain(name).takes_joint_heads
    heads = [key for key, head in HEADS.items() if joint_too or not head.joint]
    yield from _check_pairs(name, [(name, head) for head in heads], options)


def _check_head(name: str, options: Options) -> Iterator[Outcome]:
    # A few models are enough: what a head is given differs only between pixels and sequences.
    yield from _check_pairs(name, [(model, name) for model in HEAD_MODELS], options)


def _check_pairs(
    name: str, pairs: Iterable[tuple[str, str]], options: Options
) -> Iterator[Outcome]:
    """Check models with heads, each with those of the options that it takes."""
    cases = []
    known: set[str] = set()
    for model, head in pairs:
        names = size_names(model, head)
        known.update(names)
        # A size may be that of a single one of the heads, or of the models.
        sizes = {key: value for key, value in options.items() if key in names}
        cases.append(density_model_contracts.ModelCase(model, head, sizes))
    _refuse_unknown("size", name, options, known)
    for case in cases:
        _build_once(partial(case.build, density_model_contracts.GRIDS[-1]))
    for case in cases:
        described = f"{case.name} with head {case.head}"
        contracts = density_model_contracts.CONTRACTS
        family = MODELS.get_or_explain(case.name)
        if family.states_bound:
            contracts = masked_contracts.MASKED_CONTRACTS
        elif family.any_order:
            contracts += any_order_contracts.ANY_ORDER_CONTRACTS
        yield from run(contracts, case, described)


def _check_tokenizer(name: str, options: Options) -> Iterator[Outcome]:
    case = tokenizer_contracts.TokenizerCase(name, options)
    _build_once(case.build)
    yield from run(tokenizer_contracts.CONTRACTS, case, name)


def _check_quantizer(name: str, options: Options) -> Iterator[Outcome]:
    case = quantizer_contracts.QuantizerCase(name, options)
    _build_once(case.build)
    yield from run(quantizer_contracts.CONTRACTS, case, name)


def _check_source(name: str, options: Options) -> Iterator[Outcome]:
    # The name is that of the source already.
    known = {field.name for field in dataclasses.fields(DataConfig)} - {"source"}
    _refuse_unknown("option", name, options, known)
    case = source_contracts.SourceCase(DataConfig(name, **options))
    yield from run(source_contracts.CONTRACTS, case, name)


def _refuse_unknown(kind: str, name: str, options: Options, known: Iterable[str]) -> None:
    for key in options:
        if key not in known:
            raise ConfigError(unknown(f"{kind} of {name}:", key, known))


def _build_once(build: Callable[[], object]) -> None:
    """Build what is to be checked, so that an option is refused once and not by every contract."""
    try:
        build()
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - code from outside may raise anything
        # Not a refusal but a fault, of which the contracts tell.
        return


_CHECKS = {
    "model": _check_model,
    "head": _check_head,
    "tokenizer": _check_tokenizer,
    "quantizer": _check_quantizer,
    "source": _check_source,
}
