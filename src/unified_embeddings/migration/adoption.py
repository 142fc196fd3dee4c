"""Proving that a model made a collection that does not record one, and recording it.

What lives here: which vectors are compared, in which order the forms of the texts are tried, and
what follows. What does not: the points (`probes`), the forms (`forms`), the comparison
(`evidence`).

Dimensions fit a dozen models, so nothing but the vectors themselves can tell. What was embedded may
have been more or less than the text that the collection holds: LlamaIndex puts metadata before it,
some models a prefix, and long texts were cut somewhere. Each form is tried. One with another prefix
than the model's is refused, though the model is the same: queries and new documents would differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import LayoutName
from unified_embeddings.migration.evidence import LEAST_PROBES, Evidence
from unified_embeddings.migration.forms import (
    Form,
    FormTest,
    compare_form,
    cut_forms,
    foreign_forms,
    usual_forms,
)
from unified_embeddings.migration.probes import DETECTED, Layout, Probe, Probes, collect_probes
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, make_thread_safe
from unified_embeddings.stores.schema import (
    SPARSE_VECTOR,
    check_collection,
    record_model,
    recorded_model,
    sparse_vectors,
)
from unified_embeddings.stores.vector_names import choose_dense
from unified_embeddings.types import HeadName

Outcome: TypeAlias = Literal["recorded", "recorded before", "proved", "trusted", "refused"]

_EXACT = 0.9999
"""Two runs of the same model on the same text are at least so much alike; no form explains more."""
_KIN = 0.25
"""Vectors of unrelated models stay below, without what they have in common; see `Evidence`."""
_FOREIGN_PROBES = 10
"""Texts that are embedded in each form that would be refused."""


@dataclass(frozen=True)
class AdoptionReport:
    """What came of an adoption.

    Attributes:
        collection: The collection's name.
        model: The model's name.
        outcome: "recorded": proved, and recorded now. "recorded before": nothing was to do.
            "proved": proved, but not to be recorded. "trusted": recorded unproved. "refused".
        reason: Why it was refused; empty otherwise.
        form: In which form the texts were embedded, in words; empty if unknown.
        dense: How the dense vectors compare; None if they were not compared.
        sparse: How the sparse vectors compare; None if they were not compared.
        layout: How its payloads are laid out; None if they were not read.
        points: How many points were looked at.
        problems: Why some of them could not be compared → how many.
        seconds: Duration.
    """

    collection: str
    model: str
    outcome: Outcome
    reason: str
    form: str
    dense: Evidence | None
    sparse: Evidence | None
    layout: LayoutName | None
    points: int
    problems: dict[str, int]
    seconds: float

    @property
    def is_accepted(self) -> bool:
        """Whether the collection is, or may be, recorded as the model's."""
        return self.outcome != "refused"


def adopt_collection(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    *,
    layout: Layout = DETECTED,
    dense_vector: str | None = None,
    sparse_vector: str | None = None,
    trust: bool = False,
    record: bool = True,
) -> AdoptionReport:
    """Prove that an embedder's model made a collection, and record it there.

    Args:
        client: Client of the collection's place.
        name: The collection's name.
        embedder: Embedder of the model that is said to have made it.
        layout: How its payloads are laid out; seen from a sample unless named.
        dense_vector: Name of its dense vectors, "" for unnamed ones. None takes LlamaIndex's name,
            or the only ones.
        sparse_vector: Name of its sparse vectors. None takes LlamaIndex's name; others, which
            opening the collection does not trust, are not compared unless named here.
        trust: Record the model without a proof.
        record: Whether to record a model that was proved.

    Raises:
        FingerprintMismatchError: If it records another model.
        InputError: If the layout cannot be seen.
        StoreError: If it does not exist, is empty, has no vectors that the model could have made,
            or Qdrant fails.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient, models
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.payloads import build_payloads
        >>> from unified_embeddings.migration.adoption import adopt_collection
        >>> client, embedder = QdrantClient(":memory:"), FakeEmbedder(dimension=8)
        >>> params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        >>> _ = client.create_collection("theirs", params)
        >>> nodes = [TextNode(text=f"Fox number {number}.") for number in range(20)]
        >>> vectors = embedder.encode_documents([node.text for node in nodes]).dense
        >>> points = [
        ...     models.PointStruct(id=number, vector=vector.tolist(), payload=payload)
        ...     for number, (vector, payload) in enumerate(zip(vectors, build_payloads(nodes)))
        ... ]
        >>> _ = client.upsert("theirs", points)
        >>> report = adopt_collection(client, "theirs", embedder)
        >>> report.outcome, report.form, round(report.dense.cosine, 3)
        ('recorded', 'the text alone', 1.0)
    """
    started = time.monotonic()
    make_thread_safe(client)
    with store_errors(name, "reading its settings"):
        info = client.get_collection(name)
    names = _choose_vectors(name, info, embedder, dense_vector, sparse_vector)
    dense, sparse = names.get("dense"), names.get("sparse")
    check_collection(name, info, embedder, dense=dense, sparse=sparse, adopt="trust")
    outcome: Outcome = "recorded"
    probes: Probes | None = None
    test: FormTest | None = None
    reason = ""
    if recorded_model(info) is not None:
        outcome = "recorded before"
    elif trust:
        outcome = "trusted"
    else:
        probes = collect_probes(client, name, layout, dense=dense, sparse=sparse)
        test, reason = _prove(embedder, probes, list(names))
        if reason:
            outcome = "refused"
        elif not record:
            outcome = "proved"
    if outcome in ("recorded", "trusted"):
        record_model(client, name, embedder)
    return AdoptionReport(
        collection=name,
        model=embedder.model_name,
        outcome=outcome,
        reason=reason,
        form="" if test is None else test.form.description,
        dense=None if test is None else test.dense,
        sparse=None if test is None else test.sparse,
        layout=None if probes is None else probes.layout,
        points=0 if probes is None else probes.points,
        problems={} if probes is None else probes.problems,
        seconds=round(time.monotonic() - started, 3),
    )


def _choose_vectors(
    name: str,
    info: qm.CollectionInfo,
    embedder: TextEmbedder,
    dense_vector: str | None,
    sparse_vector: str | None,
) -> dict[HeadName, str]:
    """Return the vectors to compare: head → name in the collection.

    Raises:
        StoreError: If there are none, or it is not clear which.
    """
    chosen: dict[HeadName, str] = {}
    if "dense" in embedder.heads:
        dense = choose_dense(
            name, info, embedder.dimension, given=dense_vector, option="--dense-vector"
        )
        if dense is not None:
            chosen["dense"] = dense
    if "sparse" in embedder.heads:
        if sparse_vector is not None:
            chosen["sparse"] = sparse_vector
        elif SPARSE_VECTOR in sparse_vectors(info):
            chosen["sparse"] = SPARSE_VECTOR
    if not chosen:
        raise StoreError(
            name,
            "choosing its vectors",
            f"it has no {' or '.join(embedder.heads)} vectors that {embedder.model_name!r} could "
            "have made",
        )
    return chosen


# --- the proof ------------------------------------------------------------------------------------


def _prove(
    embedder: TextEmbedder, probes: Probes, heads: Sequence[HeadName]
) -> tuple[FormTest | None, str]:
    """Return the form that explains the stored vectors best, and why it is no proof, if so."""
    usable = probes.usable
    if len(usable) < LEAST_PROBES:
        found = ", ".join(f"{count}: {problem}" for problem, count in probes.problems.items())
        return None, (
            f"{len(usable)} of {probes.points} points could be compared, and {LEAST_PROBES} are "
            f"needed ({found or 'there are no more'})"
        )
    forms = usual_forms([probe.source for probe in usable])
    tests = [compare_form(embedder, form, usable, heads) for form in forms]
    best = max(tests, key=_rank)
    if not best.problem and best.score >= _EXACT:
        return best, ""
    foreign = None
    if best.kinship >= _KIN:
        foreign = _best_foreign(embedder, best.form, usable, heads)
    if foreign is not None and _explains_more(foreign, best):
        return foreign, f"it matches {foreign.form.description}, but {foreign.form.advice}"
    if not best.problem:
        return best, ""
    for form in forms:
        for cut_form in _where_possible(cut_forms(embedder, form)):
            test = compare_form(embedder, cut_form, usable, heads)
            if not test.problem:
                return test, ""
    return best, best.problem


def _rank(test: FormTest) -> tuple[bool, float]:
    return not test.problem, test.score


def _best_foreign(
    embedder: TextEmbedder, form: Form, probes: Sequence[Probe], heads: Sequence[HeadName]
) -> FormTest | None:
    """Return the test of the foreign form that explains most; None if there is none."""
    few_texts, few_probes = form.texts[:_FOREIGN_PROBES], probes[:_FOREIGN_PROBES]
    few = Form(form.description, few_texts)
    tests = [
        compare_form(embedder, foreign, few_probes, heads)
        for foreign in _where_possible(foreign_forms(embedder, few))
    ]
    return max(tests, key=_rank, default=None)


def _explains_more(foreign: FormTest, own: FormTest) -> bool:
    """Tell whether a foreign form matches, and leaves less than half of what the own one leaves."""
    return not foreign.problem and 1 - foreign.score < (1 - own.score) / 2


def _where_possible(forms: Iterator[Form]) -> Iterator[Form]:
    """Yield forms; none more where an embedder takes no token ids, as a pair of models does."""
    try:
        yield from forms
    except InputError:
        return
