"""A budget of memory that threads share.

It is served in order, so that it cannot end in a deadlock.
"""

from __future__ import annotations

import threading


class Closed(Exception):
    """The budget was closed while somebody waited for a share of it."""


class Budget:
    """Bytes that several threads may hold together.

    Shares are handed out in the order of their turns 0, 1, 2, ...: whoever waits, waits for earlier
    turns alone. So if shares are given back in that order as well, the next one always comes, at
    the latest when nobody else holds anything. A share larger than the whole budget is all of it.
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
            The share, which is at most everything.

        Raises:
            Closed: when the budget is closed, before or meanwhile.
        """
        # More than everything will never be free.
        amount = min(amount, self._total)
        with self._changed:
            while not self._closed and (turn != self._turn or amount > self._free):
                self._changed.wait()
            if self._closed:
                raise Closed
            self._turn += 1
            self._free -= amount
            # The next turn may have enough left; each thread that wakes looks for itself.
            self._changed.notify_all()
        return amount

    def give_back(self, amount: int) -> None:
        """Return a share, or a part of it."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()

    def close(self) -> None:
        """Send everybody away who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
