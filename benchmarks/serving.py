"""A page under load, and under attack: who is answered, how fast, and how much memory that takes.

    python benchmarks/serving.py                                        # 10 clients x 20 requests
    python benchmarks/serving.py --clients 50 --requests 200 --json results/serving.json

A server is started on this machine with bundled models. First one client alone draws an image of
``digits`` again and again: *idle*. Then all clients send requests at a time, of which a share is
hostile: bodies that say they are huge or are, decompression bombs, garbage, connections that are
closed half-way, bodies that come byte by byte, clients that leave while an image is drawn. The
others ask for what the page asks for. *Served* is a right answer (an image is compared with what
Python draws with its seed), *busy* a 503 that says when to come back, *wrong* anything else.

Only this machine is asked, and ``--minutes`` ends it however much is left.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import httpx
import numpy as np
import torch

import tessella as ts

MODELS = ("digits", "digits-codes")
SEEDS = 50
"""Seeds that are asked for: what Python draws with them is known before."""

HUGE = 21 << 20
"""Bytes of a body that is too large."""

PATIENCE = 120.0
"""Seconds that a client waits for an answer."""

LEAVES_AFTER = 0.05
"""Seconds after which a client that leaves does so."""


class Server:
    """``tessella serve`` in a process of its own."""

    def __init__(self) -> None:
        self.errors = Path(tempfile.mkstemp()[1])
        command = [sys.executable, "-m", "tessella", "serve", *MODELS, "--port", "0"]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://(127\.0\.0\.1):(\d+)/", line)
        if found is None:
            raise RuntimeError(f"the server does not start: {line!r}")
        self.host = found[1]
        self.port = int(found[2])
        self.address = f"http://{self.host}:{self.port}"

    def memory(self, field: str) -> float:
        """MiB that the server takes: ``VmRSS`` now, ``VmHWM`` at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def stop(self) -> tuple[int, str]:
        """End it as Ctrl-C does; its status, and what it wrote about errors."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        written = self.errors.read_text()
        self.errors.unlink()
        return status, written


def bomb() -> bytes:
    """A small PNG file of 81 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = b"\0" * 9001
    packed = b"".join(packer.compress(row) for _ in range(9000)) + packer.flush()
    head = struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


class Known:
    """What right answers are, computed here."""

    def __init__(self) -> None:
        self.images: dict[str, np.ndarray] = {}
        self.bits: dict[str, np.ndarray] = {}
        self.codes: np.ndarray
        for name in MODELS:
            model = ts.load(name, expect=ts.Generator)
            drawn = torch.cat([model.sample(1, seed=seed) for seed in range(SEEDS)])
            self.images[name] = drawn.numpy()
            with torch.no_grad():
                self.bits[name] = -model.log_prob(drawn).numpy() / np.log(2)
            if name == "digits-codes":
                self.codes = model.encode(drawn).numpy()


def sent(array: np.ndarray) -> str:
    """An array as the page sends it."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


class Client:
    """One client: sends requests one after another, and counts what becomes of them."""

    def __init__(self, server: Server, known: Known, seed: int, hostile: float) -> None:
        self.server = server
        self.known = known
        self.dice = random.Random(seed)
        self.hostile = hostile
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.faults: list[str] = []
        self.bomb = b""

    def run(self, requests: int, ends: float) -> None:
        """Send so many requests, or fewer where the time is up."""
        attacks = self.attacks()
        with httpx.Client(timeout=PATIENCE) as http:
            for _ in range(requests):
                if time.monotonic() > ends:
                    self.counts["not sent"] += 1
                elif self.dice.random() < self.hostile:
                    name = self.dice.choice(list(attacks))
                    self.counts[f"attack: {name}"] += 1
                    # The server cuts many of them off.
                    with contextlib.suppress(OSError, httpx.TransportError):
                        attacks[name]()
                else:
                    self.ask(http)

    def ask(self, http: httpx.Client) -> None:
        """A request as the page sends it."""
        kind = self.dice.choices(("draw", "bits", "codes", "models"), (5, 2, 2, 1))[0]
        name = self.dice.choice(MODELS)
        seed = self.dice.randrange(SEEDS)
        started = time.monotonic()
        try:
            answer, is_right = getattr(self, f"ask_{kind}")(http, name, seed)
        except httpx.TransportError as error:
            self.note("wrong", f"{kind}: {error!r}")
            return
        if answer.status_code == 503 and int(answer.headers.get("retry-after", 0)) >= 1:
            self.note("busy")
        elif answer.status_code == 200 and is_right(answer):
            self.note("served")
            self.seconds.append(time.monotonic() - started)
        else:
            self.note("wrong", f"{kind}: {answer.status_code} {answer.text[:200]}")

    def note(self, what: str, fault: str = "") -> None:
        """Count an outcome."""
        self.counts[what] += 1
        if fault:
            self.faults.append(fault)

    def ask_draw(self, http: httpx.Client, name: str, seed: int) -> tuple[httpx.Response, Any]:
        """An image, drawn live."""
        answer = http.post(f"{self.server.address}/api/draw", json={"model": name, "seed": seed})
        wanted = sent(self.known.images[name][seed])
        return answer, lambda found: _last_event(found.text)["images"] == [wanted]

    def ask_bits(self, http: httpx.Client, name: str, seed: int) -> tuple[httpx.Response, Any]:
        """The bits of an image."""
        body = {"model": name, "image": sent(self.known.images[name][seed])}
        answer = http.post(f"{self.server.address}/api/bits", json=body)
        wanted = self.known.bits[name][seed]
        return answer, lambda found: abs(found.json()["bits"] - wanted) < 1e-2

    def ask_codes(self, http: httpx.Client, name: str, seed: int) -> tuple[httpx.Response, Any]:
        """The codes of an image."""
        body = {"model": "digits-codes", "image": sent(self.known.images["digits-codes"][seed])}
        answer = http.post(f"{self.server.address}/api/codes", json=body)
        wanted = sent(self.known.codes[seed].astype("<i4"))
        return answer, lambda found: found.json()["symbols"] == [wanted]

    def ask_models(self, http: httpx.Client, name: str, seed: int) -> tuple[httpx.Response, Any]:
        """The models."""
        answer = http.get(f"{self.server.address}/api/models")
        return answer, lambda found: [m["name"] for m in found.json()["models"]] == list(MODELS)

    def attacks(self) -> dict[str, Callable[[], None]]:
        """Hostile requests by name."""
        return {
            "says it is huge": self.says_it_is_huge,
            "is huge": self.is_huge,
            "bomb": self.sends_a_bomb,
            "garbage": self.sends_garbage,
            "half-closed": self.closes_half_way,
            "slow": self.is_slow,
            "leaves": self.leaves,
        }

    def connected(self) -> socket.socket:
        """A connection to the server."""
        return socket.create_connection((self.server.host, self.server.port), timeout=10)

    def head(self, path: str, length: int) -> bytes:
        """The head of a request."""
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self.server.host}\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    def says_it_is_huge(self) -> None:
        """A body of a terabyte is announced."""
        with self.connected() as connection:
            connection.sendall(self.head("/api/picture?model=digits", 1 << 40))
            connection.recv(1000)

    def is_huge(self) -> None:
        """A body that grows beyond what is taken, without a length."""

        def pieces() -> Iterator[bytes]:
            for _ in range(HUGE >> 20):
                yield bytes(1 << 20)

        httpx.post(
            f"{self.server.address}/api/picture?model=digits", content=pieces(), timeout=PATIENCE
        )

    def sends_a_bomb(self) -> None:
        """A small file that becomes a huge picture."""
        httpx.post(
            f"{self.server.address}/api/picture?model=digits", content=self.bomb, timeout=PATIENCE
        )

    def sends_garbage(self) -> None:
        """Bytes that are no HTTP, no JSON, or no picture."""
        rubbish = self.dice.randbytes(self.dice.randrange(1, 5000))
        choice = self.dice.randrange(3)
        if choice == 0:
            with self.connected() as connection:
                connection.sendall(rubbish)
                connection.recv(1000)
        else:
            path = "/api/draw" if choice == 1 else "/api/picture?model=digits"
            httpx.post(self.server.address + path, content=rubbish, timeout=PATIENCE)

    def closes_half_way(self) -> None:
        """Half a body, then the client's side is closed."""
        with self.connected() as connection:
            connection.sendall(self.head("/api/draw", 100) + b'{"model": "dig')
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1000)

    def is_slow(self) -> None:
        """A body that comes byte by byte, and never ends."""
        with self.connected() as connection:
            connection.sendall(self.head("/api/draw", 1000))
            for _ in range(5):
                connection.sendall(b" ")
                time.sleep(0.1)

    def leaves(self) -> None:
        """Sixteen images are asked for, and not waited for."""
        body = json.dumps({"model": "digits", "n": 16}).encode()
        with self.connected() as connection:
            connection.sendall(self.head("/api/draw", len(body)) + body)
            time.sleep(LEAVES_AFTER)


def _last_event(text: str) -> dict[str, Any]:
    data = text.rstrip().split("\n")[-1].removeprefix("data: ")
    found: dict[str, Any] = json.loads(data)
    return found


def idle_seconds(server: Server, known: Known, draws: int) -> list[float]:
    """How long one client alone waits for an image of ``digits``, again and again."""
    client = Client(server, known, seed=0, hostile=0)
    seconds = []
    with httpx.Client(timeout=PATIENCE) as http:
        for number in range(draws + 3):
            started = time.monotonic()
            answer, is_right = client.ask_draw(http, "digits", number % SEEDS)
            # The first ones load what later ones have.
            if number >= 3:
                seconds.append(time.monotonic() - started)
            assert is_right(answer), "the server draws something else than Python"
    return seconds


def watch_memory(server: Server, stop: threading.Event, seen: list[float]) -> None:
    """Note the memory of the server now and then."""
    while not stop.wait(0.5):
        seen.append(server.memory("VmRSS"))


def quantile(values: list[float], share: float) -> float:
    """A quantile in milliseconds."""
    return round(1000 * float(np.quantile(values, share)), 1) if values else float("nan")


def measure(clients: int, requests: int, hostile: float, minutes: float) -> dict[str, Any]:
    """Start a server, measure, and end it."""
    known = Known()
    server = Server()
    other_load = harness.gauge_other_load()
    idle = idle_seconds(server, known, draws=50)
    idle_load = other_load()
    team = [Client(server, known, seed, hostile) for seed in range(1, clients + 1)]
    file = bomb()
    for client in team:
        client.bomb = file
    at_rest = server.memory("VmRSS")
    seen: list[float] = []
    stop = threading.Event()
    watching = threading.Thread(target=watch_memory, args=(server, stop, seen))
    watching.start()
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        ends = started + 60 * minutes
        list(threads.map(lambda client: client.run(requests, ends), team))
    lasted = time.monotonic() - started
    stop.set()
    watching.join()
    is_alive = server.process.poll() is None
    peak = server.memory("VmHWM") if is_alive else float("nan")
    after = idle_seconds(server, known, draws=10) if is_alive else []
    status, errors = server.stop()
    counts: Counter[str] = Counter()
    faults: list[str] = []
    seconds: list[float] = []
    for client in team:
        counts.update(client.counts)
        faults += client.faults
        seconds += client.seconds
    return {
        "clients": clients,
        "requests_each": requests,
        "share_hostile": hostile,
        "minutes": round(lasted / 60, 2),
        "outcomes": dict(sorted(counts.items())),
        "faults": faults[:20],
        "alive_at_the_end": is_alive,
        "exit_status": status,
        "tracebacks": errors.count("Traceback"),
        "idle_p50_ms": quantile(idle, 0.5),
        "idle_p95_ms": quantile(idle, 0.95),
        "idle_other_processors_busy": round(idle_load, 2),
        "served_p50_ms": quantile(seconds, 0.5),
        "served_p95_ms": quantile(seconds, 0.95),
        "idle_after_p50_ms": quantile(after, 0.5),
        "memory_at_rest_mib": round(at_rest, 1),
        "memory_peak_mib": round(peak, 1),
        "memory_at_the_end_mib": round(seen[-1], 1) if seen else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--hostile", type=float, default=0.3, help="share of them")
    parser.add_argument("--minutes", type=float, default=20, help="after which it ends")
    parser.add_argument("--json", default="", help="file to write the result to")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(chosen.clients, chosen.requests, chosen.hostile, chosen.minutes)
    print(json.dumps(row, indent=2))
    if chosen.json:
        harness.write("serving", [row], chosen.json)
    is_well = row["alive_at_the_end"] and not row["tracebacks"] and not row["faults"]
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
