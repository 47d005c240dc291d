"""The options of sampling as one object. Readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Unpack, get_args

from tessella.errors import InputError, check_integer, unknown
from tessella.sampling.rule import Rule, RuleKeywords

Method = Literal["auto", "cached", "parallel", "naive"]

METHODS: tuple[Method, ...] = get_args(Method)

BATCH = 64
"""Images that are drawn at a time by default."""


class SamplingKeywords(RuleKeywords, total=False):
    """Method and rule, as keywords of the functions that sample."""

    method: Method


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: by which method, how many at a time, from which distribution.

    Args:
        method: ``"cached"`` steps, ``"parallel"`` passes, ``"naive"`` passes (the slow oracle), or
            ``"auto"``, which takes the fastest. All draw the same images.
        batch: images drawn at a time; it changes memory and speed, not the result.
        every: symbols between two partial grids of a stream; 0 means a row.
        rule: how the distribution of a symbol is changed before a level is drawn.

    Raises:
        InputError: for a method that does not exist, or a number that is none or out of range.
    """

    method: Method = "auto"
    batch: int = BATCH
    every: int = 0
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        # A tuple, so that a list or None is refused here rather than by the hash of a set.
        if self.method not in METHODS:
            raise InputError(unknown("sampling method", self.method, METHODS))
        check_integer("batch", self.batch, least=1)
        check_integer("every", self.every)
        if not isinstance(self.rule, Rule):
            raise InputError(f"rule must be a Rule, for example Rule(top_k=5), got {self.rule!r}")

    @classmethod
    def from_keywords(
        cls,
        method: Method = "auto",
        batch: int = BATCH,
        every: int = 0,
        **rule: Unpack[RuleKeywords],
    ) -> Sampling:
        """The options of keywords that stand side by side, as in ``ts.sample(model, top_k=5)``.

        Raises:
            InputError: for a keyword that is none (the nearest one is named), or see above.
        """
        # Python would raise a TypeError, without the nearest name.
        for keyword in rule:
            if keyword not in RuleKeywords.__annotations__:
                known = ["method", "batch", "every", *RuleKeywords.__annotations__]
                raise InputError(unknown("sampling option", keyword, known))
        return cls(method, batch, every, Rule(**rule))
