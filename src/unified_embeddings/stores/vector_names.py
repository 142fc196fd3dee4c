"""What the vectors of a collection are called: which of them to search and write.

What lives here: choosing among the names that a collection has. What does not: whether its vectors
are the model's (`schema`).
"""

from __future__ import annotations

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.schema import (
    DENSE_VECTOR,
    FORMER_SPARSE_VECTOR,
    SPARSE_VECTOR,
    dense_vectors,
    sparse_vectors,
)


def choose_dense(
    name: str,
    info: qm.CollectionInfo,
    dimension: int,
    *,
    given: str | None = None,
    option: str = "dense_vector_name=",
) -> str | None:
    """Return the name of the dense vectors to search; None if there are none.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.
        dimension: The width of the model's vectors.
        given: The name that the caller gives, "" for the unnamed ones; None to take LlamaIndex's,
            or the only ones, or the only ones of that width.
        option: What the caller gives it by, for messages.

    Raises:
        StoreError: If it has none of the name given, or it is not clear which to take.
    """
    widths = {
        vector: params.size
        for vector, params in dense_vectors(info).items()
        if not params.multivector_config
    }
    if given is not None:
        if given in widths:
            return given
        raise StoreError(
            name,
            "choosing its vectors",
            f"it has no dense vector named {given!r}; it has {_describe(widths)}. Give one of "
            f"these ({option})",
        )
    if DENSE_VECTOR in widths:
        return DENSE_VECTOR
    fitting = [vector for vector, width in widths.items() if width == dimension]
    candidates = fitting or list(widths)
    if len(candidates) > 1:
        raise StoreError(
            name,
            "choosing its vectors",
            f"it has several dense vectors ({_describe(widths)}); name one ({option})",
        )
    return candidates[0] if candidates else None


def usual_sparse(info: qm.CollectionInfo) -> str | None:
    """Return the name by which LlamaIndex's stores, new or old, know a collection's sparse vectors.

    Under the older name Haystack has its own, too. None if there are none of these names.
    """
    names = sparse_vectors(info)
    for usual in (SPARSE_VECTOR, FORMER_SPARSE_VECTOR):
        if usual in names:
            return usual
    return None


def _describe(widths: dict[str, int]) -> str:
    if not widths:
        return "none at all"
    named = [
        f"{vector!r} of {width} dimensions" if vector else f"an unnamed one of {width} dimensions"
        for vector, width in widths.items()
    ]
    return ", ".join(named)
