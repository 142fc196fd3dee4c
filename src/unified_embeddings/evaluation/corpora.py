"""Texts to measure a model on: a folder in BEIR's layout, or the Python reference.

What lives here: reading them. What does not: what is measured on them (`comparison`,
`measurement`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.judged_lines import parse_grade, read_lines

Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id → document id → relevance grade. Documents without a grade are not relevant.

"Qrels" is TREC's word for relevance judgements.
"""

_LAYOUT = "a folder in BEIR's layout contains corpus.jsonl, queries.jsonl and qrels/test.tsv"
_PASSAGE_COUNT = 120
_PASSAGE_LENGTHS = (120, 400, 1200)
"""Characters of the passages of the Python reference, in turn: short, medium and long texts."""
_QUERY_COUNT = 40
_QUERY_WORDS = slice(4, 16)
"""Which words of a passage form a query."""


@dataclass(frozen=True)
class Corpus:
    """Documents and queries, and if known, which documents are relevant to which query.

    Attributes:
        name: Display name.
        documents: Id → text, at least one.
        queries: Id → text, at least one.
        qrels: Relevance judgements of these queries; None if there are none. They may refer to
            documents that are not in the corpus, which then count as never found.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels | None = None


@dataclass(frozen=True)
class _TitledText:
    """One line of a BEIR file. Queries have no title."""

    title: str
    text: str


def read_beir(folder: Path, *, qrels: Qrels | None = None) -> Corpus:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` in BEIR's layout.

    A document's text is its title, a line break and its text, as in BEIR's own models. Queries
    that `test.tsv` does not judge are left out.

    Args:
        folder: The folder.
        qrels: Judgements from elsewhere, in place of `test.tsv`.

    Raises:
        InputError: If a file is missing, empty or malformed, or judges a document twice for one
            query. The message gives file and line.
    """
    documents = {}
    for document_id, row in _read_texts(folder / "corpus.jsonl").items():
        documents[document_id] = f"{row.title}\n{row.text}".strip()
    queries, judgements = _read_judged(
        folder / "queries.jsonl", folder / "qrels" / "test.tsv", qrels
    )
    return Corpus(
        name=folder.name or str(folder),  # The name of "." is empty.
        documents=documents,
        queries=queries,
        qrels=judgements,
    )


def read_questions(
    path: Path, *, qrels: Qrels | None = None
) -> tuple[dict[str, str], Qrels | None]:
    """Read questions without their documents, and judgements where there are some.

    Args:
        path: A folder with `queries.jsonl` and maybe `qrels/test.tsv`, or a file like the first.
        qrels: Judgements from elsewhere, in place of `test.tsv`.

    Returns:
        Id → question, and the judgements; with judgements, only the questions that they judge.

    Raises:
        InputError: If a file is missing, empty or malformed.
    """
    file = path / "queries.jsonl" if path.is_dir() else path
    judgements = path / "qrels" / "test.tsv"
    if qrels is None and not judgements.is_file():
        return {query_id: row.text for query_id, row in _read_texts(file).items()}, None
    return _read_judged(file, judgements, qrels)


def read_python_reference() -> Corpus:
    """Return passages of the Python language reference, which ships with Python, in English.

    The queries are runs of twelve words from the passages. There are no judgements.
    """
    from pydoc_data.topics import topics

    lengths = itertools.cycle(_PASSAGE_LENGTHS)
    all_passages: list[str] = []
    for topic in topics.values():
        all_passages += _split(topic, lengths)
    passages = [all_passages[i] for i in spread_positions(len(all_passages), _PASSAGE_COUNT)]
    all_queries = []
    for passage in passages:
        # A passage may be too short to have words in this range.
        query = " ".join(passage.split()[_QUERY_WORDS])
        if query:
            all_queries.append(query)
    query_numbers = spread_positions(len(all_queries), _QUERY_COUNT)
    return Corpus(
        name="the Python reference",
        documents={str(number): passage for number, passage in enumerate(passages)},
        queries={str(number): all_queries[number] for number in query_numbers},
    )


def require_questions(queries: Mapping[str, str]) -> None:
    """Refuse questions that nobody can be asked.

    Raises:
        InputError: If one is blank; it is named.
    """
    for query_id, text in queries.items():
        if not text.strip():
            raise InputError(f"the query {query_id!r} is blank; remove it and its judgements")


def spread_positions(size: int, count: int) -> list[int]:
    """Return at most `count` positions spread evenly over `size` items, ascending and distinct."""
    count = min(size, count)
    return [i * size // count for i in range(count)]


def _split(text: str, lengths: Iterator[int]) -> Iterator[str]:
    """Yield a text in pieces of the next lengths."""
    start = 0
    while start < len(text):
        length = next(lengths)
        yield text[start : start + length]
        start += length


def _read_texts(path: Path) -> dict[str, _TitledText]:
    """Return the texts of a JSON-lines file by their `_id`."""
    texts: dict[str, _TitledText] = {}
    for place, line in read_lines(path, if_missing=_LAYOUT):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            row = {}  # It lacks both keys, which the next check reports.
        text_id, text = row.get("_id"), row.get("text")
        if not isinstance(text_id, str) or not isinstance(text, str):
            raise InputError(f'{place} should be an object with the strings "_id" and "text"')
        if text_id in texts:
            raise InputError(f'{place} repeats the "_id" {text_id!r} of an earlier line')
        # The title may be missing or null.
        title = str(row.get("title") or "")
        texts[text_id] = _TitledText(title, text)
    if not texts:
        raise InputError(f"{path} is empty; expected one line per text")
    return texts


def _read_judged(file: Path, judgements: Path, qrels: Qrels | None) -> tuple[dict[str, str], Qrels]:
    """Return the questions that are judged, and the judgements, which may be given."""
    queries = {query_id: row.text for query_id, row in _read_texts(file).items()}
    if qrels is None:
        qrels = _read_judgements(judgements, queries)
    for query_id in qrels:
        if query_id not in queries:
            raise InputError(
                f"the judged query {query_id!r} is not in {file}; take the judgements that belong "
                "to these queries"
            )
    judged = {query_id: text for query_id, text in queries.items() if query_id in qrels}
    return judged, qrels


def _read_judgements(path: Path, queries: dict[str, str]) -> Qrels:
    qrels: Qrels = {}
    for line_index, (place, line) in enumerate(read_lines(path, if_missing=_LAYOUT)):
        cells = line.split("\t")
        grade = parse_grade(cells[-1].strip())
        if line_index == 0 and grade is None:
            continue  # The first line holds the column names.
        if len(cells) != 3 or grade is None:
            raise InputError(
                f"{place} should be a query id, a document id and a whole number, separated by "
                f"tabs; got {line!r:.200}"
            )
        query_id, document_id, _ = cells
        if query_id not in queries:
            raise InputError(
                f"{place} judges the query {query_id!r}, which is not in queries.jsonl"
            )
        grades = qrels.setdefault(query_id, {})
        if document_id in grades:
            raise InputError(f"{place} judges document {document_id!r} for {query_id!r} again")
        grades[document_id] = grade
    if not qrels:
        raise InputError(f"{path} contains no judgements; expected one line per judgement")
    return qrels
