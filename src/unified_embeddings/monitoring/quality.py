"""The result of the last evaluation, from the file that `unified-embeddings evaluate --json` wrote.

What lives here: reading the file. What does not: evaluating (`evaluation`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from unified_embeddings.errors import InputError

MEASURES = ("ndcg", "recall", "precision", "mrr", "map")
MOST_SYSTEMS = 50
"""Systems of one file at most: each is a label, and labels need a bound."""


@dataclass(frozen=True)
class Quality:
    """What an evaluation found.

    Attributes:
        data: The name of the judged data.
        k: The depth of nDCG, recall and precision; None if the file does not say.
        systems: System → measure → its mean over the queries, 0 to 1.
        created: When it was made, in seconds since 1970; None if the file does not say.
    """

    data: str
    k: int | None
    systems: dict[str, dict[str, float]]
    created: float | None


def read_quality(path: str | os.PathLike[str]) -> Quality:
    """Read an evaluation's result.

    Fields that are not known are ignored, and a measure may be missing or null. A measure may also
    be an object with a "mean".

    Raises:
        InputError: If there is no such file, or it is no such result; it says what is missing.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the evaluation {str(path)!r}: {error.strerror or error}. Write it with "
            "unified-embeddings evaluate --json FILE"
        ) from error
    except ValueError as error:
        raise InputError(f"the evaluation {str(path)!r} is no JSON: {error}") from error
    try:
        return _to_quality(content)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the evaluation {str(path)!r} is not as unified-embeddings evaluate --json writes it: "
            f"{error}"
        ) from error


def _to_quality(content: object) -> Quality:
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
    k = content.get("k")
    return Quality(
        data=str(content.get("data", "")),
        k=k if isinstance(k, int) else None,
        systems=measures_by_system,
        created=_to_time(content.get("created")),
    )


def _to_measures(system: dict[str, object]) -> dict[str, float]:
    measures = {}
    for name in MEASURES:
        value = system.get(name)
        if isinstance(value, dict):
            value = value.get("mean")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 <= value <= 1:
                raise ValueError(f"{system['name']!r}: {name} must be from 0 to 1, got {value}")
            measures[name] = float(value)
    return measures


def _to_time(created: object) -> float | None:
    if not isinstance(created, str):
        return None
    # Python 3.10 does not read the Z.
    time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    if time.tzinfo is None:
        time = time.replace(tzinfo=timezone.utc)
    return time.timestamp()
