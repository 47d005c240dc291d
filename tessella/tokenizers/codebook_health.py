"""The codebook doctor: it says what is wrong with the codes, and what to change.

Figures are always over a whole set of images, since a single batch cannot use many codes.

Nothing here depends on a particular quantizer: each class declares whether its codes are learned,
how evenly they should be used, and what helps if they are not
(:class:`~tessella.tokenizers.quantizers.Quantizer`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch

from tessella.errors import TessellaWarning
from tessella.tokenizers.codebook_facts import (
    COLLAPSED_SHARE,
    MIN_STEPS,
    MIN_VECTORS_FOR_COLLAPSE,
    MIN_VECTORS_PER_CODE,
    Facts,
    examine,
    quantizers_of,
    twins,
)
from tessella.tokenizers.tokenizer import Tokenizer

__all__ = [
    "COLLAPSED_SHARE",
    "MIN_STEPS",
    "MIN_VECTORS_FOR_COLLAPSE",
    "MIN_VECTORS_PER_CODE",
    "UNITS",
    "CodebookMonitor",
    "Facts",
    "diagnose",
    "examine",
    "quantizers_of",
    "summarize",
    "twins",
    "usage_drift",
]

MIN_USED_SHARE = 0.9
"""Least share of the codes that a healthy codebook uses."""

MAX_TWIN_SHARE = 0.05
"""Largest share of the codes that may have a twin."""

MAX_DRIFT = 0.3
"""Total variation of usage between two validations, above which codes are not settled."""

MIN_VARIANCE_SHARE = 0.01
"""Share of the variance below which a depth of residual codes is useless."""

UNITS = {
    "codebook_used": ("codes used", ""),
    "codebook_size": ("codes", ""),
    "code_perplexity": ("perplexity of the codes", "codes"),
    "code_entropy_bits": ("entropy of the codes", "bits/code"),
    "code_perplexity_share": ("perplexity by number of codes", ""),
    "code_usage": ("share of the codes used", ""),
    "code_top_share": ("share of the most frequent code", ""),
    "code_variance_share": ("share of the variance by depth", ""),
    "codes_dead": ("codes never used", ""),
    "codes_twin": ("codes with a twin", ""),
    "usage_drift": ("change of use since the last look", ""),
}
"""For each figure of a codebook, a readable name and the unit."""

INTEGER_FIGURES = ("codes_dead", "codes_twin")
"""Figures that are counts of codes."""


class CodebookMonitor:
    """Examines the codebooks of a tokenizer at every validation, and reports changes.

    If a codebook has collapsed at two validations in a row, it issues a :class:`TessellaWarning`,
    and another one only after the codebook has recovered. It is silent while training is too short
    to judge.

    Args:
        drift: whether to report how usage changed since the last validation. A run that should
            continue identically after a resume must save :attr:`before` in its checkpoints.
    """

    def __init__(self, drift: bool = False) -> None:
        self.drift = drift
        self.before: list[list[int]] = []
        # Number of consecutive validations at which each codebook had collapsed.
        self._collapsed: dict[str, int] = {}

    def figures(
        self, tokenizer: Tokenizer, counts: Sequence[torch.Tensor], steps: int | None = None
    ) -> dict[str, float]:
        """Figures to log about the usage of the codes on all validation images.

        If there are several codebooks, they are called ``name/index``.

        Args:
            counts, steps: see :func:`examine`.
        """
        facts = examine(tokenizer, counts, steps)
        if self.drift:
            facts = self._with_drift(facts, counts)
        self._warn(facts)
        figures: dict[str, float] = {}
        for number, book in enumerate(facts):
            suffix = f"/{number}" if len(facts) > 1 else ""
            for name, value in _logged(book).items():
                figures[f"{name}{suffix}"] = value
        return figures

    def _with_drift(self, facts: list[Facts], counts: Sequence[torch.Tensor]) -> list[Facts]:
        """The facts with the change since the last counts, which these counts replace."""
        before = self.before
        self.before = [count.tolist() for count in counts]
        # The first time, there is nothing to compare with; nor if the number of grids changed.
        if len(before) != len(counts):
            return facts
        changed: list[Facts] = []
        for book, old, new in zip(facts, before, counts, strict=True):
            changed.append(replace(book, usage_drift=usage_drift(torch.tensor(old), new)))
        return changed

    def _warn(self, facts: Sequence[Facts]) -> None:
        for book in facts:
            looks = 0
            if book.collapsed and not book.undertrained:
                looks = self._collapsed.get(book.name, 0) + 1
            self._collapsed[book.name] = looks
            # Once, at the second time: the first may have been right after the start.
            if looks == 2:
                which = f"codebook {book.name}".strip()
                warnings.warn(f"{which} {_collapse(book, facts)}", TessellaWarning, stacklevel=4)


def usage_drift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Total variation distance between two counts of codes ``[codes]``, as frequencies.

    It is 0 for equal frequencies and 1 if they have no code in common.

    >>> usage_drift(torch.tensor([3, 1, 0]), torch.tensor([6, 0, 2]))
    0.25
    """
    return float((_frequencies(after) - _frequencies(before)).abs().sum() / 2)


def _frequencies(counts: torch.Tensor) -> torch.Tensor:
    return counts.double() / counts.sum().clamp_min(1)


def _logged(book: Facts) -> dict[str, float]:
    """The known figures of a codebook, by the names under which they are logged."""
    figures = {
        "code_usage": book.used_share,
        "code_perplexity_share": book.perplexity / book.codes,
        "codes_dead": book.dead,
        "codes_twin": book.twins,
        "code_top_share": book.top_share,
        "code_variance_share": book.variance_share,
        "usage_drift": book.usage_drift,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def summarize(facts: Sequence[Facts]) -> dict[str, float | list[float] | list[str]]:
    """The figures and the diagnosis that an evaluation reports.

    Returns:
        ``code_perplexity_share`` (perplexity divided by the number of codes), ``codes_dead``,
        ``code_top_share``, ``codes_twin`` and ``code_variance_share`` (of residual codes), if they
        are known: a value, or a list of values if there are several codebooks. ``diagnosis`` is a
        list of sentences.
    """
    values: dict[str, list[float]] = {}
    for book in facts:
        for name, value in _logged(book).items():
            # Evaluations already report the number of used codes.
            if name != "code_usage":
                values.setdefault(name, []).append(int(value) if name in INTEGER_FIGURES else value)
    summary: dict[str, float | list[float] | list[str]] = {}
    # Reports expect a number for a single codebook, and a list for several.
    for name, found in values.items():
        summary[name] = found[0] if len(found) == 1 else found
    summary["diagnosis"] = diagnose(facts)
    return summary


def diagnose(facts: Sequence[Facts]) -> list[str]:
    """Sentences about the faults of the codebooks of a tokenizer, and how to mend them.

    If too few vectors were counted (:data:`MIN_VECTORS_PER_CODE` per code), the sentence only says
    so. If a codebook looks bad after too short a training (:data:`MIN_STEPS`), the only advice is
    to train longer. If nothing is wrong with a codebook, a sentence gives its figures. The
    thresholds are constants of this module and of :mod:`tessella.tokenizers.codebook_facts`.
    """
    lines: list[str] = []
    for book in facts:
        for line in _findings(book, facts):
            lines.append(f"{book.name}: {line}" if book.name else line)
    return lines


def _findings(book: Facts, facts: Sequence[Facts]) -> list[str]:
    # With few vectors, chance leaves codes unused, but it does not give all of them one code.
    if book.too_few_vectors and not book.collapsed:
        return [_too_few(book)]
    faults = _faults(book, facts)
    if not faults:
        return [_healthy(book)]
    # Whatever looks wrong now may be right later, so the only honest advice is more training.
    if book.undertrained:
        return [_undertrained(book)]
    return faults


def _faults(book: Facts, facts: Sequence[Facts]) -> list[str]:
    # A collapse explains all the other faults.
    if book.collapsed:
        return [_collapse(book, facts)]
    found: list[str] = []
    if book.used_share < MIN_USED_SHARE:
        found.append(
            f"{book.dead:,} of {book.codes:,} codes are dead ({1 - book.used_share:.0%}); "
            f"{_against_death(book)}."
        )
    if book.twins is not None and book.twins > max(1, MAX_TWIN_SHARE * book.codes):
        found.append(_too_many_twins(book))
    # Not every quantizer is expected to use codes evenly: the levels of a bounded value are not.
    expected = book.quantizer_class.healthy_perplexity
    # Dead codes and twins make use uneven too, and say more about it.
    if not found and book.perplexity < expected * book.codes:
        found.append(
            f"use is uneven: perplexity {book.perplexity:.1f} of {book.codes:,} codes, and the "
            f"most frequent takes {book.top_share:.0%}; unless the images are mostly plain "
            f"background, take about {_power_of_two(book.perplexity):,} codes, or train longer."
        )
    if (
        book.depth > 0
        and book.variance_share is not None
        and book.variance_share < MIN_VARIANCE_SHARE
    ):
        found.append(
            f"this depth carries {book.variance_share:.1%} of the variance; "
            f"set depth = {book.depth}."
        )
    if book.usage_drift is not None and book.usage_drift > MAX_DRIFT:
        found.append(
            f"codes are not settled: {book.usage_drift:.0%} of the use moved to other codes since "
            "the last validation; train longer, or at a lower learning rate."
        )
    return found


def _collapse(book: Facts, facts: Sequence[Facts]) -> str:
    """The sentence about a codebook in which one code takes nearly all vectors."""
    found = (
        f"collapsed: one code takes {book.top_share:.0%} of the vectors, "
        f"{book.used:,} of {book.codes:,} are used"
    )
    # Where the length of training is known, a short one is told of before this.
    unless = ""
    if book.steps is None:
        unless = "unless training has just begun, "
    # A decoder that finds all information in the finer grid ignores the coarse one.
    finer = [other for other in facts if other.grid > book.grid]
    if finer and not any(other.collapsed for other in finer):
        return (
            f"{found}; {unless}the finer codes carry all, so give those fewer codes or a shorter "
            "code_dim, or train one grid."
        )
    # A residual level collapses if the levels before it leave nothing to encode.
    coarser = [other for other in facts if other.depth < book.depth]
    if book.depth > 0 and not any(other.collapsed for other in coarser):
        return f"{found}; {unless}the codes before it leave nothing, so set depth = {book.depth}."
    cure = book.quantizer_class.remedies.collapse
    return (
        f"{found}; unless training has just begun, {cure}, and check that the images are not all "
        "alike and reach the encoder on the scale 0..1."
    )


def _against_death(book: Facts) -> str:
    """Advice on how to keep the codes of this quantizer alive."""
    if book.reviving is False:
        return "set revive = 0.1, so that dead codes restart at vectors of the batch"
    # Enough for the codes in use. If nearly all are in use, no smaller power of 2 is.
    size = _power_of_two(book.used)
    fewer = "take fewer codes"
    if size < book.codes:
        fewer = f"take about {size:,} codes"
    return book.quantizer_class.remedies.dead_codes.replace("{fewer}", fewer)


def _too_many_twins(book: Facts) -> str:
    advice = "take fewer codes"
    # Revival moves a code to a vector, which may be right next to that vector's code.
    if book.reviving:
        advice += ", or set a smaller revive, as codes restart at vectors that already have one"
    return f"{book.twins:,} of {book.codes:,} codes have a twin that says the same; {advice}."


def _undertrained(book: Facts) -> str:
    assert book.steps is not None
    if book.steps < MIN_STEPS:
        batches = "batch" if book.steps == 1 else "batches"
        seen = f"the codes learned from {book.steps:,} {batches} only, of at least {MIN_STEPS}"
    else:
        wanted = MIN_VECTORS_PER_CODE * book.codes
        seen = (
            f"the codes learned from about {book.vectors_seen or 0:,.0f} vectors only, "
            f"of at least {wanted:,} for {book.codes:,} codes"
        )
    return (
        f"undertrained: {seen}, so their use ({book.used:,} of {book.codes:,}, the most frequent "
        f"{book.top_share:.0%}) says nothing yet; train longer before anything is changed."
    )


def _too_few(book: Facts) -> str:
    # Rounded up, so that this many images are enough.
    times = -(-MIN_VECTORS_PER_CODE * book.codes // max(1, book.vectors))
    return (
        f"too few images to judge: {book.vectors:,} vectors for {book.codes:,} codes, of which "
        f"{book.used:,} were used; measure on {times:,} times as many images, at least."
    )


def _healthy(book: Facts) -> str:
    return (
        f"healthy: {book.used:,} of {book.codes:,} codes used ({book.used_share:.0%}), perplexity "
        f"{book.perplexity:.1f} ({book.perplexity / book.codes:.2f} of the codes), the most "
        f"frequent takes {book.top_share:.1%}."
    )


def _power_of_two(codes: float) -> int:
    """The smallest power of two that is at least ``codes``, and at least 2."""
    return max(2, 1 << max(0, int(codes - 1)).bit_length())
