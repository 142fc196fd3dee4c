"""Official clients, unmodified, get what the embedder gives in their own process."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from running_service import RunningService
from unified_embeddings import ModelEmbedder
from unified_embeddings.heads import normalise
from unified_embeddings.types import FloatArray

TEXTS = ["Foxes jump over lazy dogs.", "", "  ", "Ein Fuchs springt 🦊 über Hunde.", "fox " * 40]
LONG = "fox " * 1000


@pytest.fixture(scope="module")
def embedder() -> ModelEmbedder:
    """The same model in this process, without a cache: what the service's answers must equal."""
    return ModelEmbedder("mini-m3", precision="fp32", device="cpu", cache=None)


@pytest.fixture(scope="module")
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


Dense = Callable[[Sequence[str]], FloatArray]


@pytest.fixture(scope="module")
def documents(embedder: ModelEmbedder) -> Dense:
    """What the embedder makes of documents."""

    def encode(texts: Sequence[str]) -> FloatArray:
        dense = embedder.encode_documents(texts, dense=True, sparse=False).dense
        assert dense is not None
        return dense

    return encode


def assert_same(given: Any, expected: FloatArray) -> None:
    """Equal as float32 numbers, but for the last bits that depend on a pass's shape."""
    array = np.asarray(given, dtype=np.float32)
    assert array.shape == expected.shape
    np.testing.assert_allclose(array, expected, rtol=0, atol=2e-7)


# --- openai -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai_client(service: RunningService) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai_gives_the_embedders_vectors_in_every_encoding(
    openai_client: Any, documents: Dense, form: dict[str, str]
) -> None:
    answer = openai_client.embeddings.create(model="mini-m3", input=TEXTS, **form)
    vectors = [item.embedding for item in answer.data]
    if form.get("encoding_format") == "base64":  # the client leaves it to who asks for it
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    assert_same(vectors, documents(TEXTS))
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert {item.object for item in answer.data} == {"embedding"}
    assert answer.model == "mini-m3"


def test_openai_one_text_is_a_list_of_one(openai_client: Any, documents: Dense) -> None:
    answer = openai_client.embeddings.create(model="ada", input="Foxes jump.")
    assert_same([item.embedding for item in answer.data], documents(["Foxes jump."]))
    assert answer.model == "ada"


def test_openai_usage_counts_the_tokens_that_ran(
    openai_client: Any, embedder: ModelEmbedder
) -> None:
    usage = openai_client.embeddings.create(model="mini-m3", input=["Foxes jump.", LONG]).usage
    first = len(embedder.tokenise("Foxes jump.")) + 2
    assert usage.prompt_tokens == usage.total_tokens == first + 256


def test_openai_token_ids_are_the_models_own(
    openai_client: Any, embedder: ModelEmbedder, documents: Dense
) -> None:
    ids = embedder.tokenise("Foxes jump over lazy dogs.")
    alone = openai_client.embeddings.create(model="mini-m3", input=ids)
    several = openai_client.embeddings.create(model="mini-m3", input=[ids, ids[:2]])
    assert_same([item.embedding for item in alone.data], documents(TEXTS[:1]))
    assert_same(several.data[0].embedding, documents(TEXTS[:1])[0])
    assert alone.usage.prompt_tokens == len(ids) + 2


def test_openai_dimensions_are_cut_and_at_unit_length(openai_client: Any, documents: Dense) -> None:
    answer = openai_client.embeddings.create(model="mini-m3", input=TEXTS, dimensions=100)
    whole = documents(TEXTS)
    assert_same(
        [item.embedding for item in answer.data], normalise(np.ascontiguousarray(whole[:, :100]))
    )


def test_openai_lists_the_models(openai_client: Any) -> None:
    listed = list(openai_client.models.list())
    assert [model.id for model in listed] == ["mini-m3", "ada"]
    assert {model.object for model in listed} == {"model"}


def test_openai_retrieves_a_model(openai_client: Any) -> None:
    import openai

    assert openai_client.models.retrieve("ada").id == "ada"
    with pytest.raises(openai.NotFoundError, match=r"'gpt-4' is not served here"):
        openai_client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("body", "name", "code"),
    [
        ({"model": "mini-m3", "input": []}, "BadRequestError", None),
        ({"model": "mini-m3", "input": [["a"]]}, "BadRequestError", None),
        ({"model": "mini-m3", "input": [10**6]}, "BadRequestError", None),
        ({"model": "mini-m3", "input": "a", "dimensions": 385}, "BadRequestError", None),
        ({"model": "mini-m3", "input": ["a"] * 2049}, "BadRequestError", "context_length_exceeded"),
        (
            {"model": "text-embedding-3-small", "input": "a"},
            "NotFoundError",
            "model_not_found",
        ),
    ],
)
def test_openai_errors_arrive_as_the_clients_own(
    openai_client: Any, body: dict[str, Any], name: str, code: str | None
) -> None:
    import openai

    with pytest.raises(openai.APIStatusError) as caught:
        openai_client.embeddings.create(**body)
    assert type(caught.value).__name__ == name
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


def test_openai_keys(guarded_service: RunningService) -> None:
    openai = pytest.importorskip("openai")
    base = f"{guarded_service.url}/v1"
    for key in ("first-key", "second-key"):
        client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
        assert client.embeddings.create(model="mini-m3", input="a").data
    client = openai.OpenAI(base_url=base, api_key="third-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.embeddings.create(model="mini-m3", input="a")
    assert caught.value.code == "invalid_api_key"


async def test_openai_async(service: RunningService, documents: Dense) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:
        answer = await client.embeddings.create(model="mini-m3", input=TEXTS)
    assert_same([item.embedding for item in answer.data], documents(TEXTS))


# --- ollama -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ollama_client(service: RunningService) -> Any:
    return pytest.importorskip("ollama").Client(service.url)


def test_ollama_embeds_one_text_and_several(ollama_client: Any, documents: Dense) -> None:
    several = ollama_client.embed(
        model="mini-m3", input=TEXTS, options={"num_ctx": 64}, keep_alive="5m", truncate=True
    )
    assert_same(several.embeddings, documents(TEXTS))
    assert several.prompt_eval_count > 0
    assert several.total_duration > 0
    alone = ollama_client.embed(model="mini-m3:latest", input="Foxes jump.", keep_alive=-1)
    assert_same(alone.embeddings, documents(["Foxes jump."]))


def test_ollama_dimensions(ollama_client: Any, documents: Dense) -> None:
    given = ollama_client.embed(model="mini-m3", input="Foxes jump.", dimensions=64)
    whole = documents(["Foxes jump."])
    assert_same(given.embeddings, normalise(np.ascontiguousarray(whole[:, :64])))


def test_ollamas_older_route(ollama_client: Any, documents: Dense) -> None:
    given = ollama_client.embeddings(model="mini-m3", prompt="Foxes jump.")
    assert_same(given.embedding, documents(["Foxes jump."])[0])


def test_ollama_lists_the_models(ollama_client: Any, embedder: ModelEmbedder) -> None:
    listed = ollama_client.list().models
    assert [model.model for model in listed] == ["mini-m3:latest", "ada:latest"]
    assert {model.digest for model in listed} == {embedder.fingerprint}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "bge-m3", "input": "a"}, 404, "'bge-m3' is not served here"),
        ({"model": "mini-m3", "input": LONG, "truncate": False}, 400, "longer than the 256"),
    ],
)
def test_ollama_errors_arrive_as_the_clients_own(
    ollama_client: Any, body: dict[str, Any], status: int, message: str
) -> None:
    import ollama

    with pytest.raises(ollama.ResponseError, match=message) as caught:
        ollama_client.embed(**body)
    assert caught.value.status_code == status


async def test_ollama_async(service: RunningService, documents: Dense) -> None:
    client = pytest.importorskip("ollama").AsyncClient(service.url)
    given = await client.embed(model="mini-m3", input=TEXTS)
    assert_same(given.embeddings, documents(TEXTS))


# --- LlamaIndex ---------------------------------------------------------------------------------


def tei_model(url: str) -> Any:
    module = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    return module.TextEmbeddingsInference(model_name="mini-m3", base_url=url)


def openai_like_model(url: str) -> Any:
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    return module.OpenAILikeEmbedding(
        model_name="mini-m3", api_base=f"{url}/v1", api_key="none", max_retries=0
    )


def ollama_model(url: str) -> Any:
    module = pytest.importorskip("llama_index.embeddings.ollama")
    return module.OllamaEmbedding(model_name="mini-m3", base_url=url)


MODELS = [tei_model, openai_like_model, ollama_model]
PLAIN = ["Foxes jump over lazy dogs.", "Hunde schlafen.", "fox " * 40]
"""LlamaIndex's own classes strip and replace blanks, so none at the ends."""


@pytest.mark.parametrize("make", MODELS)
def test_llama_index_embeds_texts_and_queries(
    make: Callable[[str], Any], service: RunningService, documents: Dense
) -> None:
    model = make(service.url)
    texts = [text.strip() for text in PLAIN]
    assert_same(model.get_text_embedding_batch(texts), documents(texts))
    assert_same(model.get_text_embedding(texts[0]), documents(texts)[0])
    assert_same(model.get_query_embedding(texts[1]), documents(texts)[1])


@pytest.mark.parametrize("make", MODELS)
async def test_llama_index_async(
    make: Callable[[str], Any], service: RunningService, documents: Dense
) -> None:
    model = make(service.url)
    texts = [text.strip() for text in PLAIN]
    assert_same(await model.aget_text_embedding_batch(texts), documents(texts))
    assert_same(await model.aget_query_embedding(texts[1]), documents(texts)[1])


# --- huggingface_hub ----------------------------------------------------------------------------


@pytest.fixture
def inference_client(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> Any:
    from huggingface_hub import InferenceClient, constants

    # The tests run offline, and the client takes this address for the network.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return InferenceClient(service.url)


def test_inference_client_extracts_features(inference_client: Any, documents: Dense) -> None:
    assert_same(inference_client.feature_extraction("Foxes jump."), documents(["Foxes jump."]))
    several = inference_client.feature_extraction(
        TEXTS, normalize=True, truncate=True, truncation_direction="right", dimensions=384
    )
    assert_same(several, documents(TEXTS))


def test_inference_client_compares_sentences(inference_client: Any, documents: Dense) -> None:
    others = ["A fox leaps.", "Dogs sleep."]
    given = inference_client.sentence_similarity("Foxes jump.", other_sentences=others)
    expected = documents(others) @ documents(["Foxes jump."])[0]
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-6)
    assert given[0] > given[1]


def test_inference_clients_errors_tell_what_is_wrong(inference_client: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match="truncation_direction must be 'right'"):
        inference_client.feature_extraction("Foxes jump.", truncation_direction="left")
    with pytest.raises(HfHubHTTPError, match="longer than the 256 tokens"):
        inference_client.feature_extraction(LONG, truncate=False)


def test_clients_bring_their_keys(
    guarded_service: RunningService, documents: Dense, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama = pytest.importorskip("ollama")
    module = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    from huggingface_hub import InferenceClient, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    url, text = guarded_service.url, "Foxes jump."
    expected = documents([text])
    tei = module.TextEmbeddingsInference("mini-m3", base_url=url, auth_token="first-key")
    assert_same(tei.get_text_embedding(text), expected[0])
    hub = InferenceClient(url, token="second-key")
    assert_same(hub.feature_extraction(text), expected)
    key = {"Authorization": "Bearer first-key"}
    assert_same(ollama.Client(url, headers=key).embed("mini-m3", text).embeddings, expected)


# --- rerank, as Jina, Cohere and vLLM document it -------------------------------------------------

QUERY = "What do foxes jump over?"
DOCUMENTS = ["Dogs sleep at noon.", "Foxes jump over lazy dogs.", "The sea is blue."]


@pytest.fixture(scope="module")
def scores(embedder: ModelEmbedder) -> list[float]:
    """The mean over the query's tokens of their best cosine similarity, worked out on its own."""
    query = embedder.encode_queries([QUERY], dense=False, sparse=False, colbert=True).colbert
    texts = embedder.encode_documents(DOCUMENTS, dense=False, sparse=False, colbert=True).colbert
    assert query is not None
    assert texts is not None
    return [float((query[0] @ rows.T).max(axis=1).mean()) for rows in texts]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("as_objects", [False, True])
def test_rerankers_give_the_best_first(
    http: httpx.Client, scores: list[float], path: str, as_objects: bool
) -> None:
    documents = [{"text": text} for text in DOCUMENTS] if as_objects else DOCUMENTS
    body = {"model": "mini-m3", "query": QUERY, "documents": documents, "return_documents": True}
    answer = http.post(path, json=body).json()
    order = [result["index"] for result in answer["results"]]
    assert order == sorted(range(3), key=lambda index: -scores[index])
    assert order[0] == 1
    for result in answer["results"]:
        index = result["index"]
        assert result["relevance_score"] == pytest.approx(scores[index], abs=1e-5)
        assert result["document"] == {"text": DOCUMENTS[index]}
    assert answer["model"] == "mini-m3"
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(("top_n", "count"), [(0, 0), (1, 1), (99, 3), (None, 3)])
def test_top_n(http: httpx.Client, top_n: int | None, count: int) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "top_n": top_n}
    answer = http.post("/v1/rerank", json=body).json()
    assert len(answer["results"]) == count
    assert all("document" not in result for result in answer["results"])


def test_teis_rerank(http: httpx.Client, scores: list[float]) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "return_text": True, "raw_scores": True}
    ranks = http.post("/rerank", json=body).json()
    assert ranks[0]["text"] == DOCUMENTS[1]
    assert [rank["score"] for rank in ranks] == pytest.approx(
        sorted(scores, reverse=True), abs=1e-5
    )


def test_vllms_rerank_at_teis_path(http: httpx.Client) -> None:
    body = {"model": "mini-m3", "query": QUERY, "documents": DOCUMENTS, "top_n": 1}
    (result,) = http.post("/rerank", json=body).json()["results"]
    assert (result["index"], result["document"]) == (1, {"text": DOCUMENTS[1]})


def test_teis_rerank_through_llama_index_shape(http: httpx.Client) -> None:
    """What LlamaIndex's TEI reranker sends and reads."""
    body = {"query": QUERY, "texts": DOCUMENTS, "truncate": True}
    ranks = http.post("/rerank", json=body).json()
    assert {rank["index"] for rank in ranks} == {0, 1, 2}
    assert all(set(rank) == {"index", "score"} for rank in ranks)


# --- the other heads, and the plain contracts -----------------------------------------------------


def test_all_heads_in_one_call(http: httpx.Client, embedder: ModelEmbedder) -> None:
    expected = embedder.encode_documents(TEXTS, colbert=True)
    assert expected.sparse is not None
    assert expected.colbert is not None
    assert expected.dense is not None
    body = {"texts": TEXTS, "isPassage": True, "batchSize": 2}
    results = http.post("/v1/m3", json=body).json()["results"]
    assert [result["text"] for result in results] == TEXTS
    for row, result in enumerate(results):
        assert_same(result["dense"], expected.dense[row])
        assert result["sparse"]["indices"] == expected.sparse[row].indices.tolist()
        assert_same(result["sparse"]["values"], expected.sparse[row].values)
        assert_same(result["colbert"], expected.colbert[row])


def test_teis_sparse_and_token_vectors(http: httpx.Client, embedder: ModelEmbedder) -> None:
    expected = embedder.encode_documents(TEXTS, colbert=True)
    assert expected.sparse is not None
    assert expected.colbert is not None
    sparse = http.post("/embed_sparse", json={"inputs": TEXTS}).json()
    colbert = http.post("/embed_all", json={"inputs": TEXTS}).json()
    for row, vector in enumerate(expected.sparse):
        assert [weight["index"] for weight in sparse[row]] == vector.indices.tolist()
        assert_same([weight["value"] for weight in sparse[row]], vector.values)
        assert_same(colbert[row], expected.colbert[row])


def test_one_text_of_document_001(http: httpx.Client, documents: Dense) -> None:
    for path in ("/embed", "/"):
        answer = http.post(path, json={"text": "Foxes jump."}).json()
        assert_same(answer["embedding"], documents(["Foxes jump."])[0])


def test_document_002(http: httpx.Client, embedder: ModelEmbedder, documents: Dense) -> None:
    answer = http.post("/query", json={"input": {"query": "Foxes jump."}}).json()
    assert_same(answer["embedding"], documents(["Foxes jump."])[0])
    body = {"input": {"action": "embed_batch", "texts": TEXTS}}
    assert_same(http.post("/query", json=body).json()["embeddings"], documents(TEXTS))
    health = http.post("/query", json={"input": {"action": "health_check"}}).json()
    assert health == {
        "status": "ok",
        "endpoint": "query",
        "runtime": f"{embedder.runtime.engine}-cpu",
    }


def test_tokens_are_the_models_own(http: httpx.Client, embedder: ModelEmbedder) -> None:
    (bare,) = http.post(
        "/tokenize", json={"inputs": "Foxes jump.", "add_special_tokens": False}
    ).json()
    assert [token["id"] for token in bare] == embedder.tokenise("Foxes jump.")
    (whole,) = http.post("/tokenize", json={"inputs": ["Foxes jump."]}).json()
    assert [token["special"] for token in whole] == [True, *[False] * len(bare), True]


def test_info_speaks_teis_words(http: httpx.Client, embedder: ModelEmbedder) -> None:
    info = http.get("/info").json()
    assert info["model_id"] == "mini-m3"
    assert info["model_dtype"] == "float32"
    assert info["max_input_length"] == 256
    assert info["unified_embeddings"]["fingerprint"] == embedder.fingerprint
