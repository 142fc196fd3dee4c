"""A worker on RunPod: all vectors of texts, or the query endpoint's actions, as jobs.

    python -m unified_embeddings.serving.runpod [--query] [the SDK's options]

What lives here: the two handlers, which are plain functions, and starting RunPod's SDK with one of
them. What does not: the formats of jobs and results (`contracts`). The model comes from the
environment, as with `UnifiedEmbeddingConfig.from_env`; GPU_DEVICE names the device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from unified_embeddings.config.environment import read_options
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.serving.contracts import (
    Json,
    health_answer,
    m3_answer,
    parse_m3,
    parse_query_input,
    query_answer,
)
from unified_embeddings.serving.jobs import count_usage, embed
from unified_embeddings.types import Options

if TYPE_CHECKING:
    from unified_embeddings.embedders.base import TextEmbedder

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 20_000_000 - 1000
"""Bytes of a result's JSON: RunPod's limit for /runsync, less what its envelope takes."""
_NOT_FOR_TEXTS = ("image_model", "allow_urls")
_WARM_UP = "warm-up"


class _Model:
    """The embedder of this process, made from the environment with the first job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._embedder: TextEmbedder | None = None

    def get(self) -> TextEmbedder:
        """Return the embedder."""
        with self._lock:
            if self._embedder is None:
                self._embedder = embedder_from(os.environ)
            return self._embedder

    def set(self, embedder: TextEmbedder | None) -> None:
        """Take another embedder; None makes one from the environment when it is needed."""
        with self._lock:
            self._embedder = embedder

    def close(self) -> None:
        """Release the model's memory, if it was loaded."""
        with self._lock:
            if self._embedder is not None:
                self._embedder.close()


_MODEL = _Model()


def handler(job: object) -> Json:
    """Return all vectors of a job's texts: `{"results": [...], ...}`, or `{"error": "..."}`.

    Args:
        job: RunPod's: `{"id": ..., "input": {"texts": [...], "isPassage": false, ...}}`.
    """
    return _answer(job, _all_vectors)


def query_handler(job: object) -> Json:
    """Return what the query endpoint answers: `{"embedding": [...]}`, ..., or `{"error": "..."}`.

    Args:
        job: RunPod's: `{"id": ..., "input": {"action": "embed_query", "query": "...", ...}}`.
    """
    return _answer(job, _query_vectors)


def use_embedder(embedder: TextEmbedder | None) -> None:
    """Let the handlers use an embedder of your own; None makes one from the environment again."""
    _MODEL.set(embedder)


def embedder_from(environ: Mapping[str, str]) -> TextEmbedder:
    """Return the embedder that the environment asks for; it loads nothing yet.

    Args:
        environ: Variables: those of `UnifiedEmbeddingConfig.from_env`, QUANTIZATION, and
            GPU_DEVICE, which is the device where UNIFIED_EMBEDDINGS_DEVICE is not set.

    Raises:
        InputError: If a variable is not usable.
    """
    options: Options = read_options(environ, {})
    device = environ.get("GPU_DEVICE", "").strip()
    if device:
        options.setdefault("device", device)
    model = options.pop("model_choice", "bge-m3")
    return make_embedder(
        model, **{name: value for name, value in options.items() if name not in _NOT_FOR_TEXTS}
    )


# --- one job --------------------------------------------------------------------------------------


def _all_vectors(job_input: object, embedder: TextEmbedder) -> Json:
    request = parse_m3(job_input, embedder.heads)
    embeddings = embed(embedder, request.texts, request.role, request.heads)
    return m3_answer(
        request,
        embeddings,
        model=embedder.model_name,
        fingerprint=embedder.fingerprint,
        usage=count_usage(embedder, request.texts, request.role),
    )


def _query_vectors(job_input: object, embedder: TextEmbedder) -> Json:
    request = parse_query_input(job_input, embedder.heads)
    if request.is_health_check:
        return _health(embedder)
    embeddings = embed(embedder, request.texts, request.role, request.heads)
    return query_answer(request, embeddings)


def _health(embedder: TextEmbedder) -> Json:
    if not embedder.models:
        return health_answer("none", "cpu")
    runtime = embedder.models[0].runtime
    return health_answer(runtime.engine, runtime.device)


def _answer(job: object, work: Callable[[object, TextEmbedder], Json]) -> Json:
    """Return a job's result, or its error: what a handler raises, RunPod shows with a traceback."""
    try:
        if not isinstance(job, dict) or "input" not in job:
            raise InputError('the job needs "input", a JSON object')
        result = work(job["input"], _MODEL.get())
        _require_small(result)
    except UnifiedEmbeddingsError as error:
        return {"error": str(error) or type(error).__name__}
    except Exception as error:
        # Its message may hold a text, so that neither the log nor the answer has it.
        frames = "".join(traceback.format_tb(error.__traceback__))
        _LOG.error("a job failed: %s\n%s", type(error).__name__, frames)
        return {
            "error": f"unexpected {type(error).__name__}; send fewer or shorter texts, or see the "
            "worker's log"
        }
    return result


def _require_small(result: Json) -> None:
    """Refuse a result that RunPod would drop. The SDK's own warning measures something else.

    Raises:
        InputError: If its JSON is over the limit.
    """
    size = len(json.dumps(result, ensure_ascii=False).encode())
    if size > _MOST_BYTES:
        raise InputError(
            f"the result has {size / 1e6:.1f} MB, of at most 20 MB that RunPod passes on; send "
            'fewer texts, leave "colbert" out of "heads", or ask for "encoding": "base64"'
        )


# --- the worker -----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Start RunPod's SDK with one of the handlers, and exit when it ends.

    Args:
        arguments: The command line; None takes the process's own.
    """
    options, sdk_arguments = _parse(sys.argv[1:] if arguments is None else arguments)
    code: int | str | None = 0
    # uvicorn, which serves the SDK's local API, raises SIGTERM again once it has drained.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _run(query_handler if options.query else handler, sdk_arguments)
    except SystemExit as end:  # how the SDK ends its local modes
        code = end.code
    except KeyboardInterrupt:
        code = 130
    except UnifiedEmbeddingsError as error:
        code = f"error: {error}"
    except Exception as error:
        if os.environ.get("UNIFIED_EMBEDDINGS_DEBUG"):
            raise
        code = (
            f"error: unexpected {type(error).__name__}: {error}. Set UNIFIED_EMBEDDINGS_DEBUG=1 to "
            "see the traceback"
        )
    finally:
        # While the interpreter is whole: what is left to its end may fail there.
        _MODEL.close()
    sys.exit(code)


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our options, and the SDK's in the form that it reads."""
    parser = argparse.ArgumentParser(
        prog="python -m unified_embeddings.serving.runpod",
        description="A worker on RunPod. The model comes from the environment "
        "(UNIFIED_EMBEDDINGS_MODEL, QUANTIZATION, GPU_DEVICE, ...).",
        epilog="Further options are the SDK's: --rp_serve_api, --rp_api_port, --rp_log_level, ...",
    )
    parser.add_argument(
        "--query", action="store_true", help="the query endpoint's actions instead of all vectors"
    )
    parser.add_argument(
        "--test_input", metavar="JSON", help='one job, as in {"input": {"texts": ["a"]}}; then exit'
    )
    options, sdk_arguments = parser.parse_known_args(arguments)
    if options.test_input is not None:
        _check_job(parser, options.test_input)
        sdk_arguments += ["--test_input", options.test_input]
    return options, sdk_arguments


def _check_job(parser: argparse.ArgumentParser, text: str) -> None:
    """End with wrong usage where the SDK would end with a traceback."""
    job = None
    with contextlib.suppress(ValueError, RecursionError):
        job = json.loads(text)
    if not isinstance(job, dict) or not isinstance(job.get("input"), dict):
        parser.error('--test_input must be a JSON object like {"input": {"texts": ["a"]}}')


def _run(chosen: Callable[[object], Json], sdk_arguments: list[str]) -> None:
    """Load the model, and hand the process to the SDK.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded, or the SDK is not installed.
        SystemExit: When the SDK ends.
    """
    with ThreadPoolExecutor(1) as thread:
        # The SDK takes seconds to import, in which the weights load.
        loading = thread.submit(_load)
        sdk = _import_sdk()
        loading.result()
    sys.argv = [sys.argv[0], *sdk_arguments]
    sdk({"handler": chosen})


def _load() -> None:
    """Load the model before the first job: one that cannot be loaded ends the worker."""
    _MODEL.get().encode_query(_WARM_UP)


def _import_sdk() -> Callable[[dict[str, object]], None]:
    """Import the SDK, which reads its level of logging as it is imported.

    Raises:
        MissingExtraError: If it is not installed.
    """
    if "RUNPOD_DEBUG_LEVEL" not in os.environ:
        # Its default is to log every job's texts and vectors.
        os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
    try:
        from runpod.serverless import start
    except ImportError as error:
        raise MissingExtraError("RunPod's SDK", extra="runpod") from error
    start_worker: Callable[[dict[str, object]], None] = start
    return start_worker


if __name__ == "__main__":
    main()
