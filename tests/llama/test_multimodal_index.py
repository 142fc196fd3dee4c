"""Texts and images through LlamaIndex and Qdrant: index, search, delete, reopen."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Settings, StorageContext
from llama_index.core.indices.multi_modal.base import MultiModalVectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from qdrant_client import QdrantClient

import checkpoints
from conftest import fake_config
from image_files import IMAGES, no_network, noise, png
from unified_embeddings import (
    ClipEmbedder,
    FingerprintMismatchError,
    InputError,
    UnifiedEmbeddingConfig,
    UnifiedImageEmbedding,
    UnifiedMultiModalIndex,
    UnifiedMultiModalRetriever,
)
from unified_embeddings.llama.payloads import own_metadata

TEXTS = {"fox": "The quick brown fox jumps", "ranking": "Retrieval finds documents; ranking orders"}
ID = "00000000-0000-0000-0000-00000000000{}"


def text_node(number: int, text: str, **metadata: Any) -> TextNode:
    node = TextNode(text=text, id_=ID.format(number), metadata=metadata)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc{number}")
    return node


def image_node(number: int, text: str = "", **metadata: Any) -> ImageNode:
    encoded = base64.b64encode(png(IMAGES[number - 5])).decode()
    node = ImageNode(image=encoded, text=text, id_=ID.format(number), metadata=metadata)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc{number}")
    return node


def nodes() -> list[TextNode]:
    """1, 2: texts; 5, 6: images without a word; 7: an image with a caption."""
    return [
        text_node(1, TEXTS["fox"], kind="text", year=2020),
        text_node(2, TEXTS["ranking"], kind="text", year=2024),
        image_node(5),
        image_node(6, year=2024),
        image_node(7, "a fox in the snow", year=2020),
    ]


@pytest.fixture
def config(clip: Path) -> UnifiedEmbeddingConfig:
    return fake_config(clip)


class Stores:
    """Both stores on one client, filled."""

    def __init__(self, config: UnifiedEmbeddingConfig, **place: Any) -> None:
        place = place or {"client": QdrantClient(":memory:")}
        self.config = config
        self.texts = config.vector_store("texts", **place)
        self.images = config.image_store("images", **place)

    def index(self, content: list[Any] | None = None) -> UnifiedMultiModalIndex:
        return UnifiedMultiModalIndex(
            nodes=nodes() if content is None else content,
            image_embed_model=self.config.image_model,
            embed_model=self.config.text_model,
            storage_context=StorageContext.from_defaults(vector_store=self.texts),
            image_vector_store=self.images,
        )

    def opened(self) -> UnifiedMultiModalIndex:
        return UnifiedMultiModalIndex.from_vector_store(
            self.texts,
            embed_model=self.config.text_model,
            image_vector_store=self.images,
            image_embed_model=self.config.image_model,
        )

    def retriever(self, **options: Any) -> UnifiedMultiModalRetriever:
        return self.config.multimodal_retriever(self.texts, self.images, **options)

    def ids(self, store: Any) -> set[int]:
        points, _ = store.client.scroll(store.collection_name, limit=100)
        return {int(str(point.id)[-1]) for point in points}


@pytest.fixture
def stores(config: UnifiedEmbeddingConfig) -> Stores:
    made = Stores(config)
    made.index()
    return made


def numbers(found: list[Any]) -> list[int]:
    return [int(scored.node.node_id[-1]) for scored in found]


class TestIndex:
    def test_every_node_lands_where_it_belongs(self, stores: Stores) -> None:
        assert stores.ids(stores.texts) == {1, 2, 7}
        assert stores.ids(stores.images) == {5, 6, 7}

    def test_the_stock_index_works_with_our_parts_and_loses_what_it_loses(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        stores = Stores(config)
        stock = MultiModalVectorStoreIndex(
            nodes=nodes(),
            image_embed_model=config.image_model,
            embed_model=config.text_model,
            storage_context=StorageContext.from_defaults(vector_store=stores.texts),
            image_vector_store=stores.images,
        )
        assert stores.ids(stores.texts) == {1, 2, 7}
        assert stores.ids(stores.images) == {6, 7}  # 5 has neither text nor metadata
        found = stock.as_retriever(image_similarity_top_k=2).text_to_image_retrieve("fox")
        assert len(found) == 2

    def test_the_settings_are_read(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Settings, "_embed_model", None)
        monkeypatch.setattr(Settings, "image_embed_model", None, raising=False)
        with pytest.raises(InputError, match="configure_settings"):
            UnifiedMultiModalIndex(nodes=[])
        stores.config.configure_settings()
        index = UnifiedMultiModalIndex.from_vector_store(
            stores.texts, image_vector_store=stores.images
        )
        assert index.image_embed_model is stores.config.image_model
        index.insert_nodes([image_node(8)])
        assert stores.ids(stores.images) == {5, 6, 7, 8}

    def test_documents_are_indexed_whole(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)
        encoded = base64.b64encode(png(IMAGES[0])).decode()
        documents = [Document(text=TEXTS["fox"]), ImageDocument(image=encoded)]
        UnifiedMultiModalIndex.from_documents(
            documents,
            image_embed_model=config.image_model,
            embed_model=config.text_model,
            storage_context=StorageContext.from_defaults(vector_store=stores.texts),
            image_vector_store=stores.images,
        )
        count = [store.client.count(store.collection_name).count
                 for store in (stores.texts, stores.images)]  # fmt: skip
        assert count == [1, 1]

    def test_async(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)

        async def run() -> list[Any]:
            index = stores.index([])
            await index.ainsert_nodes(nodes())
            found = await stores.retriever().aretrieve("the quick fox")
            await index.adelete_nodes([ID.format(7)])
            await index.adelete_ref_doc("doc5")
            return found

        found = asyncio.run(run())
        assert sorted(numbers(found)) == [1, 2, 5, 6, 7]
        assert stores.ids(stores.texts) == {1, 2}
        assert stores.ids(stores.images) == {6}

    def test_a_bad_image_names_its_place_and_stores_nothing(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        stores = Stores(config)
        bad = ImageNode(image=base64.b64encode(b"words").decode(), id_=ID.format(9))
        with pytest.raises(InputError, match=f"item 3: node {ID.format(9)}: ") as caught:
            stores.index([image_node(5), text_node(1, "fox"), image_node(6), bad])
        assert caught.value.index == 3
        assert stores.ids(stores.images) == stores.ids(stores.texts) == set()

    def test_an_images_url_is_not_fetched_unasked(
        self, config: UnifiedEmbeddingConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stores = Stores(config)
        no_network(monkeypatch)
        with pytest.raises(InputError, match="allow_urls"):
            stores.index([ImageNode(image_url="http://example.com/a.png", id_=ID.format(9))])

    def test_any_node_with_an_image_is_an_image(self, config: UnifiedEmbeddingConfig) -> None:
        encoded = base64.b64encode(png(IMAGES[0])).decode()
        resource = MediaResource(data=encoded.encode())
        given = [
            Node(image_resource=resource, id_=ID.format(1)),
            Node(
                image_resource=resource,
                text_resource=MediaResource(text="a fox"),
                id_=ID.format(2),
                metadata={"year": 2024},
            ),
            ImageDocument(image=encoded, id_=ID.format(3)),
        ]
        for insert in (lambda s: s.index(given), lambda s: s.index([]).insert_nodes(given)):
            stores = Stores(config)
            insert(stores)
            assert stores.ids(stores.images) == {1, 2, 3}
            assert stores.ids(stores.texts) == {2}
            found = stores.retriever(weights=(0, 1)).retrieve("fox")
            assert {type(n.node).__name__ for n in found} == {"ImageNode"}
            (kept,) = [n.node for n in found if numbers([n]) == [2]]
            assert (kept.text, own_metadata(kept)) == ("a fox", {"year": 2024})

    def test_documents_with_an_image_keep_it(self, config: UnifiedEmbeddingConfig) -> None:
        encoded = base64.b64encode(png(IMAGES[0]))
        for text in ("", "a fox"):
            stores = Stores(config)
            document = Document(text=text, image_resource=MediaResource(data=encoded))
            index = stores.index([])
            index.insert(document)
            assert stores.images.client.count("images").count == 1
            assert stores.texts.client.count("texts").count == bool(text)

    def test_texts_and_images_in_two_calls_are_both_found_by_the_stock_retriever(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        stores = Stores(config)
        index = stores.index([text_node(1, "fox")])
        index.insert_nodes([image_node(5)])
        assert sorted(numbers(index.as_retriever().retrieve("fox"))) == [1, 5]

    def test_a_pipeline_embeds_images_by_their_image(self, config: UnifiedEmbeddingConfig) -> None:
        from llama_index.core.ingestion import IngestionPipeline

        given = [image_node(5), image_node(7, "a caption"), text_node(1, "fox")]
        made = IngestionPipeline(transformations=[config.image_model]).run(nodes=given)
        images = config.clip.encode_images([IMAGES[0], IMAGES[2]]).dense
        same([node.embedding for node in made[:2]], images)
        same(made[2].embedding, config.clip.encode_texts(["fox"])[0])
        again = asyncio.run(config.image_model.acall([image_node(5)]))
        same(again[0].embedding, images[0])

    def test_a_captions_vector_is_its_texts(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)
        node = image_node(7, "a fox in the snow")
        node.embedding = [1.0] + [0.0] * 23
        stores.index([node])
        (point,) = stores.texts.client.retrieve("texts", [ID.format(7)], with_vectors=True)
        same(point.vector["text-dense"], config.embedder.encode_documents([node.text]).dense[0])
        node.embedding = [1.0] * 32
        with pytest.raises(InputError, match=r"item 1: .*32 dimensions.* gives 24"):
            stores.index([text_node(1, "fox"), node])

    def test_deleting_with_a_docstore_of_its_own(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)
        index = UnifiedMultiModalIndex(
            nodes=nodes(),
            image_embed_model=config.image_model,
            embed_model=config.text_model,
            storage_context=StorageContext.from_defaults(vector_store=stores.texts),
            image_vector_store=stores.images,
            store_nodes_override=True,
        )
        index.delete_ref_doc("doc7", delete_from_docstore=True)
        assert stores.ids(stores.texts) == {1, 2}
        assert stores.ids(stores.images) == {5, 6}

    def test_an_id_that_qdrant_cannot_take_is_named(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)
        with pytest.raises(InputError, match="no uuid"):
            stores.index([TextNode(text="fox", id_="no uuid")])

    def test_images_show_in_the_callbacks(self, config: UnifiedEmbeddingConfig) -> None:
        from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler

        handler = LlamaDebugHandler(print_trace_on_end=False)
        stores = Stores(config)
        UnifiedMultiModalIndex(
            nodes=[image_node(5), image_node(6)],
            image_embed_model=config.image_model,
            embed_model=config.text_model,
            storage_context=StorageContext.from_defaults(vector_store=stores.texts),
            image_vector_store=stores.images,
            callback_manager=CallbackManager([handler]),
        )
        (pair,) = handler.get_event_pairs(CBEventType.EMBEDDING)
        assert len(pair[1].payload["embeddings"]) == 2

    def test_nodes_with_a_vector_keep_it(self, config: UnifiedEmbeddingConfig) -> None:
        stores = Stores(config)
        node = image_node(5)
        node.embedding = [1.0] + [0.0] * 23
        stores.index([node])
        (point,) = stores.images.client.retrieve("images", [ID.format(5)], with_vectors=True)
        assert point.vector["text-dense"][0] == pytest.approx(1)
        assert config.clip.stats().images == 0


class TestRetriever:
    def test_a_text_finds_texts_and_images(self, stores: Stores) -> None:
        found = stores.retriever().retrieve("The quick brown fox jumps")
        assert sorted(numbers(found)) == [1, 2, 5, 6, 7]
        assert {type(scored.node).__name__ for scored in found} == {"TextNode", "ImageNode"}

    def test_scores_are_rrfs(self, stores: Stores) -> None:
        """Compute each node's score by hand from its ranks in both lists."""
        question = "The quick brown fox jumps"
        texts = numbers(stores.config.retriever(stores.texts).retrieve(question))
        query = stores.config.clip.encode_texts([question])[0]
        images = stores.config.clip.encode_images([IMAGES[i] for i in (0, 1, 2)]).dense
        seen = [5 + int(i) for i in np.argsort(-images @ query)]
        expected: dict[int, float] = {}
        for weight, ranking in ((2.0, texts), (0.5, seen)):
            for rank, number in enumerate(ranking):
                expected[number] = expected.get(number, 0) + weight / (10 + rank + 1)
        found = stores.retriever(weights=(2.0, 0.5), rrf_k=10).retrieve(question)
        assert {int(n.node.node_id[-1]): n.score for n in found} == pytest.approx(expected)
        assert [n.score for n in found] == sorted((n.score for n in found), reverse=True)

    def test_an_image_finds_itself_and_images_alone(self, stores: Stores, tmp_path: Path) -> None:
        path = tmp_path / "query.png"
        path.write_bytes(png(IMAGES[1]))
        found = stores.retriever().retrieve(QueryBundle("", image_path=str(path)))
        assert numbers(found)[0] == 6
        assert sorted(numbers(found)) == [5, 6, 7]
        assert found[0].score == pytest.approx(1 / 61)

    def test_text_and_image_together(self, stores: Stores) -> None:
        encoded = base64.b64encode(png(IMAGES[1])).decode()
        bundle = QueryBundle("The quick brown fox jumps", image_path=encoded)
        found = stores.retriever().retrieve(bundle)
        assert sorted(numbers(found)) == [1, 2, 5, 6, 7]
        assert found[0].score > 1 / 61  # some image is in three rankings

    def test_modalities_can_be_left_out(self, stores: Stores) -> None:
        assert sorted(numbers(stores.retriever(weights=(1, 0)).retrieve("fox"))) == [1, 2, 7]
        assert sorted(numbers(stores.retriever(weights=(0, 1)).retrieve("fox"))) == [5, 6, 7]
        seen = stores.config.clip.stats().images
        bundle = QueryBundle("", image_path="missing.png")  # is not even read
        assert stores.retriever(weights=(1, 0)).retrieve(bundle) == []
        assert stores.config.clip.stats().images == seen

    def test_filters_hold_for_both(self, stores: Stores) -> None:
        filters = MetadataFilters(filters=[MetadataFilter(key="year", value=2024)])
        assert sorted(numbers(stores.retriever(filters=filters).retrieve("fox"))) == [2, 6]

    def test_top_k_and_candidates(self, stores: Stores) -> None:
        assert len(stores.retriever(similarity_top_k=2).retrieve("fox")) == 2
        deep = stores.retriever(similarity_top_k=5, candidates=1).retrieve("fox")
        assert len(deep) == 5

    def test_equal_texts_and_equal_images_come_in_one_order(
        self, config: UnifiedEmbeddingConfig, tmp_path: Path
    ) -> None:
        """By score, then the better rank, then id, on both local cores; more only append."""
        for place in ({"client": QdrantClient(":memory:")}, {"path": tmp_path / "store"}):
            stores = Stores(config, **place)
            texts = [text_node(number, TEXTS["fox"]) for number in (4, 1, 3, 2)]
            pictures = [image_node(number) for number in (9, 6, 8, 7)]
            for picture in pictures:
                picture.image = base64.b64encode(png(IMAGES[0])).decode()
            stores.index([*pictures, *texts])
            answers = [numbers(stores.retriever().retrieve("fox")) for _ in range(5)]
            # Both rankings give their first the same score, then their second, and so on.
            assert answers == [[1, 6, 2, 7, 3, 8, 4, 9]] * 5
            for size in range(1, 8):
                found = stores.retriever(similarity_top_k=size).retrieve("fox")
                assert numbers(found) == answers[0][:size]
            stores.texts.client.close()

    def test_async_gives_the_same(self, stores: Stores) -> None:
        bundle = QueryBundle("quick fox", image_path=base64.b64encode(png(IMAGES[2])).decode())
        retriever = stores.retriever(rerank="colbert")
        sync = [(n.node.node_id, n.score) for n in retriever.retrieve(bundle)]
        other = [(n.node.node_id, n.score) for n in asyncio.run(retriever.aretrieve(bundle))]
        assert sync == other

    def test_in_a_query_engine(self, stores: Stores) -> None:
        engine = RetrieverQueryEngine.from_args(stores.retriever(), llm=MockLLM())
        response = engine.query("Which fox?")
        assert sorted(numbers(response.source_nodes)) == [1, 2, 5, 6, 7]

    def test_one_forward_of_each_model_a_question(self, stores: Stores) -> None:
        before = (stores.config.embedder.stats().forwards, stores.config.clip.stats().forwards)
        stores.retriever().retrieve("a question nobody asked before")
        after = (stores.config.embedder.stats().forwards, stores.config.clip.stats().forwards)
        assert (after[0] - before[0], after[1] - before[1]) == (1, 1)

    @pytest.mark.parametrize("query", ["", "  ", QueryBundle(""), QueryBundle(" ")])
    def test_a_question_needs_something(self, query: Any, stores: Stores) -> None:
        with pytest.raises(InputError, match="a text or an image"):
            stores.retriever().retrieve(query)

    def test_bad_questions(self, stores: Stores) -> None:
        with pytest.raises(InputError, match="got int"):
            stores.retriever().retrieve(3)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="text must be a str"):
            stores.retriever().retrieve(QueryBundle(None))  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match=r"the question's image: 'missing\.png' is neither an existing file"
        ):
            stores.retriever().retrieve(QueryBundle("", image_path="missing.png"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weights": (0, 0)}, "weights"),
            ({"weights": (1, -1)}, "weights"),
            ({"similarity_top_k": 0}, "similarity_top_k"),
            ({"candidates": "many"}, "candidates"),
            ({"rrf_k": -1}, "rrf_k"),
            ({"mode": "fuzzy"}, "mode"),
        ],
    )
    def test_options_in_range(self, options: Any, message: str, stores: Stores) -> None:
        with pytest.raises(InputError, match=message):
            stores.retriever(**options)


class TestStores:
    def test_delete_and_reopen(self, config: UnifiedEmbeddingConfig, tmp_path: Path) -> None:
        folder = tmp_path / "qdrant"
        stores = Stores(config, path=folder)
        index = stores.index()
        index.delete_ref_doc("doc7")
        index.delete_nodes([ID.format(5), ID.format(1)])
        assert stores.ids(stores.texts) == {2}
        assert stores.ids(stores.images) == {6}
        stores.texts.client.close()
        again = Stores(config, path=folder)
        assert numbers(again.retriever().retrieve("fox")) in ([2, 6], [6, 2])
        again.opened().insert_nodes([image_node(7, "a fox in the snow")])
        assert sorted(numbers(again.retriever().retrieve("fox"))) == [2, 6, 7]
        (image,) = [n.node for n in again.retriever().retrieve("fox") if numbers([n]) == [7]]
        shown = np.asarray(__import__("PIL.Image").Image.open(image.resolve_image()))
        np.testing.assert_array_equal(shown, np.asarray(IMAGES[2]))
        again.texts.client.close()

    def test_another_image_model_is_refused(self, stores: Stores, tmp_path: Path) -> None:
        other = fake_config(checkpoints.clip(tmp_path / "twin", seed=5))
        with pytest.raises(FingerprintMismatchError, match="images"):
            other.image_store("images", client=stores.images.client)
        with pytest.raises(FingerprintMismatchError, match="images"):
            other.multimodal_retriever(stores.texts, stores.images)

    def test_an_index_writes_with_the_models_of_its_stores(
        self, stores: Stores, clip: Path, tmp_path: Path
    ) -> None:
        twin = checkpoints.clip(tmp_path / "twin", seed=5)
        for other in (fake_config(twin), fake_config(clip, model_name="other")):
            with pytest.raises(FingerprintMismatchError):
                UnifiedMultiModalIndex.from_vector_store(
                    stores.texts,
                    embed_model=other.text_model,
                    image_vector_store=stores.images,
                    image_embed_model=other.image_model,
                )

    def test_images_are_not_put_into_memory_unasked(self, stores: Stores) -> None:
        with pytest.raises(InputError, match="give image_vector_store="):
            UnifiedMultiModalIndex.from_vector_store(
                stores.texts,
                embed_model=stores.config.text_model,
                image_embed_model=stores.config.image_model,
            )

    def test_texts_and_images_do_not_mix(self, stores: Stores) -> None:
        with pytest.raises(FingerprintMismatchError):
            stores.config.image_store("texts", client=stores.texts.client)


def same(given: Any, expected: Any) -> None:
    np.testing.assert_allclose(given, expected, atol=1e-6)


class TestEmbedding:
    def test_it_is_the_embedders(self, config: UnifiedEmbeddingConfig, tmp_path: Path) -> None:
        model, clip = config.image_model, config.clip
        path = tmp_path / "fox.png"
        path.write_bytes(png(IMAGES[0]))
        images = clip.encode_images(IMAGES[:2]).dense
        same(model.get_image_embedding(str(path)), images[0])
        given = [str(path), io.BytesIO(png(IMAGES[1]))]
        same(model.get_image_embedding_batch(given), images)
        same(asyncio.run(model.aget_image_embedding_batch(given)), images)
        texts = clip.encode_texts(["fox", "dog"])
        same(model.get_text_embedding_batch(["fox", "dog"]), texts)
        same(model.get_query_embedding("dog"), texts[1])
        same(asyncio.run(model.aget_query_embedding("dog")), texts[1])
        same(asyncio.run(model.aget_image_embedding(str(path))), images[0])
        same(asyncio.run(model.aget_text_embedding_batch(["fox"])), texts[:1])

    def test_it_goes_through_json(self, clip: Path) -> None:
        model = UnifiedImageEmbedding(ClipEmbedder(clip, precision="fp32", max_pixels=10_000))
        copy = UnifiedImageEmbedding.from_dict(json.loads(json.dumps(model.to_dict())))
        assert copy.clip.options == model.clip.options
        assert copy.get_query_embedding("fox") == model.get_query_embedding("fox")
        again = UnifiedImageEmbedding.from_json(model.to_json())
        assert again.clip.model_name == str(clip)

    def test_the_event_loop_goes_on(self, config: UnifiedEmbeddingConfig) -> None:
        """Another coroutine runs while images are embedded."""
        images = [noise(500, 500, seed) for seed in range(24)]

        async def run() -> int:
            ticks = 0
            work = asyncio.create_task(config.image_model.aget_image_embedding_batch(images))
            while not work.done():
                await asyncio.sleep(0.001)
                ticks += 1
            await work
            return ticks

        assert asyncio.run(run()) > 3

    def test_a_bad_images_index_counts_in_the_whole_batch(
        self, config: UnifiedEmbeddingConfig
    ) -> None:
        images = [*IMAGES * 20, b"bad"]
        with pytest.raises(InputError) as caught:
            config.image_model.get_image_embedding_batch(images)
        assert caught.value.index == 100
