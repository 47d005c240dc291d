"""One computation at a time in a thread of its own, and a bounded queue before it.

The event loop never computes: it submits *work*, a function that is called in the thread with its
:class:`Computation`. The work tells it of events as it goes; the loop reads them. When the client
leaves, the loop abandons the computation: work that waits is dropped, and work that runs is stopped
by an exception the next time it tells of something.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from tessella.web.refusals import Abandoned, Busy

HELD_BYTES = 8 << 20
"""Bytes of events that wait for a slow client; beyond it the oldest are dropped."""

FIRST_GUESS = 0.5
"""Seconds that a computation is taken to last before one was measured."""

Work = Callable[["Computation"], bytes]
"""Computes an answer; its result is the last event."""


class Computation:
    """One computation, seen from the event loop and from the thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._events: collections.deque[bytes] = collections.deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._is_abandoned = threading.Event()
        self._result: Future[bytes] | None = None

    def tell(self, event: bytes) -> None:
        """Called by the work: hand over an event, such as the rows drawn so far.

        Raises:
            Abandoned: when nobody waits for it any more.
        """
        self.check()
        with self._lock:
            self._events.append(event)
            self._held += len(event)
            # A client that reads slowly misses rows; it never holds the model up, nor memory.
            while self._held > HELD_BYTES and len(self._events) > 1:
                self._held -= len(self._events.popleft())
        self._wake()

    def check(self) -> None:
        """Called by the work now and then.

        Raises:
            Abandoned: when nobody waits for the result any more.
        """
        if self._is_abandoned.is_set():
            raise Abandoned

    async def next(self) -> tuple[bytes, bool]:
        """The next event, and whether it is the last one, the result.

        Raises:
            Exception: that ended the work.
            Abandoned: when the job was given up.
        """
        assert self._result is not None
        while True:
            self._arrived.clear()
            # Looked at before the events: once it is done, none is added.
            is_done = self._result.done()
            with self._lock:
                if self._events:
                    event = self._events.popleft()
                    self._held -= len(event)
                    return event, False
            if self._result.cancelled():
                raise Abandoned
            if is_done:
                return self._result.result(), True
            await self._arrived.wait()

    async def result(self) -> bytes:
        """The result; events before it are dropped.

        Raises:
            Exception: that ended the work.
        """
        while True:
            event, is_last = await self.next()
            if is_last:
                return event

    def abandon(self) -> None:
        """Nobody waits for this job any more: drop it, or stop it soon."""
        self._is_abandoned.set()
        if self._result is not None:
            self._result.cancel()

    def begin(self, result: Future[bytes]) -> None:
        """The job is in the queue; ``result`` is what becomes of it."""
        self._result = result
        result.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        # At shutdown the loop may be closed before the thread notices.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.set)


class WorkQueue:
    """Admits jobs while fewer than a fixed number wait or run.

    Args:
        most: jobs that wait or run, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tessella-model")
        self._lock = threading.Lock()
        self.jobs: set[Computation] = set()
        """Those that wait or run."""
        self._seconds = FIRST_GUESS
        self._is_closed = False

    def submit(self, work: Work) -> Computation:
        """Put work at the end of the queue; called in the event loop.

        Raises:
            Busy: when the queue is full.
        """
        job = Computation(asyncio.get_running_loop())
        with self._lock:
            if self._is_closed:
                raise Busy("the server is about to stop", 1)
            if len(self.jobs) >= self.most:
                seconds = max(1, math.ceil(self._seconds * len(self.jobs)))
                raise Busy(f"{len(self.jobs)} requests are waiting already", seconds)
            self.jobs.add(job)
            result = self._thread.submit(self._run, work, job)
        job.begin(result)
        result.add_done_callback(lambda _: self._leave(job))
        return job

    def close(self) -> None:
        """Abandon all jobs, and wait for the thread."""
        with self._lock:
            self._is_closed = True
            jobs = list(self.jobs)
        for job in jobs:
            job.abandon()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Work, job: Computation) -> bytes:
        """In the thread."""
        job.check()
        start = time.monotonic()
        with torch.no_grad():
            result = work(job)
        # What is told to clients that are sent away: a moving average.
        self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
        return result

    def _leave(self, job: Computation) -> None:
        with self._lock:
            self.jobs.discard(job)
