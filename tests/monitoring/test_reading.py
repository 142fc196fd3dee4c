"""Our reader of Prometheus's text format against Prometheus's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from unified_embeddings.errors import InputError
from unified_embeddings.monitoring.reading import read_metrics


@given(st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=5))
def test_samples_are_those_of_prometheus_parser(values: dict[str, float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("some_gauge", "About\nit.", ("label", "other"), registry=registry)
    for label, value in values.items():
        gauge.labels(label, 'a"b\\c}').set(value)
    text = generate_latest(registry).decode()
    expected = {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    read = {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for sample in read_metrics(text).samples
    }
    assert read == expected


def test_sums_are_over_the_labels_that_are_not_named() -> None:
    metrics = read_metrics('a{x="1",y="2"} 3\na{x="1",y="3"} 4 1700000000\na{x="2"} 10\n# HELP a\n')
    assert metrics.total("a") == 17
    assert metrics.total("a", x="1") == 7
    assert metrics.without("y", ("2", "3")).total("a") == 10
    assert metrics.total("b") is None


def test_a_quantile_is_interpolated_as_prometheus_does() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("h", "H.", ("route",), buckets=(1, 2, 4), registry=registry)
    for seconds in (0.5, 1.5, 1.5, 3.0):
        histogram.labels("a").observe(seconds)
    histogram.labels("b").observe(100)
    metrics = read_metrics(generate_latest(registry).decode())
    # Of 4 values the median's rank is 2: half way through the two that are between 1 and 2.
    assert metrics.quantile("h", 0.5, route="a") == 1.5
    assert metrics.quantile("h", 0.25, route="a") == 1.0
    assert metrics.quantile("h", 1.0, route="a") == 4.0
    assert metrics.quantile("h", 1.0) == 4.0  # beyond all bounds, the last bound
    assert metrics.quantile("h", 0.5, route="none") is None
    assert metrics.quantile("none", 0.5) is None


@pytest.mark.parametrize("line", ["<html>", "a", "a b", "a{x=1} 2", 'a{x="1} 2', "1a 2"])
def test_a_line_that_is_no_sample_is_named(line: str) -> None:
    with pytest.raises(InputError, match="not in Prometheus's text format: "):
        read_metrics(f"a 1\n{line}\n")


def test_what_is_no_histogram_has_no_quantile() -> None:
    assert read_metrics("seconds_bucket 3").quantile("seconds", 0.5) is None
