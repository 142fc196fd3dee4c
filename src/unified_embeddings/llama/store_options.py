"""Checks of what a store is opened with, before anything is opened.

What lives here: the types and the meaning of `vector_store`'s arguments. What does not: their names
and the advice on other ones (`stock_arguments`), and what Qdrant refuses.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError
from qdrant_client import AsyncQdrantClient
from qdrant_client import models as qm
from qdrant_client.local.async_qdrant_local import AsyncQdrantLocal

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.stock_arguments import StoreOptions
from unified_embeddings.stores.schema import VectorNames
from unified_embeddings.stores.stored_colbert import ColbertName, StoredColbert, require_colbert
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

_INDEX_KEYS = {"field_name", "field_schema"}


def check_place(
    *, url: object, path: object, client: object, aclient: object, api_key: object
) -> None:
    """Reject anything but one place to open.

    Raises:
        InputError: If not exactly one is given, or one has the wrong type.
    """
    if len([place for place in (url, path, client) if place is not None]) != 1:
        raise InputError("give exactly one of url=, path= and client=")
    if isinstance(client, AsyncQdrantClient):
        raise InputError("client= takes a QdrantClient; give an AsyncQdrantClient as aclient= too")
    if client is not None and not callable(getattr(client, "collection_exists", None)):
        raise InputError(f"client= takes a QdrantClient, got {client!r:.80}")
    if aclient is not None:
        _check_async_client(aclient, path)
    if url is not None and (not isinstance(url, str) or not url.strip()):
        raise InputError(f"url= takes the address of a server, got {url!r:.80}")
    if not isinstance(api_key, str | None):
        raise InputError(f"api_key= takes a text, got {type(api_key).__name__}")
    if path == ":memory:":
        raise InputError('path= takes a folder; for memory give client=QdrantClient(":memory:")')


def resolve_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder's absolute path.

    Raises:
        InputError: If it is not a path, or one that cannot be.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        raise InputError(f"path= takes a folder, got {path!r:.80}")
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"path= takes a folder, got {path!r:.80}: {error}") from error


def check_collection_name(name: object) -> None:
    """Reject a blank name.

    Raises:
        InputError: If it is not a text, or blank.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a collection needs a name, got {name!r:.80}")


def check_embedder(embedder: TextEmbedder) -> None:
    """Reject an embedder without the vectors that every collection has.

    Raises:
        InputError: If it gives no dense vectors.
    """
    if "dense" not in embedder.heads:
        raise InputError(
            f"{embedder.model_name!r} gives no dense vectors, which a collection needs; set it as "
            "the sparse_model of a dense one"
        )


def read_options(options: Mapping[str, Any]) -> Options:
    """Return the options that are given, with dicts as Qdrant's models and Python's numbers.

    Raises:
        InputError: If an option has the wrong type.
    """
    given: Options = {}
    for name, value in options.items():
        if value is not None and name != "colbert":
            given[name] = _read_option(name, value)
    if options.get("colbert") is not None:
        given["colbert"] = require_colbert(options["colbert"])
    for name in ("batch_size", "parallel", "max_retries"):
        if name in given:
            given[name] = require_whole_number(name, options[name])
    for index in given.get("payload_indexes", ()):
        if set(index) != _INDEX_KEYS:
            raise InputError(
                "payload_indexes= takes a list of {'field_name': ..., 'field_schema': ...}, got "
                f"{index!r:.80}"
            )
    return given


def check_meaning(given: Mapping[str, Any], embedder: TextEmbedder, url: str | None) -> None:
    """Reject options of the stock store that would mean something else here.

    Raises:
        InputError: If there is one.
    """
    if "client_kwargs" in given and url is None:
        raise InputError("client_kwargs= is for the client that is made for url=")
    if "colbert" in given and "colbert" not in embedder.heads:
        raise InputError(
            f"colbert= needs ColBERT vectors, which {embedder.model_name!r} does not give; leave "
            "it out, or take a model that gives them (bge-m3, mini-m3)"
        )
    if not given.get("index_doc_id", True):
        raise InputError("index_doc_id=False is not possible: documents are deleted through it")


def check_hybrid(given: Mapping[str, Any], embedder: TextEmbedder, names: VectorNames) -> None:
    """Reject an `enable_hybrid` that is not what the collection is opened for.

    Raises:
        InputError: If it is not.
    """
    is_hybrid = names.sparse is not None
    if given.get("enable_hybrid", is_hybrid) == is_hybrid:
        return
    if is_hybrid:
        raise InputError(
            "enable_hybrid=False is not possible: the model gives sparse vectors, and the "
            "collection stores them; search with retriever(mode='dense') instead"
        )
    if names.why_no_sparse:
        raise InputError(f"enable_hybrid=True is not possible: of vectors, {names.why_no_sparse}")
    raise InputError(
        f"enable_hybrid=True needs sparse vectors, which {embedder.model_name!r} does not "
        "give; set UnifiedEmbeddingConfig(sparse_model=...)"
    )


def select_options(given: Mapping[str, Any], kind: type) -> Options:
    """Return those of the options that a TypedDict has."""
    return {name: value for name, value in given.items() if name in kind.__annotations__}


def _read_option(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return _adapters()[name].validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[-1]["msg"]
        raise InputError(f"{name}= cannot be {value!r:.80}: {problem}") from error


@cache
def _adapters() -> dict[str, TypeAdapter[Any]]:
    names = {"qm": qm, "StoredColbert": StoredColbert, "ColbertName": ColbertName}
    hints = get_type_hints(StoreOptions, localns=names)
    return {name: TypeAdapter(hint) for name, hint in hints.items()}


def _check_async_client(aclient: object, path: object) -> None:
    """Reject what is no async client, and one that is not of the same place."""
    if not inspect.iscoroutinefunction(getattr(aclient, "get_collection", None)):
        raise InputError(f"aclient= takes an AsyncQdrantClient, got {aclient!r:.80}")
    if path is not None or isinstance(getattr(aclient, "_client", None), AsyncQdrantLocal):
        raise InputError(
            "leave aclient= out: an AsyncQdrantClient in local mode shares no data with another "
            "client, and a store over a folder or in memory needs none"
        )
