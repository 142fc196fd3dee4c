"""Filters mean what they say, or are refused when they are made: against Python's own comparison.

Everything is asked of a store in memory and of Qdrant's core.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.fields import LLAMA_INDEX_FIELDS
from unified_embeddings.llama.filters import translate_filters
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient

Op = FilterOperator
EMBEDDER = FakeEmbedder(dimension=4)
LIMIT = 100

# --- a hostile alphabet -------------------------------------------------------------------------

KEYS = st.one_of(
    st.text("ab.[]0:/ \"\\'-_é\n\0", max_size=4),
    st.sampled_from(["doc_id", "ref_doc_id", "document_id", "_own_metadata"]),
    st.sampled_from(["dc.title", "Order Date", "unit price (EUR)", "a[0]", "a[]", '"a"', "größe"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**60, 2**60 + 1, 2**60 + 128]),
    st.sampled_from([2**63 - 1, 2**63 - 513, -(2**63)]),
    st.sampled_from([-1.0, 0.0, -0.0, 2.0, 2.5, 1e300, 2.0**53, 2.0**60, 2.0**63]),
)
TEXTS = st.one_of(
    st.text("ab,é \0", max_size=3), st.sampled_from(["Berg, Ute", "2", "2.0", "true", "None"])
)
SCALARS = st.one_of(st.booleans(), NUMBERS, TEXTS)
VALUES = st.one_of(SCALARS, SCALARS, st.none(), st.lists(st.one_of(SCALARS, st.none()), max_size=3))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_equal(stored: object, value: object) -> bool:
    """Compare two scalars as Python does, except that a bool is not a number."""
    if isinstance(stored, bool) or isinstance(value, bool):
        return stored is value
    return stored == value


def holds_for_one(metadata: dict[str, Any], key: str, test: Callable[[Any], bool]) -> bool:
    """Tell whether a test holds for a field, or for one of its elements if it is a list."""
    if key not in metadata:
        return False
    stored = metadata[key]
    elements = stored if isinstance(stored, list) else [stored]
    return any(test(element) for element in elements)


COMPARISONS = {Op.GT: operator.gt, Op.GTE: operator.ge, Op.LT: operator.lt, Op.LTE: operator.le}


def holds(metadata: dict[str, Any], key: str, op: Op, value: Any) -> bool:
    """Tell whether a node is found, by the definitions alone."""
    match op:
        case Op.EQ | Op.CONTAINS:
            return holds_for_one(metadata, key, lambda stored: are_equal(stored, value))
        case Op.IN | Op.ANY:
            values = value if isinstance(value, list) else [value]
            return any(holds(metadata, key, Op.EQ, each) for each in values)
        case Op.ALL:
            values = value if isinstance(value, list) else [value]
            return all(holds(metadata, key, Op.EQ, each) for each in values)
        case Op.NE:
            return not holds(metadata, key, Op.EQ, value)
        case Op.NIN:
            return not holds(metadata, key, Op.IN, value)
        case Op.IS_EMPTY:
            return metadata.get(key) in (None, [])
    compare = COMPARISONS[op]
    return holds_for_one(
        metadata, key, lambda stored: is_number(stored) and bool(compare(stored, value))
    )


@st.composite
def conditions(draw: st.DrawFn, keys: list[str]) -> MetadataFilter:
    """Draw a filter, also one that MetadataFilter's own checks would refuse."""
    op = draw(st.sampled_from([*COMPARISONS, Op.EQ, Op.NE, Op.IN, Op.NIN, Op.ANY, Op.ALL,
                               Op.CONTAINS, Op.IS_EMPTY]))  # fmt: skip
    value: Any = None
    if op in COMPARISONS:
        value = draw(NUMBERS)
    elif op in (Op.IN, Op.NIN, Op.ANY, Op.ALL):
        value = draw(st.one_of(TEXTS, st.lists(SCALARS, max_size=3)))
    elif op != Op.IS_EMPTY:
        value = draw(SCALARS)
    key = draw(st.one_of(st.sampled_from(keys), KEYS))
    return MetadataFilter.model_construct(key=key, operator=op, value=value)


@st.composite
def groups(draw: st.DrawFn, keys: list[str], depth: int = 2) -> MetadataFilters:
    members = conditions(keys)
    if depth:
        members = st.one_of(members, groups(keys, depth - 1))
    return MetadataFilters.model_construct(
        filters=draw(st.lists(members, min_size=1, max_size=3)),
        condition=draw(st.sampled_from(FilterCondition)),
    )


def is_found(metadata: dict[str, Any], filters: MetadataFilters | MetadataFilter) -> bool:
    if isinstance(filters, MetadataFilter):
        return holds(metadata, filters.key, filters.operator, filters.value)
    found = [is_found(metadata, member) for member in filters.filters]
    match filters.condition:
        case FilterCondition.AND:
            return all(found)
        case FilterCondition.OR:
            return any(found)
    return not any(found)


# --- stores -------------------------------------------------------------------------------------


class Shelf:
    """A store to fill with nodes of some metadata, again and again."""

    def __init__(self, client: Any) -> None:
        self.store = build_vector_store(EMBEDDER, "docs", client=client)
        self.rows: list[dict[str, Any]] = []

    def fill(self, rows: list[dict[str, Any]]) -> None:
        if self.rows:
            self.store.delete_nodes(node_ids=[uuid_of(number) for number in range(len(self.rows))])
        self.rows = rows
        self.store.add([node(number, metadata) for number, metadata in enumerate(rows)])

    def numbers(self, nodes: Any) -> set[int]:
        return {int(found.id_[-12:]) for found in nodes}

    def find(self, filters: Any) -> set[int]:
        """Return the numbers of the nodes found, the same by every way of asking."""
        retriever = UnifiedHybridRetriever(
            self.store, EMBEDDER, mode="dense", similarity_top_k=LIMIT, filters=filters
        )
        found = self.numbers(scored.node for scored in retriever.retrieve("x"))
        assert found == self.numbers(self.store.get_nodes(filters=filters))
        query = VectorStoreQuery(
            query_embedding=[1.0, 0.0, 0.0, 0.0], similarity_top_k=LIMIT, filters=filters
        )
        assert found == self.numbers(self.store.query(query).nodes)
        return found


def uuid_of(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


def node(number: int, metadata: dict[str, Any], document: str | None = None) -> TextNode:
    made = TextNode(
        id_=uuid_of(number), text="x", metadata=metadata, embedding=[1.0, 0.0, 0.0, 0.0]
    )
    if document is not None:
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return made


@pytest.fixture(scope="module", params=["memory", "core"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Shelf]:
    if request.param == "memory":
        yield Shelf(QdrantClient(":memory:"))
        return
    with EdgeQdrantClient(tmp_path_factory.mktemp("shelf")) as client:
        yield Shelf(client)


ROWS = st.lists(st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=5)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def keys_of(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({key for metadata in rows for key in metadata}) or ["a"]


def one(key: str, op: Op, value: Any) -> MetadataFilters:
    return MetadataFilters.model_construct(
        filters=[MetadataFilter.model_construct(key=key, operator=op, value=value)],
        condition=FilterCondition.AND,
    )


def is_refused(*asked: MetadataFilters) -> bool:
    """Tell whether filters are refused; related ones are refused together or not at all."""
    refused = []
    for filters in asked:
        try:
            translate_filters(filters)
        except InputError:
            refused.append(True)
        else:
            refused.append(False)
    assert len(set(refused)) == 1
    return refused[0]


# --- properties ---------------------------------------------------------------------------------


@quick
@given(rows=ROWS, data=st.data())
def test_what_is_found_is_what_python_finds(
    shelf: Shelf, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    filters = data.draw(groups(keys_of(rows)))
    assume(not is_refused(filters))
    shelf.fill(rows)
    wanted = {number for number, metadata in enumerate(rows) if is_found(metadata, filters)}
    assert shelf.find(filters) == wanted


@quick
@given(rows=ROWS, data=st.data())
def test_a_filter_and_its_negation_split_the_collection(
    shelf: Shelf, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    key = data.draw(st.one_of(st.sampled_from(keys_of(rows)), KEYS))
    value = data.draw(SCALARS)
    values = data.draw(st.one_of(TEXTS, st.lists(SCALARS, max_size=3)))
    pairs = [
        (one(key, Op.EQ, value), one(key, Op.NE, value)),
        (one(key, Op.IN, values), one(key, Op.NIN, values)),
    ]
    members = [*pairs[0][0].filters, *pairs[1][1].filters]
    combined = [
        MetadataFilters.model_construct(filters=members, condition=condition)
        for condition in (FilterCondition.OR, FilterCondition.NOT)
    ]
    pairs.append((combined[0], combined[1]))
    assume(not is_refused(*pairs[0], *pairs[1]))
    shelf.fill(rows)
    for filters, negation in pairs:
        found, others = shelf.find(filters), shelf.find(negation)
        assert found | others == set(range(len(rows)))
        assert not found & others


@quick
@given(rows=ROWS, data=st.data(), is_async=st.booleans())
def test_exactly_what_is_found_is_deleted(
    shelf: Shelf, rows: list[dict[str, Any]], data: st.DataObject, is_async: bool
) -> None:
    filters = data.draw(groups(keys_of(rows)))
    shelf.fill(rows)
    ids = data.draw(st.none() | st.lists(st.sampled_from(range(len(rows)))))
    node_ids = None if ids is None else [uuid_of(number) for number in ids]
    if is_refused(filters):
        with pytest.raises(InputError):
            shelf.store.delete_nodes(node_ids, filters)
        assert len(shelf.store.get_nodes()) == len(rows)
        return
    found = shelf.find(filters) & set(range(len(rows)) if ids is None else ids)
    assert found == shelf.numbers(shelf.store.get_nodes(node_ids, filters))
    if is_async:
        asyncio.run(shelf.store.adelete_nodes(node_ids, filters))
    else:
        shelf.store.delete_nodes(node_ids, filters)
    assert shelf.numbers(shelf.store.get_nodes()) == set(range(len(rows))) - found


@pytest.mark.parametrize("op", COMPARISONS)
def test_numbers_that_round_to_the_same_float_are_told_apart(shelf: Shelf, op: Op) -> None:
    numbers = [
        *range(2**53 - 2, 2**53 + 4), *range(2**60 - 66, 2**60 + 130, 31), 2**63 - 1, 2**63 - 512,
        2**63 - 513, -(2**63), -(2**63) + 512, -(2**53) - 1, 2.0**53, 2.0**60, 2.0**63, -(2.0**63),
    ]  # fmt: skip
    shelf.fill([{"n": number} for number in numbers])
    for bound in numbers:
        for comparison in (op, Op.EQ, Op.NE):
            wanted = {
                number
                for number, stored in enumerate(numbers)
                if holds({"n": stored}, "n", comparison, bound)
            }
            filters = one("n", comparison, bound)
            assert shelf.numbers(shelf.store.get_nodes(filters=filters)) == wanted


@pytest.mark.parametrize("step", [1, 2.5, 2**51, 2**58])
def test_one_of_many_numbers_is_exactly_those(shelf: Shelf, step: float) -> None:
    numbers = [each * step for each in range(-12, 13)]
    rows: list[dict[str, Any]] = [{"n": number} for number in numbers]
    rows += [{"n": float(number)} for number in numbers[::3]]
    rows += [{"n": [numbers[0], numbers[5]]}, {"n": [0.5, "1"]}, {"n": []}, {"n": "1"}, {}]
    shelf.fill(rows)
    for asked in (numbers, numbers[::2], numbers[3:20], [*numbers[::4], "1", True], numbers[:5]):
        wanted = {number for number, row in enumerate(rows) if holds(row, "n", Op.IN, asked)}
        assert shelf.find(one("n", Op.IN, asked)) == wanted
        assert shelf.find(one("n", Op.NIN, asked)) == set(range(len(rows))) - wanted


def test_many_numbers_cost_little_more_than_one(shelf: Shelf) -> None:
    condition = translate_filters(one("n", Op.IN, list(range(4**6))))
    assert condition is not None
    tried, level = 0, condition.must
    while level:  # the ranges that a number is compared with until the one it is in is found
        group = level[0]
        assert isinstance(group, qm.Filter)
        members = group.should or (group.must or [])[1].should  # type: ignore[union-attr,index]
        tried += len(members)
        level = None if isinstance(members[0], qm.FieldCondition) else [members[0]]
    assert tried == 4 * 6


# --- keys ---------------------------------------------------------------------------------------


def test_a_name_with_dots_is_the_field_of_that_name_and_otherwise_a_nested_one(
    shelf: Shelf,
) -> None:
    shelf.fill([{"dc.title": "a"}, {"dc": {"title": "a"}}, {"dc.title": "b", "dc": {"title": "a"}}])
    assert shelf.find(one("dc.title", Op.EQ, "a")) == {0, 1}
    assert shelf.find(one("dc.title", Op.NE, "a")) == {2}
    assert shelf.find(one("dc.title", Op.IS_EMPTY, None)) == set()


def test_metadata_under_llamaindexs_own_names_is_kept_and_found(shelf: Shelf) -> None:
    rows = [{"doc_id": "mine"}, {"doc_id": 7}, {"_node_content": "mine", "_node_type": "x"}, {}]
    shelf.fill(rows)
    assert shelf.find(one("doc_id", Op.EQ, "mine")) == {0}
    assert shelf.find(one("doc_id", Op.NE, "mine")) == {1, 2, 3}
    assert shelf.find(one("doc_id", Op.GT, 6)) == {1}
    assert shelf.find(one("doc_id", Op.IS_EMPTY, None)) == {2, 3}
    assert shelf.find(one("_node_content", Op.EQ, "mine")) == {2}
    assert shelf.find(one("_node_type", Op.EQ, "TextNode")) == {0, 1, 3}
    assert [found.metadata for found in shelf.store.get_nodes()] == rows


def test_a_documents_id_is_found_where_metadata_has_none_of_its_own(shelf: Shelf) -> None:
    shelf.fill([])
    shelf.store.add([node(0, {}, "one"), node(1, {"doc_id": "one"}, "two"), node(2, {}, "two")])
    try:
        assert shelf.find(one("doc_id", Op.EQ, "one")) == {0, 1}
        shelf.store.delete("two")
        assert shelf.numbers(shelf.store.get_nodes()) == {0}
    finally:
        shelf.store.clear()


@pytest.mark.parametrize("key", ['a"b', "a\\b", '"', "\ud800"])
def test_a_key_that_cannot_be_addressed_is_refused_by_name(key: str) -> None:
    with pytest.raises(InputError) as refused:
        LLAMA_INDEX_FIELDS.metadata_paths(key)
    assert repr(key) in str(refused.value)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node_ids", "filters"),
    [
        (None, None),
        (None, MetadataFilters(filters=[])),
        (None, MetadataFilters(filters=[], condition=FilterCondition.NOT)),
        (None, MetadataFilters(filters=[], condition=FilterCondition.OR)),
        (None, MetadataFilters(filters=[MetadataFilters(filters=[])])),
        (None, one("a", Op.EQ, None)),
        (["no id"], None),
        ("00000000-0000-0000-0000-000000000000", None),
    ],
)
def test_a_deletion_that_is_not_meant_is_refused_and_deletes_nothing(
    shelf: Shelf, node_ids: Any, filters: Any
) -> None:
    shelf.fill([{}, {"a": 1}])
    with pytest.raises(InputError):
        shelf.store.delete_nodes(node_ids, filters)
    with pytest.raises(InputError):
        asyncio.run(shelf.store.adelete_nodes(node_ids, filters))
    assert len(shelf.store.get_nodes()) == 2


def test_no_ids_are_no_nodes(shelf: Shelf) -> None:
    shelf.fill([{}, {"a": 1}])
    shelf.store.delete_nodes([])
    asyncio.run(shelf.store.adelete_nodes([], one("a", Op.EQ, 1)))
    assert shelf.store.get_nodes([]) == []
    assert len(shelf.store.get_nodes()) == 2


@pytest.mark.parametrize("ref_doc_id", [None, 7, "None"])
def test_nodes_without_a_document_are_no_document(shelf: Shelf, ref_doc_id: Any) -> None:
    shelf.fill([{}])
    with pytest.raises(InputError, match="document"):
        shelf.store.delete(ref_doc_id)
    with pytest.raises(InputError, match="document"):
        asyncio.run(shelf.store.adelete(ref_doc_id))
    assert len(shelf.store.get_nodes()) == 1


def test_a_query_is_refused_before_anything_is_sent(shelf: Shelf) -> None:
    query = VectorStoreQuery(query_embedding=[1.0] * 4, filters=one("a", Op.GT, "x"))
    for ask in (shelf.store.query, lambda it: asyncio.run(shelf.store.aquery(it))):
        with pytest.raises(InputError, match="'>' on 'a' compares numbers, got 'x'"):
            ask(query)


def test_the_bad_filter_of_several_is_named() -> None:
    members = [*one("a", Op.EQ, 1).filters, *one("b", Op.IN, 5).filters]
    filters = MetadataFilters.model_construct(filters=members, condition=FilterCondition.AND)
    with pytest.raises(InputError, match="item 1: operator 'in' on 'b' needs a list") as refused:
        translate_filters(filters)
    assert refused.value.index == 1


def test_numpys_numbers_are_numbers(shelf: Shelf) -> None:
    shelf.fill([{"n": 2}, {"n": 2.5}, {"n": True}])
    assert shelf.find(one("n", Op.EQ, np.int64(2))) == {0}
    assert shelf.find(one("n", Op.IN, [np.float64(2.5)])) == {1}
    assert shelf.find(one("n", Op.EQ, np.bool_(True))) == {2}


# --- reading many -------------------------------------------------------------------------------


def test_all_nodes_are_read_however_many(tmp_path: Path) -> None:
    with EdgeQdrantClient(tmp_path / "many") as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        store.add([node(number, {"even": number % 2 == 0}) for number in range(1203)])
        assert len(store.get_nodes()) == 1203
        assert len(asyncio.run(store.aget_nodes())) == 1203
        assert len(store.get_nodes(filters=one("even", Op.EQ, True))) == 602
        assert len(store.get_nodes(limit=1100)) == 1100
        with pytest.raises(InputError, match="limit"):
            store.get_nodes(limit=0)


def test_a_collection_that_is_gone_is_a_store_error(shelf: Shelf) -> None:
    client = QdrantClient(":memory:")
    store: FingerprintedStore = build_vector_store(EMBEDDER, "gone", client=client)
    client.delete_collection("gone")
    query = VectorStoreQuery(query_embedding=[1.0] * 4)
    calls: list[Callable[[], object]] = [
        store.get_nodes,
        lambda: store.query(query),
        lambda: store.delete_nodes([uuid_of(0)]),
        lambda: store.delete("x"),
        lambda: asyncio.run(store.aget_nodes()),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="gone"):
            call()
