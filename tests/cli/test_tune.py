"""The command `tune`: what it chooses, prints, records and refuses."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from qdrant_server import running_server
from unified_embeddings.cli import app as cli
from unified_embeddings.cli import shared
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers import both_lists
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.calibration_record import read_calibration
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import read_choice, write_choice
from unified_embeddings.types import HeadName

WORDS = [f"word{number}" for number in range(40)]


class DenseNoise(FakeEmbedder):
    """Its dense vectors mean nothing, its sparse ones are exact: its own fusion is a bad one."""

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        vectors = super()._embed(words, heads)
        if "dense" in vectors:
            draw = np.random.default_rng(zlib.crc32(" ".join(words).encode()))
            noise = draw.normal(size=self.dimension).astype(np.float32)
            vectors["dense"] = noise / np.linalg.norm(noise)
        return vectors


class Config:
    """What the command needs of a UnifiedEmbeddingConfig."""

    def __init__(self, embedder: FakeEmbedder) -> None:
        self.embedder = embedder
        self.url, self.model_choice = None, "fake"

    def vector_store(self, collection: str, **options: Any) -> Any:
        return build_vector_store(self.embedder, collection, **options)


EMBEDDER = DenseNoise(dimension=8)


@pytest.fixture(autouse=True)
def _use_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "open_config", lambda *_: Config(EMBEDDER))


Tune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tune:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", "tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


def fill(client: Any, embedder: FakeEmbedder = EMBEDDER) -> None:
    """A document of two words for each word: itself and the next."""
    store = build_vector_store(embedder, "docs", client=client)
    texts = [f"{word} {WORDS[i - 1]}" for i, word in enumerate(WORDS)]
    dense = embedder.encode_documents(texts).dense
    assert dense is not None
    store.add(
        [
            TextNode(text=text, metadata={"paper": f"p{i}"}, embedding=vector.tolist())
            for i, (text, vector) in enumerate(zip(texts, dense, strict=True))
        ]
    )


@pytest.fixture(params=["embedded", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The option that names the place of a collection "docs"."""
    if request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as client:
            fill(client)
        yield "--path", str(tmp_path / "store")
        return
    with running_server() as (url, client):
        fill(client)
        yield "--url", url


def read(place: tuple[str, str]) -> Fusion | None:
    option, value = place
    if option == "--url":
        client = QdrantClient(url=value, check_compatibility=False)
        return read_choice("docs", client.get_collection("docs"))
    with EdgeQdrantClient(value) as edge:
        return read_choice("docs", edge.get_collection("docs"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "judged", 30)


def write_data(folder: Path, count: int, judged: str = "p{}") -> Path:
    """Queries of two words; the document that has both, in the other order, is relevant."""
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"p{i}", "text": word} for i, word in enumerate(WORDS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": f"q{i}", "text": f"{WORDS[i - 1]} {WORDS[i]}"} for i in range(count)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{i}\t{judged.format(i)}\t1\n" for i in range(count)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_a_better_choice_is_recorded_and_the_retriever_uses_it(
    place: tuple[str, str], data: Path, tune: Tune
) -> None:
    code, out, err = tune("docs", "--data", data, *place)
    assert (code, err) == (0, "")
    choice = read(place)
    assert choice is not None
    assert choice.source.startswith("tuned on judged, 30 queries: held out +0.")
    dense_weight, sparse_weight = choice.weights
    assert sparse_weight > dense_weight
    assert f"Recorded in docs: {choice}" in out
    assert "To undo: tune --reset" in out
    assert "(the model's own)" in out
    if place[0] == "--path":
        with EdgeQdrantClient(place[1]) as client:
            store = build_vector_store(EMBEDDER, "docs", client=client)
            assert UnifiedHybridRetriever(store, EMBEDDER).fusion == choice


def test_reset_removes_it(place: tuple[str, str], data: Path, tune: Tune) -> None:
    tune("docs", "--data", data, *place)
    code, out, _ = tune("docs", "--reset", *place)
    assert (code, out) == (
        0,
        "docs: the choice is removed; the model's own fusion is used again\n",
    )
    assert read(place) is None
    code, out, _ = tune("docs", "--reset", *place)
    assert (code, out) == (0, "docs: no choice is recorded; the model's own fusion is used\n")


def test_a_dry_run_records_nothing(place: tuple[str, str], data: Path, tune: Tune) -> None:
    code, out, _ = tune("docs", "--data", data, "--dry-run", *place)
    assert code == 0
    assert "Nothing is recorded: --dry-run. The choice is: " in out
    assert read(place) is None


def test_a_choice_by_generated_queries_is_recorded_only_if_that_is_said(
    place: tuple[str, str], data: Path, tune: Tune
) -> None:
    (data / "generated.json").write_text("{}")
    code, out, _ = tune("docs", "--data", data, *place)
    assert code == 0
    assert "Nothing is recorded: the queries are generated" in out
    assert read(place) is None
    code, out, _ = tune("docs", "--data", data, "--accept-generated", *place)
    assert code == 0
    assert read(place) is not None


def test_json(place: tuple[str, str], data: Path, tune: Tune) -> None:
    code, out, _ = tune("docs", "--data", data, "--json", *place)
    report = json.loads(out)
    assert code == 0
    assert report["written"]
    assert report["accepted"]
    assert Fusion.from_dict(report["choice"]) == read(place)
    assert report["against_default"]["mean"] > 0
    assert report["against_default"]["low"] <= report["against_default"]["mean"]
    assert report["held_out_ndcg"] == pytest.approx(1.0, abs=0.05)  # sparse is exact
    assert [fold["queries"] for fold in report["folds"]] == [3] * 10
    ndcgs = [choice["ndcg"] for choice in report["choices"]]
    assert ndcgs == sorted(ndcgs, reverse=True)


@pytest.mark.parametrize("place", ["embedded"], indirect=True)
class TestRefusals:
    def test_where_nothing_is_better_nothing_is_recorded(
        self, place: tuple[str, str], tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each query's only relevant document is found by nothing; all choices score 0."""
        data = write_data(tmp_path / "odd", 12, judged="p1")
        (data / "qrels" / "test.tsv").write_text(
            "".join(f"q{i}\tp0\t1\n" for i in range(12)).replace("p0\t1", "p39\t0")
        )
        earlier = Fusion((1.0, 0.1), source="earlier")
        with EdgeQdrantClient(place[1]) as client:
            write_choice(client, "docs", earlier)
        code, out, _ = tune("docs", "--data", data, *place)
        assert code == 0
        assert "Nothing is recorded: no choice is clearly better than the model's own" in out
        assert f"The collection keeps its earlier choice: {earlier}. To remove: tune --reset" in out
        assert read(place) == earlier

    def test_too_few_queries(self, place: tuple[str, str], tune: Tune, tmp_path: Path) -> None:
        code, out, err = tune("docs", "--data", write_data(tmp_path / "few", 6), *place)
        assert (code, out) == (1, "")
        assert "at least 10 judged queries, got 6" in err

    def test_judgements_of_other_documents(
        self, place: tuple[str, str], tune: Tune, tmp_path: Path
    ) -> None:
        data = write_data(tmp_path / "other", 12, judged="x{}")
        code, _, err = tune("docs", "--data", data, *place)
        assert code == 1
        assert "no field of the collection's payload holds" in err

    def test_no_data(self, place: tuple[str, str], tune: Tune) -> None:
        code, _, err = tune("docs", *place)
        assert code == 1
        assert "--data FOLDER is missing" in err
        assert "make-queries" in err

    def test_reset_with_data(self, place: tuple[str, str], data: Path, tune: Tune) -> None:
        code, _, err = tune("docs", "--reset", "--data", data, *place)
        assert code == 1
        assert "leave --data out" in err

    def test_a_collection_that_is_not_there(
        self, place: tuple[str, str], data: Path, tune: Tune
    ) -> None:
        code, _, err = tune("papers", "--data", data, *place)
        assert code == 1
        assert "existing collections: 'docs'" in err

    def test_a_collection_of_unknown_origin(
        self, place: tuple[str, str], data: Path, tune: Tune
    ) -> None:
        with EdgeQdrantClient(place[1]) as client:
            client.create_collection(
                "theirs",
                vectors_config={"text-dense": qm.VectorParams(size=8, distance="Cosine")},
                sparse_vectors_config={"text-sparse-new": qm.SparseVectorParams()},
            )
        code, _, err = tune("theirs", "--data", data, *place)
        assert code == 1
        assert "adopt" in err

    def test_a_model_without_sparse_vectors(
        self, place: tuple[str, str], data: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dense_only = FakeEmbedder(dimension=8, heads=("dense",))
        with EdgeQdrantClient(place[1]) as client:
            client.delete_collection("docs")
            fill(client, dense_only)
        monkeypatch.setattr(shared, "open_config", lambda *_: Config(dense_only))
        code, _, err = tune("docs", "--data", data, *place)
        assert code == 1
        assert "no sparse ones" in err


def test_the_lists_are_searched_as_deep_as_the_models_own_fusion_reaches(
    place: tuple[str, str], data: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(EMBEDDER.fusion, candidates=150)
    monkeypatch.setattr(DenseNoise, "fusion", property(lambda _: deep))
    depths = []
    search = both_lists.search_both_lists

    def remember(*arguments: Any, depth: int, **options: Any) -> Any:
        depths.append(depth)
        return search(*arguments, depth=depth, **options)

    monkeypatch.setattr(both_lists, "search_both_lists", remember)
    assert tune("docs", "--data", data, *place, "--dry-run")[0] == 0
    assert depths == [150]


# --- relevance ----------------------------------------------------------------------------------


def read_own_calibration(place: tuple[str, str]) -> Calibration | None:
    option, value = place
    if option == "--url":
        client = QdrantClient(url=value, check_compatibility=False)
        return read_calibration("docs", client.get_collection("docs"))
    with EdgeQdrantClient(value) as edge:
        return read_calibration("docs", edge.get_collection("docs"))


def test_a_calibration_is_fitted_recorded_and_used(
    place: tuple[str, str], data: Path, tune: Tune
) -> None:
    code, out, err = tune("docs", "--data", data, "--calibrate", *place)
    assert (code, err) == (0, "")
    assert "judged: 30 judged questions, 300 hits among the first ten, 10% of them relevant" in out
    assert "Held out, each question judged by a calibration fitted without it:" in out
    assert "Recorded in docs. To undo: tune --calibrate --reset" in out
    calibration = read_own_calibration(place)
    assert calibration is not None
    assert calibration.source.startswith("fitted to 30 judged questions of judged")
    # The dense vectors are noise, and the sparse score is exact.
    assert calibration.sparse_share + calibration.sparse_lead + calibration.agreement > 0
    assert calibration.ece is not None
    assert calibration.ece < 0.1
    assert read(place) is None  # the fusion stays
    if place[0] == "--path":
        with EdgeQdrantClient(place[1]) as client:
            store = build_vector_store(EMBEDDER, "docs", client=client)
            retriever = UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
            best, *_, last = retriever.retrieve(f"{WORDS[4]} {WORDS[5]}")
            assert best.score is not None
            assert last.score is not None
            assert best.metadata["paper"] == "p5"
            assert best.score > 0.5 > last.score


def test_with_a_keyword_list_what_is_fitted_is_the_models_own_two_lists(
    data: Path, tmp_path: Path, tune: Tune
) -> None:
    place = ("--path", str(tmp_path / "keywords"))
    with EdgeQdrantClient(place[1]) as client:
        build_vector_store(EMBEDDER, "docs", client=client, keywords="bm25:none")
        fill(client)
    code, out, err = tune("docs", "--data", data, "--calibrate", *place)
    assert (code, err) == (0, "")
    assert "relevance needs fusion='model' or two weights" in out.replace("\n", " ")
    with EdgeQdrantClient(place[1]) as client:
        store = build_vector_store(EMBEDDER, "docs", client=client)
        with pytest.raises(InputError, match="has a keyword list too"):
            UnifiedHybridRetriever(store, EMBEDDER, score="relevance")
        retriever = UnifiedHybridRetriever(store, EMBEDDER, score="relevance", fusion="model")
        best, *_, last = retriever.retrieve(f"{WORDS[4]} {WORDS[5]}")
        assert best.metadata["paper"] == "p5"
        assert (best.score or 0) > 0.5 > (last.score or 0)


def test_resetting_a_calibration(place: tuple[str, str], data: Path, tune: Tune) -> None:
    tune("docs", "--data", data, "--calibrate", *place)
    code, out, _ = tune("docs", "--calibrate", "--reset", *place)
    assert (code, out) == (0, "docs: the calibration is removed\n")
    assert read_own_calibration(place) is None
    code, out, _ = tune("docs", "--calibrate", "--reset", *place)
    assert (code, out) == (0, "docs: no calibration is recorded\n")


def test_what_does_not_record_a_calibration(place: tuple[str, str], data: Path, tune: Tune) -> None:
    code, out, _ = tune("docs", "--data", data, "--calibrate", "--dry-run", *place)
    assert code == 0
    assert out.endswith("Nothing is recorded: --dry-run\n")
    (data / "generated.json").write_text("{}")
    code, out, _ = tune("docs", "--data", data, "--calibrate", *place)
    assert code == 0
    assert "Nothing is recorded: the queries are generated" in out
    assert read_own_calibration(place) is None


def test_a_calibration_needs_both_lists(place: tuple[str, str], data: Path, tune: Tune) -> None:
    option, value = place
    chosen = Fusion(weights=(0, 1), source="a test")
    if option == "--url":
        write_choice(QdrantClient(url=value, check_compatibility=False), "docs", chosen)
    else:
        with EdgeQdrantClient(value) as edge:
            write_choice(edge, "docs", chosen)
    code, _, err = tune("docs", "--data", data, "--calibrate", *place)
    assert code == 1
    assert "the fusion is sparse alone" in err
    assert "unified-embeddings tune docs --reset" in err


def test_a_field_that_names_no_judged_document(
    place: tuple[str, str], data: Path, tune: Tune
) -> None:
    for option in ("--dry-run", "--calibrate"):
        code, out, err = tune("docs", "--data", data, option, *place, "--document-field", "nope")
        assert (code, out) == (1, "")
        assert "the field 'nope' names no judged document in any answer; it has none at all" in err


def test_a_calibration_as_json(place: tuple[str, str], data: Path, tune: Tune) -> None:
    code, out, _ = tune("docs", "--data", data, "--calibrate", "--json", *place)
    report = json.loads(out)
    assert code == 0
    assert report["written"]
    assert report["model_own"] is None
    assert report["hits"] == 300
    assert report["held_out"]["queries"] == 30
    assert Calibration.from_dict(report["calibration"]) == read_own_calibration(place)


def test_a_calibration_as_good_as_the_models_own_is_not_recorded(
    place: tuple[str, str], data: Path, tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune("docs", "--data", data, "--calibrate", *place)
    fitted = read_own_calibration(place)
    tune("docs", "--calibrate", "--reset", *place)
    monkeypatch.setattr(DenseNoise, "calibration", fitted)
    code, out, _ = tune("docs", "--data", data, "--calibrate", *place)
    assert code == 0
    assert "With the model's own calibration:" in out
    assert "Nothing is recorded: the model's own calibration is as close" in out
