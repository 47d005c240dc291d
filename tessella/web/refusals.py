"""Refusals that have a status of their own in HTTP; all other errors of callers are 400."""

from __future__ import annotations

from typing import ClassVar

from tessella.errors import TessellaError


class Refusal(TessellaError):
    """A request that is not answered; the text is for the client."""

    status: ClassVar[int] = 400

    def headers(self) -> dict[str, str]:
        """Headers of the answer, beside those of every answer."""
        return {}


class Busy(Refusal):
    """As many requests wait, or as many bytes are held, as may be.

    Args:
        reason: for the client.
        seconds: after which it is worth asking again.
    """

    status = 503

    def __init__(self, reason: str, seconds: int) -> None:
        super().__init__(f"{reason}; try again in {seconds} s")
        self.seconds = seconds

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.seconds)}


class TooLarge(Refusal):
    """A body has more bytes than are taken."""

    status = 413


class TooSlow(Refusal):
    """A body did not arrive in time."""

    status = 408


class NoSuchModel(Refusal):
    """A client named a model that is not served."""

    status = 404


class Abandoned(Exception):
    """The client has left, so nobody waits for the result; raised inside the work."""
