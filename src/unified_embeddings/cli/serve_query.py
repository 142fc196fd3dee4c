"""`unified-embeddings serve-query`: an exported model over HTTP, for queries, quickly started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

_ENVIRONMENT = "UNIFIED_EMBEDDINGS_"


def serve_query(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A folder that export-onnx wrote; also UNIFIED_EMBEDDINGS_MODEL.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(envvar=_ENVIRONMENT + "HOST", help="0.0.0.0 serves other machines too.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar=_ENVIRONMENT + "PORT", min=0, max=65535, help="0 takes a free one."),
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar=_ENVIRONMENT + "API_KEY_FILE",
            help="A key in each line, of which requests must bring one; also "
            "UNIFIED_EMBEDDINGS_API_KEYS, with commas.",
        ),
    ] = None,
    queue_size: Annotated[
        int,
        typer.Option(
            envvar=_ENVIRONMENT + "QUEUE_SIZE", min=1, help="Requests that may wait; more get 429."
        ),
    ] = 32,
    max_body_bytes: Annotated[
        int,
        typer.Option(envvar=_ENVIRONMENT + "MAX_BODY_BYTES", min=1, help="Bytes of a request."),
    ] = 2**20,
    request_timeout: Annotated[
        float,
        typer.Option(envvar=_ENVIRONMENT + "REQUEST_TIMEOUT", help="Seconds until an answer."),
    ] = 30.0,
    drain_timeout: Annotated[
        float,
        typer.Option(
            envvar=_ENVIRONMENT + "DRAIN_TIMEOUT", help="Seconds for requests in hand at SIGTERM."
        ),
    ] = 30.0,
) -> None:
    """Serve an exported model on the CPU: POST /query, POST /runsync, GET /health.

    It needs neither torch nor LlamaIndex (requirements/query.txt), and answers about a second after
    it is started.
    """
    from unified_embeddings.serving.api_keys import load_keys
    from unified_embeddings.serving.query_server import serve
    from unified_embeddings.serving.query_settings import QuerySettings, query_embedder

    listed_keys = os.environ.get(_ENVIRONMENT + "API_KEYS", "")
    settings = QuerySettings(
        host=host,
        port=port,
        queue_size=queue_size,
        max_body_bytes=max_body_bytes,
        request_timeout=request_timeout,
        drain_timeout=drain_timeout,
        api_keys=load_keys(listed_keys, api_key_file),
    )
    serve(query_embedder(model, os.environ), settings)
