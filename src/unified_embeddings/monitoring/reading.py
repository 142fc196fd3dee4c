"""Reading metrics that a process tells in Prometheus's text format.

What lives here: samples out of a text, sums and quantiles of them. What does not: fetching the text
(`cli.stats`). It needs no library, so that a service can be asked from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

from unified_embeddings.errors import InputError

_SAMPLE = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s\S+)?"
)
_LABEL = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass(frozen=True)
class Sample:
    """One line of the text.

    Attributes:
        name: The metric's name, with its suffix.
        labels: Label → value.
        value: The number.
    """

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Samples:
    """The samples of a text, or some of them.

    Attributes:
        samples: In the text's order.

    Example:
        >>> from unified_embeddings.monitoring.reading import read_metrics
        >>> metrics = read_metrics('texts_total{worker="0"} 2.0')
        >>> metrics.total("texts_total"), metrics.total("texts_total", worker="1")
        (2.0, None)
    """

    samples: tuple[Sample, ...]

    def without(self, label: str, values: Container[str]) -> Samples:
        """Return those whose label has none of these values."""
        return Samples(
            tuple(sample for sample in self.samples if sample.labels.get(label) not in values)
        )

    def find(self, name: str, **labels: str) -> list[Sample]:
        """Return the samples of a name that have these labels."""
        return [
            sample
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples of a name; None if there are none."""
        found = self.find(name, **labels)
        return sum(sample.value for sample in found) if found else None

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Return a quantile of a histogram, as Prometheus's `histogram_quantile` estimates it.

        Inside a bucket, values are taken to be spread evenly; beyond the last bound, the bound is
        returned.

        Args:
            name: The histogram's name, without a suffix.
            share: 0.5 for the median.
            **labels: Those that the samples must have.

        Returns:
            The quantile; None without observations, or if it is no histogram.
        """
        totals: dict[float, float] = {}
        for sample in self.find(f"{name}_bucket", **labels):
            bound = _to_bound(sample.labels.get("le", ""))
            if bound is None:
                return None  # Another program's metric of the same name.
            totals[bound] = totals.get(bound, 0.0) + sample.value
        bounds = sorted(totals)
        if not bounds or totals[bounds[-1]] == 0:
            return None
        rank = share * totals[bounds[-1]]
        lower_bound, lower_total = 0.0, 0.0
        for bound in bounds:
            if totals[bound] >= rank:
                if bound == float("inf"):
                    return lower_bound
                inside = totals[bound] - lower_total
                position = (rank - lower_total) / inside if inside else 1.0
                return lower_bound + (bound - lower_bound) * position
            lower_bound, lower_total = bound, totals[bound]
        return lower_bound


def _to_bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_metrics(text: str) -> Samples:
    """Read a text in Prometheus's format.

    Raises:
        InputError: If a line is no sample; it is named.
    """
    return Samples(tuple(_read_samples(text)))


def _read_samples(text: str) -> Iterator[Sample]:
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.strip())
        try:
            if match is None:
                raise ValueError("no sample")
            labels = _read_labels(match["labels"] or "")
            yield Sample(match["name"], labels, float(match["value"]))
        except ValueError as error:
            raise InputError(f"not in Prometheus's text format: {line[:80]!r}") from error


def _read_labels(text: str) -> dict[str, str]:
    labels = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError("no label")
        labels[match[1]] = re.sub(r"\\[\\\"n]", lambda escape: _ESCAPES[escape[0]], match[2])
        position = match.end()
    return labels
