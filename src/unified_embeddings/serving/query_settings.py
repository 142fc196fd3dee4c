"""What the light endpoint is started with.

What lives here: its settings, and which model the command line and the environment name. What does
not: the process (`query_server`). Nothing heavy is imported before the model is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unified_embeddings.errors import InputError
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

if TYPE_CHECKING:
    from unified_embeddings.embedders.base import TextEmbedder

_CPU = ("", "auto", "cpu")
_NOT_FOR_TEXTS = ("model_choice", "image_model", "allow_urls", "revision")
"""Options that the light endpoint has no use for: the folder is the model, and has no revisions."""


@dataclass(frozen=True, kw_only=True)
class QuerySettings:
    """What the light endpoint is started with, besides its model.

    Attributes:
        host: The address to listen on; only this machine unless another is named.
        port: The port to listen on; 0 takes a free one.
        queue_size: The most requests that wait or are being answered; more get 429.
        max_body_bytes: The most bytes of a request's body.
        request_timeout: Seconds in which a request is answered, or fails.
        receive_timeout: Seconds in which a request's body must arrive.
        drain_timeout: Seconds that requests in hand get after SIGTERM; the default is below the 30
            after which Kubernetes kills.
        api_keys: Keys of which a request must bring one; none leaves the endpoint open.

    Raises:
        InputError: If a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    queue_size: int = 32
    max_body_bytes: int = 2**20
    request_timeout: float = 30.0
    receive_timeout: float = 10.0
    drain_timeout: float = 25.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        require_whole_number("port", self.port, least=0)
        for name in ("queue_size", "max_body_bytes"):
            require_whole_number(name, getattr(self, name))
        for name in ("request_timeout", "receive_timeout", "drain_timeout"):
            seconds = getattr(self, name)
            if not 0 < seconds < math.inf:
                raise InputError(f"{name} must be seconds > 0, got {seconds!r}")


def query_embedder(model: str | None, environ: Mapping[str, str]) -> Callable[[], TextEmbedder]:
    """Return what makes the light endpoint's embedder, after checking what can be checked at once.

    Args:
        model: A folder that `export-onnx` wrote; None takes UNIFIED_EMBEDDINGS_MODEL.
        environ: Variables: those of `UnifiedEmbeddingConfig.from_env`, QUANTIZATION, GPU_DEVICE.

    Raises:
        InputError: If they name no such folder, or something that this endpoint cannot do.
    """
    variable = environ.get("UNIFIED_EMBEDDINGS_MODEL", "").strip()
    folder = Path(model or variable).expanduser()
    if not (model or variable):
        raise InputError(
            "name the model: --model FOLDER, or UNIFIED_EMBEDDINGS_MODEL; make the folder with: "
            "unified-embeddings export-onnx bge-m3 FOLDER --precision int8"
        )
    if not (folder / "export.json").is_file():
        raise InputError(
            f"{folder} is not an exported model; make one with: unified-embeddings export-onnx "
            "bge-m3 FOLDER --precision int8"
        )
    _require_cpu(environ)

    def load() -> TextEmbedder:
        from unified_embeddings.config.environment import read_options
        from unified_embeddings.embedders.factory import make_embedder

        options = read_options(environ, {"engine": "onnx", "device": "cpu"})
        embedder = make_embedder(folder, **_for_embedder(options))
        for part in embedder.models:
            _ = part.runtime  # says now what the hardware or the file cannot do
        return embedder

    return load


def _require_cpu(environ: Mapping[str, str]) -> None:
    """Refuse variables that ask for something else than ONNX Runtime on the CPU.

    Raises:
        InputError: If there is one.
    """
    for name in ("GPU_DEVICE", "UNIFIED_EMBEDDINGS_DEVICE"):
        device = environ.get(name, "").strip()
        if device.lower() not in _CPU:
            raise InputError(
                f"{name}={device!r} names a GPU, and serve-query runs on the CPU; unset it, or "
                "run the big service: unified-embeddings serve"
            )
    engine = environ.get("UNIFIED_EMBEDDINGS_ENGINE", "").strip()
    if engine not in ("", "auto", "onnx"):
        raise InputError(
            f"UNIFIED_EMBEDDINGS_ENGINE={engine!r}, and serve-query has the engine 'onnx' only; "
            "unset it, or run the big service: unified-embeddings serve"
        )
    if environ.get("UNIFIED_EMBEDDINGS_SPARSE_MODEL", "").strip():
        raise InputError(
            "UNIFIED_EMBEDDINGS_SPARSE_MODEL names a second model, and serve-query runs one; "
            "unset it, or run the big service: unified-embeddings serve"
        )


def _for_embedder(options: Options) -> Options:
    """Return the options that concern texts."""
    return {name: value for name, value in options.items() if name not in _NOT_FOR_TEXTS}
