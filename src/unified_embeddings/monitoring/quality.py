"""The result of the last evaluation, from the file that `evaluate --output` wrote.

What lives here: reading the file. What does not: evaluating (`evaluation`).
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from unified_embeddings.errors import InputError

MEASURES = ("ndcg", "recall", "precision", "mrr", "map")
"""Measures that a system may have as fields of its own, in place of "measures"."""
MOST_SYSTEMS = 50
MOST_MEASURES = 20
"""Systems of one file, and measures of one system, at most: each is a label, and labels need a
bound."""


_LONGEST_LABEL = 500
"""Characters of a name: each sample repeats it at each scrape."""


@dataclass(frozen=True)
class Quality:
    """What an evaluation found.

    Attributes:
        data: The name of the judged data.
        systems: System → measure, such as "nDCG@10" → its mean over the queries, 0 to 1.
        created: When it was made, in seconds since 1970: as the file says, or when it was written.
    """

    data: str
    systems: dict[str, dict[str, float]]
    created: float


def read_quality(path: str | os.PathLike[str]) -> Quality:
    """Read an evaluation's result.

    What is read is {"data": NAME, "systems": [{"name": NAME, "measures": {MEASURE: MEAN}}],
    "created": ISO TIME}. In place of "measures" a system may have "ndcg", "recall", "precision",
    "mrr" and "map". A measure may be null, or an object with a "mean". Everything else is ignored.

    Raises:
        InputError: If there is no such file, or it is no such result; it says what is missing.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        written = Path(path).stat().st_mtime
    except OSError as error:
        raise InputError(
            f"cannot read the evaluation {str(path)!r}: {error.strerror or error}. Write it with "
            "unified-embeddings evaluate --output FILE"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the evaluation {str(path)!r} is not valid JSON: {error}") from error
    try:
        return _to_quality(content, written)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the evaluation {str(path)!r} is not as unified-embeddings evaluate --output "
            f"writes it: {error}"
        ) from error


def _to_quality(content: object, written: float) -> Quality:
    if not isinstance(content, dict):
        raise TypeError(f"expected an object, got {type(content).__name__}")
    systems = content.get("systems")
    if not isinstance(systems, list) or not systems:
        raise ValueError('expected a list of systems under "systems"')
    if len(systems) > MOST_SYSTEMS:
        raise ValueError(f"it has {len(systems)} systems, expected at most {MOST_SYSTEMS}")
    measures_by_system = {}
    for place, system in enumerate(systems):
        if not isinstance(system, dict) or not isinstance(system.get("name"), str):
            raise ValueError(f'system {place}: expected an object with a "name"')
        measures_by_system[system["name"]] = _to_measures(system)
    data = str(content.get("data", ""))
    for label in (data, *measures_by_system, *itertools.chain(*measures_by_system.values())):
        _require_label(label)
    created = content.get("created")
    return Quality(
        data=data,
        systems=measures_by_system,
        created=_to_time(created) if isinstance(created, str) else written,
    )


def _require_label(text: str) -> None:
    """Refuse what cannot be told to Prometheus: one bad label would cost all other metrics."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r:.80} holds half a character") from None
    if len(text) > _LONGEST_LABEL:
        raise ValueError(f"{text!r:.80} is longer than {_LONGEST_LABEL} characters")


def _to_measures(system: dict[str, object]) -> dict[str, float]:
    given = system.get("measures")
    if given is None:
        given = {name: system[name] for name in MEASURES if name in system}
    if not isinstance(given, dict) or len(given) > MOST_MEASURES:
        raise ValueError(
            f"{system['name']!r}: expected at most {MOST_MEASURES} measures with their means"
        )
    measures = {}
    for name, value in given.items():
        mean = value.get("mean") if isinstance(value, dict) else value
        if isinstance(mean, int | float) and not isinstance(mean, bool):
            if not 0 <= mean <= 1:
                raise ValueError(f"{system['name']!r}: {name} must be from 0 to 1, got {mean}")
            measures[str(name)] = float(mean)
    return measures


def _to_time(created: str) -> float:
    # Python 3.10 does not read the Z.
    time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return time.timestamp()
