"""A Grafana dashboard of the metrics, as the JSON that Grafana imports.

What lives here: panels and their queries. What does not: the metrics' names (`families`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.monitoring import families as f
from unified_embeddings.monitoring.families import Family

_COLUMNS, _HEIGHT = 24, 8
"""Grafana's grid is 24 wide; a panel is 8 high."""
_PANELS_PER_ROW = 3
_SERVERS = '{instance=~"$instance"}'
_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One query of a panel.

    Attributes:
        expression: In PromQL.
        legend: How a line of it is called; {{label}} stands for a label's value.
    """

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: Above it.
        unit: Grafana's name of the unit: "s", "bytes", "percentunit", "short", ...
        queries: Its lines.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]


def _now(family: Family) -> str:
    return f"{family.exposed}{_SERVERS}"


def _rate(family: Family, suffix: str = "") -> str:
    return f"rate({family.exposed}{suffix}{_SERVERS}[$__rate_interval])"


def _total_rate(family: Family, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) ({_rate(family)})" if labels else f"sum({_rate(family)})"


def _quantile(share: float, family: Family, *labels: str) -> str:
    buckets = f"sum by ({', '.join(('le', *labels))}) ({_rate(family, '_bucket')})"
    return f"histogram_quantile({share}, {buckets})"


def _quantiles(family: Family, *labels: str) -> tuple[Query, ...]:
    shown = " ".join(f"{{{{{label}}}}}" for label in labels)
    return tuple(
        Query(_quantile(share, family, *labels), f"p{round(share * 100)} {shown}")
        for share in (0.5, 0.95)
    )


def _panel(title: str, unit: str, *queries: tuple[str, str] | Query) -> Panel:
    made = [query if isinstance(query, Query) else Query(*query) for query in queries]
    return Panel(title, unit, tuple(made))


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        _panel(
            "Requests by route and status",
            "reqps",
            (_total_rate(f.REQUESTS, "route", "status"), "{{route}} {{status}}"),
        ),
        _panel("Time to answer", "s", *_quantiles(f.REQUEST_SECONDS, "route")),
        _panel(
            "Waiting",
            "short",
            (f"sum({_now(f.WAITING_TOKENS)})", "tokens"),
            (f"sum({_now(f.WAITING_REQUESTS)})", "requests"),
            (f"sum({_now(f.IN_FLIGHT)})", "requests being answered"),
            (f"sum({_now(f.READY)})", "workers ready"),
        ),
    ),
    "Model": (
        _panel(
            "Tokens and texts a second",
            "short",
            (_total_rate(f.TOKENS), "tokens"),
            (_total_rate(f.TEXTS), "texts"),
        ),
        _panel(
            "Forward passes by length and engine",
            "s",
            *_quantiles(f.FORWARD_SECONDS, "engine", "length"),
        ),
        _panel(
            "Batches",
            "percentunit",
            (f"{_total_rate(f.TOKENS)} / {_total_rate(f.CAPACITY)}", "fill"),
            (f"{_total_rate(f.TRUNCATED)} / {_total_rate(f.TOKENISED)}", "texts cut"),
        ),
    ),
    "Memory": (
        _panel(
            "Vectors found in the cache",
            "percentunit",
            (
                f"{_total_rate(f.CACHE_HITS)} / "
                f"({_total_rate(f.CACHE_HITS)} + {_total_rate(f.CACHE_MISSES)})",
                "found",
            ),
        ),
        _panel(
            "Resident bytes",
            "bytes",
            (_now(f.PROCESS_RESIDENT), "process {{instance}} {{worker}}"),
            (_now(f.MODEL_RESIDENT), "{{model}} ({{runs_on}}) {{worker}}"),
            (_now(f.CACHE_BYTES), "cache {{instance}} {{worker}}"),
        ),
        _panel(
            "GPU",
            "percentunit",
            (_now(f.GPU_UTILISATION), "at work {{gpu}}"),
            (f"{_now(f.GPU_USED)} / {_now(f.GPU_TOTAL)}", "memory {{gpu}}"),
        ),
    ),
    "Retrieval": (
        _panel("Time of a search by mode", "s", *_quantiles(f.SEARCH_SECONDS, "mode")),
        _panel(
            "Searches that failed", "reqps", (_total_rate(f.SEARCHES_FAILED, "mode"), "{{mode}}")
        ),
        _panel(
            "Collections",
            "short",
            (_now(f.POINTS), "points {{collection}}"),
            (_now(f.INDEXED), "indexed vectors {{collection}}"),
            (_now(f.COLLECTION_BYTES), "bytes {{collection}}"),
        ),
    ),
    "Quality": (
        _panel("Last evaluation", "short", (_now(f.QUALITY), "{{data}} {{system}} {{measure}}")),
        _panel(
            "Drift",
            "short",
            (_now(f.DRIFT_COSINE), "cosine to the centre"),
            (_now(f.DRIFT_REFERENCE), "of the first queries"),
            (_now(f.DRIFT_WEAK), "share of weak queries"),
        ),
        _panel("Sources that can be read", "short", (_now(f.SOURCE_UP), "{{source}}")),
    ),
}
"""The dashboard's rows by title."""


def build_dashboard() -> dict[str, object]:
    """Return the dashboard; Grafana imports its JSON and asks for the data source.

    Example:
        >>> from unified_embeddings.monitoring.dashboard import build_dashboard
        >>> build_dashboard()["title"]
        'unified-embeddings'
    """
    panels: list[dict[str, object]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": _COLUMNS, "h": 1},
                "panels": [],
            }
        )
        width = _COLUMNS // _PANELS_PER_ROW
        for place, panel in enumerate(row):
            position = {"x": place * width, "y": top + 1, "w": width, "h": _HEIGHT}
            panels.append(_to_json(panel, len(panels) + 1, position))
        top += 1 + _HEIGHT
    return {
        "title": "unified-embeddings",
        "uid": "unified-embeddings",
        "schemaVersion": 39,
        "tags": ["embeddings"],
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_choose_source(), _choose_instance()]},
        "panels": panels,
    }


def _to_json(panel: Panel, number: int, position: dict[str, int]) -> dict[str, object]:
    targets = []
    for place, query in enumerate(panel.queries):
        targets.append(
            {
                "refId": chr(ord("A") + place),
                "datasource": _DATA_SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
        )
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _DATA_SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }


def _choose_source() -> dict[str, object]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus"}


def _choose_instance() -> dict[str, object]:
    return {
        "name": "instance",
        "type": "query",
        "datasource": _DATA_SOURCE,
        "query": f"label_values({f.PROCESS_RESIDENT.exposed}, instance)",
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
