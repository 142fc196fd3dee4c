"""Synthetic points for the stores: dense and sparse vectors, and payloads like LlamaIndex's.

What lives here: the recipe, which gives the same numbers in every run, a block at a time so that
only one block is in memory; and an embedder that looks vectors up.
"""

from __future__ import annotations

import hashlib
import string
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import models as qm

from unified_embeddings.cache.keys import Value
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.types import FloatArray, HeadName, Role, SparseVector, Text
from unified_embeddings.validation import require_texts

DIMENSION = 1024
DATA = ("clustered", "gaussian")
BLOCK = 1024
_VOCABULARY = 250_000
_TOKENS, _QUERY_TOKENS = 100, 12
_LATENT, _CLUSTERS = 64, 256
_WITHIN = 0.5
"""Standard deviation of a cluster around its centre in the latent space; centres have 1."""
_NEAR = 0.25
"""Standard deviation of a query around a point in the latent space."""
_NOISE = 0.05
"""Standard deviation of what is added to each of the 1,024 numbers, which have 1 themselves."""
_WORDS, _WORDS_PER_TEXT = 2_000, 80
_TEXTS_PER_FILE = 10
_SHARED, _POINTS, _QUERIES = range(3)
"""Purposes of random generators, used as the second number of their seeds."""


@dataclass(frozen=True)
class Question:
    """A query: its text and the vectors of the text."""

    text: str
    dense: FloatArray
    sparse: SparseVector


@dataclass(frozen=True)
class Recipe:
    """How points are made.

    Args:
        data: "clustered" is a mixture of Gaussians in 64 dimensions, projected into 1,024, which
            resembles the vectors of texts; queries are drawn near points. "gaussian" draws every
            number independently, the worst case for an index.
        seed: The same seed makes the same points; a smaller number of points is a prefix of a
            larger one.
    """

    data: str
    seed: int = 0

    @property
    def digest(self) -> str:
        """A digest that tells recipes apart, and versions of this code."""
        code = hashlib.sha256(f"{self.data} {self.seed} ".encode())
        code.update(Path(__file__).read_bytes())
        return code.hexdigest()[:12]

    def blocks(self, size: int) -> Iterator[tuple[int, FloatArray, list[SparseVector]]]:
        """Yield the vectors of the first `size` points, block by block.

        Yields:
            The number of the block's first point, the dense vectors (n, 1024), n sparse vectors.
        """
        for first in range(0, size, BLOCK):
            rng = self._rng(_POINTS, first // BLOCK)
            dense = self._dense(rng, self._latent(rng, BLOCK))
            count = min(BLOCK, size - first)
            sparse = [_sparse(rng, _TOKENS) for _ in range(count)]
            yield first, dense[:count], sparse

    def questions(self, number: int) -> list[Question]:
        """Return queries; a smaller number of them is a prefix of a larger one."""
        questions: list[Question] = []
        # The latent places of the first block of points, near which queries are drawn.
        near = self._latent(self._rng(_POINTS, 0), BLOCK)
        for i in range(number):
            rng = self._rng(_QUERIES, i)
            place = near[rng.integers(len(near))] + rng.normal(0, _NEAR, _LATENT)
            dense = self._dense(rng, place[None].astype(np.float32))[0]
            questions.append(Question(f"question {i}", dense, _sparse(rng, _QUERY_TOKENS)))
        return questions

    def nodes(self, first: int, dense: FloatArray) -> list[TextNode]:
        """Return LlamaIndex's nodes for the points from number `first` on."""
        return [self._node(first + i, vector) for i, vector in enumerate(dense)]

    def _node(self, number: int, vector: FloatArray) -> TextNode:
        rng = self._rng(_POINTS, number, 1)
        text = " ".join(self._words[i] for i in rng.integers(_WORDS, size=_WORDS_PER_TEXT))
        file = number // _TEXTS_PER_FILE
        source = RelatedNodeInfo(node_id=str(uuid.UUID(int=2**64 + file)))
        return TextNode(
            id_=str(uuid.UUID(int=number)),
            text=f"{number}: {text}",  # no two texts are the same
            metadata={"file_name": f"file-{file}.txt", "page_label": str(number % _TEXTS_PER_FILE)},
            relationships={NodeRelationship.SOURCE: source},
            embedding=vector.tolist(),
        )

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *purpose))

    def _latent(self, rng: np.random.Generator, count: int) -> FloatArray:
        centres = self._centres[rng.integers(_CLUSTERS, size=count)]
        return (centres + rng.normal(0, _WITHIN, centres.shape)).astype(np.float32)

    def _dense(self, rng: np.random.Generator, latent: FloatArray) -> FloatArray:
        """Return unit vectors, (n, 1024), at places of the latent space, (n, 64)."""
        shape = len(latent), DIMENSION
        if self.data == "clustered":
            drawn = latent @ self._projection + rng.normal(0, _NOISE, shape)
        else:
            drawn = rng.normal(size=shape)
        vectors: FloatArray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return vectors.astype(np.float32)

    @cached_property
    def _centres(self) -> FloatArray:
        return self._rng(_SHARED, 0).normal(size=(_CLUSTERS, _LATENT)).astype(np.float32)

    @cached_property
    def _projection(self) -> FloatArray:
        drawn: FloatArray = (
            self._rng(_SHARED, 1).normal(size=(_LATENT, DIMENSION)).astype(np.float32)
        )
        return drawn / np.float32(_LATENT**0.5)

    @cached_property
    def _words(self) -> list[str]:
        rng = self._rng(_SHARED, 2)
        letters = np.array(list(string.ascii_lowercase))
        return ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(_WORDS)]


def make_structs(
    nodes: list[TextNode], dense: FloatArray, sparse: list[SparseVector]
) -> list[qm.PointStruct]:
    """Turn nodes into points, as LlamaIndex's QdrantVectorStore does."""
    return [
        qm.PointStruct(
            id=node.node_id,
            payload=node_to_metadata_dict(node, remove_text=False, flat_metadata=False),
            vector={
                DENSE_VECTOR: row.tolist(),
                SPARSE_VECTOR: qm.SparseVector(
                    indices=weights.indices.tolist(), values=weights.values.tolist()
                ),
            },
        )
        for node, row, weights in zip(nodes, dense, sparse, strict=True)
    ]


class Prepared(FakeEmbedder):
    """An embedder without a model, which looks up the vectors of texts in `known`.

    Attributes:
        known: Text → its dense and its sparse vector.
    """

    def __init__(self) -> None:
        super().__init__(dimension=DIMENSION, heads=("dense", "sparse"), model_name="prepared")
        self.known: dict[str, tuple[FloatArray, SparseVector]] = {}

    def _run(
        self,
        texts: Sequence[Text],
        role: Role,  # noqa: ARG002 — the model's signature
        heads: frozenset[HeadName],
    ) -> Iterator[tuple[Text, dict[HeadName, Value]]]:
        for text in require_texts(texts):
            dense, sparse = self.known[text]
            vectors: dict[HeadName, Value] = {"dense": dense, "sparse": sparse}
            yield text, {head: vectors[head] for head in heads}


def _sparse(rng: np.random.Generator, tokens: int) -> SparseVector:
    """Return weights of that many different tokens; the token of rank r has probability ~ 1 / r."""
    drawn: dict[int, None] = {}
    while len(drawn) < tokens:
        ranks = np.floor(_VOCABULARY ** rng.random(2 * tokens)).astype(int) - 1
        drawn.update(dict.fromkeys(ranks.tolist()))
    chosen = list(drawn)[:tokens]
    weights = rng.uniform(0.02, 0.4, tokens)
    return SparseVector.from_dict(dict(zip(chosen, weights.tolist(), strict=True)))
