"""`/search` gives the retriever's passages with their ranks, `/embed_image` CLIP's vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.datastructures import State

from image_files import noise, png
from running_service import RunningService
from unified_embeddings import ClipEmbedder
from unified_embeddings.errors import OverloadedError
from unified_embeddings.serving.routes import images

QUESTION = "What do foxes jump over?"
PICTURES = [png(noise(64, 48, 1)), png(noise(40, 40, 2))]
ENCODED = [base64.b64encode(picture).decode() for picture in PICTURES]


@pytest.fixture(scope="module")
def http(full_service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=full_service.url, timeout=60) as client:
        yield client


def search(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    answer = http.post("/search", json={"query": QUESTION, **body})
    assert answer.status_code == 200, answer.text
    assert answer.json()["collection"] == "animals"
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_the_best_passage_is_first_with_its_rank_in_each_list(http: httpx.Client) -> None:
    results = search(http)
    assert len(results) == 3
    assert results[0]["text"] == "Foxes jump over dogs."
    assert results[0]["metadata"]["file_name"] == "foxes.txt"
    assert results[0]["ranks"] == {"dense": 1, "sparse": 1}
    assert sorted(result["ranks"]["dense"] for result in results) == [1, 2, 3]
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True)


def test_the_score_is_the_fusion_of_the_ranks(http: httpx.Client) -> None:
    """mini-m3's fusion, worked out: 1 / (k + rank) + 0.6 / (k + rank), k = 20."""
    for result in search(http):
        dense, sparse = result["ranks"]["dense"], result["ranks"]["sparse"]
        expected = 1 / (20 + dense) + (0.6 / (20 + sparse) if sparse else 0)
        assert result["score"] == pytest.approx(expected, abs=1e-6)


def test_modes_depth_and_reranking(http: httpx.Client) -> None:
    assert len(search(http, top_k=1)) == 1
    dense = search(http, mode="dense")
    assert [result["ranks"]["dense"] for result in dense] == [1, 2, 3]
    sparse = search(http, mode="sparse")
    assert [result["ranks"]["sparse"] for result in sparse] == list(range(1, len(sparse) + 1))
    reranked = search(http, rerank=True)
    assert reranked[0]["text"] == "Foxes jump over dogs."
    assert -1 <= reranked[0]["score"] <= 1


def test_filters_hold_for_results_and_ranks(http: httpx.Client) -> None:
    (result,) = search(http, filters=[{"key": "file_name", "value": "sea.txt"}])
    assert result["text"] == "The sea is blue."
    assert result["ranks"]["dense"] == 1  # among those that the filter leaves
    others = search(http, filters=[{"key": "file_name", "value": "sea.txt", "operator": "!="}])
    assert {result["metadata"]["file_name"] for result in others} == {"foxes.txt", "dogs.txt"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": " "}, "the query is blank"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"top_k": 1001}, "top_k must be <= 1000, got 1001"),
        ({"mode": "fuzzy"}, "mode must be 'hybrid', 'dense' or 'sparse'"),
        ({"filters": [{"value": 1}]}, r"filters[0].key is missing"),
        (
            {"filters": [{"key": "a", "value": 1, "operator": "~"}]},
            "filters[0].operator must be one of ==, ",
        ),
        (
            {"filters": [{"key": "a", "value": 1}, {"key": "b", "value": {"c": 1}}]},
            "filters[1].value must be a text, a number, or a list",
        ),
        ({"rerank": 1}, "rerank must be true or false, got 1"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    http: httpx.Client, body: dict[str, Any], message: str
) -> None:
    answer = http.post("/search", json={"query": QUESTION, **body})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.fixture(scope="module")
def clip_embedder(clip: Path) -> ClipEmbedder:
    return ClipEmbedder(clip, precision="fp32", device="cpu", cache=None)


def test_images_and_texts_are_embedded_as_by_clip(
    http: httpx.Client, clip_embedder: ClipEmbedder
) -> None:
    images = clip_embedder.encode_images(PICTURES).dense
    one = http.post("/embed_image", json={"image": ENCODED[0]}).json()
    np.testing.assert_allclose(np.float32(one["embedding"]), images[0], rtol=0, atol=1e-6)
    assert one["fingerprint"] == clip_embedder.fingerprint
    uris = [f"data:image/png;base64,{encoded}" for encoded in ENCODED]
    several = http.post("/embed_image", json={"images": uris, "encoding": "base64"}).json()
    rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in several["embeddings"]]
    np.testing.assert_allclose(rows, images, rtol=0, atol=1e-6)
    texts = http.post("/embed_image", json={"texts": ["a fox", ""]}).json()["embeddings"]
    expected = clip_embedder.encode_texts(["a fox", ""])
    np.testing.assert_allclose(np.float32(texts), expected, rtol=0, atol=1e-6)


def test_no_images_give_no_vectors(http: httpx.Client) -> None:
    assert http.post("/embed_image", json={"images": []}).json()["embeddings"] == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 422, "send one of image, images and texts"),
        ({"image": ENCODED[0], "texts": ["a"]}, 422, "send one of image, images and texts"),
        ({"image": "https://example.com/fox.png"}, 422, "not an address or a path"),
        ({"image": "/etc/passwd"}, 422, "item 0: "),
        ({"image": "file:///etc/passwd"}, 422, "not an address or a path"),
        ({"image": "data:image/png,abc"}, 422, "must be in base64"),
        ({"images": [ENCODED[0], base64.b64encode(b"no image").decode()]}, 422, "item 1: "),
        ({"images": [ENCODED[0]] * 65}, 413, "the limit of a request is 64"),
        ({"image": 5}, 422, "image must be a string, got 5"),
        ({"images": "a"}, 422, "images must be a list, got a string"),
    ],
)
def test_what_is_no_image_is_refused(
    http: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    answer = http.post("/embed_image", json=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


async def test_images_that_wait_are_bounded() -> None:
    class FullThread:
        unfinished = 16

    service: Any = SimpleNamespace(config=SimpleNamespace(clip=None))
    state = State({"image_thread": FullThread()})
    with pytest.raises(OverloadedError, match="16 requests"):
        await images._embed(state, service, images.ImageRequest(texts=["a fox"]))
