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
            # /aliases, /collections, or /collections/NAME and what is done with it
            room, *places = self.path.split("?")[0].split("/")[1:]
            name, *action = places or [room]
            result = _call(client, self.command, "/".join(action), name, body)
            reply = {"result": _to_json(result), "status": "ok", "time": 0}
            answer = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815  # as http.server calls them

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _call(client: QdrantClient, method: str, action: str, name: str, body: Any) -> Any:
    match method, action:
        case "GET", "" if name == "collections":
            return client.get_collections()
        case "GET", "" if name == "aliases":
            return client.get_aliases()
        case "POST", "" if name == "aliases":
            changes = qm.ChangeAliasesOperation.model_validate(body)
            return client.update_collection_aliases(changes.actions)
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
        case "PATCH", "":
            changes = qm.UpdateCollection.model_validate(body)
            return client.update_collection(name, metadata=changes.metadata)
        case "PUT", _ if action.startswith("vectors/"):
            config = TypeAdapter(qm.VectorNameConfig).validate_python(body)
            client.create_vector_name(name, action.removeprefix("vectors/"), config)
        case "PUT", "points/vectors":
            client.update_vectors(name, qm.UpdateVectors.model_validate(body).points)
        case "POST", "points":
            wanted = qm.PointRequest.model_validate(body)
            return client.retrieve(
                name,
                wanted.ids,
                with_payload=wanted.with_payload or False,
                with_vectors=wanted.with_vector or False,
            )
        case "PUT", "points/payload":
            change = qm.SetPayload.model_validate(body)
            client.overwrite_payload(name, change.payload, points=change.points or [])
        case "PUT", "points":
            client.upsert(name, qm.PointsList.model_validate(body).points)
        case "POST", "points/delete":
            client.delete(name, TypeAdapter(qm.PointsSelector).validate_python(body))
        case "POST", "points/scroll":
            scroll = qm.ScrollRequest.model_validate(body)
            points, offset = client.scroll(
                name,
                scroll.filter,
                limit=scroll.limit or 10,
                offset=scroll.offset,
                with_vectors=True,
            )
            return {"points": points, "next_page_offset": offset}
        case "POST", "points/count":
            asked = qm.CountRequest.model_validate(body)
            return client.count(name, asked.filter, exact=bool(asked.exact))
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
