"""Whether the new collection holds exactly what it should, vectors included; nothing is changed.

What lives here: the checks and their report. What does not: mending (`catch_up`), and whether the
new side answers better (the gate).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.layouts import PayloadReader, SourceText
from unified_embeddings.migration.backfill import do_nothing
from unified_embeddings.migration.embedding import InProcessEmbedding, TextVectors
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.opening import check_alias_owner, check_model, check_source
from unified_embeddings.migration.record import PointId
from unified_embeddings.migration.sampling import Sample
from unified_embeddings.migration.sides import Sides
from unified_embeddings.migration.states import MigrationStateError, State
from unified_embeddings.migration.stored_vectors import (
    dense_cosine,
    dense_of,
    named_vectors,
    sparse_cosine,
    weights_of,
)
from unified_embeddings.stores.copy_points import plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, make_thread_safe
from unified_embeddings.stores.schema import (
    DENSE_VECTOR,
    SPARSE_VECTOR,
    dense_vectors,
    recorded_model,
    sparse_vectors,
)

_PAGE = 250
_SAMPLE = 64
"""Points whose texts are embedded again."""
_EXAMPLES = 5
_NORM_TOLERANCE = 1e-2
_MOST_SUSPECTS = 10_000
"""Points that are made anew at once; of more, deleting the target is quicker."""
_LEAST_COSINE = 0.99
"""Of the same text embedded twice by one model, in batches of other sizes and in any precision; two
models, or two texts, are far below."""


@dataclass(frozen=True)
class Finding:
    """A kind of fault.

    Attributes:
        problem: What is wrong, in words.
        count: How many points it concerns; 0 if it concerns the collection.
        examples: Ids of some of them.
    """

    problem: str
    count: int = 0
    examples: tuple[PointId, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        source_points: Points of the source.
        target_points: Points of the target.
        checked_vectors: Points of the target whose vectors were looked at.
        embedded_again: Points whose texts were embedded again.
        lowest_dense_cosine: Of the stored and the new dense vectors; None if none was compared.
        lowest_sparse_cosine: Of the sparse ones; None likewise.
        failed: Points that could not be embedded.
        accepted_failed: Whether these were accepted.
        findings: What is wrong.
    """

    source_points: int
    target_points: int
    checked_vectors: int
    embedded_again: int
    lowest_dense_cosine: float | None
    lowest_sparse_cosine: float | None
    failed: int
    accepted_failed: bool
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not self.findings

    @property
    def problems(self) -> tuple[str, ...]:
        """Return what is wrong, in words."""
        return tuple(_in_words(finding) for finding in self.findings)


def verify_migration(
    journal: Journal,
    client: Client,
    embedder: TextEmbedder,
    *,
    accept_failed: bool = False,
    sample: int = _SAMPLE,
    on_total: Callable[[int], None] = do_nothing,
    on_points: Callable[[int], None] = do_nothing,
    check: Callable[[], None] = do_nothing,
) -> VerifyReport:
    """Check the target against the source, and record the report.

    Every point is compared, both ways, by id and payload, and every vector of the target is looked
    at. The texts of a sample are embedded again. If all is well, a backfilled migration becomes
    verified; one that is verified already keeps its state. If not, one that was verified, in shadow
    or in canary keeps its state as well, and the report says that it is not clean.

    Args:
        journal: Of the migration, open.
        client: Of the place.
        embedder: The new model's.
        accept_failed: Accept the points that could not be embedded; the record keeps it.
        sample: How many points' texts are embedded again.
        on_total: Called once with the number of points to go through.
        on_points: Called with the number of points just gone through.
        check: Called between two pages; what it raises is raised.

    Raises:
        MigrationError: If the source or the alias is not what it was.
        MigrationStateError: If the backfill is not finished.
        FingerprintMismatchError: If the embedder is not the one that was planned.
        StoreError: If a side cannot be read.
    """
    make_thread_safe(client)
    record = journal.record
    _require_backfilled(record.state)
    check_model(record, embedder)
    check_alias_owner(client, record)
    check_source(client, record)
    verifier = _Verifier(journal, client, embedder, accept_failed=accept_failed, sample=sample)
    verifier.check_collection()
    if not verifier.findings:
        on_total(verifier.count())
        for points in (*verifier.compare(), *verifier.check_vectors()):
            check()
            on_points(points)
        verifier.check_sample()
    report = verifier.report()
    changes: dict[str, object] = {
        "verify": _to_plain(report),
        "accept_failed": report.accepted_failed,
        "suspects": tuple(verifier.suspects),
    }
    if report.is_clean and record.state in ("backfilled", "rolled_back"):
        journal.enter("verified", **changes)
    else:
        journal.update(**changes)
    journal.note("verify", is_clean=report.is_clean, problems=list(report.problems))
    return report


def _require_backfilled(state: State) -> None:
    if state in ("planned", "backfilling"):
        raise MigrationStateError(
            f"the migration is {state!r}: copy the points first (`migrate start`)"
        )
    if state == "retired":
        raise MigrationStateError("the migration is 'retired': there is no source to compare with")


@dataclass
class _Faults:
    """Points that share a fault."""

    count: int = 0
    examples: list[PointId] = field(default_factory=list)

    def add(self, point_ids: Sequence[PointId]) -> None:
        self.count += len(point_ids)
        self.examples += list(point_ids)[: _EXAMPLES - len(self.examples)]


class _Verifier:
    """The checks, one after another, and what they found."""

    def __init__(
        self,
        journal: Journal,
        client: Client,
        embedder: TextEmbedder,
        *,
        accept_failed: bool,
        sample: int,
    ) -> None:
        self._journal = journal
        self._client = client
        self._embedder = embedder
        self._accept_failed = accept_failed or journal.record.accept_failed
        self._sides = Sides(client, journal.record)
        self._sample = Sample[qm.Record](sample)
        self._textless_sparse = Sample[qm.Record](sample)
        self._faults: dict[str, _Faults] = {}
        self._checked = 0
        self._cosines: list[float] = []
        self._sparse_cosines: list[float] = []
        self._failed: list[PointId] = []
        self.suspects: list[PointId] = []
        self.findings: list[Finding] = []

    def count(self) -> int:
        """Return how many points there are to go through."""
        return self._sides.source.count() + 2 * self._sides.target.count()

    def check_collection(self) -> None:
        """Check what the target says of itself."""
        record = self._journal.record
        with store_errors(record.target, "reading the target"):
            if not self._client.collection_exists(record.target):
                self._find(
                    f"the target {record.target!r} does not exist any more; `migrate start` fills "
                    "it again"
                )
                return
            info = self._client.get_collection(record.target)
        model = recorded_model(info)
        if model is None or model.fingerprint != record.fingerprint:
            found = "no model" if model is None else f"{model.name!r} ({model.fingerprint})"
            self._find(
                f"the target records {found}, not {record.model_name!r} ({record.fingerprint})"
            )
        params = dense_vectors(info).get(DENSE_VECTOR)
        if params is None or params.size != self._embedder.dimension:
            size = "none" if params is None else f"{params.size} dimensions"
            self._find(
                f"the target's dense vectors have {size}, the model gives "
                f"{self._embedder.dimension}"
            )
        if "sparse" in self._embedder.heads and SPARSE_VECTOR not in sparse_vectors(info):
            self._find("the target has no sparse vectors, but the model gives them")

    def compare(self) -> Iterator[int]:
        """Compare ids and payloads both ways; yield the points gone through."""
        for page in self._sides.source.pages(_PAGE):
            differences = self._sides.compare_source_page(page)
            missing = [content.point_id for content in differences.missing]
            failed = [point_id for point_id in missing if point_id in self._journal.failed]
            self._failed += failed
            self._fault(
                "are missing in the target",
                [point_id for point_id in missing if point_id not in self._journal.failed],
            )
            self._fault(
                "have another text or other metadata in the target",
                [content.point_id for content in differences.changed],
            )
            yield len(page.points)
        for page in self._sides.target.pages(_PAGE):
            extra = self._sides.compare_target_page(page)
            self._fault("are in the target only", extra)
            yield len(page.points)

    def check_vectors(self) -> Iterator[int]:
        """Look at every vector of the target; yield the points gone through."""
        name = self._sides.target.name
        offset = None
        while True:
            with store_errors(name, "reading the vectors"):
                points, offset = self._client.scroll(
                    name, limit=_PAGE, offset=offset, with_payload=True, with_vectors=True
                )
            for point in points:
                self._check_vector(point)
            self._checked += len(points)
            yield len(points)
            if offset is None:
                return

    def _check_vector(self, point: qm.Record) -> None:
        point_id = plain_id(point.id)
        vectors = named_vectors(point)
        dense = dense_of(vectors)
        if dense.shape != (self._embedder.dimension,):
            self._suspect("have no dense vector of the model's dimension", point_id)
            return
        if not np.isfinite(dense).all():
            self._suspect("have a dense vector with numbers that are not finite", point_id)
            return
        if abs(float(np.linalg.norm(dense)) - 1.0) > _NORM_TOLERANCE:
            self._suspect("have a dense vector whose length is not 1", point_id)
            return
        if "sparse" in self._embedder.heads:
            weights = weights_of(vectors)
            if not all(np.isfinite(weight) and weight > 0 for weight in weights.values()):
                self._suspect("have a sparse vector with weights that are not positive", point_id)
                return
            if not weights:
                self._textless_sparse.offer(point)
        self._sample.offer(point)

    def check_sample(self) -> None:
        """Embed the texts of a sample again, and compare."""
        sample = {plain_id(point.id): point for point in self._sample.items}
        sample |= {plain_id(point.id): point for point in self._textless_sparse.items}
        reader = PayloadReader("llama_index")  # whatever the source's is
        contents = [reader.read(point_id, point.payload) for point_id, point in sample.items()]
        texts = [content for content in contents if isinstance(content, SourceText)]
        self._fault(
            "have a payload in the target that holds no text",
            [content.point_id for content in contents if not isinstance(content, SourceText)],
        )
        if not texts:
            return
        outcomes = InProcessEmbedding(self._embedder).embed([content.text for content in texts])
        for content, outcome in zip(texts, outcomes, strict=True):
            if isinstance(outcome, TextVectors):
                self._compare_vectors(sample[content.point_id], outcome)
            else:
                self._fault(f"could not be embedded again ({outcome})", [content.point_id])

    def _compare_vectors(self, point: qm.Record, expected: TextVectors) -> None:
        vectors = named_vectors(point)
        point_id = plain_id(point.id)
        cosine = dense_cosine(dense_of(vectors), expected.dense)
        self._cosines.append(cosine)
        if cosine < _LEAST_COSINE:
            self._suspect("have a dense vector that is not the model's for their text", point_id)
        if expected.sparse is None:
            return
        weights = weights_of(vectors)
        sparse = sparse_cosine(weights, dict(expected.sparse))
        self._sparse_cosines.append(sparse)
        if sparse < _LEAST_COSINE:
            self._suspect("have a sparse vector that is not the model's for their text", point_id)

    def report(self) -> VerifyReport:
        """Return what was found."""
        failed = self._failed
        if failed and not self._accept_failed:
            reason = self._journal.failed[failed[0]]
            self._find(
                f"could not be embedded ({reason}); give them a text, delete them, or accept it "
                "with --accept-failed",
                count=len(failed),
                examples=tuple(failed[:_EXAMPLES]),
            )
        for problem, faults in self._faults.items():
            self._find(problem, count=faults.count, examples=tuple(faults.examples))
        return VerifyReport(
            source_points=self._sides.source.count(),
            target_points=self._count_target(),
            checked_vectors=self._checked,
            embedded_again=len(self._cosines),
            lowest_dense_cosine=min(self._cosines, default=None),
            lowest_sparse_cosine=min(self._sparse_cosines, default=None),
            failed=len(failed),
            accepted_failed=self._accept_failed,
            findings=tuple(self.findings),
        )

    def _count_target(self) -> int:
        if not self._client.collection_exists(self._sides.target.name):
            return 0
        return self._sides.target.count()

    def _find(self, problem: str, count: int = 0, examples: tuple[PointId, ...] = ()) -> None:
        self.findings.append(Finding(problem, count, examples))

    def _suspect(self, problem: str, point_id: PointId) -> None:
        """Note a point whose vectors are wrong, to be made anew."""
        self._fault(problem, [point_id])
        if len(self.suspects) < _MOST_SUSPECTS:
            self.suspects.append(point_id)

    def _fault(self, problem: str, point_ids: Sequence[PointId]) -> None:
        if point_ids:
            self._faults.setdefault(problem, _Faults()).add(point_ids)


def _in_words(finding: Finding) -> str:
    if not finding.count:
        return finding.problem
    examples = ", ".join(map(repr, finding.examples))
    return f"{finding.count:,} points {finding.problem}, such as {examples}"


def _to_plain(report: VerifyReport) -> dict[str, object]:
    return dataclasses.asdict(report) | {
        "is_clean": report.is_clean,
        "problems": list(report.problems),
    }
