"""LlamaIndex's metadata filters as Qdrant's.

What lives here: what each operator means for values of every type, and what is refused because
Qdrant cannot express it. What does not: where a payload has a key (`fields`), and sending anything.

A condition on a list holds if it holds for one of its elements, as in Qdrant. NE and NIN are the
negations of EQ and IN, so they also hold where the field is absent. A number equals another of the
same value, whether int or float; a bool and a text equal no number.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.llama import filter_numbers
from unified_embeddings.llama.fields import DOCUMENT_KEYS, LLAMA_INDEX_FIELDS, Fields
from unified_embeddings.validation import check_is_list

Scalar: TypeAlias = str | bool | int | float

_NO_DOCUMENT = "None"
"""What LlamaIndex records as the document of a node that has none."""

_WORD = re.compile(r"[^\W_]")
_DEEPEST_GROUP = 24
"""Qdrant reads filters to a limited depth of JSON, of which a group takes two levels."""

_NEGATED = (FilterOperator.NE, FilterOperator.NIN)
_ORDERS = {
    FilterOperator.GT: filter_numbers.above,
    FilterOperator.GTE: filter_numbers.at_least,
    FilterOperator.LT: filter_numbers.below,
    FilterOperator.LTE: filter_numbers.at_most,
}
_TEXT_OPERATORS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_LIST_OPERATORS = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)


def translate_filters(
    filters: MetadataFilters | None, fields: Fields = LLAMA_INDEX_FIELDS
) -> qm.Filter | None:
    """Translate LlamaIndex's metadata filters into Qdrant's.

    ANY and CONTAINS mean what IN and EQ mean, since a condition on a list holds for one of its
    elements. TEXT_MATCH is Qdrant's full-text match: every word of the value occurs in the field,
    in any case.

    Args:
        filters: The filters. None, and an empty list of them, filter nothing.
        fields: Where the collection's payloads have the metadata.

    Raises:
        InputError: If a filter cannot be translated with its meaning. `index` is its position
            within its group.
    """
    if filters is None:
        return None
    if not isinstance(filters, MetadataFilters):
        raise InputError(f"filters must be MetadataFilters, not {type(filters).__name__}")
    if not filters.filters and filters.condition != FilterCondition.OR:
        return None
    return _translate_group(filters, fields, depth=1)


def select_points(
    node_ids: Collection[str] | None,
    filters: MetadataFilters | None,
    fields: Fields = LLAMA_INDEX_FIELDS,
) -> qm.Filter | None:
    """Return the filter of the nodes that are among the ids and match the filters.

    Args:
        node_ids: The ids; None for any.
        filters: The filters; None, and an empty list of them, filter nothing.
        fields: Where the collection's payloads have the metadata.

    Returns:
        The filter; None if it would select everything.

    Raises:
        InputError: If an id is none that Qdrant can have, or a filter cannot be translated.
    """
    matching = translate_filters(filters, fields)
    if node_ids is None:
        return matching
    if not isinstance(node_ids, Set):  # ids need no order
        check_is_list(node_ids, "ids")
    has_id = qm.HasIdCondition(
        has_id=[fields.to_point_id(node_id, index) for index, node_id in enumerate(node_ids)]
    )
    return qm.Filter(must=[has_id] if matching is None else [has_id, matching])


def select_for_deletion(
    node_ids: Collection[str] | None,
    filters: MetadataFilters | None,
    fields: Fields = LLAMA_INDEX_FIELDS,
) -> qm.Filter:
    """Return the filter of the nodes to delete; see `select_points`.

    Raises:
        InputError: If an id or a filter cannot be translated, or neither restricts what is deleted.
    """
    selected = select_points(node_ids, filters, fields)
    if selected is None:
        raise InputError(
            "neither node_ids nor filters restrict what would be deleted; to delete everything "
            "call clear()"
        )
    return selected


def is_of_document(ref_doc_ids: Sequence[str], fields: Fields = LLAMA_INDEX_FIELDS) -> qm.Condition:
    """Return the condition that a node is of one of the documents.

    Raises:
        InputError: If an id is not a text, or the one under which nodes without a document are.
    """
    check_is_list(ref_doc_ids, "ids")
    for ref_doc_id in ref_doc_ids:
        if not isinstance(ref_doc_id, str) or ref_doc_id == _NO_DOCUMENT:
            raise InputError(
                f"a document's id must be a text, got {ref_doc_id!r}; nodes without a document are "
                f"stored under {_NO_DOCUMENT!r}"
            )
    match = qm.MatchAny(any=list(ref_doc_ids))
    return _any_of([qm.FieldCondition(key=path, match=match) for path in fields.document_paths])


def _translate_group(group: MetadataFilters, fields: Fields, depth: int) -> qm.Filter:
    if not group.filters:
        raise InputError(
            "an empty list of filters within others, or under OR, is ambiguous: it could mean "
            "everything or nothing; leave it out"
        )
    if depth > _DEEPEST_GROUP:
        raise InputError(f"filters can be nested {_DEEPEST_GROUP} deep; these are deeper")
    conditions: list[qm.Condition] = []
    for index, member in enumerate(group.filters):
        if isinstance(member, MetadataFilters):
            conditions.append(_translate_group(member, fields, depth + 1))
            continue
        try:
            conditions.append(_translate_filter(member, fields))
        except InputError as error:
            raise InputError(error.problem, index=index) from None
    match group.condition:
        case FilterCondition.AND:
            return qm.Filter(must=conditions)
        case FilterCondition.OR:
            return qm.Filter(should=conditions)
        case FilterCondition.NOT:
            return qm.Filter(must_not=conditions)
    raise InputError(
        f"filters need a condition (and, or, not), got {group.condition!r}; without one it is not "
        "said how they combine"
    )


def _translate_filter(given: MetadataFilter, fields: Fields) -> qm.Condition:
    if not isinstance(given, MetadataFilter) or not isinstance(given.key, str):
        raise InputError(f"expected a MetadataFilter with a text as its key, got {given!r}")
    operator, value = given.operator, _to_python(given.value)
    problem = _problem_of(operator, value)
    if problem is not None:
        name = getattr(operator, "value", operator)
        raise InputError(f"operator {name!r} on {given.key!r} {problem}")
    condition = _at_places(fields.metadata_paths(given.key), operator, value)
    if operator in _NEGATED:
        return qm.Filter(must_not=[condition])
    return condition


def _at_places(paths: Sequence[str], operator: FilterOperator, value: object) -> qm.Condition:
    """Return a condition on the first of the places that a payload has."""
    missing: list[qm.Condition] = []
    alternatives: list[qm.Condition] = []
    for path in paths:
        condition = _condition(path, operator, value)
        if missing and path in DOCUMENT_KEYS:
            condition = _unless_without_document(path, operator, condition)
        alternatives.append(qm.Filter(must=[*missing, condition]) if missing else condition)
        missing.append(qm.IsEmptyCondition(is_empty=qm.PayloadField(key=path)))
    if operator == FilterOperator.IS_EMPTY:
        return alternatives[-1]  # it holds where no place has a value
    return _any_of(alternatives)


def _unless_without_document(
    path: str, operator: FilterOperator, condition: qm.Condition
) -> qm.Condition:
    """Return a condition on a document's id for which LlamaIndex's "None" is no id."""
    has_none = qm.FieldCondition(key=path, match=qm.MatchValue(value=_NO_DOCUMENT))
    if operator == FilterOperator.IS_EMPTY:
        return qm.Filter(should=[condition, has_none])
    return qm.Filter(must=[condition], must_not=[has_none])


def _condition(path: str, operator: FilterOperator, value: Any) -> qm.Condition:
    """Return the condition at one place in the payload; NE and NIN are not negated yet."""
    if operator == FilterOperator.IS_EMPTY:
        return qm.IsEmptyCondition(is_empty=qm.PayloadField(key=path))
    if isinstance(value, str) and operator in _TEXT_OPERATORS:
        return qm.FieldCondition(key=path, match=qm.MatchText(text=value))
    if isinstance(value, int | float) and operator in _ORDERS:
        return _any_of(_ORDERS[operator](path, value))
    values = value if isinstance(value, list) else [value]
    if operator == FilterOperator.ALL:
        return qm.Filter(must=[_any_of(_equals_one(path, [each])) for each in values])
    return _any_of(_equals_one(path, values))


def _any_of(conditions: list[qm.Condition]) -> qm.Condition:
    if len(conditions) == 1:
        return conditions[0]
    return qm.Filter(should=conditions)


def _equals_one(path: str, values: Sequence[Scalar]) -> list[qm.Condition]:
    """Return conditions of which one holds where a field is one of the values."""
    texts = [value for value in values if isinstance(value, str)]
    conditions: list[qm.Condition] = []
    if len(texts) == 1:
        conditions.append(qm.FieldCondition(key=path, match=qm.MatchValue(value=texts[0])))
    elif texts or not values:  # of no values at all, a field is none
        conditions.append(qm.FieldCondition(key=path, match=qm.MatchAny(any=texts)))
    for value in (True, False):
        if any(each is value for each in values):
            conditions.append(qm.FieldCondition(key=path, match=qm.MatchValue(value=value)))
    numbers = [value for value in values if not isinstance(value, str | bool)]
    return conditions + filter_numbers.equals_any(path, numbers)


# --- what cannot be translated ------------------------------------------------------------------


def _problem_of(operator: FilterOperator, value: object) -> str | None:
    """Return why a value does not suit an operator, or None if it does."""
    if operator == FilterOperator.IS_EMPTY:
        return None if value in (None, "") else f"takes no value, got {value!r}"
    if value is None:
        return "needs a value; for fields without one use IS_EMPTY"
    if operator in _ORDERS:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return f"compares numbers, got {value!r}"
        return _problem_of_scalar(value)
    if operator in _TEXT_OPERATORS:
        if not isinstance(value, str) or not _WORD.search(value):
            return f"needs a text with at least one word, got {value!r}"
        return _problem_of_scalar(value)
    if operator in _LIST_OPERATORS:
        return _problem_of_list(operator, value)
    if operator in (FilterOperator.EQ, FilterOperator.NE, FilterOperator.CONTAINS):
        if isinstance(value, list):
            return f"compares with one value, got {value!r}; use IN, NIN, ANY or ALL"
        return _problem_of_scalar(value)
    return "is not one that Qdrant has"


def _problem_of_list(operator: FilterOperator, value: object) -> str | None:
    if not isinstance(value, list | str):
        return f"needs a list of values, got {value!r}"
    if isinstance(value, str):  # the one value, commas and all
        return _problem_of_scalar(value)
    if operator == FilterOperator.ALL and not value:
        return "needs at least one value"
    problems = (_problem_of_scalar(each) for each in value)
    return next((problem for problem in problems if problem is not None), None)


def _problem_of_scalar(value: object) -> str | None:
    if isinstance(value, str):
        return None if _is_unicode(value) else f"got a text that is not valid Unicode: {value!r}"
    if isinstance(value, bool):
        return None
    if not isinstance(value, int | float):
        return f"compares texts, numbers and truth values, got {value!r}"
    if filter_numbers.fits(value):
        return None
    # Python refuses to write out whole numbers of thousands of digits.
    got = f"one of {value.bit_length()} bits" if isinstance(value, int) else repr(value)
    return f"takes finite numbers, whole ones of at most 64 bits, got {got}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_python(value: object) -> object:
    """Return a filter's value with NumPy's scalars and tuples as Python's numbers and lists."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_to_python(each) for each in value]
    return value
