"""A promise, the function that tests it, and what came of the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

Subject = TypeVar("Subject")

# Passed on as keywords: only the class they are for knows their types.
Options = dict[str, Any]
"""Arguments of a registered class, which checks them itself."""


class BrokenContractError(AssertionError):
    """A contract does not hold; the message says where and by how much."""


@dataclass(frozen=True)
class Contract(Generic[Subject]):
    """A promise and its test.

    Args:
        promise: the promise, as a sentence without a full stop.
        test: raises :class:`BrokenContractError` where the subject breaks the promise. Any other
            exception counts as breaking it too.
    """

    promise: str
    test: Callable[[Subject], None]


@dataclass(frozen=True)
class Outcome:
    """The result of testing a contract.

    Args:
        promise: the contract's promise.
        subject: what it was tested on, such as ``"mine with head categorical"``.
        problem: how the promise is broken; empty if it holds.
        seconds: how long the test took.
    """

    promise: str
    subject: str
    problem: str
    seconds: float

    @property
    def held(self) -> bool:
        """Whether the promise holds."""
        return not self.problem

    def __str__(self) -> str:
        if self.held:
            return f"holds   {self.subject}: {self.promise}"
        return f"BROKEN  {self.subject}: {self.promise}\n        {self.problem}"


def run(
    contracts: Iterable[Contract[Subject]], subject: Subject, described: str
) -> Iterator[Outcome]:
    """Test contracts one after another; a broken one does not stop the others."""
    for contract in contracts:
        started = time.perf_counter()
        problem = ""
        try:
            contract.test(subject)
        except BrokenContractError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - code from outside may raise anything
            problem = f"raised {type(error).__name__}: {error}"
        yield Outcome(contract.promise, described, problem, time.perf_counter() - started)


def require(condition: bool | np.bool_ | torch.Tensor, message: str) -> None:
    """Raise :class:`BrokenContractError` unless a condition is true."""
    # A tensor of one element, such as `symbols.min() >= 0`, is a condition as well.
    if not bool(condition):
        raise BrokenContractError(message)


def require_close(
    actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str
) -> None:
    """Raise :class:`BrokenContractError` unless two tensors agree everywhere to an absolute error.

    Values that are not a number agree with nothing.
    """
    require(
        actual.shape == expected.shape,
        f"{what}: shape {list(actual.shape)} where {list(expected.shape)} is right",
    )
    # An empty tensor has no largest difference.
    if actual.numel() == 0:
        return
    difference = (actual.double() - expected.double()).abs().max().item()
    # Written so that a difference that is not a number fails as well.
    require(
        difference <= tolerance,
        f"{what}: they differ by {difference:.3g}, allowed is {tolerance:.3g}",
    )
