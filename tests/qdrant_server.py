"""The part of Qdrant's REST interface that a store uses, over qdrant-client's local mode.

It keeps connections open, as Qdrant does, and listens on 127.0.0.2: qdrant-client turns keep-alive
off for localhost, which would hide connections that are shared between event loops.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.stores.opening import make_thread_safe

DONE = {"operation_id": 0, "status": "completed"}


@contextmanager
def running_server() -> Iterator[tuple[str, QdrantClient]]:
    """Yield the server's address and the client that holds its collections."""
    client = QdrantClient(":memory:")
    make_thread_safe(client)
    server = ThreadingHTTPServer(("127.0.0.2", 0), _handler_over(client))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.2:{server.server_port}", client
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler_over(client: QdrantClient) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or "null")
            result = _answer(client, self.command, self.path.split("?")[0], body)
            reply = {"result": _to_json(result), "status": "ok", "time": 0}
            answer = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815  # as http.server calls them

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _answer(client: QdrantClient, method: str, path: str, body: Any) -> Any:
    match method, path:
        case "GET", "/aliases":
            return client.get_aliases()
        case "GET", "/collections":
            return client.get_collections()
        case "POST", "/collections/aliases":
            changes = qm.ChangeAliasesOperation.model_validate(body)
            return client.update_collection_aliases(changes.actions)
    _, _, name, *action = path.split("/")
    return _call(client, method, "/".join(action), name, body)


def _call(client: QdrantClient, method: str, action: str, name: str, body: Any) -> Any:
    match method, action:
        case "GET", "exists":
            return {"exists": client.collection_exists(name)}
        case "GET", "":
            return client.get_collection(name)
        case "DELETE", "":
            return client.delete_collection(name)
        case "PUT", "":
            asked = qm.CreateCollection.model_validate(body)
            return client.create_collection(
                name,
                vectors_config=asked.vectors,
                sparse_vectors_config=asked.sparse_vectors,
                metadata=asked.metadata,
            )
        case "PUT", "points":
            client.upsert(name, qm.PointsList.model_validate(body).points)
        case "POST", "points/delete":
            client.delete(name, TypeAdapter(qm.PointsSelector).validate_python(body))
        case "POST", "points/scroll":
            wanted = qm.ScrollRequest.model_validate(body)
            points, offset = client.scroll(
                name,
                wanted.filter,
                limit=wanted.limit or 10,
                offset=wanted.offset,
                with_vectors=True,
            )
            return {"points": points, "next_page_offset": offset}
        case "POST", "points/count":
            return client.count(name)
        case "POST", "points/query":
            return _query(client, name, qm.QueryRequest.model_validate(body))
        case "POST", "points/query/batch":
            requests = qm.QueryRequestBatch.model_validate(body).searches
            return [_query(client, name, request) for request in requests]
    return DONE


def _query(client: QdrantClient, name: str, request: qm.QueryRequest) -> dict[str, Any]:
    (response,) = client.query_batch_points(name, [request])
    return {"points": response.points}


def _to_json(result: Any) -> Any:
    return TypeAdapter(Any).dump_python(result, mode="json")
