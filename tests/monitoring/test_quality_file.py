"""Reading what an evaluation has found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.monitoring.quality import read_quality

RESULT = {
    "data": "xquad",
    "systems": [
        {"name": "mini-m3 hybrid", "measures": {"nDCG@10": 0.75, "MRR@10": 1}, "low": 0.7},
        {"name": "minilm dense", "ndcg": {"mean": 0.5, "low": 0.4}, "map": None, "new": "x"},
    ],
    "created": "1970-01-02T00:00:00Z",
}


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "evaluation.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_measures_are_read_and_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    quality = read_quality(written(tmp_path, RESULT))
    assert (quality.data, quality.created) == ("xquad", 86400.0)
    assert quality.systems == {
        "mini-m3 hybrid": {"nDCG@10": 0.75, "MRR@10": 1.0},
        "minilm dense": {"ndcg": 0.5},
    }


def test_a_time_without_a_zone_is_utc_and_fields_may_be_missing(tmp_path: Path) -> None:
    content = {"systems": [{"name": "a"}], "created": "1970-01-01T00:00:01"}
    quality = read_quality(written(tmp_path, content))
    assert (quality.data, quality.created) == ("", 1.0)
    assert quality.systems == {"a": {}}


def test_a_result_without_a_time_is_as_old_as_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"systems": [{"name": "a"}], "created": None})
    os.utime(path, (7, 7))
    assert read_quality(path).created == 7.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ([], "expected an object, got list"),
        ({}, 'expected a list of systems under "systems"'),
        ({"systems": [{"ndcg": 1}]}, 'system 0: expected an object with a "name"'),
        ({"systems": [{"name": "a", "ndcg": 1.5}]}, "'a': ndcg must be from 0 to 1, got 1.5"),
        ({"systems": [{"name": "a", "ndcg": float("nan")}]}, "must be from 0 to 1, got nan"),
        ({"systems": [{"name": "a", "measures": [1]}]}, "'a': expected at most 20 measures"),
        (
            {"systems": [{"name": "a", "measures": {str(i): 1 for i in range(21)}}]},
            "'a': expected at most 20 measures",
        ),
        ({"systems": [{"name": str(i)} for i in range(51)]}, "51 systems, expected at most 50"),
        ({"systems": [{"name": "a"}], "created": "yesterday"}, "Invalid isoformat"),
        ({"systems": [{"name": "\ud800"}]}, "holds half a character"),
        ({"systems": [{"name": "a", "measures": {"\ud800": 1}}]}, "holds half a character"),
        ({"systems": [{"name": "a"}], "data": "x" * 501}, "is longer than 500 characters"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_quality(written(tmp_path, content))


def test_a_missing_file_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file.*evaluate --output FILE"):
        read_quality(tmp_path / "none.json")
