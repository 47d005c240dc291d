"""What a server does with requests that are wrong, too large, too slow, too many, or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from served_page import Served, png, running, text

import tessella as ts
from tessella.errors import InputError, TessellaError
from tessella.web import live_drawing, server, uploads
from tessella.web.application import page_files
from tessella.web.doorkeeper import HEADERS
from tessella.web.refusals import Abandoned
from tessella.web.served_models import ServedModel
from tessella.web.work_queue import Computation, Work

MISTAKES: dict[str, tuple[dict[str, object], int, str]] = {
    "a misspelt key": ({"model": "digits", "sed": 1}, 400, "did you mean 'seed'?"),
    "a misspelt model": ({"model": "digit"}, 404, "unknown model 'digit'; did you mean 'digits'?"),
    "no model": ({"seed": 1}, 400, "missing"),
    "a path": ({"model": "../bundle/digits"}, 404, "unknown model"),
    "too many images": ({"model": "digits", "n": 17}, 400, "n must be an integer in 1..16"),
    "a seed of words": ({"model": "digits", "seed": "x"}, 400, "request.seed must be of type int"),
    "another type": ({"model": "digits", "top_k": 1.5}, 400, "must be of type int, got 1.5"),
    "a class of none": ({"model": "digits", "class_label": 1}, 400, "class"),
    "a class too many": ({"model": "classes", "class_label": 4}, 400, "class"),
    "guidance of none": ({"model": "digits", "guidance": 2.0}, 400, "guidance needs a model with"),
    "a tokenizer": ({"model": "digits-vqvae"}, 400, "train a prior on its codes first"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_a_status(served: Served, name: str) -> None:
    body, status, words = MISTAKES[name]
    answer = served.post("/api/draw", body)
    assert answer.status_code == status
    message = answer.json()["error"]
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "rules",
    [
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 1.5},
        {"seed": 1 << 64},
        {"temperature": float(1 << 70), "top_p": -1.0},
    ],
)
def test_the_words_are_those_of_python(served: Served, rules: dict[str, Any]) -> None:
    with pytest.raises(TessellaError) as raised:
        served.models["digits"].sample(1, **rules)
    answer = served.post("/api/draw", {"model": "digits", **rules})
    assert answer.status_code == 400
    assert answer.json()["error"] == str(raised.value)


GARBAGE = {
    "no JSON": b"\x00\xff\xfe garbage",
    "deep JSON": b"[" * 100_000,
    "a list": b"[1, 2]",
    "an endless number": b'{"model": "digits", "seed": ' + b"9" * 5000 + b"}",
    "not a number": b'{"model": "digits", "temperature": NaN}',
    "nothing": b"",
}


@pytest.mark.parametrize("path", ["draw", "complete", "bits", "expect", "codes"])
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused(served: Served, path: str, name: str) -> None:
    answer = served.post(f"/api/{path}", GARBAGE[name])
    assert answer.status_code == 400
    assert len(answer.json()["error"]) < 700


@pytest.mark.parametrize(
    "body",
    [
        {"image": "!!!"},
        {"image": text(np.zeros(63, np.uint8))},
        {"image": text(np.zeros(64, np.uint8)), "tiles": 2},
        {"image": text(np.zeros(64, np.uint8)), "tiles": 9},
        {"symbols": [text(np.full(64, 17, "<i4"))]},
        {"symbols": [text(np.full(64, -1, "<i4"))]},
        {"symbols": []},
        {},
    ],
)
def test_arrays_that_do_not_fit_are_refused(served: Served, body: dict[str, object]) -> None:
    answer = served.post("/api/bits", {"model": "digits", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that announces, and holds, very many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + width)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def pictures() -> dict[str, tuple[bytes, str]]:
    """Files that are no usable pictures, and words of the refusal."""
    content = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(content, "JPEG")
    jpeg = content.getvalue()
    return {
        "a bomb": (bomb(9000, 9000), "pixels"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "cannot be used"),
        "text": (b"hello, I am no picture", "cannot be used"),
        "nothing": (b"", "the file is empty"),
        "a script": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be used"),
        "a damaged PNG": (png(np.zeros((9, 9, 1), np.uint8))[:-20], "cannot be used"),
    }


@pytest.mark.parametrize("path", ["picture", "compress"])
@pytest.mark.parametrize("name", pictures())
def test_files_that_are_no_pictures_are_refused(served: Served, path: str, name: str) -> None:
    content, words = pictures()[name]
    answer = served.post(f"/api/{path}?model=digits", content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_body_that_says_it_is_too_large_is_not_read(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        length = uploads.MOST_BYTES + 1
        connection.sendall(
            f"POST /api/picture?model=digits HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        # Not a byte of the body is sent, and the answer comes.
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_too_large_is_cut_off(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(uploads.MOST_BYTES // (1 << 20) + 2):
            yield bytes(1 << 20)

    try:
        answer = httpx.post(served.address + "/api/bits", content=endless(), timeout=60)
    except httpx.TransportError:
        pass  # the connection was closed before the client looked for the answer
    else:
        assert answer.status_code == 413
        assert "larger than 20 MiB" in answer.json()["error"]
    assert served.app.uploads.held == 0


def test_all_bodies_together_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES_TOGETHER", 100_000)
    answer = served.post("/api/picture?model=digits", bytes(200_000))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert served.app.uploads.held == 0


def test_a_body_that_comes_too_slowly_is_not_waited_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SECONDS", 0.3)
    host, port = served.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST /api/draw HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_asks_nothing_is_closed(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_ASK", 0.3)
    with running(runs[:1]) as served:
        host, port = served.address.removeprefix("http://").split(":")
        silent = socket.create_connection((host, int(port)), timeout=30)
        half = socket.create_connection((host, int(port)), timeout=30)
        with silent, half:
            half.sendall(b"GET / HTTP/1.1\r\nHost: ")
            for connection in (silent, half):
                # Some systems say that it was reset, which is as good.
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(100) == b""
        assert served.get("/").status_code == 200


def test_one_who_reads_nothing_is_cut_off(runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_READ", 0.5)
    stopped = threading.Event()

    def talkative(asked: object, served: object) -> Work:
        def talk(job: Computation) -> bytes:
            try:
                while True:
                    job.tell(b"event: rows\ndata: " + b" " * (1 << 20) + b"{}\n\n")
                    time.sleep(0.001)
            finally:
                stopped.set()

        return talk

    monkeypatch.setattr(live_drawing, "drawing", talkative)
    with running(runs[:1]) as served:
        host, port = served.address.removeprefix("http://").split(":")
        body = b'{"model": "digits"}'
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            head = f"POST /api/draw HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            # It reads nothing, and the model is free again.
            assert stopped.wait(30)


class Held:
    """Work that lasts until a test lets it go."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.has_begun = threading.Event()
        self.was_abandoned = threading.Event()

    def drawing(self, asked: object, served: object) -> Work:
        """Takes the place of the work of drawing."""

        def wait(job: Computation) -> bytes:
            self.has_begun.set()
            try:
                while not self.may_end.wait(0.01):
                    job.check()
            except Abandoned:
                self.was_abandoned.set()
                raise
            return b"event: done\ndata: {}\n\n"

        return wait


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Drawing lasts until the end of the test."""
    work = Held()
    monkeypatch.setattr(live_drawing, "drawing", work.drawing)
    yield work
    work.may_end.set()


def test_a_full_queue_says_when_to_come_back(runs: list[str], held: Held) -> None:
    with running(runs[:1], most_waiting=2) as served, ThreadPoolExecutor(2) as clients:
        body = {"model": "digits"}
        waiting = [clients.submit(served.post, "/api/draw", body) for _ in range(2)]
        assert held.has_begun.wait(30)
        deadline = time.monotonic() + 30
        while len(served.app.queue.jobs) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = served.post("/api/draw", body)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 requests are waiting already" in refused.json()["error"]
        # While the model computes, everything else is answered.
        assert served.get("/api/models").status_code == 200
        held.may_end.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
        assert served.post("/api/draw", body).status_code == 200


def test_a_picture_of_absurd_size_is_not_made() -> None:
    tokenizer = ts.create_tokenizer(
        "vqvae", image_size=(4000, 3000), channels=3, codebook_size=4, hidden=8, code_dim=2
    )
    served = ServedModel("huge", "huge", tokenizer, (), "")
    content = png(np.zeros((2, 2, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="8000x6000 pixels is more than the 40,000,000"):
        uploads.fitted_picture(content, served, 2)


def test_work_stops_when_the_client_leaves(served: Served, held: Held) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.address + "/api/draw", content=b'{"model": "digits"}', timeout=0.5)
    assert held.was_abandoned.wait(30)
    deadline = time.monotonic() + 30
    while served.app.queue.jobs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not served.app.queue.jobs


def test_work_that_waits_is_dropped_when_the_client_leaves(served: Served, held: Held) -> None:
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(served.post, "/api/draw", {"model": "digits"})
        assert held.has_begun.wait(30)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(served.address + "/api/books?model=digits-codes", timeout=0.5)
        deadline = time.monotonic() + 30
        while len(served.app.queue.jobs) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(served.app.queue.jobs) == 1
        held.may_end.set()
        assert first.result().status_code == 200


def test_an_end_of_the_server_ends_its_work(runs: list[str], held: Held) -> None:
    with ThreadPoolExecutor(1) as clients:
        with running(runs[:1]) as served:
            answer = clients.submit(served.post, "/api/draw", {"model": "digits"})
            assert held.has_begun.wait(30)
        assert held.was_abandoned.is_set()
        assert answer.result().status_code == 503


def test_a_fault_of_ours_shows_nothing_of_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(asked: object, model: object) -> Work:
        def fail(job: Computation) -> bytes:
            raise ValueError("the secret of /home/somebody")

        return fail

    monkeypatch.setattr(live_drawing, "drawing", broken)
    answer = served.post("/api/draw", {"model": "digits"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "a fault of the server; its terminal says where"}
    for name, value in HEADERS.items():
        assert answer.headers[name] == value


def test_an_error_after_the_first_row_is_an_event(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(asked: object, model: object) -> Work:
        def fail(job: Computation) -> bytes:
            job.tell(b"event: rows\ndata: {}\n\n")
            raise ts.errors.NumericalError("the model returns NaN")

        return fail

    monkeypatch.setattr(live_drawing, "drawing", failing)
    events = served.events("/api/draw", {"model": "digits"})
    assert events == [("rows", {}), ("error", {"error": "the model returns NaN"})]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/static/nothing.js", 404),
        ("GET", "/static/..%2f..%2fweb%2fserver.py", 404),
        ("GET", "/static/%2e%2e/server.py", 404),
        ("GET", "/etc/passwd", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/api/draw", 405),
        ("GET", "/api/books?model=..%2Fdigits", 404),
        ("GET", "/api/books?model=digits", 400),
        ("POST", "/api/picture?model=digits&tiles=x", 400),
        ("POST", "/api/picture?model=digits&tiles=99", 400),
        ("GET", "/", 200),
        ("GET", "/static/style.css", 200),
    ],
)
def test_every_answer_has_the_headers_and_errors_are_json(
    served: Served, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, served.address + path, content=b"x", timeout=60)
    assert answer.status_code == status
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    if status >= 400:
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "rebound.example.org"}, 403),
        ({"Host": "127.0.0.1.example.org"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_other_sites_may_not_ask(served: Served, headers: dict[str, str], status: int) -> None:
    assert served.get("/api/models", headers=headers).status_code == status


def test_what_is_no_http_is_refused_and_nothing_breaks(served: Served) -> None:
    host, port = served.address.removeprefix("http://").split(":")
    for rubbish in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000, b"\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert served.get("/").status_code == 200


def test_the_page_needs_nothing_from_elsewhere() -> None:
    files = page_files()
    names = {"index.html", "style.css", "page.js", "icon.svg"}
    assert names <= set(files)
    for name, content in files.items():
        shown = content.decode()
        elsewhere = shown.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in elsewhere
        assert "https:" not in elsewhere
        assert "style=" not in shown, f"{name}: the policy allows no styles in attributes"
        assert " onclick" not in shown
    page = files["index.html"].decode()
    for part in page.split('"'):
        if part.startswith("/static/"):
            assert part.removeprefix("/static/") in files
    for name in files:
        if not name.endswith(".js"):
            continue
        for line in files[name].decode().splitlines():
            if line.startswith("import "):
                assert line.split('"')[1].removeprefix("./") in files


def test_an_answer_to_one_is_not_held_up_by_many(served: Served) -> None:
    def draw(seed: int) -> int:
        answer = served.post("/api/draw", {"model": "digits", "seed": seed})
        if answer.status_code == 200:
            last = answer.text.split("event: done\ndata: ")[1]
            assert json.loads(last)["placed"] == 64
        return int(answer.status_code)

    with ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(draw, range(24)))
    assert set(statuses) == {200}
