"""Finding out how an existing collection is to be read and written, before it is opened.

What lives here: which of its vectors are the model's, and whose layout its payloads have. What does
not: reading and writing in a layout (`stored_layout`), and whether the model fits
(`stores.schema`).

What a few points show is taken where it is unambiguous. Otherwise an error lists what was seen and
the option that decides. Sparse vectors are the delicate part: other software fills them with SPLADE
or BM25, and vectors of another model give scores that look like scores. So they are searched only
if this model is recorded for them, or gives the same vectors for a few of the texts, or if the
caller names them.
"""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llama_index.core.schema import BaseNode
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.fields import haystack_point_id
from unified_embeddings.llama.layouts import NODE_KEY, LayoutName, describe_keys, layout_of
from unified_embeddings.llama.sparse_proof import POINTS_READ, gives_sparse_vectors
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.llama.stored_layout import (
    LANGCHAIN_LAYOUT,
    LLAMA_INDEX_LAYOUT,
    StoredLayout,
    document_layout,
    haystack_layout,
)
from unified_embeddings.stores.copy_points import plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import (
    DENSE_VECTOR,
    SPARSE_VECTOR,
    VectorNames,
    check_collection,
    recorded_model,
    sparse_vectors,
)
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR
from unified_embeddings.stores.vector_names import choose_dense, usual_sparse

_LOG = logging.getLogger(__name__)

_STOCK_TEXT_KEY = "text"
"""Where LlamaIndex's store looks for the text of a payload that holds no node."""
_USUAL_KEYS: Mapping[LayoutName, tuple[str, str]] = {
    "langchain": ("page_content", "metadata"),
    "haystack": ("content", "meta"),
}
"""Software → its keys of text and metadata."""


@dataclass(frozen=True)
class GivenNames:
    """What the caller says about a collection; None is to be found out.

    Attributes:
        dense_vector_name: Name of the dense vectors, "" for unnamed ones.
        sparse_vector_name: Name of the sparse vectors.
        text_key: Key of the text in a payload that holds no node of LlamaIndex's.
        metadata_key: Key of the metadata there.
    """

    dense_vector_name: str | None = None
    sparse_vector_name: str | None = None
    text_key: str | None = None
    metadata_key: str | None = None


@dataclass(frozen=True)
class Recognised:
    """How a collection is to be read and written.

    Attributes:
        names: The names of its vectors.
        layout: The layout of its payloads.
    """

    names: VectorNames
    layout: StoredLayout


def recognise_collection(
    client: Client, name: str, embedder: TextEmbedder, given: GivenNames, adopt: Adopt | None
) -> Recognised:
    """Return how a collection is to be read and written, whether it exists or not.

    Args:
        client: Client of the collection's place.
        name: The collection's own name.
        embedder: The embedder that it is opened for.
        given: What the caller says about it.
        adopt: "trust" if a collection that records no model is taken for this one's.

    Raises:
        FingerprintMismatchError: If it records another model.
        InputError: If what is given does not fit the model, or a layout must be given.
        StoreError: If it lacks what is given, it is not clear which vectors to take, it records no
            model and `adopt` is not given, or Qdrant fails.
    """
    if given.metadata_key is not None and given.text_key is None:
        raise InputError("metadata_key= needs text_key=, the key of the text beside it")
    if given.sparse_vector_name is not None and "sparse" not in embedder.heads:
        raise InputError(
            f"sparse_vector_name= needs sparse vectors, which {embedder.model_name!r} does not "
            "give; set UnifiedEmbeddingConfig(sparse_model=...)"
        )
    _check_vector_names(given)
    with store_errors(name, "looking the collection up"):
        info = client.get_collection(name) if client.collection_exists(name) else None
    if info is None:
        return Recognised(_names_of_new(embedder, given), _choose_layout(name, [], given))
    if recorded_model(info) is not None:
        check_collection(name, info, embedder, dense=None, sparse=None)
    dense = choose_dense(name, info, embedder.dimension, given=given.dense_vector_name)
    if dense is None:
        dense = DENSE_VECTOR
    check_collection(name, info, embedder, dense=dense, sparse=None, adopt=adopt)
    with store_errors(name, "reading a few points"):
        points, _ = client.scroll(name, limit=POINTS_READ, with_payload=True, with_vectors=False)
    layout = _choose_layout(name, points, given)
    sparse, why_none = None, ""
    if "sparse" in embedder.heads:
        sparse, why_none = _choose_sparse(client, name, info, embedder, given, points, layout)
    if why_none:
        _LOG.warning("Collection %r is opened for its dense vectors alone: %s", name, why_none)
    return Recognised(VectorNames(dense, sparse, why_none), layout)


def _check_vector_names(given: GivenNames) -> None:
    """Reject a name for two kinds of vectors, of which a point would keep one.

    Raises:
        InputError: If there is one.
    """
    names = (given.dense_vector_name, given.sparse_vector_name)
    if COLBERT_VECTOR in names:
        raise InputError(f"{COLBERT_VECTOR!r} is the name of ColBERT vectors; give another name")
    if names[0] is not None and names[0] == names[1]:
        raise InputError(
            f"dense_vector_name= and sparse_vector_name= are both {names[0]!r}; give two names"
        )


def _names_of_new(embedder: TextEmbedder, given: GivenNames) -> VectorNames:
    """Return the names of the vectors of a collection that does not exist yet."""
    sparse = None
    if "sparse" in embedder.heads:
        sparse = given.sparse_vector_name or SPARSE_VECTOR
    dense = given.dense_vector_name
    return VectorNames(DENSE_VECTOR if dense is None else dense, sparse)


# --- the layout of the payloads -------------------------------------------------------------------


def _choose_layout(name: str, points: Sequence[qm.Record], given: GivenNames) -> StoredLayout:
    """Return the layout that is given, or else the one that points show.

    An empty collection gets LlamaIndex's payloads, unless both keys of another software are given.
    """
    others = [point for point in points if NODE_KEY not in (point.payload or {})]
    if given.text_key is not None:
        if not others and given.metadata_key is None:
            return LLAMA_INDEX_LAYOUT  # as in the stock store, the key is for other payloads
        return _layout_of_keys(name, given.text_key, given.metadata_key, others)
    if not others:
        return LLAMA_INDEX_LAYOUT
    return _detect_layout(name, points, others)


def _layout_of_keys(
    name: str, text_key: str, metadata_key: str | None, others: Sequence[qm.Record]
) -> StoredLayout:
    """Return the layout of payloads that have their texts under a key."""
    shown = {layout_of(point.payload or {}) for point in others}
    for software, usual in _USUAL_KEYS.items():
        is_meant = (text_key, metadata_key) == usual
        is_shown = (text_key, metadata_key) == (usual[0], None) and software in shown
        if is_meant or is_shown:
            return _layout_of(software, others)
    layout = document_layout(text_key, metadata_key)
    if others and not any(_holds_text(layout, point) for point in others):
        raise StoreError(
            name,
            "reading a few points",
            f"none of {len(others)} has a text under text_key={text_key!r}; one has "
            f"{describe_keys(others[0].payload or {})}",
        )
    return layout


def _detect_layout(
    name: str, points: Sequence[qm.Record], others: Sequence[qm.Record]
) -> StoredLayout:
    """Return the layout that points show.

    Raises:
        InputError: If they show none, or several.
    """
    counts: Counter[LayoutName] = Counter()
    for point in points:
        layout = layout_of(point.payload or {})
        if layout is not None:
            counts[layout] += 1
    if not counts:
        if all(_holds_text(document_layout(_STOCK_TEXT_KEY, None), point) for point in others):
            return document_layout(_STOCK_TEXT_KEY, None)
        raise InputError(
            f"collection {name!r}: its payloads are laid out as none of LlamaIndex, LangChain and "
            f"Haystack; one has {describe_keys(others[0].payload or {})}. Name the key that holds "
            "the text (text_key=), and the one that holds the metadata, if they are in one "
            "(metadata_key=)"
        )
    if len(counts) > 1:
        seen = ", ".join(f"{count} of {layout}" for layout, count in counts.most_common())
        raise InputError(
            f"collection {name!r}: the payloads of {len(points)} points are of several layouts "
            f"({seen}), and it is not clear in which one to write. Give that one's keys: "
            "text_key='page_content', metadata_key='metadata' (LangChain) or text_key='content', "
            "metadata_key='meta' (Haystack); every point is then read by its own"
        )
    return _layout_of(next(iter(counts)), others)


def _layout_of(software: LayoutName, points: Sequence[qm.Record]) -> StoredLayout:
    if software == "haystack":
        are_digests = all(_is_digest(point) for point in points)
        return haystack_layout("haystack" if are_digests else "node")
    return LANGCHAIN_LAYOUT if software == "langchain" else LLAMA_INDEX_LAYOUT


def _is_digest(point: qm.Record) -> bool:
    """Tell whether a point's id is what Haystack makes of its document's."""
    document_id = (point.payload or {}).get("id")
    return haystack_point_id(str(document_id)) == str(plain_id(point.id))


def _holds_text(layout: StoredLayout, point: qm.Record) -> bool:
    try:
        layout.read(point.id, point.payload or {})
    except InputError:
        return False
    return True


# --- the sparse vectors ---------------------------------------------------------------------------


def _choose_sparse(
    client: Client,
    name: str,
    info: qm.CollectionInfo,
    embedder: TextEmbedder,
    given: GivenNames,
    points: Sequence[qm.Record],
    layout: StoredLayout,
) -> tuple[str | None, str]:
    """Return the name of the sparse vectors to search, or None and why there are none."""
    existing = list(sparse_vectors(info))
    named = given.sparse_vector_name
    if named is not None:
        if named not in existing:
            raise StoreError(
                name,
                "choosing its vectors",
                f"it has no sparse vector named {named!r}; it has "
                f"{', '.join(map(repr, existing)) or 'none at all'}",
            )
        return named, ""
    usual = usual_sparse(info)
    if usual == SPARSE_VECTOR and recorded_model(info) is not None:
        return usual, ""
    if usual is not None:
        probes = _read_probes(client, name, usual, layout)
        if not points or gives_sparse_vectors(embedder, usual, probes):
            return usual, ""
        existing = [usual]
    command = f"unified-embeddings add-vectors {shlex.quote(name)} --sparse"
    if not existing:
        return None, f"it has no sparse ones. To add them: {command}"
    shown = ", ".join(map(repr, existing))
    return None, (
        f"its sparse ones ({shown}) are not known to be {embedder.model_name!r}'s; other software "
        f"fills them with another model's (SPLADE, BM25). If this model made them, give "
        f"sparse_vector_name={existing[0]!r}; otherwise add this model's: {command}"
    )


def _read_probes(
    client: Client, name: str, vector_name: str, layout: StoredLayout
) -> list[tuple[qm.Record, BaseNode]]:
    """Return a few points with their sparse vectors, and the nodes that they hold."""
    with store_errors(name, "reading a few sparse vectors"):
        records, _ = client.scroll(name, limit=POINTS_READ, with_vectors=[vector_name])
    probes = []
    for record in records:
        try:
            probes.append((record, layout.read(record.id, record.payload or {})))
        except InputError:
            continue
    return probes
