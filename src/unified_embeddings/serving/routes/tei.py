"""The contract of text-embeddings-inference, and that of one text, which shares its path.

`POST /embed` takes TEI's `{"inputs": …}` and answers with a bare list, or this package's
`{"text": …}` and answers with `{"embedding": […]}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Body, Request, Response
from pydantic import Discriminator, Field, Tag

from unified_embeddings.embedders.values import Piece
from unified_embeddings.errors import InputError
from unified_embeddings.serving.refusals import (
    RERANK_BODY,
    SIMILARITY_BODY,
    TEI_BODY,
    TEXT_BODY,
    Inputs,
    InputValue,
    Texts,
)
from unified_embeddings.serving.routes.rerank import (
    RerankAnswer,
    RerankRequest,
    answer_documents,
    rank,
)
from unified_embeddings.serving.schemas import (
    AnyText,
    ListOf,
    Strict,
    StrictRoute,
    error_responses,
    service_of,
    shorten,
    write_json,
    write_many,
)
from unified_embeddings.serving.service import Answer, EmbeddingService, EmptyError
from unified_embeddings.types import HeadName, Role, SparseVector, Text

router = APIRouter(route_class=StrictRoute, tags=["TEI"])

_TOKENS_AT_A_TIME = 4096

PromptName = Literal["query", "passage", "document"]


class TextRequest(Strict):
    """Document 001's request."""

    text: AnyText = Field(examples=["Foxes jump over lazy dogs."])


class TextAnswer(Strict):
    """Document 001's answer."""

    embedding: list[float]


class InputsRequest(Strict):
    """What TEI's routes of vectors have in common."""

    inputs: Inputs = Field(description="One text or several, or their token ids.")
    truncate: bool | None = Field(
        default=None, description="Whether to cut a text that is too long, or to refuse it."
    )
    truncation_direction: Literal["right", "Right"] | None = None
    prompt_name: PromptName | None = Field(
        default=None, description="query puts the model's query prefix before each text."
    )


class EmbedRequest(InputsRequest):
    """TEI's request for dense vectors."""

    normalize: bool = True
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Keep only so many numbers, at unit length again."
    )


class SparseValue(Strict):
    """The weight of one token."""

    index: int
    value: float


class SimilarityInputs(Strict):
    """A sentence and those it is compared with."""

    source_sentence: AnyText
    sentences: ListOf[AnyText]


class SimilarityRequest(Strict):
    """TEI's request to compare sentences."""

    inputs: SimilarityInputs


class TokenizeRequest(Strict):
    """TEI's request for tokens."""

    inputs: Texts
    add_special_tokens: bool = True


class Token(Strict):
    """One token; the positions are not told."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class RankRequest(Strict):
    """TEI's request to rerank."""

    query: AnyText
    texts: ListOf[AnyText]
    top_n: Annotated[int, Field(ge=0)] | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class Rank(Strict):
    """One text's place."""

    index: int
    score: float
    text: str | None = None


def _kind_of_embed(value: Any) -> str:
    """Tell TEI's body from the one with `text`."""
    if isinstance(value, dict):
        is_text = "text" in value and "inputs" not in value
    else:
        is_text = isinstance(value, TextRequest)
    return TEXT_BODY if is_text else TEI_BODY


def _kind_of_any(value: Any) -> str:
    """Tell the bodies of `/embed` from that of `/similarity`, whose inputs are an object."""
    is_comparison = isinstance(value, SimilarityRequest)
    if isinstance(value, dict):
        is_comparison = isinstance(value.get("inputs"), dict)
    return SIMILARITY_BODY if is_comparison else _kind_of_embed(value)


def _kind_of_rank(value: Any) -> str:
    """Tell TEI's body from vLLM's, which comes to the same path."""
    is_vllms = isinstance(value, RerankRequest)
    if isinstance(value, dict):
        is_vllms = "documents" in value and "texts" not in value
    return RERANK_BODY if is_vllms else TEI_BODY


EitherRequest = Annotated[
    Annotated[EmbedRequest, Tag(TEI_BODY)] | Annotated[TextRequest, Tag(TEXT_BODY)],
    Discriminator(_kind_of_embed),
]
AnyRequest = Annotated[
    Annotated[EmbedRequest, Tag(TEI_BODY)]
    | Annotated[TextRequest, Tag(TEXT_BODY)]
    | Annotated[SimilarityRequest, Tag(SIMILARITY_BODY)],
    Discriminator(_kind_of_any),
]
EitherRank = Annotated[
    Annotated[RankRequest, Tag(TEI_BODY)] | Annotated[RerankRequest, Tag(RERANK_BODY)],
    Discriminator(_kind_of_rank),
]
_COMPARISON = {"inputs": {"source_sentence": "Foxes jump.", "sentences": ["A fox leaps."]}}
_EMBED_EXAMPLES: dict[str, Any] = {
    "TEI": {"value": {"inputs": ["Foxes jump.", "Dogs sleep."], "truncate": True}},
    "Document 001": {"value": {"text": "Foxes jump."}},
}
_RANK_EXAMPLES: dict[str, Any] = {
    "TEI": {"value": {"query": "Who jumps?", "texts": ["Foxes jump.", "Dogs sleep."]}},
    "vLLM": {"value": {"query": "Who jumps?", "documents": ["Foxes jump."], "top_n": 1}},
}
_ROOT_EXAMPLES = {**_EMBED_EXAMPLES, "Similarity": {"value": _COMPARISON}}


async def embed(
    request: Request, body: Annotated[EitherRequest, Body(openapi_examples=_EMBED_EXAMPLES)]
) -> Response:
    """Embed texts as dense vectors."""
    return await _answer_embed(service_of(request), body)


async def _answer_embed(service: EmbeddingService, body: EmbedRequest | TextRequest) -> Response:
    if isinstance(body, TextRequest):
        answer = await service.embed([body.text], role="document", heads=("dense",))
        assert answer.embeddings.dense is not None
        return write_json({"embedding": answer.embeddings.dense[0]}, answer)
    if not body.normalize:
        raise InputError(
            "normalize=false is not offered: the vectors come at unit length, as the model's card "
            "asks for; leave normalize out"
        )
    answer = await _embed(service, body, ("dense",))
    assert answer.embeddings.dense is not None
    return write_json(shorten(answer.embeddings.dense, body.dimensions), answer)


router.add_api_route(
    "/embed",
    embed,
    methods=["POST"],
    response_model=list[list[float]] | TextAnswer,
    responses=error_responses("tei", 400),
)


@router.post(
    "/",
    response_model=list[list[float]] | TextAnswer | list[float],
    responses=error_responses("tei", 400),
)
async def embed_or_compare(
    request: Request, body: Annotated[AnyRequest, Body(openapi_examples=_ROOT_EXAMPLES)]
) -> Response:
    """Embed texts, or compare sentences: what `InferenceClient` sends to a bare address."""
    service = service_of(request)
    if isinstance(body, SimilarityRequest):
        return await _answer_similarity(service, body)
    return await _answer_embed(service, body)


@router.post(
    "/embed_sparse", response_model=list[list[SparseValue]], responses=error_responses("tei", 400)
)
async def embed_sparse(
    request: Request,
    body: Annotated[InputsRequest, Body(examples=[{"inputs": ["Foxes jump."]}])],
) -> Response:
    """Embed texts as sparse vectors: the weight of each token."""
    answer = await _embed(service_of(request), body, ("sparse",))
    vectors = answer.embeddings.sparse or []
    return await write_many(
        lambda: [_list_weights(vector) for vector in vectors], answer, tokens=answer.tokens
    )


@router.post(
    "/embed_all", response_model=list[list[list[float]]], responses=error_responses("tei", 400)
)
async def embed_all(
    request: Request,
    body: Annotated[InputsRequest, Body(examples=[{"inputs": ["Foxes jump."]}])],
) -> Response:
    """Embed texts as ColBERT vectors: one for each token but the leading special one."""
    answer = await _embed(service_of(request), body, ("colbert",))
    return await write_many(lambda: answer.embeddings.colbert, answer, tokens=answer.tokens)


@router.post(
    "/rerank", response_model=list[Rank] | RerankAnswer, responses=error_responses("tei", 404)
)
async def rerank(
    request: Request, body: Annotated[EitherRank, Body(openapi_examples=_RANK_EXAMPLES)]
) -> Response:
    """Rank texts by ColBERT's late interaction with a query; best first.

    A score is the mean over the query's tokens of their best cosine similarity, -1 to 1.
    """
    service = service_of(request)
    if isinstance(body, RerankRequest):
        service.require_model(body.model)
        return await answer_documents(
            service, body.query, body.documents, body.top_n, return_documents=True
        )
    scores, answer = await service.rerank(body.query, body.texts, truncate=body.truncate)
    ranks: list[dict[str, object]] = []
    for index in rank(scores, body.top_n):
        place: dict[str, object] = {"index": index, "score": scores[index]}
        if body.return_text:
            place["text"] = body.texts[index]
        ranks.append(place)
    return write_json(ranks, answer)


@router.post("/similarity", response_model=list[float], responses=error_responses("tei"))
async def similarity(
    request: Request,
    body: Annotated[SimilarityRequest, Body(examples=[_COMPARISON])],
) -> Response:
    """Compare a sentence with others: the cosine similarities of their dense vectors."""
    return await _answer_similarity(service_of(request), body)


async def _answer_similarity(service: EmbeddingService, body: SimilarityRequest) -> Response:
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    answer = await service.embed(texts, role="document", heads=("dense",))
    dense = answer.embeddings.dense
    assert dense is not None
    return write_json(dense[1:] @ dense[0], answer)


@router.post("/tokenize", response_model=list[list[Token]], responses=error_responses("tei"))
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Body(examples=[{"inputs": "Foxes jump."}])]
) -> Response:
    """Split texts into the model's tokens, uncut."""
    inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    pieces = await service_of(request).tokenise(inputs, special=body.add_special_tokens)
    return await write_many(
        lambda: [_write_tokens(text_pieces) for text_pieces in pieces],
        tokens=sum(map(len, pieces)),
    )


def _write_tokens(pieces: Sequence[Piece]) -> orjson.Fragment:
    """Write a text's tokens a few at a time: a long text has a million, and others run between."""
    parts = []
    for start in range(0, len(pieces), _TOKENS_AT_A_TIME):
        part = [_describe_token(piece) for piece in pieces[start : start + _TOKENS_AT_A_TIME]]
        parts.append(orjson.dumps(part)[1:-1])  # without the brackets of its list
    return orjson.Fragment(b"[%b]" % b",".join(parts))


def _describe_token(piece: Piece) -> dict[str, object]:
    return {
        "id": piece.token_id,
        "text": piece.text,
        "special": piece.is_special,
        "start": None,
        "stop": None,
    }


async def _embed(
    service: EmbeddingService, body: InputsRequest, heads: tuple[HeadName, ...]
) -> Answer:
    service.require_heads(heads, purpose="this route")
    texts = read_inputs(service, body.inputs)
    role: Role = "query" if body.prompt_name == "query" else "document"
    return await service.embed(
        texts, role=role, heads=heads, truncate=body.truncate, is_written_out=True
    )


def read_inputs(service: EmbeddingService, inputs: InputValue) -> list[Text]:
    """Return the texts of a request that may be one or several, as text or as token ids.

    Raises:
        InputError: If there are none, or token ids are not the model's.
    """
    if isinstance(inputs, str):
        return [inputs]
    if not inputs:
        raise EmptyError("the list of inputs is empty; send at least one text")
    texts: list[Text] = []
    single_ids: list[int] = []
    for item in inputs:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, int):
            single_ids.append(item)
        else:
            texts.append(service.embedder.require_token_ids(item))
    if single_ids:
        texts.append(service.embedder.require_token_ids(single_ids))
    return texts


def _list_weights(vector: SparseVector) -> list[dict[str, object]]:
    pairs = zip(vector.indices.tolist(), vector.values, strict=True)
    return [{"index": index, "value": value} for index, value in pairs]
