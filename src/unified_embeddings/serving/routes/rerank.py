"""Reranking as Jina, Cohere and vLLM have it: a query, documents, the best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import Field

from unified_embeddings.serving.refusals import Documents
from unified_embeddings.serving.schemas import (
    AnyText,
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    write_json,
)
from unified_embeddings.serving.service import EmbeddingService

router = APIRouter(route_class=StrictRoute, tags=["Rerank: Jina, Cohere, vLLM"])


class DocumentText(Strict):
    """A document in an answer."""

    text: AnyText


class RerankRequest(Strict):
    """A query and the documents to rank."""

    model: AnyText | None = None
    query: AnyText
    documents: Documents
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = False


class RerankResult(Strict):
    """One document's place."""

    index: int
    relevance_score: float
    document: DocumentText | None = None


class RerankUsage(Strict):
    """What it cost."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(Strict):
    """The documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: RerankUsage
    meta: dict[str, Any]


_EXAMPLE = {
    "model": "bge-m3",
    "query": "Who jumps?",
    "documents": ["Dogs sleep.", "Foxes jump."],
    "top_n": 1,
}


async def rerank(
    request: Request, body: Annotated[RerankRequest, Body(examples=[_EXAMPLE])]
) -> Response:
    """Rank documents by ColBERT's late interaction with a query; best first.

    A score is the mean over the query's tokens of their best cosine similarity, -1 to 1.
    """
    service = service_of(request)
    service.require_model(body.model)
    return await answer_documents(
        service, body.query, body.documents, body.top_n, return_documents=body.return_documents
    )


for _version in ("v1", "v2"):
    router.add_api_route(
        f"/{_version}/rerank",
        rerank,
        methods=["POST"],
        response_model=RerankAnswer,
        responses=error_responses("rerank", 404),
        operation_id=f"rerank_{_version}",
    )


async def answer_documents(
    service: EmbeddingService,
    query: str,
    documents: Sequence[str],
    top_n: int | None,
    *,
    return_documents: bool,
) -> Response:
    """Rank documents and write the answer that Jina's, Cohere's and vLLM's clients read."""
    scores, answer = await service.rerank(query, documents)
    results: list[dict[str, object]] = []
    for index in rank(scores, top_n):
        result: dict[str, object] = {"index": index, "relevance_score": scores[index]}
        if return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    content = {
        "id": "rerank",
        "object": "list",
        "model": service.names[0],
        "results": results,
        "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
    }
    return write_json(content, answer)


def rank(scores: Sequence[float], top_n: int | None) -> list[int]:
    """Return the positions of the best scores, best first, equal ones in the order given."""
    positions = sorted(range(len(scores)), key=lambda index: -scores[index])
    return positions if top_n is None else positions[:top_n]
