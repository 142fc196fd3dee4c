"""The document that a point belongs to is found in its payload."""

from __future__ import annotations

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.documents import (
    POINT_ID,
    choose_document_field,
    read_document_id,
)


def test_the_field_with_the_most_judged_documents_is_chosen() -> None:
    points = [(n, {"page": n % 3, "source": f"d{n}", "text": "d1"}) for n in range(9)]
    assert choose_document_field(points, {"d1", "d2", "d3", "0", "1"}) == "source"


def test_usual_names_win_a_tie() -> None:
    payload = {"another": "d1", "ref_doc_id": "d1", "doc_id": "d1", "metadata": {"_id": "d1"}}
    assert choose_document_field([(7, payload)], {"d1"}) == "metadata._id"
    del payload["metadata"]
    assert choose_document_field([(7, payload)], {"d1"}) == "doc_id"


def test_the_points_own_id_may_be_the_documents() -> None:
    assert choose_document_field([(7, {"flag": True})], {"7", "True"}) == POINT_ID
    assert read_document_id(7, {}, POINT_ID) == "7"


def test_no_field_is_told_with_an_example() -> None:
    with pytest.raises(InputError, match="such as 'd1'"):
        choose_document_field([(7, {"source": "x"})], {"d1"})


def test_sizes_of_files_are_no_names() -> None:
    payload = {"file_size": 12, "metadata": {"file_size": 12}}
    with pytest.raises(InputError, match="no field"):
        choose_document_field([(7, payload)], {"12"})


def test_fields_within_fields_are_read() -> None:
    payload = {"meta": {"_id": 12, "deep": {"id": "x"}}, "flag": True, "none": None}
    assert read_document_id(1, payload, "meta._id") == "12"
    assert read_document_id(1, payload, "meta.deep.id") == "x"
    for field in ("meta.missing", "meta._id.more", "flag", "none", "meta"):
        assert read_document_id(1, payload, field) is None


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"meta.source": "d1"}, "meta.source"),
        ({"meta": {"a.b": "d1"}}, "meta.a.b"),
        ({"meta": {"source": "d1"}, "meta.x": 1}, "meta.source"),
    ],
)
def test_a_field_that_is_found_is_read_even_if_its_key_holds_dots(
    payload: dict[str, object], field: str
) -> None:
    assert choose_document_field([(1, payload)], {"d1"}) == field
    assert read_document_id(1, payload, field) == "d1"
    assert read_document_id(1, payload, f"{field}.more") is None
