"""A service as most people write it: one FastAPI handler that calls the embedder.

    python benchmarks/naive_service.py MODEL PORT

FastAPI runs a plain function in its thread pool, so that requests do not block each other. Nothing
gathers them: each is a call of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from unified_embeddings import UnifiedEmbeddingConfig


class Body(BaseModel):
    """A request."""

    inputs: list[str]


def make_app(model: str) -> FastAPI:
    """Return the application, its model loaded."""
    embedder = UnifiedEmbeddingConfig(model, cache=None).embedder
    embedder.encode_query("warm-up")
    app = FastAPI()

    @app.post("/embed")
    def embed(body: Body) -> Any:
        embeddings = embedder.encode_documents(body.inputs, sparse=False)
        assert embeddings.dense is not None
        return embeddings.dense.tolist()

    @app.get("/ready")
    def ready() -> str:
        return "ok"

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")
