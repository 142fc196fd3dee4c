"""A small service over any embedder, with the wire format of `unified-embeddings serve`.

It answers on a port of its own in a thread, remembers what it was asked, and can be told to
misbehave: what stands in `script` is answered first.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unified_embeddings.embedders.base import TextEmbedder

Reply = Callable[[Request, Any], Response]


class Service:
    """What the service is and was asked.

    Attributes:
        embedder: Whose vectors it gives; replace it, and the service was restarted with another.
        script: Replies that come before the regular ones, one per request.
        change: Called with each regular answer's data before it is sent.
        asked: Path and body of each request.
        api_key: The key that it wants.
        max_texts: What it says is the most texts of a request.
    """

    def __init__(self, embedder: TextEmbedder) -> None:
        self.url = ""
        self._lock = threading.Lock()
        self.reset(embedder)

    def reset(self, embedder: TextEmbedder) -> None:
        """Forget all that a test has done: starting another server takes longer."""
        self.embedder = embedder
        self.script: list[Reply] = []
        self.change: Callable[[str, Any], None] = lambda path, data: None
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.api_key: str | None = None
        self.max_texts = 64

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    # --- routes ---------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw) if raw else None
        path = request.url.path
        with self._lock:
            self.asked.append((path, body))
            self.headers.append(dict(request.headers))
            reply = self.script.pop(0) if self.script else None
        if reply is not None:
            return reply(request, body)
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return JSONResponse({"error": "no such key"}, 401)
        if path not in ROUTES:
            return JSONResponse({"error": "not found"}, 404)
        data = ROUTES[path](self, body)
        self.change(path, data)
        text = data if isinstance(data, str) else json.dumps(data)
        headers = {"x-model-fingerprint": self.embedder.fingerprint}
        kind = "text/plain" if isinstance(data, str) else "application/json"
        return Response(text, media_type=kind, headers=headers)

    def info(self, body: Any) -> Any:
        embedder = self.embedder
        fusion = embedder.fusion
        calibration = None
        if embedder.calibration is not None:
            calibration = embedder.calibration.to_dict()
        return {
            "model_id": embedder.model_name,
            "model_sha": None,
            "model_dtype": "float32",
            "max_client_batch_size": self.max_texts,
            "version": "0.1.0",
            "unified_embeddings": {
                "model": embedder.model_name,
                "fingerprint": embedder.fingerprint,
                "former_fingerprints": list(embedder.former_fingerprints),
                "revision": embedder.revision,
                "dimension": embedder.dimension,
                "max_length": embedder.max_length,
                "document_length": embedder.document_length,
                "heads": list(embedder.heads),
                "engine": "fake",
                "precision": "fp32",
                "device": "cpu",
                "fusion": {
                    "weights": list(fusion.weights),
                    "k": fusion.k,
                    "candidates": fusion.candidates,
                    "source": fusion.source,
                },
                "calibration": calibration,
                "sparse_idf": embedder.sparse_idf,
            },
        }

    def m3(self, body: Any) -> Any:
        assert body.keys() <= {
            "texts", "isPassage", "batchSize", "heads", "encoding", "colbert_dtype"
        }  # fmt: skip
        heads = body.get("heads", ["dense", "sparse", "colbert"])
        embedder = self.embedder
        encode = embedder.encode_documents if body.get("isPassage") else embedder.encode_queries
        found = encode(body["texts"], **{head: head in heads for head in HEADS})
        results = []
        for i, text in enumerate(body["texts"]):
            result: dict[str, Any] = {"text": text}
            if found.dense is not None:
                result["dense"] = found.dense[i].tolist()
                if body.get("encoding") == "base64":
                    result["dense"] = encode64(found.dense[i])
            if found.sparse is not None:
                result["sparse"] = found.sparse[i].to_qdrant()
            if found.colbert is not None:
                kind = body.get("colbert_dtype", "float16")
                rows = found.colbert[i].astype(kind)
                result["colbert"] = {
                    "shape": list(rows.shape),
                    "dtype": kind,
                    "data": encode64(rows),
                }
            results.append(result)
        tokens = sum(len(embedder.tokenise(text)) + 2 for text in body["texts"])
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "truncated": 0}
        return {
            "results": results,
            "model": embedder.model_name,
            "fingerprint": embedder.fingerprint,
            "usage": usage,
        }

    def tokenize(self, body: Any) -> Any:
        inputs = [body["inputs"]] if isinstance(body["inputs"], str) else body["inputs"]
        answers = []
        for text in inputs:
            ids = [(token, False) for token in self.embedder.tokenise(text)]
            if body["add_special_tokens"]:
                ids = [(0, True), *ids, (2, True)]
            answers.append(
                [
                    {"id": token, "text": "", "special": special, "start": None, "stop": None}
                    for token, special in ids
                ]
            )
        return answers

    def dense(self, texts: list[str]) -> list[list[float]]:
        vectors = self.embedder.encode_documents(texts, dense=True, sparse=False).dense
        assert vectors is not None
        return vectors.tolist()  # type: ignore[no-any-return]

    def embed(self, body: Any) -> Any:
        if "text" in body:
            return {"embedding": self.dense([body["text"]])[0]}
        return self.dense(as_list(body["inputs"]))

    def embed_sparse(self, body: Any) -> Any:
        vectors = self.embedder.encode_documents(as_list(body["inputs"]), sparse=True).sparse
        return [
            [{"index": index, "value": value} for index, value in vector.items()]
            for vector in vectors or []
        ]

    def embed_all(self, body: Any) -> Any:
        rows = self.embedder.encode_documents(as_list(body["inputs"]), colbert=True).colbert
        return [vectors.tolist() for vectors in rows or []]

    def scores(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        documents = np.array(self.dense(texts))
        scores = documents @ np.array(self.dense([query])[0])
        return [(int(i), float(scores[i])) for i in np.argsort(-scores)]

    def rerank(self, body: Any) -> Any:
        scores = self.scores(body["query"], body["texts"])
        return [{"index": index, "score": score} for index, score in scores]

    def rerank_v1(self, body: Any) -> Any:
        scores = self.scores(body["query"], body["documents"])
        results = [{"index": index, "relevance_score": score} for index, score in scores]
        return {"results": results}

    def openai(self, body: Any) -> Any:
        rows = self.dense(as_list(body["input"]))
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        return {"object": "list", "data": data, "model": self.embedder.model_name}

    def ollama(self, body: Any) -> Any:
        return {"model": body["model"], "embeddings": self.dense(as_list(body["input"]))}

    def ollama_old(self, body: Any) -> Any:
        return {"embedding": self.dense([body["prompt"]])[0]}

    def query(self, body: Any) -> Any:
        return answer_query(self.embedder, body["input"])


def answer_query(embedder: TextEmbedder, asked: dict[str, Any]) -> dict[str, Any]:
    """What document 002's endpoint answers, with sparse vectors where they are asked for."""
    if asked.get("action") == "health_check":
        return {"status": "ok", "endpoint": "query", "runtime": "onnx-cpu"}
    heads = asked.get("heads", ["dense"])
    options = {"dense": True, "sparse": "sparse" in heads}
    if "texts" in asked:
        found = embedder.encode_documents(asked["texts"], **options)
    else:
        found = embedder.encode_queries(asked.get("queries") or [asked["query"]], **options)
    assert found.dense is not None
    sparse = [vector.to_qdrant() for vector in found.sparse or []]
    if "query" in asked:
        answer: dict[str, Any] = {"embedding": found.dense[0].tolist()}
        return answer | ({"sparse": sparse[0]} if sparse else {})
    answer = {"embeddings": found.dense.tolist()}
    return answer | ({"sparse": sparse} if sparse else {})


def as_list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def encode64(array: Any) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


HEADS = ("dense", "sparse", "colbert")
ROUTES: dict[str, Callable[[Service, Any], Any]] = {
    "/info": Service.info,
    "/v1/m3": Service.m3,
    "/tokenize": Service.tokenize,
    "/embed": Service.embed,
    "/embed_sparse": Service.embed_sparse,
    "/embed_all": Service.embed_all,
    "/rerank": Service.rerank,
    "/v1/rerank": Service.rerank_v1,
    "/v1/embeddings": Service.openai,
    "/v1/models": lambda service, body: {
        "object": "list",
        "data": [{"id": service.embedder.model_name, "object": "model"}],
    },
    "/api/embed": Service.ollama,
    "/api/embeddings": Service.ollama_old,
    "/api/tags": lambda service, body: {"models": [{"name": service.embedder.model_name}]},
    "/api/version": lambda service, body: {"version": "0.1.0"},
    "/query": Service.query,
    "/health": lambda service, body: {},
    "/ready": lambda service, body: {"status": "ready"},
    "/metrics": lambda service, body: "# HELP requests Requests.\nrequests_total 1\n",
}


def status(code: int, data: Any = None, headers: dict[str, str] | None = None) -> Reply:
    """A reply of this status, with JSON or a text."""
    if isinstance(data, str):
        return lambda request, body: Response(data, code, headers, "text/html")
    return lambda request, body: JSONResponse(data or {"error": "so it is"}, code, headers)


def serve_app(
    app: Any, certificate: Path | None = None, key: Path | None = None, *, lifespan: Any = "off"
) -> tuple[uvicorn.Server, threading.Thread, str]:
    """Start an app in a thread; return its server, its thread and its address."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan=lifespan,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    scheme = "http" if certificate is None else "https"
    return server, thread, f"{scheme}://127.0.0.1:{port}"


@contextmanager
def running(embedder: TextEmbedder) -> Iterator[Service]:
    """A service over an embedder, until the block is left."""
    service = Service(embedder)
    route = Route("/{path:path}", service.answer, methods=["GET", "POST"])
    server, thread, service.url = serve_app(Starlette(routes=[route]))
    try:
        yield service
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
