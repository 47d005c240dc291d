"""Signals that end a run: what each asks for, and the exit status that answers it."""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

INTERRUPTED = 130
"""Exit status of a run that somebody at a terminal ended."""

TRY_AGAIN = 75
"""Exit status of a run that has to make way, ``EX_TEMPFAIL`` of ``sysexits.h``: a queue that knows
it starts the command again, which goes on."""

AT_TERMINAL = ("SIGINT", "SIGHUP")
"""Ctrl-C, and a terminal that is closed."""

FROM_QUEUE = ("SIGTERM", "SIGUSR1")
"""What queues send some time before they kill."""


class StopFlag(threading.Event):
    """Set when a run is to end after the current step; remembers why."""

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        """Exit status of the run; 0 as long as nothing has asked for its end."""

    def set(self, status: int = INTERRUPTED) -> None:
        """Ask for the end of the run. The first who asks decides the status."""
        self.status = self.status or status
        super().set()


def setting(stop: StopFlag, names: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Have these signals set ``stop`` until the end of the block.

    A second Ctrl-C is not waited for.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asks_to_make_way = signal.Signals(number).name in FROM_QUEUE
        stop.set(TRY_AGAIN if asks_to_make_way else INTERRUPTED)

    return _handled(names, handle)


def leaving() -> contextlib.AbstractContextManager[None]:
    """Have the signals of a queue end the process with :data:`TRY_AGAIN`, until the block ends.

    For the time before a run has anything to save.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TRY_AGAIN)

    # Once the interpreter ends its status stands, and a late signal must not replace it.
    atexit.unregister(_ignore_queue)
    atexit.register(_ignore_queue)
    return _handled(FROM_QUEUE, handle)


def _ignore_queue() -> None:
    """Ignore the signals of a queue from now on."""
    for name in FROM_QUEUE:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _handled(
    names: Sequence[str], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Have these signals call ``handle`` until the end of the block.

    Outside the main thread signals are left alone, as Python demands.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in names:
        number = getattr(signal, name, None)  # Windows has no SIGHUP and no SIGUSR1
        # A run under nohup ignores SIGHUP, and is to go on ignoring it.
        if number is None or signal.getsignal(number) == signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
