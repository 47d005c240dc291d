"""A real server on this machine, and what the tests of the page send it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from tessella.web.application import Application
from tessella.web.served_models import ServedModels
from tessella.web.server import PageServer, listen


@dataclass
class Served:
    """A running server, and the same models in Python."""

    address: str
    app: Any
    models: dict[str, Any]

    def get(self, path: str, **options: Any) -> Any:
        """Ask for an address."""
        return httpx.get(self.address + path, timeout=60, **options)

    def post(self, path: str, body: dict[str, object] | bytes, **options: Any) -> Any:
        """Send a request; the answer is not looked at."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(self.address + path, content=content, timeout=60, **options)

    def ask(self, path: str, body: dict[str, object] | bytes) -> dict[str, Any]:
        """The JSON of an answer that must be one."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def events(self, path: str, body: dict[str, object]) -> list[tuple[str, dict[str, Any]]]:
        """The server-sent events of an answer that must be such."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = []
        for event in answer.text.split("\n\n")[:-1]:
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found


@contextlib.contextmanager
def running(runs: list[str], most_waiting: int = 32) -> Iterator[Served]:
    """Serve some runs from a thread."""
    with listen("127.0.0.1", 0) as listening:
        models = ServedModels(runs, torch.device("cpu"))
        app = Application(models, most_waiting)
        addresses: list[str] = []
        is_ready = threading.Event()

        def tell(address: str) -> None:
            addresses.append(address.rstrip("/"))
            is_ready.set()

        server = PageServer(app, "127.0.0.1", listening, tell)
        thread = threading.Thread(target=server.answer, daemon=True)
        thread.start()
        assert is_ready.wait(60), "the server does not start"
        loaded = {served.name: served.model for served in models}
        try:
            yield Served(addresses[0], app, loaded)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server does not stop"


def text(array: np.ndarray | torch.Tensor) -> str:
    """An array as the page sends it."""
    return base64.b64encode(np.ascontiguousarray(np.asarray(array)).tobytes()).decode()


def array(sent: str, dtype: str, *shape: int) -> np.ndarray:
    """An array as the page gets it."""
    return np.frombuffer(base64.b64decode(sent), dtype).reshape(shape)


def symbols_text(grids: tuple[torch.Tensor, ...]) -> list[str]:
    """The symbols of one image as the page sends them."""
    return [text(grid.numpy().astype("<i4")) for grid in grids]


def png(pixels: np.ndarray) -> bytes:
    """``uint8 [h, w, c]`` as a PNG file."""
    content = io.BytesIO()
    values = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()
