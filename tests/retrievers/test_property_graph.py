"""PropertyGraphIndex keeps its entities in our store, and finds paths through them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Document,
    MockEmbedding,
    PropertyGraphIndex,
    StorageContext,
    load_index_from_storage,
)
from llama_index.core.graph_stores import SimplePropertyGraphStore
from llama_index.core.graph_stores.types import (
    KG_NODES_KEY,
    KG_RELATIONS_KEY,
    TRIPLET_SOURCE_KEY,
    VECTOR_SOURCE_KEY,
    EntityNode,
    Relation,
)
from llama_index.core.indices.property_graph import ImplicitPathExtractor, VectorContextRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.schema import BaseNode, TextNode, TransformComponent
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from unified_embeddings import UnifiedTextEmbedding
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.property_graph import HybridContextRetriever
from unified_embeddings.stores.opening import Client

TEXTS = ("Foxes chase hares.", "Hares fear owls.", "Whales cross oceans.")


class Name(EntityNode):
    """An entity that is embedded by its name, without the properties that the index adds."""

    def __str__(self) -> str:
        return self.name


class Sentences(TransformComponent):
    """Reads each sentence of three words as subject, verb and object."""

    def __call__(self, nodes: Sequence[BaseNode], **_: Any) -> Sequence[BaseNode]:
        for node in nodes:
            words = node.get_content().rstrip(".").lower().split()
            subject, verb, object_ = words
            node.metadata[KG_NODES_KEY] = [Name(name=subject), Name(name=object_)]
            node.metadata[KG_RELATIONS_KEY] = [
                Relation(label=verb, source_id=subject, target_id=object_)
            ]
        return nodes


def make_index(
    store: FingerprintedStore, embedder: FakeEmbedder, texts: Sequence[str] = TEXTS
) -> PropertyGraphIndex:
    nodes = [TextNode(text=text, id_=f"chunk-{row}") for row, text in enumerate(texts)]
    return PropertyGraphIndex(
        nodes=nodes,
        kg_extractors=[Sentences(), ImplicitPathExtractor()],
        llm=MockLLM(),
        property_graph_store=SimplePropertyGraphStore(),
        vector_store=store,
        embed_model=UnifiedTextEmbedding(embedder),
        embed_kg_nodes=True,
    )


def vector_retriever(
    index: PropertyGraphIndex, embedder: FakeEmbedder, **options: Any
) -> VectorContextRetriever:
    return VectorContextRetriever(
        index.property_graph_store,
        vector_store=index.vector_store,
        embed_model=UnifiedTextEmbedding(embedder),
        include_text=False,
        **options,
    )


def stored_vectors(store: FingerprintedStore) -> dict[str, dict[str, Any]]:
    """Return each entity's vectors by their names."""
    points, _ = store.client.scroll(
        store.collection_name, limit=100, with_payload=True, with_vectors=True
    )
    return {point.payload[VECTOR_SOURCE_KEY]: point.vector for point in points}


def test_paths_are_found_through_entities(any_client: Client) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=any_client)
    index = make_index(store, embedder)
    assert index.vector_store is store
    retriever = vector_retriever(index, embedder, similarity_top_k=1)
    (found,) = retriever.retrieve("foxes")
    assert found.text == "foxes -> chase -> hares"
    assert found.score == pytest.approx(1.0, abs=1e-6)  # the entity's text is the question
    assert asyncio.run(retriever.aretrieve("foxes"))[0].text == found.text


def test_a_deeper_path_leads_through_an_entity_of_another_text() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    near = vector_retriever(index, embedder, similarity_top_k=1, path_depth=1).retrieve("foxes")
    far = vector_retriever(index, embedder, similarity_top_k=1, path_depth=2).retrieve("foxes")
    assert {node.text for node in near} == {"foxes -> chase -> hares"}
    assert {node.text for node in far} == {"foxes -> chase -> hares", "hares -> fear -> owls"}


def test_an_engine_over_the_index_gets_the_source_text() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    retriever = VectorContextRetriever(
        index.property_graph_store,
        vector_store=store,
        embed_model=UnifiedTextEmbedding(embedder),
        similarity_top_k=1,
    )
    engine = index.as_query_engine(llm=MockLLM(), sub_retrievers=[retriever])
    (source,) = engine.query("whales").source_nodes
    assert source.node_id == "chunk-2"
    assert "whales -> cross -> oceans" in source.text
    assert source.text.endswith("Whales cross oceans.")


def test_entities_are_embedded_once_and_their_ids_are_no_part_of_it() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    make_index(store, embedder)
    # One pass for the chunks, and one for the entities: their sparse vectors are cached by it.
    assert embedder.stats().forwards == 2
    stored = stored_vectors(store)
    assert set(stored) == {"foxes", "hares", "owls", "whales", "oceans"}
    for name, vectors in stored.items():
        expected = FakeEmbedder(32).encode_documents([name])
        assert expected.dense is not None
        assert expected.sparse is not None
        dense, sparse = vectors[store.dense_vector_name], vectors[store.sparse_vector_name]
        assert dense == pytest.approx(expected.dense[0].tolist(), abs=1e-6)
        assert sparse.indices == expected.sparse[0].indices.tolist()
        assert sparse.values == expected.sparse[0].values.tolist()


def test_a_callers_node_is_not_changed_by_storing_it() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    metadata = {VECTOR_SOURCE_KEY: "foxes", TRIPLET_SOURCE_KEY: "chunk-0"}
    node = TextNode(text="foxes", metadata=metadata, embedding=[1.0] + [0.0] * 31)
    store.add([node])
    assert node.excluded_embed_metadata_keys == []
    (stored,) = store.get_nodes()
    assert stored.metadata == metadata
    assert stored.get_content("embed") == "foxes"  # type: ignore[arg-type]


def test_what_was_inserted_once_is_not_embedded_again() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    count = store.client.count("entities").count
    index.insert_nodes([TextNode(text="Foxes chase hares.", id_="chunk-0")])
    assert store.client.count("entities").count == count
    index.insert(Document(text="Owls hunt foxes."))
    assert store.client.count("entities").count == count
    found = vector_retriever(index, embedder, similarity_top_k=1).retrieve("foxes")
    assert {node.text for node in found} == {"foxes -> chase -> hares", "owls -> hunt -> foxes"}


def test_persisted_and_reloaded_it_finds_the_same(tmp_path: Path) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", path=str(tmp_path / "qdrant"))
    index = make_index(store, embedder)
    before = vector_retriever(index, embedder).retrieve("foxes")
    index.storage_context.persist(tmp_path / "graph")
    store.client.close()

    reopened = build_vector_store(embedder, "entities", path=str(tmp_path / "qdrant"))
    loaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path / "graph"), vector_store=reopened),
        kg_extractors=[Sentences()],
        embed_model=UnifiedTextEmbedding(embedder),
    )
    existing = PropertyGraphIndex.from_existing(
        SimplePropertyGraphStore.from_persist_dir(str(tmp_path / "graph")),
        vector_store=reopened,
        kg_extractors=[Sentences()],
        embed_model=UnifiedTextEmbedding(embedder),
    )
    assert isinstance(loaded, PropertyGraphIndex)
    for again in (loaded, existing):
        after = vector_retriever(again, embedder).retrieve("foxes")
        assert [(node.text, node.score) for node in after] == [
            (node.text, node.score) for node in before
        ]
    loaded.insert(Document(text="Owls hunt mice."))
    assert {node.text for node in vector_retriever(loaded, embedder).retrieve("mice")} >= {
        "owls -> hunt -> mice"
    }
    reopened.client.close()


def test_entities_of_a_text_are_deleted_by_filter(any_client: Client) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=any_client)
    index = make_index(store, embedder)
    filters = MetadataFilters(filters=[MetadataFilter(key=TRIPLET_SOURCE_KEY, value="chunk-2")])
    of_whales = store.get_nodes(filters=filters)
    assert {node.metadata[VECTOR_SOURCE_KEY] for node in of_whales} == {"whales", "oceans"}
    index.property_graph_store.delete(ids=["whales", "oceans"])
    store.delete_nodes(filters=filters)
    left = {node.metadata[VECTOR_SOURCE_KEY] for node in store.get_nodes()}
    assert left == {"foxes", "hares", "owls"}
    found = vector_retriever(index, embedder, similarity_top_k=4).retrieve("whales")
    assert all("whales" not in node.text for node in found)


def test_an_entity_that_is_gone_from_the_graph_alone_gives_no_path() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    index.property_graph_store.delete(ids=["whales"])  # as index.delete_nodes does
    assert vector_retriever(index, embedder, similarity_top_k=1).retrieve("whales") == []


def test_filters_restrict_the_entities() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    filters = MetadataFilters(filters=[MetadataFilter(key=TRIPLET_SOURCE_KEY, value="chunk-2")])
    found = vector_retriever(index, embedder, filters=filters).retrieve("foxes")
    assert {node.text for node in found} == {"whales -> cross -> oceans"}


def test_a_query_of_an_index_can_name_the_points(any_client: Client) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=any_client)
    index = make_index(store, embedder)
    (owls,) = [node for node in store.get_nodes() if node.metadata[VECTOR_SOURCE_KEY] == "owls"]
    assert store.get_nodes([owls.node_id])[0].get_content() == "owls"
    found = vector_retriever(index, embedder, node_ids=[owls.node_id]).retrieve("foxes")
    assert {node.text for node in found} == {"hares -> fear -> owls"}
    store.delete_nodes([owls.node_id])
    assert store.get_nodes([owls.node_id]) == []


@pytest.mark.parametrize("mode", ["default", "mmr", VectorStoreQueryMode.MMR])
def test_a_query_of_an_index_can_name_its_mode(mode: str) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    found = vector_retriever(index, embedder, mode=mode, similarity_top_k=1).retrieve("whales")
    assert {node.text for node in found} == {"whales -> cross -> oceans"}


# --- hybrid ---------------------------------------------------------------------------------------


def make_rare_index(store: FingerprintedStore, embedder: FakeEmbedder) -> PropertyGraphIndex:
    """An index of 40 entities."""
    texts = [f"P{number} needs q{number}." for number in range(20)]
    return make_index(store, embedder, texts)


def test_hybrid_finds_by_words(any_client: Client) -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=any_client)
    index = make_rare_index(store, embedder)
    retriever = HybridContextRetriever(
        index.property_graph_store,
        vector_store=store,
        embed_model=UnifiedTextEmbedding(embedder),
        similarity_top_k=1,
        include_text=False,
    )
    (found,) = retriever.retrieve("what does p17 need")
    assert found.text == "p17 -> needs -> q17"
    assert asyncio.run(retriever.aretrieve("what does p17 need"))[0].text == found.text
    (in_index,) = index.as_retriever(sub_retrievers=[retriever]).retrieve("what does p17 need")
    assert in_index.text == found.text


def test_hybrid_sends_the_words_beside_the_embedding() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_rare_index(store, embedder)
    retriever = HybridContextRetriever(
        index.property_graph_store,
        vector_store=store,
        embed_model=MockEmbedding(embed_dim=32),  # knows no question from another
        similarity_top_k=1,
        include_text=False,
    )
    # All 40 entities are in the dense list, in one order for every question. The first by words
    # has at least 0.5/61 + 1/100, and no other has more than 1/61.
    for number in (3, 11, 17):
        (found,) = retriever.retrieve(f"p{number}")
        assert found.text == f"p{number} -> needs -> q{number}"


def test_hybrid_finds_no_path_where_it_finds_no_entity() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    nowhere = MetadataFilters(filters=[MetadataFilter(key=TRIPLET_SOURCE_KEY, value="nowhere")])
    # LlamaIndex's own retriever takes that for a question about the whole graph.
    stock = vector_retriever(index, embedder, filters=nowhere).retrieve("foxes")
    assert [node.score for node in stock] == 3 * [0.0]
    retriever = HybridContextRetriever(
        index.property_graph_store,
        vector_store=store,
        embed_model=UnifiedTextEmbedding(embedder),
        filters=nowhere,
    )
    assert retriever.retrieve("foxes") == []
    assert asyncio.run(retriever.aretrieve("foxes")) == []


def test_hybrid_keeps_deeper_paths() -> None:
    embedder = FakeEmbedder(32)
    store = build_vector_store(embedder, "entities", client=QdrantClient(":memory:"))
    index = make_index(store, embedder)
    retriever = HybridContextRetriever(
        index.property_graph_store,
        vector_store=store,
        embed_model=UnifiedTextEmbedding(embedder),
        similarity_top_k=1,
        path_depth=2,
        include_text=False,
    )
    found = retriever.retrieve("foxes")
    scores = {node.text: node.get_score() for node in found}
    assert set(scores) == {"foxes -> chase -> hares", "hares -> fear -> owls"}
    assert scores["foxes -> chase -> hares"] > scores["hares -> fear -> owls"] == 0


def test_hybrid_refuses_a_store_without_sparse_vectors() -> None:
    dense_only = FakeEmbedder(32, heads=("dense",))
    store = build_vector_store(dense_only, "entities", client=QdrantClient(":memory:"))
    model = UnifiedTextEmbedding(dense_only)
    graph = SimplePropertyGraphStore()
    with pytest.raises(InputError, match="no sparse vectors; take VectorContextRetriever"):
        HybridContextRetriever(graph, vector_store=store, embed_model=model)
    stock = QdrantVectorStore("entities", client=store.client)
    with pytest.raises(InputError, match="expected a store of UnifiedEmbeddingConfig"):
        HybridContextRetriever(graph, vector_store=stock, embed_model=model)  # type: ignore[arg-type]
