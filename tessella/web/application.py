"""The routes of the page: each reads a request, gives its work to the queue, sends the result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from importlib import resources
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from tessella import __version__
from tessella.errors import ArtifactError, NumericalError, TessellaError
from tessella.files import JSONValue
from tessella.web import bit_maps, code_editing, file_sizes, live_drawing, real_images, uploads
from tessella.web.page_requests import (
    MOST_IMAGES,
    MOST_TILES,
    ToComplete,
    ToDraw,
    ToExpect,
    ToScore,
    ToShowCodes,
    ToTokenize,
    as_text,
    read_request,
)
from tessella.web.refusals import Abandoned, Refusal
from tessella.web.served_models import ServedModels
from tessella.web.work_queue import Computation, Work, WorkQueue

T = TypeVar("T")

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Kinds of files that the page is made of."""

LONGEST_ERROR = 600
"""Characters of an error; values of callers in it can be of any length."""

STOPPING = "the server is about to stop"

CLIENT_LEFT = 499
"""What answers a client that has left; nobody sees it."""


class Application:
    """Everything that the routes share.

    Args:
        models: to serve.
        most_waiting: requests that wait or are computed, at most.
    """

    def __init__(self, models: ServedModels, most_waiting: int) -> None:
        self.models = models
        self.queue = WorkQueue(most_waiting)
        self.uploads = uploads.Uploads()
        self.bit_maps = bit_maps.BitMaps()
        self.file_sizes = file_sizes.FileSizes()
        # Read once: a client's words are looked up here, and never become a path.
        self.files = page_files()

    def routes(self) -> FastAPI:
        """The application that a server runs."""
        # No pages about the interface: those that FastAPI makes load scripts from elsewhere.
        app = FastAPI(openapi_url=None)
        app.get("/")(self.page)
        app.get("/static/{name}")(self.file)
        app.get("/api/models")(self.list_models)
        app.get("/api/books")(self.books)
        app.get("/api/real-images")(self.real_images)
        app.post("/api/draw")(self.draw)
        app.post("/api/complete")(self.complete)
        app.post("/api/bits")(self.bits)
        app.post("/api/expect")(self.expect)
        app.post("/api/codes")(self.codes)
        app.post("/api/patches")(self.patches)
        app.post("/api/picture")(self.picture)
        app.post("/api/compress")(self.compress)
        app.add_exception_handler(TessellaError, _answer_mistake)
        app.add_exception_handler(RequestValidationError, _answer_value)
        app.add_exception_handler(HTTPException, _answer_status)
        app.add_exception_handler(ClientDisconnect, _answer_nobody)
        app.add_exception_handler(Abandoned, _answer_stopping)
        app.add_exception_handler(Exception, _answer_defect)
        return app

    async def page(self) -> Response:
        """The page itself."""
        return Response(self.files["index.html"], media_type=TYPES[".html"])

    async def file(self, name: str) -> Response:
        """One of the files of the page."""
        if name not in self.files:
            raise HTTPException(404, "there is no such file")
        return Response(self.files[name], media_type=TYPES["." + name.rpartition(".")[2]])

    async def list_models(self) -> Response:
        """The models, and the limits that the page keeps to."""
        facts: dict[str, JSONValue] = {
            "version": __version__,
            "models": [served.facts() for served in self.models],
            "most_images": MOST_IMAGES,
            "most_tiles": MOST_TILES,
            "most_bytes": uploads.MOST_BYTES,
        }
        return JSONResponse(facts)

    async def draw(self, request: Request) -> Response:
        """Images, row by row, as server-sent events."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToDraw, body)
            work = live_drawing.drawing(asked, self.models.named(asked.model))
        return await self._stream(request, work)

    async def complete(self, request: Request) -> Response:
        """Completions of a picture, row by row, as server-sent events."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToComplete, body)
            work = live_drawing.completing(asked, self.models.named(asked.model))
        return await self._stream(request, work)

    async def bits(self, request: Request) -> Response:
        """The bits of each symbol of a picture."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToScore, body)
            work = self.bit_maps.scoring(asked, self.models.named(asked.model))
            return await self._compute(request, work)

    async def expect(self, request: Request) -> Response:
        """What the model expects at a place."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToExpect, body)
            work = self.bit_maps.expecting(asked, self.models.named(asked.model))
            return await self._compute(request, work)

    async def codes(self, request: Request) -> Response:
        """A picture through the tokenizer and back, or codes to a picture."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToTokenize, body)
            work = code_editing.tokenizing(asked, self.models.named(asked.model))
            return await self._compute(request, work)

    async def books(self, request: Request, model: str = "") -> Response:
        """The codebooks of a model."""
        served = self.models.named(model)
        return await self._compute(request, code_editing.describing_books(served))

    async def patches(self, request: Request) -> Response:
        """What codes decode to."""
        async with self.uploads.body(request) as body:
            asked = read_request(ToShowCodes, body)
            work = code_editing.drawing_patches(asked, self.models.named(asked.model))
            return await self._compute(request, work)

    async def real_images(self, request: Request, model: str = "") -> Response:
        """Real images that the model was not trained on, where some ship with the package."""
        return await self._compute(request, real_images.finding(self.models.named(model)))

    async def picture(self, request: Request, model: str = "", tiles: int = 1) -> Response:
        """The picture in an image file, as a model takes it."""
        served = self.models.named(model)
        async with self.uploads.body(request) as body:

            def fit(job: Computation) -> bytes:
                values = uploads.fitted_picture(body, served, tiles)
                return json.dumps({"image": as_text(values)}).encode()

            return await self._compute(request, fit)

    async def compress(
        self,
        request: Request,
        model: str = "",
        name: str = "",
        fit: bool = False,
        grey: bool = False,
    ) -> Response:
        """A picture as a compressed file, and its size beside PNG."""
        served = self.models.named(model)
        async with self.uploads.body(request) as body:
            work = self.file_sizes.compressing(body, name, served, fit=fit, grey=grey)
            return await self._compute(request, work)

    async def _compute(self, request: Request, work: Work) -> Response:
        """Wait for work in the queue; the result is JSON."""
        job = self.queue.submit(work)
        result = await _unless_client_leaves(request, job, job.result())
        if result is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(result, media_type="application/json")

    async def _stream(self, request: Request, work: Work) -> Response:
        """Send events as the work tells of them."""
        job = self.queue.submit(work)
        # Errors show with the first event, and then the status can still say so.
        first = await _unless_client_leaves(request, job, job.next())
        if first is None:
            return Response(status_code=CLIENT_LEFT)
        return _Events(job, first)


class _Events(StreamingResponse):
    """The events of a job up to its result.

    Args:
        job: what tells of them; it is abandoned when the client leaves.
        first: the first event, and whether it is the last one.
    """

    def __init__(self, job: Computation, first: tuple[bytes, bool]) -> None:
        super().__init__(self._read(first), media_type="text/event-stream")
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.abandon()

    async def _read(self, first: tuple[bytes, bool]) -> AsyncIterator[bytes]:
        event, is_last = first
        try:
            yield event
            while not is_last:
                event, is_last = await self._job.next()
                yield event
        except Abandoned:
            yield live_drawing.failure(STOPPING)
        except TessellaError as error:
            yield live_drawing.failure(_words(error))


async def _unless_client_leaves(
    request: Request, job: Computation, waiting: Coroutine[None, None, T]
) -> T | None:
    """What is waited for; None, with the job abandoned, when the client leaves before."""
    result = asyncio.ensure_future(waiting)
    left = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait((result, left), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            job.abandon()
            return None
        return result.result()
    except asyncio.CancelledError:
        # The server stops.
        job.abandon()
        raise
    finally:
        result.cancel()
        left.cancel()


async def _client_leaves(request: Request) -> None:
    """Return when the connection is gone; the body must have been read."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def page_files() -> dict[str, bytes]:
    """The files of the page by name."""
    found = {}
    for file in (resources.files("tessella.web") / "static").iterdir():
        if "." + file.name.rpartition(".")[2] in TYPES:
            found[file.name] = file.read_bytes()
    return found


async def _answer_mistake(_: Request, error: Exception) -> Response:
    """A mistake of the caller, in the words of the command line."""
    status = 400
    headers: Mapping[str, str] = {}
    if isinstance(error, Refusal):
        status = error.status
        headers = error.headers()
    elif isinstance(error, (ArtifactError, NumericalError)):
        status = 500
    return JSONResponse({"error": _words(error)}, status, headers)


async def _answer_value(_: Request, error: Exception) -> Response:
    """A value in the address that is none."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 400)


async def _answer_status(_: Request, error: Exception) -> Response:
    """An address or a method that does not exist."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _answer_nobody(_: Request, error: Exception) -> Response:
    """The client left while it was sending."""
    return Response(status_code=CLIENT_LEFT)


async def _answer_stopping(_: Request, error: Exception) -> Response:
    """The server stops, and has given up the work."""
    return JSONResponse({"error": STOPPING}, 503, {"Retry-After": "1"})


async def _answer_defect(_: Request, error: Exception) -> Response:
    """A fault of ours: the terminal shows where, the client learns that it was one."""
    if isinstance(error, MemoryError):
        return JSONResponse({"error": "there is not enough memory for that"}, 500)
    return JSONResponse({"error": "a fault of the server; its terminal says where"}, 500)


def _words(error: Exception) -> str:
    """The text of an error as one line of bounded length."""
    words = " ".join(str(error).split())
    if len(words) > LONGEST_ERROR:
        words = words[:LONGEST_ERROR] + "..."
    return words
