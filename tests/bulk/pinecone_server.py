"""A server with what of Pinecone's data plane the examples use; it keeps what it is sent."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Recorded:
    """The server's address, and the requests that it was sent."""

    host: str = ""
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """Return all vectors or documents of all requests."""
        return [each for _, body in self.requests for each in body[kind]]


@contextlib.contextmanager
def running_pinecone() -> Iterator[Recorded]:
    recorded = Recorded()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            assert size <= 2_000_000
            recorded.requests.append((self.path, json.loads(self.rfile.read(size))))
            self.answer({"upsertedCount": 1, "upserted_count": 1})

        def do_GET(self) -> None:
            known = {each["id"]: each for each in recorded.sent("vectors")}
            url = urlsplit(self.path)
            if url.path == "/vectors/list":
                self.answer({"vectors": [{"id": name} for name in known], "namespace": "notes"})
            else:
                ids = parse_qs(url.query)["ids"]
                self.answer({"vectors": {name: known[name] for name in ids}, "namespace": "notes"})

        def answer(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorded.host = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield recorded
    finally:
        server.shutdown()
        server.server_close()
