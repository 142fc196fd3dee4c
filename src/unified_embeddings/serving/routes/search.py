"""Passages of a configured collection: what answers a query, and where each ranking has it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request, Response
from pydantic import Field

from unified_embeddings.serving.envelopes import Problem, RequestError
from unified_embeddings.serving.schemas import (
    AnyText,
    ListOf,
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    write_json,
)
from unified_embeddings.serving.searching import Search
from unified_embeddings.types import HeadName

router = APIRouter(route_class=StrictRoute, tags=["Search"])

_MOST_PASSAGES = 1000
_MOST_CONDITIONS = 100


class Condition(Strict):
    """A condition on a passage's metadata, with LlamaIndex's operators."""

    key: AnyText
    value: Any = None
    operator: AnyText = "=="


class SearchRequest(Strict):
    """A question to the collection."""

    query: AnyText
    top_k: Annotated[int, Field(ge=1, le=_MOST_PASSAGES)] = 5
    mode: Literal["hybrid", "dense", "sparse"] | None = Field(
        default=None, description="Left out, all that the model gives."
    )
    rerank: bool = Field(default=False, description="Whether to rerank with ColBERT.")
    filters: Annotated[ListOf[Condition], Field(max_length=_MOST_CONDITIONS)] = Field(
        default=[], description="All of them must hold."
    )


class Ranks(Strict):
    """A passage's place in each list, counted from 1; null where it is not among the candidates."""

    dense: int | None = None
    sparse: int | None = None
    bm25: int | None = Field(
        default=None, description="Only of a collection with a keyword list that was searched."
    )


class Passage(Strict):
    """One passage."""

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    ranks: Ranks


class SearchAnswer(Strict):
    """The passages, best first."""

    collection: str
    results: list[Passage]


@router.post("/search", response_model=SearchAnswer, responses=error_responses("tei", 404, 502))
async def search(
    request: Request,
    body: Annotated[SearchRequest, Body(examples=[{"query": "Who jumps?", "top_k": 3}])],
) -> Response:
    """Find the passages that best answer a query, with their ranks in each list."""
    service = service_of(request)
    collection = service.settings.collection
    if collection is None:
        message = (
            "no collection is served here; start the service with --collection, and --path or --url"
        )
        raise RequestError(Problem(404, message, tei_kind="NotFound"))
    service.require_ready()
    searching: Search = request.app.state.search
    # The question takes its turn in the queue; the retriever then finds its vectors in the cache.
    given_heads: tuple[HeadName, ...] = tuple(
        head for head in service.embedder.heads if head != "colbert" or body.rerank
    )
    answer = await service.embed([body.query], role="query", heads=given_heads)
    conditions = [condition.model_dump() for condition in body.filters]
    finding = asyncio.to_thread(
        searching.find,
        body.query,
        top_k=body.top_k,
        mode=body.mode,
        rerank=body.rerank,
        conditions=conditions,
    )
    passages = await service.in_time(finding)
    return write_json({"collection": collection, "results": passages}, answer)
