"""Generated queries as a folder in BEIR's layout, which says of itself that it was generated.

What lives here: writing the folder, and recognising one. What does not: making the queries
(`generated_queries`), and reading the folder (`corpora.read_beir`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.generated_queries import (
    QUERY_KINDS,
    GeneratedQuery,
    Passage,
    QueryKind,
)
from unified_embeddings.system.files import publish_folder, scratch_folder

SUMMARY_FILE = "generated.json"
"""Beside BEIR's files; a folder that has it holds generated queries."""

WARNING = (
    "These queries are made from the passages themselves and repeat their words, so they favour "
    "lexical matches: on some collections, fusions that are better by them are worse by people's "
    "questions. They show whether an index finds its own texts."
)

_ABOUT_KINDS: dict[QueryKind, str] = {
    "title": "a title or heading that no other document has",
    "first-sentence": "the first sentence of a passage",
    "rare-phrase": "the four words in a row that the fewest passages have",
    "inverse-cloze": "a later sentence of a passage; the passage in the collection still holds it",
}


def write_generated(
    folder: Path,
    passages: Sequence[Passage],
    queries: Sequence[GeneratedQuery],
    facts: Mapping[str, object],
) -> dict[str, object]:
    """Write queries and the documents that they ask for as a folder in BEIR's layout; atomic.

    Args:
        folder: Must not exist, or be empty.
        passages: The collection's texts. The texts of one document are joined by line breaks.
        queries: What was made from them.
        facts: What else the summary says: the collection's name, the seed.

    Returns:
        The summary, as `generated.json` holds it.

    Raises:
        InputError: If the folder holds anything, or a document's name cannot stand in a table.
        OSError: If it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; name another")
    for query in queries:
        for document in query.documents:
            if not document.strip() or any(mark in document for mark in "\t\r\n"):
                raise InputError(
                    f"{document!r} cannot name a document in a table: it is blank, or has tabs or "
                    "line breaks; choose another --document-field"
                )
    kinds = Counter(query.kind for query in queries)
    summary: dict[str, object] = {
        **facts,
        "passages": len(passages),
        "queries": len(queries),
        "kinds": {kind: kinds[kind] for kind in QUERY_KINDS},
        "warning": WARNING,
    }
    with scratch_folder(folder.absolute().parent) as work:
        scratch = work / "generated"
        (scratch / "qrels").mkdir(parents=True)
        _write_lines(scratch / "corpus.jsonl", _corpus_rows(passages))
        rows: list[dict[str, object]] = []
        judgements = ["query-id\tcorpus-id\tscore"]
        for number, query in enumerate(queries, 1):
            query_id = f"{query.kind}-{number}"
            rows.append({"_id": query_id, "text": query.text, "metadata": {"kind": query.kind}})
            judgements += [f"{query_id}\t{document}\t1" for document in query.documents]
        _write_lines(scratch / "queries.jsonl", rows)
        (scratch / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", "utf-8")
        (scratch / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
        (scratch / "README.md").write_text(_describe(summary, kinds), "utf-8")
        publish_folder(scratch, folder)
    return summary


def is_generated(folder: Path) -> bool:
    """Tell whether a folder in BEIR's layout holds generated queries."""
    return (folder / SUMMARY_FILE).is_file()


def _corpus_rows(passages: Sequence[Passage]) -> list[dict[str, object]]:
    texts: dict[str, list[str]] = {}
    for passage in sorted(passages, key=lambda passage: passage.passage_id):
        texts.setdefault(passage.document, []).append(passage.text)
    return [{"_id": document, "text": "\n".join(parts)} for document, parts in texts.items()]


def _write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _describe(summary: Mapping[str, object], kinds: Mapping[QueryKind, int]) -> str:
    lines = [
        "# Generated queries",
        "",
        f"{summary['queries']} queries made from {summary['passages']} passages, in BEIR's layout. "
        "Nobody judged them: the passage that a query was taken from counts as relevant, and so do "
        "those with nearly the same text.",
        "",
        WARNING,
        "",
        "| kind | queries | made of |",
        "|---|--:|---|",
    ]
    lines += [f"| {kind} | {kinds[kind]} | {about} |" for kind, about in _ABOUT_KINDS.items()]
    return "\n".join(lines) + "\n"
