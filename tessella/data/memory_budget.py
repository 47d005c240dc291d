"""A memory budget that threads share, served in order so that it cannot deadlock."""

from __future__ import annotations

import threading


class Closed(Exception):
    """The budget was closed while a thread was waiting for a share of it."""


class Budget:
    """Bytes that several threads may hold together.

    Shares are handed out in the order of their turns 0, 1, 2, ..., so a thread only ever waits for
    earlier turns. If shares are also given back in that order, the next one is always granted, at
    the latest when no other thread holds anything. A share larger than the whole budget is reduced
    to all of it.

    Args:
        total: the budget in bytes.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._turn = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, turn: int, amount: int) -> int:
        """Wait for the turn and until ``amount`` bytes are free.

        Returns:
            The bytes of the share, which is at most the whole budget.

        Raises:
            Closed: when the budget is closed, before the call or during the wait.
        """
        # More than the whole budget would never be free.
        amount = min(amount, self._total)
        with self._changed:
            while not self._closed and (turn != self._turn or amount > self._free):
                self._changed.wait()
            if self._closed:
                raise Closed
            self._turn += 1
            self._free -= amount
            # What is left may be enough for the next turn; each thread that wakes checks for
            # itself.
            self._changed.notify_all()
        return amount

    def give_back(self, amount: int) -> None:
        """Give back a share, or part of it, in bytes."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()

    def close(self) -> None:
        """Make every waiting and every later call of :meth:`take` raise :class:`Closed`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
