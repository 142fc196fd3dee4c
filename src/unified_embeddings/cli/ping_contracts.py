"""The contracts that `ping` tries: what each is asked, and whether its answer is right.

What lives here: requests and checks as data. What does not: sending them (`ping`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from unified_embeddings.embedders.remote_answers import (
    BadAnswerError,
    ServiceInfo,
    read_dense,
    read_info,
    read_sparse,
    read_vectors,
)
from unified_embeddings.errors import ServiceError
from unified_embeddings.types import FloatArray, SparseVector

if TYPE_CHECKING:
    import httpx

TEXT = "Foxes jump over lazy dogs."
_OTHER = "The sea is calm tonight."
_TOLERANCE = 1e-6


class Disagreement(Exception):  # noqa: N818 — not an error of this program
    """What is wrong with an answer."""


@dataclass(frozen=True)
class Reference:
    """What every contract has to agree with, from `/info` and `/v1/m3`.

    Attributes:
        info: What the service says of its model.
        dense: The text's vector as a document and as a query: two where the model has prefixes.
        sparse: Its sparse vector as a document; None where the model gives none.
    """

    info: ServiceInfo
    dense: tuple[FloatArray, ...] = ()
    sparse: SparseVector | None = None


Check = Callable[[object, Reference], str]
"""Returns what came in a few words, or raises Disagreement."""


@dataclass(frozen=True)
class Contract:
    """One request, and the check of its answer.

    Attributes:
        name: Whose contract it is, or which of several on one path; at most 18 characters.
        method: GET or POST.
        path: Its path.
        check: Checks the answer.
        body: What is sent.
        is_text: Whether the answer is text and not JSON.
    """

    name: str
    method: str
    path: str
    check: Check
    body: Mapping[str, object] | None = field(default=None)
    is_text: bool = False


def read_reference(info: object, client: httpx.Client) -> Reference:
    """Return what the service says of itself, and the vectors that the others must equal.

    Where `/v1/m3` fails there are no vectors; its own line in the table says why.

    Raises:
        ServiceError: If `/info` is not that of a service of ours.
    """
    try:
        description = read_info(info)
    except BadAnswerError as error:
        raise ServiceError(str(client.base_url).rstrip("/"), "GET /info", str(error)) from error
    heads = [head for head in description.heads if head != "colbert"]
    vectors = []
    for is_passage in (True, False):
        body = {"texts": [TEXT], "isPassage": is_passage, "heads": heads, "encoding": "base64"}
        response = client.post("/v1/m3", json=body)
        try:
            data = response.json()
            vectors += read_vectors(data, [TEXT], frozenset(heads), description.dimension)
        except (ValueError, BadAnswerError):
            return Reference(description)
    dense = tuple(np.asarray(found["dense"]) for found in vectors if "dense" in found)
    sparse = vectors[0].get("sparse")
    return Reference(description, dense, sparse if isinstance(sparse, SparseVector) else None)


def contracts(reference: Reference) -> list[Contract]:
    """Return the contracts that a service with this model has, in the order of the table."""
    info = reference.info
    model = info.model
    listed = [
        Contract("health", "GET", "/health", _says_something),
        Contract("ready", "GET", "/ready", _says_something),
        Contract("TEI", "GET", "/info", _check_info),
        Contract("metrics", "GET", "/metrics", _check_metrics, is_text=True),
        Contract("OpenAI", "GET", "/v1/models", _check_models),
        Contract("Ollama", "GET", "/api/tags", _check_tags),
        Contract("Ollama", "GET", "/api/version", _says_something),
    ]
    tokenize = {"inputs": TEXT, "add_special_tokens": False}
    listed.append(Contract("TEI", "POST", "/tokenize", _check_tokens, tokenize))
    m3 = {"texts": [TEXT], "isPassage": True, "heads": list(info.heads), "encoding": "base64"}
    if "colbert" in info.heads:
        m3["colbert_dtype"] = "float32"
    listed.append(Contract("all heads", "POST", "/v1/m3", _check_m3, m3))
    if "dense" in info.heads:
        listed += _dense_contracts(model)
    if "sparse" in info.heads:
        body = {"inputs": TEXT}
        listed.append(Contract("TEI", "POST", "/embed_sparse", _check_sparse, body))
    if "colbert" in info.heads:
        listed += _colbert_contracts(model)
    return listed


def _dense_contracts(model: str) -> list[Contract]:
    """Return the contracts that give a dense vector."""
    documents = {"input": {"action": "embed_batch", "texts": [TEXT]}}
    return [
        Contract('{"text": ...}', "POST", "/embed", _dense_at("embedding"), {"text": TEXT}),
        Contract("TEI", "POST", "/embed", _dense_at(0), {"inputs": TEXT}),
        Contract(
            "OpenAI",
            "POST",
            "/v1/embeddings",
            _dense_at("data", 0, "embedding"),
            {"model": model, "input": TEXT},
        ),
        Contract(
            "Ollama",
            "POST",
            "/api/embed",
            _dense_at("embeddings", 0),
            {"model": model, "input": TEXT},
        ),
        Contract(
            "Ollama, older",
            "POST",
            "/api/embeddings",
            _dense_at("embedding"),
            {"model": model, "prompt": TEXT},
        ),
        Contract(
            "embed_query",
            "POST",
            "/query",
            _dense_at("embedding"),
            {"input": {"action": "embed_query", "query": TEXT}},
        ),
        Contract("embed_batch", "POST", "/query", _dense_at("embeddings", 0), documents),
    ]


def _colbert_contracts(model: str) -> list[Contract]:
    """Return the contracts that give or compare ColBERT vectors."""
    return [
        Contract("TEI", "POST", "/embed_all", _check_rows, {"inputs": TEXT}),
        Contract(
            "TEI",
            "POST",
            "/rerank",
            _ranks_at((), "score"),
            {"query": TEXT, "texts": [_OTHER, TEXT]},
        ),
        Contract(
            "Jina, Cohere, vLLM",
            "POST",
            "/v1/rerank",
            _ranks_at(("results",), "relevance_score"),
            {"model": model, "query": TEXT, "documents": [_OTHER, TEXT], "top_n": 2},
        ),
    ]


# --- checks -------------------------------------------------------------------------------------


def _says_something(data: object, reference: Reference) -> str:
    del reference
    if not isinstance(data, dict):
        raise Disagreement(f"expected a JSON object, got {data!r:.80}")
    return ", ".join(f"{name} {value}" for name, value in data.items() if value) or "ok"


def _check_info(data: object, reference: Reference) -> str:
    del data  # read before anything else
    info = reference.info
    runs_on = f"{info.engine}, {info.precision}, {info.device}"
    return f"{info.model}: {', '.join(info.heads)}; {info.dimension} numbers; {runs_on}"


def _check_metrics(data: object, reference: Reference) -> str:
    del reference
    lines = [line for line in str(data).splitlines() if line and not line.startswith("#")]
    if not lines or any(len(line.split()) < 2 for line in lines):
        raise Disagreement("expected metrics in Prometheus's text format")
    return f"{len(lines)} values"


def _check_models(data: object, reference: Reference) -> str:
    del reference
    names = [_at(item, "id") for item in _list(_at(data, "data"))]
    if not names:
        raise Disagreement("it lists no model")
    return ", ".join(map(str, names))


def _check_tags(data: object, reference: Reference) -> str:
    del reference
    names = [_at(item, "name") for item in _list(_at(data, "models"))]
    if not names:
        raise Disagreement("it lists no model")
    return ", ".join(map(str, names))


def _check_tokens(data: object, reference: Reference) -> str:
    del reference
    ids = [_at(token, "id") for token in _list(_at(data, 0))]
    if not ids or not all(isinstance(token_id, int) for token_id in ids):
        raise Disagreement(f"expected tokens with ids, got {data!r:.80}")
    return f"{len(ids)} tokens"


def _check_m3(data: object, reference: Reference) -> str:
    info = reference.info
    try:
        (vectors,) = read_vectors(data, [TEXT], frozenset(info.heads), info.dimension)
    except BadAnswerError as error:
        raise Disagreement(str(error)) from error
    if _at(data, "fingerprint") != info.fingerprint:
        raise Disagreement("its fingerprint is not that of /info")
    return ", ".join(sorted(vectors))


def _dense_at(*path: str | int) -> Check:
    """Return the check of a dense vector at a place in the answer."""

    def check(data: object, reference: Reference) -> str:
        value = data
        for step in path:
            value = _at(value, step)
        try:
            vector = read_dense(value, reference.info.dimension)
        except BadAnswerError as error:
            raise Disagreement(str(error)) from error
        if not reference.dense:
            raise Disagreement("there is nothing to compare with: /v1/m3 failed")
        differences = [float(np.abs(vector - known).max()) for known in reference.dense]
        if min(differences) > _TOLERANCE:
            raise Disagreement(f"differs from the vector of /v1/m3 by {min(differences):.1e}")
        return f"{len(vector)} numbers, the same"

    return check


def _check_sparse(data: object, reference: Reference) -> str:
    pairs = _list(_at(data, 0))
    indices = [_at(pair, "index") for pair in pairs]
    values = [_at(pair, "value") for pair in pairs]
    try:
        vector = read_sparse({"indices": indices, "values": values})
    except BadAnswerError as error:
        raise Disagreement(str(error)) from error
    known = reference.sparse
    if known is None:
        raise Disagreement("there is nothing to compare with: /v1/m3 failed")
    if vector.indices.tolist() != known.indices.tolist():
        raise Disagreement("its tokens are not those of /v1/m3")
    difference = float(np.abs(vector.values - known.values).max(initial=0))
    if difference > _TOLERANCE:
        raise Disagreement(f"differs from the vector of /v1/m3 by {difference:.1e}")
    return f"{len(vector)} weights, the same"


def _check_rows(data: object, reference: Reference) -> str:
    del reference
    try:
        rows = np.array(_at(data, 0), dtype=np.float32)
    except (TypeError, ValueError):
        raise Disagreement("expected one vector for each token") from None
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise Disagreement(f"expected one vector for each token, got shape {rows.shape}")
    return f"{rows.shape[0]} x {rows.shape[1]} numbers"


def _ranks_at(path: tuple[str, ...], score: str) -> Check:
    """Return the check of a ranking, in which the text itself has to be before the other one."""

    def check(data: object, reference: Reference) -> str:
        del reference
        value = data
        for step in path:
            value = _at(value, step)
        ranks = _list(value)
        if [_at(rank, "index") for rank in ranks] != [1, 0]:
            raise Disagreement("the query's own text is not ranked before another")
        return f"scores {_at(ranks[0], score):.3f}, {_at(ranks[1], score):.3f}"

    return check


def _at(value: object, step: str | int) -> object:
    """Return a part of an answer."""
    if isinstance(value, dict) and step in value:
        return value[step]
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    raise Disagreement(f"expected {step!r} in {value!r:.80}")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise Disagreement(f"expected a list, got {value!r:.80}")
    return value
