"""A calibration: relevance by hand, its bounds, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration, log_odds, logistic
from unified_embeddings.models.catalogue import MODELS, spec_from_dict
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.relevance import Evidence

ONE = Calibration(
    intercept=-2.0,
    dense_gap=4.0,
    sparse_share=0.5,
    sparse_lead=1.0,
    agreement=1.5,
    background=0.2,
    weak_below=0.25,
    source="by hand",
)


def test_relevance_by_hand() -> None:
    """-2 + 4 · 0.25 + 0.5 · 2 + 1 · 0.5 + 1.5 · 1 = 2, and 1 / (1 + e^-2) = 0.8808."""
    assert ONE.relevance(Evidence(0.25, 2.0, 0.5, 1.0)) == pytest.approx(0.8807971)
    assert ONE.relevance(Evidence(0.0, 0.0, 0.0, 0.0)) == pytest.approx(1 / (1 + math.exp(2)))


def test_judges_both_lists() -> None:
    """a has gaps 0.5 and 2.5 / 5, no other item beside it, and is first in both."""
    relevances = ONE.judge([("a", 0.7)], [("a", 2.5)], query_weight=5.0)
    assert relevances == {"a": pytest.approx(logistic(-2 + 4 * 0.5 + 0.5 * 0.5 + 0.5 + 1.5))}


def test_weak_is_below_the_bound_and_unknown_without_one() -> None:
    assert ONE.is_weak(0.2499) is True
    assert ONE.is_weak(0.25) is False
    assert ONE.is_weak(0.0) is True
    assert dataclasses.replace(ONE, weak_below=None).is_weak(0.0) is None


@given(
    st.tuples(*[st.floats(0, 50)] * 2, st.floats(-50, 50), st.floats(0, 1)),
    st.floats(0, 5, exclude_min=True),
    st.floats(-5, 5),
)
def test_adjusting_moves_the_log_odds_in_a_line_and_keeps_what_is_weak(
    evidence: tuple[float, float, float, float], slope: float, offset: float
) -> None:
    adjusted = ONE.adjust(slope, offset)
    before, after = ONE.relevance(Evidence(*evidence)), adjusted.relevance(Evidence(*evidence))
    assert 0 <= after <= 1
    if 1e-9 < before < 1 - 1e-9:
        assert after == pytest.approx(logistic(slope * log_odds(before) + offset), abs=1e-6)
    assert adjusted.weak_below == pytest.approx(logistic(slope * log_odds(0.25) + offset))


def test_where_all_hits_are_alike_none_is_known_to_be_weak() -> None:
    alike = ONE.adjust(0.0, -2.0)
    assert alike.relevance(Evidence(1.0, 1.0, 1.0, 1.0)) == logistic(-2.0)
    assert alike.is_weak(logistic(-2.0)) is None


@pytest.mark.parametrize("far", [1e4, 1e308])
def test_far_log_odds_do_not_overflow(far: float) -> None:
    assert logistic(far) == 1.0
    assert logistic(-far) == 0.0
    assert logistic(0.0) == 0.5


def test_to_json_and_back() -> None:
    assert Calibration.from_dict(json.loads(json.dumps(ONE.to_dict()))) == ONE


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dense_gap": -0.1}, "dense_gap must be a finite number >= 0, got -0.1"),
        ({"intercept": math.nan}, "intercept must be a finite number, got nan"),
        ({"agreement": "much"}, "agreement must be a finite number >= 0"),
        ({"sparse_lead": True}, "sparse_lead must be a finite number"),
        ({"weak_below": 1.5}, "weak_below must be a finite number >= 0 and <= 1, got 1.5"),
        ({"ece": -1}, "ece must be"),
        ({"depth": 1}, "depth must be a whole number >= 2"),
        ({"source": 3}, "source must be a text"),
        ({"boost": 3}, "it takes intercept, dense_gap"),
    ],
)
def test_values_out_of_range(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Calibration.from_dict({**ONE.to_dict(), **change})


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match="needs agreement, background, dense_gap"):
        Calibration.from_dict({"intercept": 1})


class TestSpecs:
    def test_mini_m3_has_one_with_its_source_and_error(self) -> None:
        calibration = MODELS["mini-m3"].calibration
        assert calibration is not None
        assert calibration.source
        assert calibration.ece is not None
        assert calibration.ece <= 0.05
        assert calibration.weak_auc is not None
        assert calibration.weak_auc >= 0.73

    def test_nobody_claims_one_for_models_not_measured(self) -> None:
        assert [name for name, spec in MODELS.items() if spec.calibration] == ["mini-m3"]

    def test_another_model_like_it_does_not_inherit_it(self) -> None:
        like = spec_from_dict({"like": "mini-m3", "model_id": "me/fine-tuned"})
        assert like.calibration is None
        assert like.fusion == MODELS["mini-m3"].fusion
        same = spec_from_dict({"like": "mini-m3", "max_length": 128})
        assert same.calibration == MODELS["mini-m3"].calibration

    def test_a_spec_with_one_goes_to_json_and_back(self) -> None:
        spec = ModelSpec("mine", "me/mine", calibration=ONE)
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        with pytest.raises(InputError, match=r"mine: calibration: .* needs"):
            ModelSpec("mine", "me/mine", calibration={"depth": 3})  # type: ignore[arg-type]
