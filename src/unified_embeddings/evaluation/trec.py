"""TREC's files: runs and relevance judgements, as trec_eval and its relatives read them.

What lives here: reading and writing both. What does not: BEIR's layout (`corpora`), and what the
files mean (`metrics`).

A line of a run is `query Q0 document rank score tag`, a line of judgements is `query 0 document
grade`, with white space in between. Ids can therefore hold none.
"""

from __future__ import annotations

import contextlib
import math
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Qrels
from unified_embeddings.evaluation.judged_lines import parse_grade, read_lines
from unified_embeddings.evaluation.rankings import Run, sort_by_score
from unified_embeddings.system.files import make_folder, replace_file

_RUN_LINE = "query Q0 document rank score tag"
_QRELS_LINE = "query 0 document grade"
_OTHER_FILE = "name a file in TREC's format"
_CONTROL = ("Cc", "Cs")
"""Unicode's categories of control characters and of halves of characters."""
_BYTE_ORDER_MARK = "\ufeff"


def read_run(path: Path) -> Run:
    """Read a run.

    As in trec_eval, the scores give the order. The ranks are not used.

    Raises:
        InputError: If the file cannot be read or is empty, a line is malformed, or a query names a
            document twice. The message gives file and line.
    """
    run: Run = {}
    for place, line in read_lines(path, if_missing=_OTHER_FILE):
        cells = line.split()
        if len(cells) != 6:
            raise InputError(f"{place} should be {_RUN_LINE!r}, six words; got {line!r:.200}")
        query_id, _, document_id, _, score_text, _ = cells
        scores = run.setdefault(query_id, {})
        if document_id in scores:
            raise InputError(f"{place} names document {document_id!r} of {query_id!r} again")
        scores[document_id] = _parse_score(score_text, place)
    if not run:
        raise InputError(f"{path} is empty; expected lines such as 'q1 Q0 d7 1 0.93 mine'")
    return run


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], *, tag: str) -> None:
    """Write a run; whoever reads it gets the same scores.

    Documents with equal scores stand in trec_eval's order. The file appears whole or not at all.

    Args:
        path: The file; its folder is created if it is missing, and an old file replaced.
        run: Query id → document id → score.
        tag: Names the system, in each line.

    Raises:
        InputError: If an id or the tag is empty or holds white space or control characters, a score
            is not finite, or the file cannot be written.
    """
    _require_word(tag, "the tag")
    lines = []
    for query_id, scores in run.items():
        _require_word(query_id, "the query id")
        for document_id, score in scores.items():
            _require_word(document_id, "the document id")
            if not math.isfinite(score):
                raise InputError(f"the score of {document_id!r} for {query_id!r} is {score}")
        for rank, document_id in enumerate(sort_by_score(scores), start=1):
            score = float(scores[document_id])
            lines.append(f"{query_id} Q0 {document_id} {rank} {score!r} {tag}\n")
    _publish(path, lines)


def read_qrels(path: Path) -> Qrels:
    """Read relevance judgements.

    Raises:
        InputError: If the file cannot be read or is empty, a line is malformed, or a document is
            judged twice for one query. The message gives file and line.
    """
    qrels: Qrels = {}
    for place, line in read_lines(path, if_missing=_OTHER_FILE):
        cells = line.split()
        if len(cells) != 4:
            raise InputError(f"{place} should be {_QRELS_LINE!r}, four words; got {line!r:.200}")
        query_id, _, document_id, grade_text = cells
        grade = parse_grade(grade_text)
        if grade is None:
            raise InputError(
                f"{place} should end with a grade, a whole number; got {grade_text!r:.80}"
            )
        grades = qrels.setdefault(query_id, {})
        if document_id in grades:
            raise InputError(f"{place} judges document {document_id!r} for {query_id!r} again")
        grades[document_id] = grade
    if not qrels:
        raise InputError(f"{path} is empty; expected lines such as 'q1 0 d7 1'")
    return qrels


def write_qrels(path: Path, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Write relevance judgements; the file appears whole or not at all.

    Args:
        path: The file; its folder is created if it is missing, and an old file replaced.
        qrels: Query id → document id → grade.

    Raises:
        InputError: If an id is empty or holds white space or control characters, or the file cannot
            be written.
    """
    lines = []
    for query_id, grades in qrels.items():
        _require_word(query_id, "the query id")
        for document_id, grade in grades.items():
            _require_word(document_id, "the document id")
            lines.append(f"{query_id} 0 {document_id} {int(grade)}\n")
    _publish(path, lines)


def check_ids(ids: Iterable[str], what: str) -> None:
    """Refuse ids that a TREC file cannot hold, before anything is computed for them.

    Args:
        ids: The ids.
        what: What they name, such as "the document id", for the message.

    Raises:
        InputError: If one is empty or holds white space or control characters.
    """
    for text in ids:
        _require_word(text, what)


def _parse_score(text: str, place: str) -> float:
    score = math.nan
    # Python would also read 1_000.
    with contextlib.suppress(ValueError):
        score = float(text.replace("_", "no number"))
    if not math.isfinite(score):
        raise InputError(f"{place} should have a finite number as its fifth word; got {text!r:.80}")
    return score


def _require_word(text: str, what: str) -> None:
    """Refuse what would not be read back as one word."""
    # A control character may end a line in some reader, and half a character cannot be written.
    has_control = any(unicodedata.category(character) in _CONTROL for character in text)
    if text.split() != [text] or has_control or text.startswith(_BYTE_ORDER_MARK):
        raise InputError(
            f"{what} {text!r:.200} cannot be written to a TREC file, whose ids are separated by "
            "white space; give it another one, without white space and control characters"
        )


def _publish(path: Path, lines: Iterable[str]) -> None:
    try:
        make_folder(path.parent)
        replace_file(path, "".join(lines).encode())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {error}; name another file") from error
