"""Options of a pipeline from environment variables: the only place that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.errors import InputError
from unified_embeddings.types import Options

PREFIX = "UNIFIED_EMBEDDINGS_"
_QUANTIZATIONS = ("fp32", "fp16", "int8")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def read_options(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Options:
    """Read the options of `UnifiedEmbeddingConfig`; see its `from_env` for the variables.

    Args:
        environ: The variables.
        overrides: Options that win over them; None counts as not given.

    Returns:
        The options that are set, by name.

    Raises:
        InputError: If a variable does not read as its option's type; it is named.
    """
    options: Options = {}
    for variable, (option, read) in _VARIABLES.items():
        text = environ.get(PREFIX + variable, "").strip()
        if text:
            options[option] = _read_variable(PREFIX + variable, text, read)
    quantization = environ.get("QUANTIZATION", "").strip()
    if quantization:
        options.setdefault("precision", _read_quantization(quantization))
    options.update(_read_query_backend(environ, overrides))
    for option, value in overrides.items():
        if value is not None:
            options[option] = value
    if "url" not in options and overrides.get("api_key") is None:
        options.pop("api_key", None)  # the variable is there for another program
    max_bytes, path = options.pop("cache_bytes", None), options.pop("cache_path", None)
    if "cache" not in options:
        if max_bytes is not None:
            options["cache"] = EmbeddingCache(max_bytes, path=path)
        elif path is not None:
            options["cache"] = EmbeddingCache(path=path)
    return options


def _read_query_backend(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Options:
    """Read what embeds queries; RunPod's variables count only where that is RunPod."""
    backend = environ.get("BACKEND_EMBED_QUERY", "").strip().lower()
    if overrides.get("query_backend") is not None:
        backend = overrides["query_backend"]
    if not backend:
        return {}
    options: Options = {"query_backend": backend}
    if backend == "runpod":
        for variable, option in _RUNPOD_VARIABLES.items():
            text = environ.get(variable, "").strip()
            if text:
                options[option] = text
    return options


def _read_variable(name: str, text: str, read: Callable[[str], object]) -> object:
    try:
        return read(text)
    except ValueError as error:
        raise InputError(f"{name}={text!r} is not usable: {error}") from None


def _read_quantization(text: str) -> str:
    if text.lower() not in _QUANTIZATIONS:
        raise InputError(f"QUANTIZATION={text!r} is not usable: expected fp32, fp16 or int8")
    return text.lower()


def _read_flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError("expected 1, 0, true, false, yes or no")
    return _FLAGS[text.lower()]


def _read_image_model(text: str) -> str | None:
    return None if text.lower() == "none" else text


_VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "MODEL": ("model_choice", str),
    "IMAGE_MODEL": ("image_model", _read_image_model),
    "SPARSE_MODEL": ("sparse_model", str),
    "KEYWORDS": ("keywords", str),
    "ALLOW_URLS": ("allow_urls", _read_flag),
    "ENGINE": ("engine", str),
    "PRECISION": ("precision", str),
    "DEVICE": ("device", str),
    "MAX_LENGTH": ("max_length", int),
    "BATCH_TOKENS": ("batch_tokens", int),
    "REVISION": ("revision", str),
    "LOCAL_FILES_ONLY": ("local_files_only", _read_flag),
    "TRUST_REMOTE_CODE": ("trust_remote_code", _read_flag),
    "CACHE_BYTES": ("cache_bytes", int),
    "CACHE_PATH": ("cache_path", str),
    "URL": ("url", str),
    "API_KEY": ("api_key", str),
}
"""Variable, without its prefix → option, and how its text is read."""

_RUNPOD_VARIABLES = {
    "RUNPOD_API_KEY": "runpod_api_key",
    "RUNPOD_QUERY_ENDPOINT_ID": "runpod_query_endpoint_id",
    "RUNPOD_ENDPOINT_BASE_URL": "runpod_url",
}
"""Variable, the last one as RunPod's own library has it → option."""
