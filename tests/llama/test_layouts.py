"""Payloads of other software as texts and nodes, as that software writes them.

The payloads below are what langchain-qdrant 1.1.0 and qdrant-haystack 13.1.0 wrote.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from unified_embeddings.errors import InputError
from unified_embeddings.llama.layouts import (
    PayloadReader,
    SourceText,
    UnreadablePoint,
    choose_reader,
    detect_layout,
)
from unified_embeddings.llama.payloads import build_payloads

LANGCHAIN = {
    "page_content": "Foxes jump.",
    "metadata": {"source": "a.md", "page": 3, "tags": ["x"]},
}
HAYSTACK = {
    "id": "ef2011fc9f5273c39fdc89b68983d790a5db6cbdf65f4345746d6765b03194ae",
    "content": "Foxes jump.",
    "blob": None,
    "meta": {"source": "a.md", "page": 3, "nested": {"b": 1}},
    "score": None,
    "sparse_embedding": None,
}
POINT_ID = "7dbe3754-5815-414c-82f9-bfdbf4867458"


def llama_payload(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id_": POINT_ID,
        "text": "Foxes jump.",
        "metadata": {"title": "Fox", "page": 3},
        "excluded_embed_metadata_keys": ["page"],
        "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc1")},
    }
    return node_to_metadata_dict(TextNode(**(fields | changes)))


def read(
    reader: PayloadReader, payload: dict[str, Any] | None, point_id: int | str = POINT_ID
) -> SourceText:
    source = reader.read(point_id, payload)
    assert isinstance(source, SourceText), source
    return source


def problem_of(reader: PayloadReader, payload: dict[str, Any] | None) -> str:
    point = reader.read(5, payload)
    assert isinstance(point, UnreadablePoint)
    assert point.point_id == 5
    return point.problem


def test_llama_index_is_embedded_with_its_metadata_and_stays_as_it_is() -> None:
    payload = llama_payload()
    source = read(PayloadReader("llama_index"), payload)
    assert source.text == "title: Fox\n\nFoxes jump."  # the page is excluded
    assert source.bare_text == "Foxes jump."
    assert source.payload == payload
    assert source.node.node_id == POINT_ID
    assert source.node.ref_doc_id == "doc1"


def test_langchain_becomes_a_node_whose_text_is_embedded_alone() -> None:
    source = read(PayloadReader("langchain"), LANGCHAIN)
    assert source.text == source.bare_text == "Foxes jump."
    assert source.node.metadata == LANGCHAIN["metadata"]
    assert source.node.node_id == POINT_ID
    assert source.payload == build_payloads([source.node])[0]


@pytest.mark.parametrize(
    "payload",
    [{"page_content": "The sea.", "metadata": {}}, {"page_content": "The sea.", "metadata": None}],
)
def test_langchain_without_metadata(payload: dict[str, Any]) -> None:
    assert read(PayloadReader("langchain"), payload).node.metadata == {}


def test_haystack_keeps_the_documents_id_and_leaves_out_what_is_null() -> None:
    source = read(PayloadReader("haystack"), HAYSTACK)
    assert source.text == "Foxes jump."
    assert source.node.metadata == {
        "source": "a.md",
        "page": 3,
        "nested": {"b": 1},
        "id": HAYSTACK["id"],
    }


def test_what_a_retriever_reads_is_the_text_that_was_embedded() -> None:
    for layout, payload in (("langchain", LANGCHAIN), ("haystack", HAYSTACK)):
        source = read(PayloadReader(layout), payload)  # type: ignore[arg-type]
        node = metadata_dict_to_node(json.loads(json.dumps(source.payload)))
        assert node == source.node
        assert node.get_content(metadata_mode="embed") == source.text  # type: ignore[arg-type]


def test_a_plain_layout_takes_the_key_that_is_named() -> None:
    payload = {"body": "Foxes jump.", "page": 3}
    source = read(PayloadReader("plain", text_key="body"), payload, 17)
    assert (source.text, source.node.metadata, source.node.node_id) == (
        "Foxes jump.", {"page": 3}, "17",
    )  # fmt: skip


def test_a_plain_text_may_be_within_a_field_and_metadata_in_another() -> None:
    payload = {"doc": {"text": "Foxes jump.", "lang": "en"}, "facts": {"page": 3}, "page": 4}
    reader = PayloadReader("plain", text_key="doc.text", metadata_key="facts")
    metadata = read(reader, payload).node.metadata
    assert metadata == {"page": 3, "doc": {"lang": "en"}, "payload.page": 4}
    assert payload["doc"] == {"text": "Foxes jump.", "lang": "en"}  # the caller's is not changed
    dotted = PayloadReader("plain", text_key="doc.text")
    assert read(dotted, {"doc.text": "By name.", "doc": {"text": "By path."}}).text == "By name."


def test_metadata_of_llama_indexs_own_names_survive() -> None:
    payload = {"page_content": "Foxes.", "metadata": {"doc_id": "mine", "_node_type": "x"}}
    source = read(PayloadReader("langchain"), payload)
    node = metadata_dict_to_node(source.payload)
    assert node.metadata == {"doc_id": "mine", "_node_type": "x"}


@pytest.mark.parametrize(
    ("payload", "layout"),
    [(LANGCHAIN, "langchain"), (HAYSTACK, "haystack"), (llama_payload(), "llama_index")],
)
def test_the_layout_is_seen_in_a_sample(payload: dict[str, Any], layout: str) -> None:
    assert detect_layout([payload, {}, payload]) == layout
    assert choose_reader([payload]).layout == layout


def test_a_layout_that_is_named_wins() -> None:
    assert choose_reader([LANGCHAIN], layout="mixed").layout == "mixed"
    reader = choose_reader([LANGCHAIN], text_key="page_content")
    assert reader.layout == "plain"


def test_mixed_layouts_are_refused_unless_each_point_is_read_by_its_own() -> None:
    sample = [LANGCHAIN, llama_payload(), LANGCHAIN]
    with pytest.raises(InputError, match=r"2 of langchain, 1 of llama_index.*'mixed'"):
        detect_layout(sample)
    mixed = PayloadReader("mixed")
    assert read(mixed, LANGCHAIN).text == "Foxes jump."
    assert read(mixed, llama_payload()).text == "title: Fox\n\nFoxes jump."
    assert "no known layout; it has the keys 'body'" in problem_of(mixed, {"body": "x"})


def test_an_unknown_layout_names_the_keys_that_there_are() -> None:
    with pytest.raises(InputError, match=r"the keys 'body', 'page'.*--text-key"):
        detect_layout([{"body": "Foxes jump.", "page": 3}])
    with pytest.raises(InputError, match="no keys at all"):
        detect_layout([{}])
    with pytest.raises(InputError, match="no points"):
        detect_layout([])


@pytest.mark.parametrize(
    ("layout", "payload", "problem"),
    [
        ("llama_index", {"_node_content": "{"}, "'_node_content' is not a node"),
        ("llama_index", {"title": "Fox"}, "no '_node_content', but the keys 'title'"),
        ("llama_index", llama_payload(text=" \n"), "its text is empty"),
        ("llama_index", llama_payload(text_template="{other}"), "cannot be put together"),
        ("langchain", {"page_content": 7}, "'page_content' is not a text but int"),
        ("langchain", {"page_content": ""}, "its text is empty"),
        ("langchain", {"page_content": "a\ud800"}, "lone surrogate"),
        ("langchain", {"page_content": "a", "metadata": {"n": 2**70}}, "does not fit into 64"),
        ("haystack", HAYSTACK | {"content": None}, "no 'content', but the keys"),
        ("langchain", {}, "no 'page_content', but no keys at all"),
        ("langchain", None, "no 'page_content', but no keys at all"),
    ],
)
def test_a_point_without_text_is_a_problem_in_words(
    layout: Any, payload: dict[str, Any] | None, problem: str
) -> None:
    assert problem in problem_of(PayloadReader(layout), payload)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InputError, match="llama_index, langchain, haystack, plain, mixed"):
        PayloadReader("txtai")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs text_key"):
        PayloadReader("plain")
    with pytest.raises(InputError, match="belong to the layout 'plain'"):
        PayloadReader("langchain", text_key="body")
