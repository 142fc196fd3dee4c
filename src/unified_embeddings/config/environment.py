"""Options of a pipeline from environment variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unified_embeddings.errors import InputError

_PREFIX = "UNIFIED_EMBEDDINGS_"


def _quantization(text: str) -> str:
    if text.lower() not in ("fp32", "fp16", "int8"):
        raise InputError(f"QUANTIZATION={text!r} is not usable: expected fp32, fp16 or int8")
    return text.lower()


def _flag(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in known:
        raise ValueError("expected 1, 0, true, false, yes or no")
    return known[text.lower()]


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MODEL": ("model_choice", str),
    "IMAGE_MODEL": ("image_model", lambda text: None if text.lower() == "none" else text),
    "SPARSE_MODEL": ("sparse_model", str),
    "ALLOW_URLS": ("allow_urls", _flag),
    "ENGINE": ("engine", str),
    "PRECISION": ("precision", str),
    "DEVICE": ("device", str),
    "MAX_LENGTH": ("max_length", int),
    "BATCH_TOKENS": ("batch_tokens", int),
    "REVISION": ("revision", str),
    "LOCAL_FILES_ONLY": ("local_files_only", _flag),
    "TRUST_REMOTE_CODE": ("trust_remote_code", _flag),
    "CACHE_BYTES": ("cache_bytes", int),
    "CACHE_PATH": ("path", str),
}


def _read(environ: Mapping[str, str], variable: str, reader: Callable[[str], Any]) -> Any:
    text = environ[_PREFIX + variable].strip()
    try:
        return reader(text)
    except ValueError as error:
        raise InputError(f"{_PREFIX}{variable}={text!r} is not usable: {error}") from None
