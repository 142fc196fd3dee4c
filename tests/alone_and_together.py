"""A text's vectors do not depend on the texts beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unified_embeddings import BGE_M3_Embedder, Embeddings
from unified_embeddings.types import FloatArray


def assert_same_alone_and_together(
    embedder: BGE_M3_Embedder, texts: Sequence[str], expected: Embeddings
) -> None:
    """Compare texts together, each alone, and what is expected: within 1e-5, the same sparse ids.

    Args:
        embedder: Without a cache, so that every call computes.
        texts: The texts.
        expected: Their vectors, ColBERT included.
    """
    together = embedder.encode_documents(texts, colbert=True)
    for number, text in enumerate(texts):
        alone = embedder.encode_documents([text], colbert=True)
        for vectors in (alone, expected[number : number + 1]):
            _assert_close(together.dense[number], vectors.dense[0])
            found, right = together.sparse[number], vectors.sparse[0]
            np.testing.assert_array_equal(found.indices, right.indices)
            _assert_close(found.values, right.values)
            _assert_close(together.colbert[number], vectors.colbert[0])


def _assert_close(found: FloatArray, right: FloatArray) -> None:
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5)
