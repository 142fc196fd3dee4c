"""Checks of arguments that several rooms share."""

from __future__ import annotations

import io
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.validation import (
    require_list_weights,
    require_texts,
    require_weights,
    require_whole_number,
)


@pytest.mark.parametrize("value", [1, 5, 2**40, np.int64(5), np.uint8(7), np.array(3)])
def test_a_whole_number_is_returned_as_an_int(value: Any) -> None:
    number = require_whole_number("count", value)
    assert number == value
    assert type(number) is int


@pytest.mark.parametrize(
    "value",
    [0, -1, 1.0, "1", None, True, np.nan, np.float64(2), np.bool_(True), np.int64(0), np.ones(2)],
)
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


class Frame:
    """What a DataFrame has: columns, whose names are what iterating it gives."""

    columns = ("title", "text")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    "texts",
    [
        {"q": "a fox", "d": "an owl"},
        OrderedDict(q="a fox"),
        {"a", "b"},
        frozenset("ab"),
        io.StringIO("a line\nanother"),
        Frame(),
        bytearray(b"ab"),
    ],
)
def test_what_only_happens_to_be_iterable_is_refused_by_name(texts: Any) -> None:
    with pytest.raises(InputError, match=f"expected a list of texts, got {type(texts).__name__}; "):
        require_texts(texts)


@pytest.mark.parametrize(
    "texts",
    [("a", "b"), np.array(["a", "b"]), iter(["a", "b"]), {"a": 1, "b": 2}.keys(), deque("ab")],
)
def test_everything_with_an_order_of_its_own_is_a_list(texts: Any) -> None:
    assert require_texts(texts) == ["a", "b"]


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


@pytest.mark.parametrize("weights", [(1, 0.5), [1, 0.5], np.array([1, 0.5])])
def test_two_weights_are_for_two_lists(weights: Any) -> None:
    assert require_list_weights(weights) == (1.0, 0.5)
    assert require_weights(weights, of="texts and images") == (1.0, 0.5)
    assert Fusion(weights).keyword_weight == 0


def test_a_third_weight_is_the_keyword_lists() -> None:
    fusion = Fusion((0.5, 0.2, 0.3), method="dbsf", candidates=100)
    assert fusion.keyword_weight == 0.3
    assert str(fusion) == "DBSF, weights 0.5 : 0.2 : 0.3, 100 candidates"
    assert str(Fusion((0, 0, 1))) == "bm25 alone"
    assert str(Fusion((1, 0, 0))) == str(Fusion((1, 0))) == "dense alone"
    assert Fusion.from_dict(fusion.to_dict()) == fusion


@pytest.mark.parametrize(
    "weights",
    [(), (1,), (1, 1, 1, 1), (0, 0), (0, 0, 0), (1, -1, 1), (1, np.nan, 1), "111", None, (1, "1")],
)
def test_other_weights_are_refused(weights: Any) -> None:
    with pytest.raises(InputError, match="or three with the keyword list's"):
        Fusion(weights)
    with pytest.raises(InputError, match="two numbers >= 0, texts and images, not both 0"):
        require_weights(weights, of="texts and images")


def test_three_weights_are_no_pair() -> None:
    with pytest.raises(InputError, match="texts and images"):
        require_weights((1, 1, 1), of="texts and images")
