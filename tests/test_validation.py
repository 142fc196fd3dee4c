"""Checks of arguments that several rooms share."""

from __future__ import annotations

import numpy as np
import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.validation import require_texts, require_whole_number


@pytest.mark.parametrize("value", [1, 5, 2**40])
def test_a_whole_number_is_returned(value: int) -> None:
    assert require_whole_number("count", value) == value


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, np.nan])
def test_everything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(InputError, match=r"^count must be a whole number >= 1, got "):
        require_whole_number("count", value)


def test_the_least_value_is_allowed() -> None:
    assert require_whole_number("k", 0, least=0) == 0
    with pytest.raises(InputError, match=r"k must be a whole number >= 0, got -1"):
        require_whole_number("k", -1, least=0)


def test_texts_are_returned_as_a_list() -> None:
    assert require_texts(text for text in ("a", "", "狐 🦊")) == ["a", "", "狐 🦊"]
    assert require_texts([]) == []


@pytest.mark.parametrize("texts", ["a text", b"bytes", 5, None])
def test_what_is_not_a_list_of_texts_is_refused(texts: object) -> None:
    with pytest.raises(InputError, match="expected a list of texts, got "):
        require_texts(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, 5, b"bytes"])
def test_the_first_bad_item_is_named(bad: object) -> None:
    with pytest.raises(InputError, match="item 1: expected a str, got ") as refused:
        require_texts(["fine", bad, None])  # type: ignore[list-item]
    assert refused.value.index == 1


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InputError, match="item 2: holds a lone surrogate") as refused:
        require_texts(["", "fine", "abc\ud800"])
    assert "at character 3" in str(refused.value)
    assert refused.value.index == 2
