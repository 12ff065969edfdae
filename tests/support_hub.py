"""A hub on this machine: the two requests that fetching a file makes, with ways to go wrong."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves and what it saw.

    Args:
        files: `repo/name` -> content.
        etags: `repo/name` -> sha256 as the hub gives it; others get a plain etag.
        break_after: bytes after which each of the next answers breaks off, one entry an answer.
        ranges: whether `Range` is honoured.
        sizes: whether the size of a file is said before it is sent.
        gated: repositories that ask for consent.
        redirects: whether files lie on another host, as large ones do.
        tokens: (host, Authorization header) of every request.
        requests: (method, path, Range header) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    sizes: bool = True
    redirects: bool = False
    gated: set[str] = field(default_factory=set)
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def gets(self) -> list[str | None]:
        """The Range headers of the GET requests, in order."""
        return [wanted for method, _, wanted in self.requests if method == "GET"]


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve the hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            wanted = self.headers.get("Range")
            hub.requests.append((self.command, self.path, wanted))
            hub.tokens.append((self.headers["Host"].partition(":")[0], self.headers.get("Authorization")))
            match = re.fullmatch(r"/(.+)/resolve/[^/]+/(.+)", self.path)
            repo, key = (match[1], f"{match[1]}/{match[2]}") if match else ("", "")
            if repo in hub.gated:
                return self.refuse(403, "GatedRepo")
            if key not in hub.files:
                known = any(name.startswith(f"{repo}/") for name in hub.files)
                return self.refuse(404 if known else 401, "EntryNotFound" if known else "RepoNotFound")
            content = hub.files[key]
            if hub.redirects and self.headers["Host"].startswith("127."):
                return self.redirect(key, content)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and hub.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hub.etags.get(key, "plain")}"')
            if hub.sizes or body:
                self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if body:
                end = start + hub.break_after.pop(0) if hub.break_after else len(content)
                self.wfile.write(content[start:end])
                self.close_connection = True

        def redirect(self, key: str, content: bytes) -> None:
            self.send_response(302)
            self.send_header("Location", f"{hub.endpoint.replace('127.0.0.1', 'localhost')}{self.path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{hub.etags[key]}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
