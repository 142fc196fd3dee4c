"""However a writer's steps fall between the migration's own, both sides end equal.

The writer's operations have two steps each, first in the old collection, then in the new one, as
the dual-writing store makes them. Before each call that the migration makes to Qdrant, some of
these steps are taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from moving import (
    SOURCE,
    TARGET,
    assert_moved,
    make_node,
    make_old_collection,
    node_id,
    old_store,
    plan_by_hand,
    texts_of,
)
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.migration.backfill import migrate_points
from unified_embeddings.migration.dual_target import TargetWriter, stored_payloads
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.sides import Collection

Operation = tuple[Literal["add", "delete"], int]
POINTS = 12
CALLS = {"scroll", "retrieve", "upsert", "delete"}

operations = st.lists(
    st.tuples(st.sampled_from(["add", "delete"]), st.integers(0, POINTS + 2)), max_size=12
)
schedules = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=12)
"""(calls of the migration that pass first, steps of the writer that then come at once) ..."""
targets = st.dictionaries(
    st.integers(0, POINTS + 4), st.sampled_from(["missing", "outdated"]), max_size=4
)
"""In which points the new collection differs at the beginning; those beyond POINTS are extra."""


class Interleaved:
    """A client that takes a writer's next steps before calls of the migration."""

    def __init__(
        self,
        client: QdrantClient,
        steps: list[Callable[[], None]],
        schedule: Sequence[tuple[int, int]],
    ) -> None:
        self.inner = client
        self.steps = steps
        self._at_calls = [0] * sum(wait + 1 for wait, _ in schedule)
        call = -1
        for wait, number in schedule:
            call += wait + 1
            self._at_calls[call] = number

    def __getattr__(self, name: str) -> Any:
        if name in CALLS:
            self._take_steps()
        return getattr(self.inner, name)

    def _take_steps(self) -> None:
        number = self._at_calls.pop(0) if self._at_calls else 1
        for step in self.steps[:number]:
            step()
        del self.steps[:number]

    def finish(self) -> None:
        while self.steps:
            self.steps.pop(0)()


class Writer:
    """The steps of a sequence of operations, and what is there after all of them."""

    def __init__(self, client: QdrantClient, journal: Journal, texts: dict[int, str]) -> None:
        self._source = Collection(client, SOURCE)
        self._store = old_store(client)
        self._target = TargetWriter(client, journal.record, FakeEmbedder(model_name="new"))
        self.expected = dict(texts)
        self._version = 0

    def damage_target(self, number: int, difference: str) -> None:
        """Let the new collection lack a point, or hold another text for it."""
        if difference == "missing":
            self._target.collection.remove([node_id(number)])
            return
        node = make_node(number, "Outdated.")
        self._target.write(self._target.prepare(stored_payloads(self._store, [node])))

    def _add(self, node: TextNode) -> None:
        self._store.add([node])

    def steps_of(self, operation: Operation) -> list[Callable[[], None]]:
        kind, number = operation
        if kind == "delete":
            self.expected.pop(number, None)
            point_id = node_id(number)
            return [
                lambda: self._source.remove([point_id]),
                lambda: self._target.collection.remove([point_id]),
            ]
        self._version += 1
        node = make_node(number, f"Version {self._version} of note {number}.")
        self.expected[number] = node.text
        return [
            lambda: self._add(node),
            lambda: self._target.write(self._target.prepare(stored_payloads(self._store, [node]))),
        ]


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_embeddings.migration.sides._PAUSES", (0, 0, 0))


@given(
    operations=operations,
    schedule=schedules,
    target=targets,
    batch=st.sampled_from([1, 3, 100]),
    is_copied=st.booleans(),
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_both_sides_end_equal(
    operations: Sequence[Operation],
    schedule: Sequence[tuple[int, int]],
    target: dict[int, str],
    batch: int,
    is_copied: bool,
) -> None:
    client = QdrantClient(":memory:")
    texts = {number: f"Note {number}." for number in range(POINTS)}
    make_old_collection(client, texts)
    embedder = FakeEmbedder(model_name="new")
    with (
        tempfile.TemporaryDirectory() as folder,
        plan_by_hand(client, Path(folder), embedder) as journal,
    ):
        migrate_points(journal, client, embedder, batch=100)
        journal.update(copied=is_copied)
        writer = Writer(client, journal, texts)
        for number, difference in target.items():
            writer.damage_target(number, difference)
        steps = [step for operation in operations for step in writer.steps_of(operation)]
        between = Interleaved(client, steps, schedule)
        migrate_points(journal, between, embedder, batch=batch)  # type: ignore[arg-type]
        between.finish()
    assert texts_of(client, TARGET) == {
        node_id(number): text for number, text in writer.expected.items()
    }
    assert_moved(client, embedder)
    client.close()


def test_a_point_lost_between_two_steps_of_the_backfill_is_found_again(tmp_path: Path) -> None:
    """The point is gone when the backfill looks, and back before the backfill removes it."""
    client = QdrantClient(":memory:")
    make_old_collection(client, {1: "Note."})
    embedder = FakeEmbedder(model_name="new")
    with plan_by_hand(client, tmp_path, embedder) as journal:
        migrate_points(journal, client, embedder)
        client.delete(TARGET, qm.PointIdsList(points=[node_id(1)]))
        journal.update(copied=False)
        writer = Writer(client, journal, {1: "Note."})
        delete_source, delete_target = writer.steps_of(("delete", 1))
        add_source, add_target = writer.steps_of(("add", 1))
        events: list[str] = []

        class Between(Interleaved):
            def _take_steps(self) -> None:
                pass

            def upsert(self, *args: Any, **options: Any) -> Any:
                if "upsert" not in events:
                    delete_source()
                answer = self.inner.upsert(*args, **options)
                events.append("upsert")
                return answer

            def delete(self, *args: Any, **options: Any) -> Any:
                if "delete" not in events:
                    delete_target()
                    add_source()
                    add_target()
                events.append("delete")
                return self.inner.delete(*args, **options)

        migrate_points(journal, Between(client, [], []), embedder)  # type: ignore[arg-type]
    assert "delete" in events
    assert texts_of(client, TARGET) == {node_id(1): writer.expected[1]}
    assert_moved(client, embedder)
