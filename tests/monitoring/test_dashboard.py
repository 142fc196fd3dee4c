"""Every query of the dashboard is PromQL over metrics and labels that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from unified_embeddings.monitoring.dashboard import ROWS, build_dashboard
from unified_embeddings.monitoring.families import FAMILIES, Family

OUTER = {"instance", "job", "worker"}
"""Labels that Prometheus adds to every sample, and the service where it has several workers."""
TOKEN = re.compile(
    r"\s*(?:(?P<duration>\[[^\]]*\])|(?P<string>\"[^\"]*\")|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|[-+*/(){},=]))"
)
FUNCTIONS = {"rate": 1, "histogram_quantile": 2}
AGGREGATIONS = {"sum", "max", "avg"}


@dataclass
class Parser:
    """A recursive parser of the part of PromQL that is in use; it notes what a query names."""

    text: str
    tokens: list[tuple[str, str]] = field(default_factory=list)
    metrics: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    grouped: set[str] = field(default_factory=set)

    def parse(self) -> None:
        position = 0
        while position < len(self.text):
            match = TOKEN.match(self.text, position)
            assert match, f"{self.text!r} at {position}"
            self.tokens.append((str(match.lastgroup), match[0].strip()))
            position = match.end()
        self.expression()
        assert not self.tokens, self.tokens

    def peek(self) -> str:
        return self.tokens[0][1] if self.tokens else ""

    def take(self, expected: str | None = None, kind: str | None = None) -> str:
        found_kind, found = self.tokens.pop(0)
        assert expected in (None, found), (expected, found, self.text)
        assert kind in (None, found_kind), (kind, found, self.text)
        return found

    def expression(self) -> None:
        self.term()
        while self.peek() in ("+", "-", "*", "/") and self.peek():
            self.take()
            self.term()

    def term(self) -> None:
        if self.peek() == "(":
            self.take()
            self.expression()
            self.take(")")
        elif self.tokens[0][0] == "number":
            self.take()
        else:
            self.named()

    def named(self) -> None:
        name = self.take(kind="name")
        if name in AGGREGATIONS:
            if self.peek() == "by":
                self.take("by")
                self.grouped |= set(self.names())
            self.take("(")
            self.expression()
            self.take(")")
        elif name in FUNCTIONS:
            self.take("(")
            for place in range(FUNCTIONS[name]):
                if place:
                    self.take(",")
                self.expression()
            self.take(")")
        else:
            self.metrics.add(name)
            self.selector()

    def names(self) -> Iterator[str]:
        self.take("(")
        while self.peek() != ")":
            yield self.take(kind="name")
            if self.peek() == ",":
                self.take(",")
        self.take(")")

    def selector(self) -> None:
        if self.peek() == "{":
            self.take("{")
            while self.peek() != "}":
                self.labels.add(self.take(kind="name"))
                assert self.take() in ("=", "!=", "=~", "!~")
                self.take(kind="string")
                if self.peek() == ",":
                    self.take(",")
            self.take("}")
        if self.tokens and self.tokens[0][0] == "duration":
            assert self.take() == "[$__rate_interval]"


def samples_of(family: Family) -> dict[str, set[str]]:
    """The names of a metric's samples in Prometheus, with their labels."""
    labels = set(family.labels) | OUTER
    if family.kind != "histogram":
        return {family.exposed: labels}
    return {
        f"{family.exposed}_bucket": labels | {"le"},
        f"{family.exposed}_sum": labels,
        f"{family.exposed}_count": labels,
    }


KNOWN = {name: labels for family in FAMILIES for name, labels in samples_of(family).items()}
QUERIES = [
    (query.expression, query.legend)
    for panels in ROWS.values()
    for panel in panels
    for query in panel.queries
]


@pytest.mark.parametrize(("expression", "legend"), QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(expression: str, legend: str) -> None:
    parser = Parser(expression)
    parser.parse()
    assert parser.metrics
    shown = set(re.findall(r"{{(\w+)}}", legend))
    for metric in parser.metrics:
        assert metric in KNOWN
        assert parser.labels <= KNOWN[metric]
        assert parser.grouped <= KNOWN[metric]
        assert shown <= KNOWN[metric]
    if parser.grouped:
        assert shown <= parser.grouped


@pytest.mark.parametrize("query", ["sum(", "rate(a{b})", "a b", "sum by (a) a", "a[5m]", "a + "])
def test_the_parser_refuses_what_is_no_query(query: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        Parser(query).parse()


def test_the_dashboard_is_what_grafana_imports() -> None:
    dashboard: Any = build_dashboard()
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    drawn = [panel for panel in panels if panel["type"] == "timeseries"]
    assert sum(len(panel["targets"]) for panel in drawn) == len(QUERIES)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    (variable,) = [v for v in dashboard["templating"]["list"] if v["name"] == "instance"]
    match = re.fullmatch(r"label_values\((\w+), instance\)", variable["query"])
    assert match
    assert match[1] in KNOWN


def test_every_counter_is_seen_as_a_rate() -> None:
    for expression, _ in QUERIES:
        for name in re.findall(r"\w+_total\b", expression):
            assert f"rate({name}{{" in expression
