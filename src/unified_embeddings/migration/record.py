"""What a migration is and how far it has come, as values, and their form as JSON.

What lives here: the fields of the record. What does not: its file and lock (`journal`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from unified_embeddings.llama.layouts import LayoutName
from unified_embeddings.migration.states import State

PointId = int | str
Side = Literal["source", "target"]

_FORMAT = 1


@dataclass(frozen=True)
class Entered:
    """When a state was entered.

    Attributes:
        state: The state.
        time: ISO 8601, in UTC.
    """

    state: State
    time: str


@dataclass(frozen=True)
class Counters:
    """What the backfill has done so far, over all its runs.

    Attributes:
        read: Points of the source that the first pass has read.
        embedded: Texts that were embedded here; the dual writers embed their own.
        written: Points that were written into the target.
        already_there: Points that the target had when they were read.
        repaired: Points that a sweep inserted or replaced, since the first pass missed them.
        removed: Points that were removed from the target, since the source has them no more.
        sweeps: Comparisons of both sides that were finished.
    """

    read: int = 0
    embedded: int = 0
    written: int = 0
    already_there: int = 0
    repaired: int = 0
    removed: int = 0
    sweeps: int = 0


@dataclass(frozen=True, kw_only=True)
class MigrationRecord:
    """One migration: what moves where, and how far it has come.

    Attributes:
        alias: The name that applications open.
        place: Where both collections are: {"path": folder} or {"url": address}.
        source: The old collection's own name.
        target: The new collection's own name.
        model: Options of `UnifiedEmbeddingConfig` that differ from their defaults, for the new
            model: {"model_choice": ..., "sparse_model": ..., ...}.
        model_name: The new model's name, for messages.
        fingerprint: The new model's fingerprint.
        source_model: Name of the model that made the source; None if nothing records it.
        source_fingerprint: Its fingerprint; None likewise.
        source_vectors: The source's vectors by name, in words, as they were when it was planned.
        layout: How the source's payload holds the text; see `llama.layouts`.
        text_key: Key of the text, for a plain layout.
        metadata_key: Key of the metadata, likewise.
        state: The present state.
        entered: All states so far with their times, the first first.
        counters: What the backfill has done.
        offset: Where the first pass goes on; None at its beginning or end.
        copied: Whether the first pass has come to its end.
        suspects: Points of the target whose vectors a verification found wrong; the next run of the
            backfill makes them anew.
        accept_failed: Whether points without vectors were accepted.
        estimate: What the plan said, as plain values.
        verify: What the last verification found, as plain values.
        gate: The gate's last report.
        overrides: What was overridden by force, each with its time.
        traffic: What shadow and canary need to know.
    """

    alias: str
    place: Mapping[str, str]
    source: str
    target: str
    model: Mapping[str, object]
    model_name: str
    fingerprint: str
    source_model: str | None = None
    source_fingerprint: str | None = None
    source_vectors: Mapping[str, str] = field(default_factory=dict)
    layout: LayoutName = "llama_index"
    text_key: str | None = None
    metadata_key: str | None = None
    state: State = "planned"
    entered: tuple[Entered, ...] = ()
    counters: Counters = field(default_factory=Counters)
    offset: PointId | None = None
    copied: bool = False
    suspects: tuple[PointId, ...] = ()
    accept_failed: bool = False
    estimate: Mapping[str, object] | None = None
    verify: Mapping[str, object] | None = None
    gate: Mapping[str, object] | None = None
    overrides: tuple[Mapping[str, object], ...] = ()
    traffic: Mapping[str, object] = field(default_factory=dict)

    @property
    def serving(self) -> Side:
        """Return the side that answers: the source until cut-over and after a rollback."""
        return "target" if self.state in ("cut_over", "retired") else "source"

    @property
    def serving_collection(self) -> str:
        """Return the name of the collection that answers."""
        return self.target if self.serving == "target" else self.source


def record_to_json(record: MigrationRecord) -> bytes:
    """Return a record as JSON."""
    content = {"format": _FORMAT} | dataclasses.asdict(record)
    return json.dumps(content, ensure_ascii=False, indent=1).encode(errors="backslashreplace")


def record_from_json(content: bytes) -> MigrationRecord:
    """Return a record from its JSON.

    Raises:
        ValueError: If it is none, or a newer version of this package wrote it.
    """
    values = json.loads(content)
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise ValueError("it has no format number")
    version = values.pop("format")
    if version > _FORMAT:
        raise ValueError(
            f"a newer version of unified-embeddings wrote it (format {version}, this one reads "
            f"{_FORMAT}); install that version"
        )
    try:
        if values["state"] not in get_args(State):
            raise ValueError(f"there is no state {values['state']!r}")
        values["entered"] = tuple(Entered(**entered) for entered in values["entered"])
        values["counters"] = Counters(**values["counters"])
        for name in ("overrides", "suspects"):
            values[name] = tuple(values.get(name, ()))
        return MigrationRecord(**values)
    except (TypeError, KeyError) as error:
        raise ValueError(f"it is damaged: {error}") from error
