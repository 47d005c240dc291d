"""The codebook doctor: how the codes of a tokenizer are used, what is wrong, and what to change.

One channel of one grid is written with one codebook: residual codes have a codebook for each depth,
several grids at least one each. Figures are those of a whole set of images, never of a batch, which
cannot use many codes.

Nothing here depends on a certain quantizer: each class says for itself whether its codes are
learned, how evenly they should be used, and what helps when they are not
(:class:`~tessella.tokenizers.quantizers.Quantizer`).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tessella.errors import TessellaWarning
from tessella.tokenizers.quantizers import QUANTIZERS, Quantizer, perplexity
from tessella.tokenizers.quantizers.ema import EMAVectorQuantizer
from tessella.tokenizers.tokenizer import Tokenizer

FEW = 10
"""Vectors for each code below which nothing is said of a codebook: a healthy one too would leave
codes unused. As many must have been seen in training."""

STEPS = 200
"""Batches learned from, below which codes and encoder are still far from settled: a moving average
with the usual decay of 0.98 has a memory of 50 batches."""

COLLAPSED = 0.8
"""Share of the vectors that one code takes from which a codebook has collapsed. A plain background
may take a half."""

SURE = 1000
"""Vectors from which a collapse is one, also where there are few for each code."""

USED = 0.9
"""Share of the codes that a healthy codebook uses."""

TWINS = 0.05
"""Share of the codes that may have a twin."""

NEAR = 0.01
"""Two codes are twins when nearer than this share of the distance from a code to its nearest other
one (the upper quartile over the codes), or than a hundredth of this share of the spread of all
codes."""

RESTLESS = 0.3
"""Change of usage between two validations (total variation) from which codes are not settled."""

IDLE = 0.01
"""Share of the variance below which a depth of residual codes adds nothing."""

MOST_COMPARED = 2**14
"""Codes of larger codebooks are not compared with each other."""

COMPARED_AT_ONCE = 256
"""Codes that are compared with all others at a time."""

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
"""Names of the figures of codebooks, for people, and their units."""

COUNTED = ("codes_dead", "codes_twin")
"""Figures that are numbers of codes."""


@dataclass(frozen=True)
class Facts:
    """How one codebook is used.

    Args:
        grid, depth: which codebook: grid (coarse to fine) and channel of it, from 0.
        grids, depths: how many there are.
        codes: in the codebook.
        vectors: that were counted.
        used: codes used at least once.
        entropy_bits: of the codes' frequencies.
        top_share: share of the vectors that the most frequent code takes.
        quantizer: its name; empty where it is not known.
        twins: codes that have another one so near (see :data:`NEAR`) that they say the same; None
            where unknown.
        variance_share: of the variance of the quantized vectors, the part that this depth carries;
            None where the depth is 1. The depths are taken as uncorrelated.
        usage_drift: half the sum of the absolute changes of the codes' frequencies since the last
            look, 0 to 1.
        reviving: whether dead codes are revived in training; None where the quantizer has no such
            thing.
        steps: batches that the codebook has learned from; None where unknown.
        vectors_seen: vectors in those batches, about; None where unknown.
    """

    grid: int
    depth: int
    grids: int
    depths: int
    codes: int
    vectors: int
    used: int
    entropy_bits: float
    top_share: float
    quantizer: str = ""
    twins: int | None = None
    variance_share: float | None = None
    usage_drift: float | None = None
    reviving: bool | None = None
    steps: int | None = None
    vectors_seen: float | None = None

    @property
    def used_share(self) -> float:
        """Share of the codes used at least once."""
        return self.used / self.codes

    @property
    def dead(self) -> int:
        """Codes never used."""
        return self.codes - self.used

    @property
    def perplexity(self) -> float:
        """``2 ** entropy_bits``, in codes."""
        return float(2**self.entropy_bits)

    @property
    def few(self) -> bool:
        """Whether there were too few vectors to judge the codebook."""
        return self.vectors < FEW * self.codes

    @property
    def collapsed(self) -> bool:
        """Whether nearly all vectors get one code, and there are too many of them for chance."""
        return self.vectors >= SURE and self.top_share >= COLLAPSED

    @property
    def undertrained(self) -> bool:
        """Whether training was too short to judge the codebook; false where that is unknown."""
        if self.steps is None:
            return False
        if self.steps < STEPS:
            return True
        return self.vectors_seen is not None and self.vectors_seen < FEW * self.codes

    @property
    def name(self) -> str:
        """Which codebook, in words, where there are several; else empty.

        >>> Facts(0, 1, 2, 3, 512, 0, 0, 0.0, 0.0).name
        'grid 0, depth 1'
        """
        words = []
        if self.grids > 1:
            words.append(f"grid {self.grid}")
        if self.depths > 1:
            words.append(f"depth {self.depth}")
        return ", ".join(words)

    @property
    def quantizer_class(self) -> type[Quantizer]:
        """The class that knows what to expect of the codes and what helps.

        It is that of the default where the quantizer is not known.
        """
        known = QUANTIZERS.get(self.quantizer) if self.quantizer else None
        return EMAVectorQuantizer if known is None else known


def examine(
    tokenizer: Tokenizer, counts: Sequence[torch.Tensor], steps: int | None = None
) -> list[Facts]:
    """The facts of every codebook of a tokenizer.

    Args:
        counts: how often each code was used, ``[codes]`` for each channel of each grid, coarse to
            fine.
        steps: batches that the tokenizer was trained on, where the caller knows; quantizers that
            count them say it themselves.
    """
    grids = tokenizer.grids()
    # Codebooks come one after the other: the depths of the first grid, then those of the next.
    books = iter(counts)
    facts: list[Facts] = []
    for number, (grid, quantizer) in enumerate(zip(grids, quantizers_of(tokenizer), strict=True)):
        counts_of_grid = [count.double().cpu() for count in itertools.islice(books, grid.channels)]
        # Codes that were learned, [codes, dim] for each depth, to compare with each other.
        tables: list[torch.Tensor | None] = [None] * grid.channels
        if quantizer is not None:
            tables = [_codes(quantizer, depth) for depth in range(grid.channels)]
        shares = _variance_shares(counts_of_grid, tables)
        for depth in range(grid.channels):
            facts.append(
                Facts(
                    grid=number,
                    depth=depth,
                    grids=len(grids),
                    depths=grid.channels,
                    **_usage_of(counts_of_grid[depth]),
                    **_training_of(quantizer, steps),
                    twins=_twins_or_none(tables[depth]),
                    variance_share=shares[depth],
                )
            )
    return facts


def _usage_of(count: torch.Tensor) -> dict[str, Any]:
    """Those facts that follow from counts ``[codes]`` of one codebook."""
    total = float(count.sum())
    return {
        "codes": len(count),
        "vectors": int(total),
        "used": int((count > 0).sum()),
        "entropy_bits": float(perplexity(count).log2()),
        "top_share": float(count.max()) / total if total else 0.0,
    }


def _training_of(quantizer: Quantizer | None, steps: int | None) -> dict[str, Any]:
    """Those facts that a quantizer knows about its training."""
    if quantizer is None:
        return {"steps": steps}
    # A count that is kept with the codes is right also for a model taken out of its run.
    counted = quantizer.batches_seen
    if counted is not None:
        steps = counted
    vectors = quantizer.vectors_a_batch
    vectors_seen: float | None = None
    if steps is not None and vectors:
        vectors_seen = steps * vectors
    return {
        "quantizer": quantizer.name,
        "reviving": _reviving(quantizer),
        "steps": steps,
        "vectors_seen": vectors_seen,
    }


def quantizers_of(tokenizer: Tokenizer) -> list[Quantizer | None]:
    """The quantizer of each grid, coarse to fine.

    They are None where the tokenizer does not have one for each. A tokenizer with several grids
    must hold their quantizers in the order of the grids.
    """
    inside: set[int] = set()
    outermost: list[Quantizer] = []
    # Parts of a quantizer come after it, and are not quantizers of a grid themselves.
    for module in tokenizer.modules():
        if isinstance(module, Quantizer) and id(module) not in inside:
            outermost.append(module)
            inside.update(id(part) for part in module.modules())
    grids = tokenizer.grids()
    found = [(quantizer.levels, quantizer.depth) for quantizer in outermost]
    wanted = [(grid.levels, grid.channels) for grid in grids]
    if found != wanted:
        return [None] * len(grids)
    return list(outermost)


def _reviving(quantizer: Quantizer) -> bool | None:
    """Whether a quantizer, or the first part of it that could, revives dead codes."""
    for module in quantizer.modules():
        share = getattr(module, "revive", None)
        if share is not None:
            return bool(share)
    return None


@torch.no_grad()
def _codes(quantizer: Quantizer, depth: int) -> torch.Tensor | None:
    """The codes of one depth, float64 ``[codes, dim]``, up to a shift that all share.

    They are None where they are not compared.
    """
    if not quantizer.learns_codes or quantizer.levels > MOST_COMPARED:
        return None
    device = torch.device("cpu")
    for tensor in itertools.chain(quantizer.parameters(), quantizer.buffers()):
        device = tensor.device
        break
    # All codes of this depth, each with the first codes of the others.
    symbols = torch.zeros(quantizer.levels, quantizer.depth, dtype=torch.int64, device=device)
    symbols[:, depth] = torch.arange(quantizer.levels, device=device)
    return quantizer.decode(symbols).double().cpu()


def _spread(codes: torch.Tensor) -> float:
    """Root mean square distance of codes ``[codes, dim]`` from their mean."""
    return float((codes - codes.mean(0)).square().sum(1).mean().sqrt())


def twins(codes: torch.Tensor) -> int:
    """How many of the codes ``[codes, dim]`` have a twin; see :data:`NEAR`.

    >>> twins(torch.tensor([[0.0], [0.001], [1.0], [2.0], [3.0]]))
    2
    """
    centred = codes.double() - codes.double().mean(0)
    squares = centred.square().sum(1)
    distances = torch.empty(len(codes), dtype=torch.float64)
    for rows in torch.arange(len(codes)).split(COMPARED_AT_ONCE):
        # |a - b|^2 = a^2 + b^2 - 2 a.b, where a code is not compared with itself
        found = squares[rows, None] + squares - 2 * centred[rows] @ centred.t()
        found[torch.arange(len(rows)), rows] = torch.inf
        distances[rows] = found.min(1).values.clamp_min(0).sqrt()
    # The quartile is 0 where most codes have a twin; then the spread of all sets the scale.
    near = max(NEAR * float(distances.quantile(0.75)), 0.01 * NEAR * _spread(centred))
    return int((distances <= near).sum())


def _twins_or_none(codes: torch.Tensor | None) -> int | None:
    return None if codes is None else twins(codes)


def _variance_shares(
    counts: Sequence[torch.Tensor], tables: Sequence[torch.Tensor | None]
) -> list[float | None]:
    """The share of each depth in the variance of the quantized vectors.

    It is that of the depth's codes, weighted by use, in the sum over depths.
    """
    unknown: list[float | None] = [None] * len(counts)
    if len(counts) < 2:
        return unknown
    variances: list[float] = []
    for count, table in zip(counts, tables, strict=True):
        if table is None:
            return unknown
        weights = (count / count.sum().clamp_min(1)).unsqueeze(1)  # [codes, 1]
        mean = (weights * table).sum(0)  # [dim]
        variances.append(float((weights * (table - mean).square()).sum()))
    total = sum(variances)
    return [part / total if total > 0 else 0.0 for part in variances]


class Watch:
    """Looks at the codebooks of a tokenizer repeatedly during training, and reports changes.

    A codebook that is found collapsed twice in a row is warned of (:class:`TessellaWarning`), and
    again only after it has recovered. While training is too short to judge, nothing is said.

    Args:
        drift: whether to report how use changed since the last look. A run that is to go on
            unchanged after it was resumed keeps :attr:`before` with its checkpoints.
    """

    def __init__(self, drift: bool = False) -> None:
        self.drift = drift
        self.before: list[list[int]] = []
        # Looks in a row at which each codebook was found collapsed.
        self._collapsed: dict[str, int] = {}

    def figures(
        self, tokenizer: Tokenizer, counts: Sequence[torch.Tensor], steps: int | None = None
    ) -> dict[str, float]:
        """Figures to log, of the use of the codes on all validation images.

        Of several codebooks they are called ``name/number``.

        Args:
            counts, steps: as of :func:`examine`.
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
        """The facts with the change since the last look, which this one becomes."""
        before = self.before
        self.before = [count.tolist() for count in counts]
        # The first look has nothing to compare with; nor has one after another number of grids.
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
            # Once, at the second look: the first may have come just after the start.
            if looks == 2:
                which = f"codebook {book.name}".strip()
                warnings.warn(f"{which} {_collapse(book, facts)}", TessellaWarning, stacklevel=4)


def usage_drift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Total variation between the frequencies of codes counted twice.

    It is 0 for equal frequencies and 1 for no code in common.

    >>> usage_drift(torch.tensor([3, 1, 0]), torch.tensor([6, 0, 2]))
    0.25
    """
    return float((_frequencies(after) - _frequencies(before)).abs().sum() / 2)


def _frequencies(counts: torch.Tensor) -> torch.Tensor:
    return counts.double() / counts.sum().clamp_min(1)


def _logged(book: Facts) -> dict[str, float]:
    """The figures of a codebook that are known."""
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


def summarize(facts: Sequence[Facts]) -> dict[str, Any]:
    """Figures to keep with an evaluation, and the diagnosis.

    Returns:
        ``code_perplexity_share`` (perplexity by number of codes), ``codes_dead``,
        ``code_top_share``, ``codes_twin``, ``code_variance_share`` (of residual codes) as far as
        they are known: a value, or a list of those of several codebooks; and ``diagnosis``
        (sentences).
    """
    values: dict[str, list[float]] = {}
    for book in facts:
        for name, value in _logged(book).items():
            # Evaluations have the number of codes used already.
            if name != "code_usage":
                values.setdefault(name, []).append(int(value) if name in COUNTED else value)
    summary: dict[str, Any] = {}
    # The reports have a number for the one codebook, and a list for several.
    for name, found in values.items():
        summary[name] = found[0] if len(found) == 1 else found
    summary["diagnosis"] = diagnose(facts)
    return summary


def diagnose(facts: Sequence[Facts]) -> list[str]:
    """Sentences on the faults of the codebooks of a tokenizer, and the changes that help.

    A codebook of which too few vectors were seen (:data:`FEW` for each code) is not judged, but
    that is said. One that looks bad after too short a training (:data:`STEPS`) gets that sentence
    alone: more training is the only advice that can be given. Where nothing is wrong, there is a
    sentence with the figures of each codebook. Thresholds are this module's constants.
    """
    lines: list[str] = []
    for book in facts:
        for line in _findings(book, facts):
            lines.append(f"{book.name}: {line}" if book.name else line)
    return lines


def _findings(book: Facts, facts: Sequence[Facts]) -> list[str]:
    # Chance leaves codes unused among few vectors, but does not give them all one code.
    if book.few and not book.collapsed:
        return [_too_few(book)]
    faults = _faults(book, facts)
    if not faults:
        return [_healthy(book)]
    # Whatever looks wrong now may be right later, so no advice but more training would be honest.
    if book.undertrained:
        return [_undertrained(book)]
    return faults


def _faults(book: Facts, facts: Sequence[Facts]) -> list[str]:
    # A collapse explains all the other faults.
    if book.collapsed:
        return [_collapse(book, facts)]
    found: list[str] = []
    if book.used_share < USED:
        found.append(
            f"{book.dead:,} of {book.codes:,} codes are dead ({1 - book.used_share:.0%}); "
            f"{_against_death(book)}."
        )
    if book.twins is not None and book.twins > max(1, TWINS * book.codes):
        found.append(_too_many_twins(book))
    # Even use is not expected of every quantizer: levels of a bounded value are not.
    expected = book.quantizer_class.healthy_perplexity
    # Dead codes and twins make use uneven too, and say more about it.
    if not found and book.perplexity < expected * book.codes:
        found.append(
            f"use is uneven: perplexity {book.perplexity:.1f} of {book.codes:,} codes, and the "
            f"most frequent takes {book.top_share:.0%}; unless the images are mostly plain "
            f"background, take about {_power_of_two(book.perplexity):,} codes, or train longer."
        )
    if book.depth > 0 and book.variance_share is not None and book.variance_share < IDLE:
        found.append(
            f"this depth carries {book.variance_share:.1%} of the variance; "
            f"take depth = {book.depth}."
        )
    if book.usage_drift is not None and book.usage_drift > RESTLESS:
        found.append(
            f"codes are not settled: {book.usage_drift:.0%} of the use moved to other codes since "
            "the last validation; train longer, or at a lower learning rate."
        )
    return found


def _collapse(book: Facts, facts: Sequence[Facts]) -> str:
    """The sentence about a codebook whose vectors nearly all get one code."""
    found = (
        f"collapsed: one code takes {book.top_share:.0%} of the vectors, "
        f"{book.used:,} of {book.codes:,} are used"
    )
    # A decoder that finds all it needs in the finer grid ignores the coarse one.
    finer = [other for other in facts if other.grid > book.grid]
    if finer and not any(other.collapsed for other in finer):
        return (
            f"{found}; the finer codes carry all, so give those fewer codes or a shorter code_dim, "
            "or train one grid."
        )
    # A residual level collapses where there is nothing left to say.
    coarser = [other for other in facts if other.depth < book.depth]
    if book.depth > 0 and not any(other.collapsed for other in coarser):
        return f"{found}; the codes before it leave nothing, so take depth = {book.depth}."
    cure = book.quantizer_class.remedies.collapse
    return (
        f"{found}; unless training has just begun, {cure}, and check that the images are not all "
        "alike and reach the encoder on the scale 0..1."
    )


def _against_death(book: Facts) -> str:
    """Advice that keeps the codes of this quantizer alive."""
    if book.reviving is False:
        return "set revive = 0.1, so that dead codes start anew at vectors of the batch"
    # Room for the codes in use; a codebook with nearly all codes in use has no smaller power of 2.
    size = _power_of_two(book.used)
    fewer = "take fewer codes"
    if size < book.codes:
        fewer = f"take about {size:,} codes"
    return book.quantizer_class.remedies.dead_codes.replace("{fewer}", fewer)


def _too_many_twins(book: Facts) -> str:
    advice = "take fewer codes"
    # Revival puts a code on a vector, which may be next to the code that had it.
    if book.reviving:
        advice += ", or a smaller revive, as codes start anew at vectors that have one"
    return f"{book.twins:,} of {book.codes:,} codes have a twin that says the same; {advice}."


def _undertrained(book: Facts) -> str:
    assert book.steps is not None
    if book.steps < STEPS:
        batches = "batch" if book.steps == 1 else "batches"
        seen = f"the codes learned from {book.steps:,} {batches} only, of at least {STEPS}"
    else:
        wanted = FEW * book.codes
        seen = (
            f"the codes learned from about {book.vectors_seen or 0:,.0f} vectors only, "
            f"of at least {wanted:,} for {book.codes:,} codes"
        )
    return (
        f"undertrained: {seen}, so their use ({book.used:,} of {book.codes:,}, the most frequent "
        f"{book.top_share:.0%}) says nothing yet; train longer before anything is changed."
    )


def _too_few(book: Facts) -> str:
    # Rounded up, so that this many are enough.
    times = -(-FEW * book.codes // max(1, book.vectors))
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
    """The power of two nearest above, at least 2."""
    return max(2, 1 << max(0, int(codes - 1)).bit_length())
