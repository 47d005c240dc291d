"""The codebook doctor: how the codes of a tokenizer are used, what is wrong with them, and what to
change.

A codebook is what one channel of one grid is written with: of residual codes there is one for each
depth, of several grids at least one for each. Figures are those of a whole set of images, never of
a batch, which cannot use many codes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tessella.errors import TessellaWarning
from tessella.tokenizers.quantizers import Quantizer, perplexity
from tessella.tokenizers.tokenizer import Tokenizer

FEW = 10
"""Vectors for each code below which nothing is said of a codebook: a healthy one too would leave
codes unused."""

COLLAPSED = 0.8
"""Share of the vectors that one code takes from which a codebook has collapsed. A plain background
may take a half."""

SURE = 1000
"""Vectors from which a collapse is one, also where there are few for each code."""

USED = 0.9
"""Share of the codes that a healthy codebook uses."""

EVEN = 0.2
"""Perplexity by number of codes that a healthy codebook has."""

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

IMPLICIT = ("fsq", "lfq")
"""Quantizers whose codes are points of a fixed lattice: they have no twins, and do not move."""

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
"""What the figures of codebooks are called, and their units."""


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
        """Whether there were too few vectors to tell."""
        return self.vectors < FEW * self.codes

    @property
    def collapsed(self) -> bool:
        """Whether nearly all vectors get the same code, and there are too many of them for
        chance."""
        return self.vectors >= SURE and self.top_share >= COLLAPSED

    @property
    def name(self) -> str:
        """Which codebook, in words, where there are several; else empty.

        >>> Facts(0, 1, 2, 3, 512, 0, 0, 0.0, 0.0).name
        'grid 0, depth 1'
        """
        told = [f"grid {self.grid}"] * (self.grids > 1) + [f"depth {self.depth}"] * (
            self.depths > 1
        )
        return ", ".join(told)


def examine(tokenizer: Tokenizer, counts: Sequence[torch.Tensor]) -> list[Facts]:
    """The facts of every codebook of a tokenizer.

    Args:
        counts: how often each code was used, ``[codes]`` for each channel of each grid, coarse to
            fine.
    """
    grids, books, facts = tokenizer.grids(), iter(counts), list[Facts]()
    for number, (grid, quantizer) in enumerate(zip(grids, quantizers_of(tokenizer), strict=True)):
        own = [next(books).double().cpu() for _ in range(grid.channels)]
        tables = [_codes(quantizer, depth) if quantizer else None for depth in range(grid.channels)]
        shares = _variance_shares(own, tables)
        for depth, (count, table) in enumerate(zip(own, tables, strict=True)):
            total = float(count.sum())
            book = Facts(
                grid=number,
                depth=depth,
                grids=len(grids),
                depths=grid.channels,
                codes=len(count),
                vectors=int(total),
                used=int((count > 0).sum()),
                entropy_bits=float(perplexity(count).log2()),
                top_share=float(count.max()) / total if total else 0.0,
                quantizer=quantizer.name if quantizer else "",
                twins=None if table is None else twins(table),
                variance_share=shares[depth],
                reviving=_reviving(quantizer),
            )
            facts.append(book)
    return facts


def quantizers_of(tokenizer: Tokenizer) -> list[Quantizer | None]:
    """The quantizer of each grid, coarse to fine; None for all where the tokenizer does not have
    one for each.

    A tokenizer with several grids must hold their quantizers in the order of the grids.
    """
    inner: set[int] = set()
    outer: list[Quantizer] = []
    for module in tokenizer.modules():
        if isinstance(module, Quantizer) and id(module) not in inner:
            outer.append(module)
            inner |= {id(part) for part in module.modules()}
    grids = tokenizer.grids()
    fit = [(q.levels, q.depth) for q in outer] == [(grid.levels, grid.channels) for grid in grids]
    return list(outer) if fit else [None] * len(grids)


def _reviving(quantizer: Quantizer | None) -> bool | None:
    shares = (
        [] if quantizer is None else [m.revive for m in quantizer.modules() if hasattr(m, "revive")]
    )
    return bool(shares[0]) if shares else None


@torch.no_grad()
def _codes(quantizer: Quantizer, depth: int) -> torch.Tensor | None:
    """The codes of one depth, float64 ``[codes, dim]``, up to a shift that all share; None for
    those not compared."""
    if quantizer.name in IMPLICIT or quantizer.levels > MOST_COMPARED:
        return None
    device = next(
        (t.device for t in (*quantizer.parameters(), *quantizer.buffers())), torch.device("cpu")
    )
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
    squares, distances = centred.square().sum(1), torch.empty(len(codes), dtype=torch.float64)
    for rows in torch.arange(len(codes)).split(256):
        found = squares[rows, None] + squares - 2 * centred[rows] @ centred.t()
        found[torch.arange(len(rows)), rows] = torch.inf
        distances[rows] = found.min(1).values.clamp_min(0).sqrt()
    near = max(NEAR * float(distances.quantile(0.75)), 0.01 * NEAR * _spread(centred))
    return int((distances <= near).sum())


def _variance_shares(
    counts: list[torch.Tensor], tables: list[torch.Tensor | None]
) -> list[float | None]:
    """Of the sum over depths of the variances of their codes, weighted by use, the share of each
    depth."""
    if len(counts) < 2 or any(table is None for table in tables):
        return [None] * len(counts)
    variances = []
    for count, table in zip(counts, tables, strict=True):
        assert table is not None
        weights = (count / count.sum().clamp_min(1)).unsqueeze(1)
        mean = (weights * table).sum(0)
        variances.append(float((weights * (table - mean).square()).sum()))
    total = sum(variances)
    return [part / total if total > 0 else 0.0 for part in variances]


class Watch:
    """Looks at the codebooks of a tokenizer in training, again and again, and tells what changed.

    A codebook that is found collapsed twice in a row is warned of (:class:`TessellaWarning`), and
    again only after it has recovered: at the first look training may just have begun.

    Args:
        drift: whether to tell how use changed since the last look. A run that is to be the same
            after it was resumed keeps :attr:`before` with its checkpoints.
    """

    def __init__(self, drift: bool = False) -> None:
        self.drift = drift
        self.before: list[list[int]] = []
        self._collapsed: dict[str, int] = {}

    def figures(self, tokenizer: Tokenizer, counts: Sequence[torch.Tensor]) -> dict[str, float]:
        """Figures to log, of the use of the codes on all validation images; of several codebooks,
        ``name/number``."""
        facts = examine(tokenizer, counts)
        if self.drift:
            if len(self.before) == len(counts):
                pairs = zip(facts, self.before, counts, strict=True)
                facts = [
                    replace(book, usage_drift=usage_drift(torch.tensor(old), new))
                    for book, old, new in pairs
                ]
            self.before = [count.tolist() for count in counts]
        self._warn(facts)
        figures: dict[str, float] = {}
        for number, book in enumerate(facts):
            of = f"/{number}" if len(facts) > 1 else ""
            figures |= {f"{name}{of}": value for name, value in _logged(book).items()}
        return figures

    def _warn(self, facts: Sequence[Facts]) -> None:
        for book in facts:
            looks = self._collapsed.get(book.name, 0) + 1 if book.collapsed else 0
            self._collapsed[book.name] = looks
            if looks == 2:
                told = f"codebook {book.name}".strip()
                warnings.warn(f"{told} {_collapse(book, facts)}", TessellaWarning, stacklevel=4)


def usage_drift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Total variation between the frequencies of codes counted twice: 0 for the same, 1 for no code
    in common.

    >>> usage_drift(torch.tensor([3, 1, 0]), torch.tensor([6, 0, 2]))
    0.25
    """
    old, new = (count.double() / count.sum().clamp_min(1) for count in (before, after))
    return float((new - old).abs().sum() / 2)


def _logged(book: Facts) -> dict[str, float]:
    figures = {
        "code_usage": book.used_share,
        "code_perplexity_share": book.perplexity / book.codes,
        "codes_dead": float(book.dead),
        "codes_twin": book.twins,
        "code_top_share": book.top_share,
        "code_variance_share": book.variance_share,
        "usage_drift": book.usage_drift,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def report(facts: Sequence[Facts]) -> dict[str, Any]:
    """Figures to keep with an evaluation: a value, or a list of those of several codebooks; and the
    diagnosis.

    Returns:
        ``code_perplexity_share`` (perplexity by number of codes), ``codes_dead``,
        ``code_top_share``, ``codes_twin``, ``code_variance_share`` (of residual codes) and
        ``diagnosis`` (sentences); those that are known.
    """
    books = [_logged(book) for book in facts]
    names = [name for name in books[0] if name != "code_usage"] if books else []
    values = {name: [book[name] for book in books if name in book] for name in names}
    counted = ("codes_dead", "codes_twin")
    values = {
        name: [int(v) for v in found] if name in counted else found
        for name, found in values.items()
    }
    return {n: v[0] if len(v) == 1 else v for n, v in values.items()} | {
        "diagnosis": diagnose(facts)
    }


def diagnose(facts: Sequence[Facts]) -> list[str]:
    """What is wrong with the codebooks of a tokenizer and what to change, a sentence or two for
    each fault.

    A codebook of which too few vectors were seen (:data:`FEW` for each code) is not judged, but
    that is said. Where nothing is wrong, there is a sentence with the figures of each codebook.
    Thresholds are this module's constants.
    """
    lines = []
    for book in facts:
        found = [_too_few(book)] if book.few and not book.collapsed else _faults(book, facts)
        lines += [
            f"{book.name}: {line}" if book.name else line for line in found or [_healthy(book)]
        ]
    return lines


def _faults(book: Facts, facts: Sequence[Facts]) -> list[str]:
    if book.collapsed:
        return [_collapse(book, facts)]
    found = []
    if book.used_share < USED:
        found.append(
            f"{book.dead:,} of {book.codes:,} codes are dead ({1 - book.used_share:.0%}); {_against_death(book)}."
        )
    if (book.twins or 0) > max(1, TWINS * book.codes):
        found.append(
            f"{book.twins:,} of {book.codes:,} codes have a twin that says the same; take fewer codes"
            f"{', or a smaller revive, as codes start anew at vectors that have one' if book.reviving else ''}."
        )
    if not found and book.perplexity < EVEN * book.codes:
        found.append(
            f"use is uneven: perplexity {book.perplexity:.1f} of {book.codes:,} codes, and the most frequent takes "
            f"{book.top_share:.0%}; unless the images are mostly plain background, take about "
            f"{_rounded(book.perplexity):,} codes, or train longer."
        )
    if book.depth > 0 and book.variance_share is not None and book.variance_share < IDLE:
        found.append(
            f"this depth carries {book.variance_share:.1%} of the variance; take depth = {book.depth}."
        )
    if (book.usage_drift or 0.0) > RESTLESS:
        found.append(
            f"codes are not settled: {book.usage_drift:.0%} of the use moved to other codes since the last validation; "
            "train longer, or at a lower learning rate."
        )
    return found


def _collapse(book: Facts, facts: Sequence[Facts]) -> str:
    """What is said of a codebook whose vectors nearly all get one code."""
    told = f"collapsed: one code takes {book.top_share:.0%} of the vectors, {book.used:,} of {book.codes:,} are used"
    finer = [other for other in facts if other.grid > book.grid]
    if finer and not any(other.collapsed for other in finer):
        return f"{told}; the finer codes carry all, so give those fewer codes or a shorter code_dim, or train one grid."
    if book.depth > 0 and not any(other.collapsed for other in facts if other.depth < book.depth):
        return f"{told}; the codes before it leave nothing, so take depth = {book.depth}."
    if book.quantizer == "fsq":
        cure = "train at a lower learning rate"
    elif book.quantizer == "lfq":
        cure = "train at a lower learning rate and a larger entropy"
    else:
        cure = "train at a lower learning rate or a smaller beta"
    check = "check that the images are not all alike and reach the encoder on the scale 0..1"
    return f"{told}; unless training has just begun, {cure}, and {check}."


def _against_death(book: Facts) -> str:
    """What keeps the codes of this quantizer alive."""
    fewer = (
        f"take about {_rounded(book.used):,} codes"
        if _rounded(book.used) < book.codes
        else "take fewer codes"
    )
    if book.quantizer == "fsq":
        return f"{fewer} (fewer levels), or train longer"
    if book.quantizer == "lfq":
        return f"raise entropy, or {fewer}"
    if book.quantizer == "simvq":
        return f"train longer or at a higher learning rate, or {fewer}"
    if book.reviving is False:
        return "set revive = 0.1, so that dead codes start anew at vectors of the batch"
    shorter = (
        "cosine = true with a code_dim of 8 to 16"
        if book.quantizer == "vq"
        else "a code_dim of 8 to 16"
    )
    return f"take a lower decay (0.95), {shorter}, a larger batch, or {fewer}"


def _too_few(book: Facts) -> str:
    return (
        f"too few images to judge: {book.vectors:,} vectors for {book.codes:,} codes, of which {book.used:,} were "
        f"used; measure on {-(-FEW * book.codes // max(1, book.vectors)):,} times as many images, at least."
    )


def _healthy(book: Facts) -> str:
    return (
        f"healthy: {book.used:,} of {book.codes:,} codes used ({book.used_share:.0%}), perplexity "
        f"{book.perplexity:.1f} ({book.perplexity / book.codes:.2f} of the codes), the most frequent takes "
        f"{book.top_share:.1%}."
    )


def _rounded(codes: float) -> int:
    """The power of two nearest above, at least 2."""
    return max(2, 1 << max(0, int(codes - 1)).bit_length())
