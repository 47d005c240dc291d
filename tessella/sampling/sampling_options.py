"""The options of sampling as one object, which can be imported without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Unpack, get_args

from tessella.errors import InputError, check_integer, unknown
from tessella.sampling.rule import Rule, RuleKeywords
from tessella.sampling.unmasking_options import Unmasking

Method = Literal["auto", "cached", "windows", "parallel", "naive"]
"""How symbols are drawn, see ``tessella.sampling``."""

METHODS: tuple[Method, ...] = get_args(Method)
"""All methods, for checks and help texts."""

WalkOrder = Literal["raster", "known-first"]
"""The order in which symbols are visited, see :class:`Sampling`."""

WALK_ORDERS: tuple[WalkOrder, ...] = get_args(WalkOrder)
"""All orders, for checks and help texts."""

BATCH = 64
"""Default number of images drawn at a time."""


class SamplingKeywords(RuleKeywords, total=False):
    """Method, order, unmasking and rule, as keywords of the sampling functions."""

    method: Method
    order: WalkOrder
    unmasking: Unmasking | None


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: by which method, how many at a time, from which distribution.

    Args:
        method: ``"cached"`` steps, ``"windows"`` of the next pixels, ``"parallel"`` passes over the
            grid, ``"naive"`` passes (the slow reference), or ``"auto"``, which takes the fastest.
            All draw the same images.
        batch: images drawn at a time; affects memory and speed, but not the result.
        every: number of symbols between two partial grids of a stream; 0 means a row.
        rule: how a symbol's distribution is changed before a level is drawn.
        order: ``"raster"``, or ``"known-first"``: the symbols that a completion keeps, and then the
            missing ones, each part in raster order. That takes a model that predicts in any order.
            Masked models see all that is known in any case.
        unmasking: the steps of a masked model; None for its default ones, or for another model.

    Raises:
        InputError: for an unknown method or order, parallel passes in another order than raster, or
            a number that is out of range or of the wrong type.
    """

    method: Method = "auto"
    batch: int = BATCH
    every: int = 0
    rule: Rule = field(default_factory=Rule)
    order: WalkOrder = "raster"
    unmasking: Unmasking | None = None

    def __post_init__(self) -> None:
        # METHODS is a tuple, because a set would raise a TypeError for an unhashable value.
        if self.method not in METHODS:
            raise InputError(unknown("sampling method", self.method, METHODS))
        if self.order not in WALK_ORDERS:
            raise InputError(unknown("order", self.order, WALK_ORDERS))
        if self.order != "raster" and self.method in ("windows", "parallel"):
            raise InputError(
                f"method={self.method!r} draws in raster order: leave method out, or "
                f"order={self.order!r}"
            )
        check_integer("batch", self.batch, least=1)
        check_integer("every", self.every)
        if not isinstance(self.rule, Rule):
            raise InputError(f"rule must be a Rule, for example Rule(top_k=5), got {self.rule!r}")
        if self.unmasking is not None and not isinstance(self.unmasking, Unmasking):
            raise InputError(
                "unmasking must be an Unmasking, for example Unmasking(steps=8), "
                f"got {self.unmasking!r}"
            )

    @classmethod
    def from_keywords(
        cls,
        method: Method = "auto",
        batch: int = BATCH,
        every: int = 0,
        order: WalkOrder = "raster",
        unmasking: Unmasking | None = None,
        **rule: Unpack[RuleKeywords],
    ) -> Sampling:
        """Build the options from flat keywords, as in ``ts.sample(model, top_k=5)``.

        Raises:
            InputError: for an unknown keyword, and see :class:`Sampling`.
        """
        # Rule would raise a TypeError, which does not suggest the nearest name.
        for keyword in rule:
            if keyword not in RuleKeywords.__annotations__:
                options = ("method", "batch", "every", "order", "unmasking")
                known = [*options, *RuleKeywords.__annotations__]
                raise InputError(unknown("sampling option", keyword, known))
        return cls(method, batch, every, Rule(**rule), order, unmasking)
