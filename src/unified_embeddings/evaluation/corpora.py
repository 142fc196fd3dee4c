"""Texts to measure a model on: a folder in BEIR's layout, or the Python reference.

What lives here: reading them. What does not: what is measured (`comparison`, `measurement`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from unified_embeddings.errors import InputError

Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id → document id → grade of relevance; what is not named is not relevant."""

_PASSAGES = 120
_PASSAGE_LENGTHS = (120, 400, 1200)
_QUERIES = 40
_QUERY_WORDS = slice(4, 16)


@dataclass(frozen=True)
class Corpus:
    """Documents, queries, and where it is known which documents answer which query.

    Attributes:
        name: For people.
        documents: Id → text, at least one.
        queries: Id → text, at least one.
        qrels: Relevance judgements of these queries; None where there are none. They may name
            documents the corpus does not hold, which then count as never found.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels | None = None


def read_beir(folder: Path) -> Corpus:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` as BEIR lays them out.

    A document's text is its title, a line break and its text, as BEIR's own models have it. Queries
    that `test.tsv` does not judge are left out.

    Raises:
        InputError: If a file is missing, empty or malformed; file and line are named.
    """
    titled = _records(folder / "corpus.jsonl")
    documents = {name: f"{row.get('title') or ''}\n{row['text']}".strip() for name, row in titled}
    queries = {name: row["text"] for name, row in _records(folder / "queries.jsonl")}
    qrels = _judgements(folder / "qrels" / "test.tsv", queries)
    judged = {name: text for name, text in queries.items() if name in qrels}
    return Corpus(folder.name or str(folder), documents, judged, qrels)


def python_reference() -> Corpus:
    """Passages of the Python language reference, which comes with Python, in English.

    Queries are runs of twelve words out of the passages. Nothing is judged.
    """
    from pydoc_data.topics import topics

    lengths = itertools.cycle(_PASSAGE_LENGTHS)
    passages = [piece for text in topics.values() for piece in _pieces(text, lengths)]
    kept = [passages[at] for at in spread(len(passages), _PASSAGES)]
    queries = [" ".join(text.split()[_QUERY_WORDS]) for text in kept]
    asked = [text for text in queries if text]
    return Corpus(
        "the Python reference",
        {str(number): text for number, text in enumerate(kept)},
        {str(number): asked[number] for number in spread(len(asked), _QUERIES)},
    )


def spread(size: int, number: int) -> list[int]:
    """At most `number` positions, spread evenly over `size` of them, ascending and distinct."""
    number = min(size, number)
    return [at * size // number for at in range(number)]


def _pieces(text: str, lengths: Iterator[int]) -> Iterator[str]:
    start = 0
    while start < len(text):
        length = next(lengths)
        yield text[start : start + length]
        start += length


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file by their `_id`."""
    found: dict[str, dict[str, Any]] = {}
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is no JSON: {error}") from error
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("_id", "text")
        ):
            raise InputError(f'{place} should be an object with texts "_id" and "text"')
        if row["_id"] in found:
            raise InputError(f'{place} has the "_id" {row["_id"]!r} of a line before it')
        found[row["_id"]] = row
    if not found:
        raise InputError(f"{path} is empty; a line for each text is expected")
    return list(found.items())


def _judgements(path: Path, queries: dict[str, str]) -> Qrels:
    qrels: Qrels = {}
    for number, (place, line) in enumerate(_lines(path)):
        cells = line.split("\t")
        grade = _whole(cells[-1])
        if number == 0 and grade is None:
            continue  # the heading
        if len(cells) != 3 or grade is None:
            raise InputError(
                f"{place} should be a query's id, a document's id and a whole number, "
                f"with tabs between them; got {line!r}"
            )
        if cells[0] not in queries:
            raise InputError(f"{place} judges the query {cells[0]!r}, which queries.jsonl has not")
        qrels.setdefault(cells[0], {})[cells[1]] = grade
    if not qrels:
        raise InputError(f"{path} judges nothing; a line for each judgement is expected")
    return qrels


def _whole(cell: str) -> int | None:
    try:
        return int(cell)
    except ValueError:
        return None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, after the words to name its place by."""
    try:
        content = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {path}; a folder in BEIR's layout holds corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable text file: {error}") from error
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r")
