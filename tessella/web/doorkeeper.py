"""What every request and every answer goes through: who may ask, and the headers of answers.

A browser sends requests to a server on the same machine for any page that it shows. So requests
that another site caused are refused, and so are those under a name that only pretends to be this
machine (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The page gets everything from here, and nothing from anywhere else."""

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""


class Doorkeeper:
    """Passes requests on, or refuses them.

    Args:
        app: what answers.
        host: that the server listens on. On a local one only local names may be asked for.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.only_local = is_local(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = self._objection(Headers(scope=scope))
        if reason:
            await _refuse(send_with_headers, reason)
        else:
            await self.app(scope, receive, send_with_headers)

    def _objection(self, headers: Headers) -> str:
        """Why a request is refused; empty if it is not."""
        host = headers.get("host", "")
        if self.only_local and _name_of(host) not in LOCAL_NAMES:
            return "this server answers under the names of this machine only: open 127.0.0.1"
        # A link to the page is followed from anywhere; what a script asks for is not answered.
        is_from_elsewhere = headers.get("sec-fetch-site") == "cross-site"
        if is_from_elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return "another site may not ask here"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "another site may not ask here"
        return ""


def _name_of(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine alone.

    >>> [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _refuse(send: Send, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
