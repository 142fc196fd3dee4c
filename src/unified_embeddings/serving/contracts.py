"""Two wire formats as data in, data out: all vectors of texts (`m3`), and a query's (`query`).

`m3` is the job of a GPU worker and the route `/v1/m3`: texts in, dense, sparse and ColBERT vectors
out. `query` is the light endpoint's: actions under "input", as RunPod wraps a job. What lives here:
checking a request, and building an answer of plain values that fit into JSON. What does not: HTTP,
RunPod's envelope, and embedding (`jobs`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from unified_embeddings.errors import InputError
from unified_embeddings.serving.json_fields import (
    check_whole_number,
    read_choice,
    read_flag,
    read_heads,
    read_text,
    read_texts,
    refuse_unknown,
    require_object,
)
from unified_embeddings.types import HEAD_NAMES, Embeddings, FloatArray, HeadName, Role

Json: TypeAlias = dict[str, object]
"""A JSON object made of plain Python values."""

Encoding: TypeAlias = Literal["float", "base64"]
ColbertType: TypeAlias = Literal["float16", "float32"]
Action: TypeAlias = Literal["embed_query", "embed_batch", "health_check"]

_ENCODINGS: tuple[Encoding, ...] = ("float", "base64")
_COLBERT_TYPES: tuple[ColbertType, ...] = ("float16", "float32")
_LITTLE_ENDIAN = {"float16": "<f2", "float32": "<f4"}
_M3_FIELDS = ("texts", "isPassage", "batchSize", "heads", "encoding", "colbert_dtype")
_ACTIONS: dict[Action, tuple[str, ...]] = {
    "embed_query": ("query", "queries", "heads"),
    "embed_batch": ("texts", "heads"),
    "health_check": (),
}
"""What each action takes besides its name."""


@dataclass(frozen=True)
class M3Request:
    """A checked request for all vectors of some texts.

    Attributes:
        texts: The texts; none are fine.
        role: Whether they are embedded as queries or as documents.
        heads: The vectors asked for, at least one.
        encoding: Dense and ColBERT vectors as lists of numbers, or as base64.
        colbert_dtype: The numbers of ColBERT vectors in base64.
    """

    texts: tuple[str, ...]
    role: Role = "query"
    heads: tuple[HeadName, ...] = HEAD_NAMES
    encoding: Encoding = "float"
    colbert_dtype: ColbertType = "float16"


@dataclass(frozen=True)
class Usage:
    """What a request cost.

    Attributes:
        prompt_tokens: Tokens of all texts, special tokens included, after cutting.
        truncated: How many texts were longer than the model takes, and cut.
    """

    prompt_tokens: int
    truncated: int = 0

    def to_json(self) -> Json:
        """Return the counts by the names that OpenAI gave them, and our own `truncated`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens,
            "truncated": self.truncated,
        }


@dataclass(frozen=True)
class QueryRequest:
    """A checked request of the query endpoint.

    Attributes:
        action: What is asked for. A health check has neither texts nor heads.
        texts: The texts to embed; none are fine where a list was sent.
        role: Whether they are embedded as queries or as documents.
        is_single: Whether a single text came, which is answered without a list.
        heads: The vectors asked for.
    """

    action: Action
    texts: tuple[str, ...] = ()
    role: Role = "query"
    is_single: bool = False
    heads: tuple[HeadName, ...] = ()

    @property
    def is_health_check(self) -> bool:
        """Tell whether nothing is to be embedded."""
        return self.action == "health_check"


def parse_m3(payload: object, available: Iterable[HeadName] = HEAD_NAMES) -> M3Request:
    """Check a request for all vectors of some texts.

    Args:
        payload: What came, parsed from JSON.
        available: The heads that the model gives.

    Raises:
        InputError: If it breaks the contract. The message names the field.

    Example:
        >>> from unified_embeddings.serving.contracts import parse_m3
        >>> parse_m3({"texts": ["Foxes jump."], "isPassage": True, "heads": ["dense"]}).role
        'document'
    """
    fields = require_object(payload, "the request")
    refuse_unknown(fields, _M3_FIELDS, "the request")
    check_whole_number(fields, "batchSize")  # accepted; the batches are formed by tokens
    encoding = read_choice(fields, "encoding", _ENCODINGS, default="float")
    exact: ColbertType = "float32" if encoding == "float" else "float16"
    colbert_dtype = read_choice(fields, "colbert_dtype", _COLBERT_TYPES, default=exact)
    if encoding == "float" and colbert_dtype == "float16":
        raise InputError(
            'colbert_dtype "float16" needs "encoding": "base64"; lists of numbers are float32'
        )
    return M3Request(
        texts=read_texts(fields, "texts"),
        role="document" if read_flag(fields, "isPassage", default=False) else "query",
        heads=read_heads(fields, available, default=HEAD_NAMES),
        encoding=encoding,
        colbert_dtype=colbert_dtype,
    )


def m3_answer(
    request: M3Request, embeddings: Embeddings, *, model: str, fingerprint: str, usage: Usage
) -> Json:
    """Return the answer to a request for all vectors.

    Args:
        request: The request.
        embeddings: The vectors of its texts, with the heads it asks for.
        model: The model's name.
        fingerprint: The embedder's fingerprint.
        usage: What it cost.

    Raises:
        ValueError: If the embeddings are not those of the request.
    """
    heads = _select_heads(embeddings, request.heads, len(request.texts))
    encode_dense, encode_colbert = _encoders(request)
    results: list[Json] = []
    for position, text in enumerate(request.texts):
        result: Json = {"text": text}
        if heads.dense is not None:
            result["dense"] = encode_dense(heads.dense[position])
        if heads.sparse is not None:
            result["sparse"] = heads.sparse[position].to_qdrant()
        if heads.colbert is not None:
            result["colbert"] = encode_colbert(heads.colbert[position])
        results.append(result)
    return {
        "results": results,
        "model": model,
        "fingerprint": fingerprint,
        "usage": usage.to_json(),
    }


def parse_query(payload: object, available: Iterable[HeadName] = HEAD_NAMES) -> QueryRequest:
    """Check a request of the query endpoint: `{"input": {...}}`; see `parse_query_input`."""
    fields = require_object(payload, "the request")
    if "input" not in fields:
        raise InputError('the request needs "input"; send {"input": {"query": "..."}}')
    refuse_unknown(fields, ("input",), "the request")
    return parse_query_input(fields["input"], available)


def parse_query_input(value: object, available: Iterable[HeadName] = HEAD_NAMES) -> QueryRequest:
    """Check what stands under "input" in a request of the query endpoint.

    Args:
        value: What came, parsed from JSON.
        available: The heads that the model gives.

    Raises:
        InputError: If it breaks the contract. The message names the field.

    Example:
        >>> from unified_embeddings.serving.contracts import parse_query_input
        >>> parse_query_input({"query": "Where is the fox?"})
        QueryRequest(action='embed_query', texts=('Where is the fox?',), role='query',
        is_single=True, heads=('dense',))
    """
    fields = require_object(value, "input")
    action = read_choice(fields, "action", tuple(_ACTIONS), default="embed_query")
    owner = f'the action "{action}"'
    if action == "embed_query" and "texts" in fields:
        raise InputError(f'{owner} takes query or queries; texts need "action": "embed_batch"')
    refuse_unknown(fields, ("action", *_ACTIONS[action]), owner)
    if action == "health_check":
        return QueryRequest(action)
    heads = read_heads(fields, available, default=("dense",))
    if action == "embed_batch":
        return QueryRequest(action, read_texts(fields, "texts"), role="document", heads=heads)
    if "query" in fields and "queries" in fields:
        raise InputError("input holds both query and queries; send one of them")
    if "queries" in fields:
        return QueryRequest(action, read_texts(fields, "queries"), heads=heads)
    if "query" not in fields:
        raise InputError(f"{owner} needs query (a string) or queries (a list of strings)")
    query = read_text(fields["query"], "query")
    return QueryRequest(action, (query,), is_single=True, heads=heads)


def query_answer(request: QueryRequest, embeddings: Embeddings) -> Json:
    """Return the answer of the query endpoint to a request for vectors.

    Args:
        request: The request; no health check.
        embeddings: The vectors of its texts, with the heads it asks for.

    Raises:
        ValueError: If the embeddings are not those of the request.
    """
    heads = _select_heads(embeddings, request.heads, len(request.texts))
    answer: Json = {}
    if heads.dense is not None:
        rows = heads.dense.tolist()
        if request.is_single:
            answer["embedding"] = rows[0]
        else:
            answer["embeddings"] = rows
    if heads.sparse is not None:
        sparse = [vector.to_qdrant() for vector in heads.sparse]
        answer["sparse"] = sparse[0] if request.is_single else sparse
    if heads.colbert is not None:
        colbert = [rows.tolist() for rows in heads.colbert]
        answer["colbert"] = colbert[0] if request.is_single else colbert
    return answer


def health_answer(engine: str, device: str) -> Json:
    """Return the answer to a health check, with what the model really runs on."""
    return {"status": "ok", "endpoint": "query", "runtime": f"{engine}-{device}"}


def _select_heads(embeddings: Embeddings, heads: tuple[HeadName, ...], count: int) -> Embeddings:
    """Return the embeddings with the heads asked for and no others.

    Raises:
        ValueError: If one is absent, or they are those of another number of texts.
    """
    if len(embeddings) != count:
        raise ValueError(f"expected the vectors of {count} texts, got {len(embeddings)}")
    absent = [head for head in heads if head not in set(embeddings)]
    if absent:
        raise ValueError(f"{', '.join(absent)} was asked for, and is not among the embeddings")
    return Embeddings(
        dense=embeddings.dense if "dense" in heads else None,
        sparse=embeddings.sparse if "sparse" in heads else None,
        colbert=embeddings.colbert if "colbert" in heads else None,
    )


def _encoders(
    request: M3Request,
) -> tuple[Callable[[FloatArray], object], Callable[[FloatArray], object]]:
    """Return what turns dense vectors, and ColBERT vectors, into JSON."""
    if request.encoding == "float":
        return np.ndarray.tolist, np.ndarray.tolist

    def encode_colbert(rows: FloatArray) -> Json:
        return {
            "shape": list(rows.shape),
            "dtype": request.colbert_dtype,
            "data": to_base64(rows, request.colbert_dtype),
        }

    return to_base64, encode_colbert


def to_base64(array: FloatArray, dtype: ColbertType = "float32") -> str:
    """Return an array's numbers, row by row and little-endian, as base64."""
    return base64.b64encode(array.astype(_LITTLE_ENDIAN[dtype]).tobytes()).decode("ascii")
