"""Raw outputs of an engine into finished vectors.

What lives here: checking that they are numbers, normalising, collapsing tokens. What does not: the
arithmetic (`heads`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from unified_embeddings import heads as arithmetic
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import IntArray


def require_finite(checkpoint: Checkpoint, raw: RawHeads, runtime: Runtime) -> None:
    """Refuse outputs with NaN or infinity: nothing can be compared with them, and no error says so.

    Raises:
        ModelLoadError: If there are some.
    """
    arrays = [*(raw.token_weights or ())]
    # The length of a row with NaN or infinity is one of the two.
    if raw.token_norms is not None:
        arrays.append(raw.token_norms)
    else:
        arrays += raw.token_vectors or ()
    arrays += [vector.values for vector in raw.sparse or ()]
    if raw.pooled is not None:
        arrays.append(raw.pooled)
    if not all(np.isfinite(array).all() for array in arrays):
        raise checkpoint.problem(
            "its vectors hold NaN or infinity: its weights do, or they are too large for "
            f"{runtime.precision}. Fetch it again, or take precision='fp32'"
        )


def finish_vectors(
    raw: RawHeads,
    token_ids: Sequence[IntArray],
    special_ids: frozenset[int],
    *,
    normalise: bool,
    sum_repeats: bool,
) -> Iterator[Vectors]:
    """Turn a batch's raw outputs into each text's finished vectors.

    Args:
        raw: What the engine gave.
        token_ids: The batch, n arrays (t_i,).
        special_ids: Ids that are never indexed.
        normalise: Whether dense vectors are scaled to unit length.
        sum_repeats: Whether a repeated token has the sum of its weights; see `to_sparse`.

    Yields:
        n dicts with the heads that `raw` holds.
    """
    dense = raw.pooled
    if dense is not None and normalise:
        dense = arithmetic.normalise(dense)
    for i, ids in enumerate(token_ids):
        vectors: Vectors = {}
        if dense is not None:
            vectors["dense"] = dense[i]
        if raw.token_weights is not None:
            weights = raw.token_weights[i]
            vectors["sparse"] = arithmetic.to_sparse(
                ids, weights, special_ids=special_ids, sum_repeats=sum_repeats
            )
        if raw.sparse is not None:
            vectors["sparse"] = raw.sparse[i]
        if raw.token_vectors is not None:
            rows = raw.token_vectors[i]
            # A copy, since the rows are part of the whole batch's memory.
            is_unit = raw.token_norms is not None
            vectors["colbert"] = rows.copy() if is_unit else arithmetic.normalise(rows)
        yield vectors
