"""Which judged document a point of a collection belongs to.

Judgements name documents, and a collection holds chunks of them under ids of its own. What lives
here: finding the field of the payload that holds the judgements' names, and reading it. What does
not: reading points (`stores`), and judgements (`corpora`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from unified_embeddings.errors import InputError

POINT_ID = "point id"
"""Stands for the point's own id, in place of a field's name."""
SAMPLED_QUERIES = 50
"""Questions whose answers show which field names the judged documents."""

_USUAL_FIELDS = ("_id", "doc_id", "ref_doc_id", "document_id", "id", "paper_id")
"""Fields that win a tie, in this order: LlamaIndex stores a document's id under three names."""
_NEVER_NAMES = frozenset({"file_size"})
"""Fields of LlamaIndex's readers whose numbers look like ids, and are none."""


def read_document_id(point_id: object, payload: Mapping[str, object], field: str) -> str | None:
    """Return the name of the document that a point belongs to; None if the field is missing.

    Args:
        point_id: The point's id.
        payload: The point's payload.
        field: Name of a field, "metadata.source" for one within another, or POINT_ID.
    """
    if field == POINT_ID:
        return str(point_id)
    value = _look_up(payload, field)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    return None


def choose_document_field(
    points: Iterable[tuple[object, Mapping[str, object]]], judged_ids: Collection[str]
) -> str:
    """Return the field whose values are the most judged documents.

    Args:
        points: Id and payload of a sample of points.
        judged_ids: The documents that the judgements name.

    Raises:
        InputError: If no field holds any of them.

    Example:
        >>> from unified_embeddings.evaluation.documents import choose_document_field
        >>> points = [(1, {"page": 7, "paper": "d1"}), (2, {"page": 8, "paper": "d2"})]
        >>> choose_document_field(points, {"d1", "d2", "7"})
        'paper'
    """
    wanted = frozenset(judged_ids)
    found_ids: dict[str, set[str]] = {}
    for point_id, payload in points:
        for field, value in _list_values(point_id, payload):
            if value in wanted:
                found_ids.setdefault(field, set()).add(value)
    if not found_ids:
        example = next(iter(sorted(wanted)), "none")
        raise InputError(
            "no field of the collection's payload holds the ids of judged documents, such as "
            f"{example!r}; name the field that does, or index the documents with their ids"
        )
    return min(found_ids, key=lambda field: (-len(found_ids[field]), _preference(field), field))


def _look_up(payload: Mapping[str, object], field: str) -> object:
    """Return a field's value; a key may hold dots of its own, and then wins over one within."""
    if field in payload:
        return payload[field]
    for dot, character in enumerate(field):
        inner = payload.get(field[:dot]) if character == "." else None
        if isinstance(inner, Mapping):
            value = _look_up(inner, field[dot + 1 :])
            if value is not None:
                return value
    return None


def _list_values(point_id: object, payload: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    """Yield each field that may name a document, with its value as text."""
    yield POINT_ID, str(point_id)
    for key, value in payload.items():
        inner = {key: value}
        if isinstance(value, Mapping):
            inner = {f"{key}.{inner_key}": item for inner_key, item in value.items()}
        for field, item in inner.items():
            if _last_name(field) in _NEVER_NAMES:
                continue
            if isinstance(item, str | int) and not isinstance(item, bool):
                yield field, str(item)


def _last_name(field: str) -> str:
    return field.rpartition(".")[2]


def _preference(field: str) -> int:
    last_name = _last_name(field)
    if last_name in _USUAL_FIELDS:
        return _USUAL_FIELDS.index(last_name)
    return len(_USUAL_FIELDS)
