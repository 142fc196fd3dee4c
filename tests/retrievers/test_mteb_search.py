"""mteb runs the retriever, and comes to the figures that `evaluate` gives."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.evaluation.metrics import score_run
from unified_embeddings.evaluation.mteb import make_task
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.judged_store import DOCUMENT_FIELD, open_judged_store
from unified_embeddings.retrievers.mteb_search import MtebSearch
from unified_embeddings.retrievers.runs import collect_run

needs_mteb = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None, reason="mteb is an extra of its own"
)


def make_corpus() -> Corpus:
    """Random texts and judgements: all that matters is that both come to the same figures."""
    generator = np.random.default_rng(7)
    words = [f"word{number}" for number in range(60)]
    documents = {f"d{i}": " ".join(generator.choice(words, 5 + i % 4)) for i in range(60)}
    queries = {f"q{i}": " ".join(generator.choice(words, 3)) for i in range(15)}
    qrels = {
        query: {f"d{i}": int(generator.integers(1, 3)) for i in generator.choice(60, 4, False)}
        for query in queries
    }
    return Corpus("made", documents, queries, qrels)


def test_a_judged_store_holds_each_document_once_and_goes_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    documents = {f"d{number}": f"word{number}" for number in range(300)}
    stored: list[int] = []
    with open_judged_store(FakeEmbedder(), documents, on_documents=stored.append) as store:
        assert store.client.count("judged").count == 300
        retriever = UnifiedHybridRetriever(store, FakeEmbedder(), similarity_top_k=1)
        run = collect_run(retriever, {"q": "word7"}, document_field=DOCUMENT_FIELD)
        assert list(run["q"]) == ["d7"]
        assert list(tmp_path.iterdir())
    assert stored == [256, 44]
    assert not list(tmp_path.iterdir())


def test_a_missing_mteb_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"unified-embeddings\[mteb\]"):
        MtebSearch(FakeEmbedder())


@needs_mteb
@pytest.mark.parametrize(
    "options", [{}, {"mode": "sparse"}, {"mode": "dense", "rerank": "colbert"}]
)
def test_mteb_comes_to_our_figures(options: dict[str, Any]) -> None:
    import mteb

    embedder = FakeEmbedder()
    corpus = make_corpus()
    assert corpus.qrels is not None
    with open_judged_store(embedder, corpus.documents) as store:
        retriever = UnifiedHybridRetriever(store, embedder, similarity_top_k=20, **options)
        run = collect_run(retriever, corpus.queries, document_field=DOCUMENT_FIELD)
    ours = score_run(run, corpus.qrels, k=10, depth=20).means()
    search = MtebSearch(embedder, depth=20, **options)
    result = mteb.evaluate(
        search, make_task(corpus), cache=None, co2_tracker=False, show_progress_bar=False
    )
    (theirs,) = result.task_results[0].scores["test"]
    assert 0 < ours["nDCG@10"] < 1
    for name, label in {
        "ndcg_at_10": "nDCG@10",
        "recall_at_10": "recall@10",
        "precision_at_10": "precision@10",
        "map_at_20": "MAP@20",
    }.items():
        assert theirs[name] == pytest.approx(ours[label], abs=1e-4), name


@needs_mteb
class TestSearch:
    def test_it_keeps_mtebs_protocol(self) -> None:
        from mteb.models import EncoderProtocol, SearchProtocol

        search = MtebSearch(FakeEmbedder(model_name="fake"), mode="sparse")
        assert isinstance(search, SearchProtocol)
        assert not isinstance(search, EncoderProtocol)
        meta = search.mteb_model_meta
        assert meta.name == "unified-embeddings/fake"
        assert meta.experiment_kwargs == {"mode": "sparse", "similarity_top_k": "100"}

    def test_titles_and_instructions_are_joined_as_mteb_joins_them(self) -> None:
        embedder = FakeEmbedder()
        search = MtebSearch(embedder, mode="sparse", depth=5)
        search.index(
            [
                {"id": "a", "title": "fox", "text": "night"},
                {"id": "b", "title": "", "text": "sea"},
                {"id": "c", "title": None, "text": "ship"},
            ]
        )
        queries = [{"id": "q1", "text": "fox"}, {"id": "q2", "text": "x", "instruction": "sea"}]
        found = search.search(queries, top_k=1)
        assert [list(scores) for scores in found.values()] == [["a"], ["b"]]
        search.index([{"id": "z", "text": "fox"}])  # in place of the other corpus
        assert list(search.search(queries, top_k=9)["q1"]) == ["z"]
        search.close()
        with pytest.raises(InputError, match="index a corpus"):
            search.search(queries, top_k=1)

    def test_what_it_cannot_do_is_refused(self) -> None:
        search = MtebSearch(FakeEmbedder())
        with pytest.raises(InputError, match="expected a text for 'a', got NoneType"):
            search.index([{"id": "a", "image": b""}])
        search.index([{"id": "a", "text": "fox"}])
        with pytest.raises(InputError, match="MtebEncoder"):
            search.search([{"id": "q", "text": "fox"}], top_k=5, top_ranked={"q": ["a"]})
        search.close()
        with pytest.raises(InputError, match="leave similarity_top_k out"):
            MtebSearch(FakeEmbedder(), similarity_top_k=5)
        with pytest.raises(InputError, match="depth"):
            MtebSearch(FakeEmbedder(), depth=0)


@needs_mteb
def test_the_kind_of_model_is_the_mode() -> None:
    embedder = FakeEmbedder(model_name="fake")
    assert MtebSearch(embedder, mode="sparse").mteb_model_meta.model_type == ["sparse"]
    assert MtebSearch(embedder).mteb_model_meta.model_type == ["hybrid"]
