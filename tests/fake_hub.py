"""A stand-in for the HTTP interface of the Hugging Face Hub, on this machine alone.

It keeps repositories in memory, as commits of files, and answers what huggingface_hub asks when it
looks at a repository, downloads files, creates repositories and branches, and commits. Everything
else is answered with status 404 and kept in ``unknown``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class FakeHub:
    """The repositories of the fake: commits by their hash, branches by their name."""

    def __init__(self) -> None:
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.cards: list[str] = []
        self.token = ""
        """If set, requests without it are refused."""

    def commit(self, repository: str, files: Files, branch: str = "main") -> str:
        """Add a commit with these files to a branch, and return its hash."""
        digest = hashlib.sha1(f"{repository} {len(self.commits)}".encode()).hexdigest()
        self.commits[digest] = files
        self.branches.setdefault(repository, {})[branch] = digest
        return digest

    def resolve(self, repository: str, revision: str) -> str | None:
        """The commit of a branch, or of a hash; None where there is none."""
        branches = self.branches.get(repository)
        if branches is None:
            return None
        return branches.get(revision) or (revision if revision in self.commits else None)


@contextlib.contextmanager
def running() -> Iterator[tuple[FakeHub, str]]:
    """A fake that answers on the loopback, and its address."""
    hub = FakeHub()

    class Bound(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.fake.requests.append(f"{self.command} {path}")
        if self.fake.token and self.fake.token not in self.headers.get("Authorization", ""):
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._models(f"{parts[2]}/{parts[3]}", parts[4:], body)
        elif path == "/api/repos/create":
            given = json.loads(body)
            owner = given.get("organization") or "somebody"
            name = f"{owner}/{given['name'].split('/')[-1]}"
            self.fake.commit(name, {}) if name not in self.fake.branches else None
            self._send({"url": self._address(name), "name": name})
        elif path == "/api/validate-yaml":
            self.fake.cards.append(json.loads(body)["content"])
            self._send({"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self._send({"name": "somebody", "type": "user", "orgs": []})
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        else:
            self._unknown()

    def _models(self, repository: str, rest: list[str], body: bytes) -> None:
        what = rest[0] if rest else "revision"
        revision = rest[1] if len(rest) > 1 else "main"
        if what == "branch":
            self.fake.branches[repository][revision] = self.fake.branches[repository]["main"]
            self._send({})
            return
        commit = self.fake.resolve(repository, revision)
        if repository not in self.fake.branches:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif what == "revision":
            names = [{"rfilename": name} for name in sorted(self.fake.commits[commit])]
            self._send({"id": repository, "sha": commit, "siblings": names, "private": False})
        elif what == "tree":
            files = self.fake.commits[commit]
            self._send(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in sorted(files.items())
                ]
            )
        elif what == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send({"files": modes})
        elif what == "commit":
            files = dict(self.fake.commits[commit])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    files[value["path"]] = base64.b64decode(value["content"])
            digest = self.fake.commit(repository, files, revision)
            address = f"{self._address(repository)}/commit/{digest}"
            self._send({"success": True, "commitOid": digest, "commitUrl": address})
        else:
            self._unknown()

    def _file(self, repository: str, revision: str, name: str) -> None:
        commit = self.fake.resolve(repository, revision)
        if commit is None or name not in self.fake.commits[commit]:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data = self.fake.commits[commit][name]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}
        self._send_bytes(200, data, "application/octet-stream", headers)

    def _address(self, repository: str) -> str:
        return f"http://{self.headers['Host']}/{repository}"

    def _send(self, value: Any) -> None:
        self._send_bytes(200, json.dumps(value).encode(), "application/json", {})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send_bytes(status, json.dumps({"error": message}).encode(), "text/json", headers)

    def _unknown(self) -> None:
        self.fake.unknown.append(f"{self.command} {self.path}")
        self._refuse(404, "EntryNotFound", "nothing like this here")

    def _send_bytes(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
