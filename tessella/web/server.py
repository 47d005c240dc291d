"""Listen on an address, and serve until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tessella.data.decode import without_pillow_warnings
from tessella.errors import InputError
from tessella.web.application import Application
from tessella.web.doorkeeper import Doorkeeper

Tell = Callable[[str], object]
"""Called with a line."""

SECONDS_TO_ASK = 20
"""In which a connection must bring the head of a request, from its start or the last answer on."""

SECONDS_TO_READ = 30
"""In which a client must take what was sent."""

SECONDS_TO_STOP = 3
"""That answers get to end after Ctrl-C."""

WAITING_CONNECTIONS = 256
"""Connections that the system holds until they are accepted."""


class TimedProtocol(H11Protocol):
    """A connection that is cut where no request comes, or only bytes of one, or nobody reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.asking = Deadline(SECONDS_TO_ASK, transport)
        self.reading = Deadline(SECONDS_TO_READ, transport)
        self.asking.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self.asking.end()
        self.reading.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        super().data_received(data)
        # Once the head is complete, the client is past its beginning.
        if self.conn.their_state is not h11.IDLE:
            self.asking.end()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.asking.begin()

    def pause_writing(self) -> None:
        """The client takes less than is sent."""
        super().pause_writing()
        self.reading.begin()

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        self.reading.end()
        super().resume_writing()


class Deadline:
    """Cuts a connection unless something comes in time.

    Args:
        seconds: that it waits.
        transport: of the connection.
    """

    def __init__(self, seconds: float, transport: asyncio.Transport) -> None:
        self.seconds = seconds
        self.transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Wait from now on."""
        self.end()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self.seconds, self.transport.abort)

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: an address of this machine, or its name.
        port: 0 for any free one.

    Raises:
        InputError: when that is not possible.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise InputError(
            f"there is no address {host}: --host takes one of this machine, such as 127.0.0.1, or"
            " 0.0.0.0 for all of them"
        ) from error
    try:
        return socket.create_server((host, port), family=family, backlog=WAITING_CONNECTIONS)
    except OSError as error:
        # Python adds the address, which is said already.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise InputError(
            f"cannot listen on {host}, port {port}: {reason}; another --port may"
            " be free, and --port 0 finds one"
        ) from error


def address_of(listening: socket.socket) -> str:
    """The address of the page, as a browser takes it."""
    host, port = listening.getsockname()[:2]
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}/"


class PageServer(uvicorn.Server):
    """Answers on a socket until Ctrl-C, or a signal to end.

    Args:
        app: what answers.
        host: as :func:`listen` got it.
        listening: see :func:`listen`.
        tell: called with the address when requests are answered.
    """

    def __init__(self, app: Application, host: str, listening: socket.socket, tell: Tell) -> None:
        config = uvicorn.Config(
            # A function that makes it: of anything else it would be tried out whether it is one.
            lambda: Doorkeeper(app.routes(), host),
            factory=True,
            interface="asgi3",
            http=TimedProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=SECONDS_TO_STOP,
        )
        # Requests that are no HTTP are the fault of clients, and none of them is told of.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(config)
        self._app = app
        self._listening = listening
        self._tell = tell

    def answer(self) -> None:
        """Answer until the end."""
        # Filters of warnings belong to the process, so they are set before there are threads.
        with without_pillow_warnings(), contextlib.suppress(KeyboardInterrupt):
            self.run(sockets=[self._listening])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self._tell(address_of(self._listening))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: first the models, so that no answer waits for them."""
        await asyncio.to_thread(self._app.queue.close)
        await super().shutdown(sockets)
