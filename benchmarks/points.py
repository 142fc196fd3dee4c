"""Made-up points for the stores: dense and sparse vectors, payloads as LlamaIndex writes them.

What lives here: the recipe, the same numbers in every run, made a block at a time so that no more
than that is in memory; and an embedder that knows vectors of texts in a model's stead.
"""

from __future__ import annotations

import hashlib
import string
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from qdrant_client import models

from unified_embeddings.cache.keys import Value
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.engines.base import Runtime
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.types import FloatArray, HeadName, Role, SparseVector

DIMENSION = 1024
DATA = ("clustered", "gaussian")
BLOCK = 1024
_VOCABULARY = 250_000
_TOKENS, _QUERY_TOKENS = 100, 12
_LATENT, _CLUSTERS = 64, 256
_WITHIN, _NEAR, _NOISE = 0.5, 0.25, 0.05
"""Standard deviations: of a cluster around its centre, of a query around a point, both in the
latent space (whose centres have 1), and of what is added to each of the 1,024 numbers (also 1)."""
_WORDS, _WORDS_A_TEXT = 2_000, 80
_TEXTS_A_FILE = 10
_SHARED, _POINTS, _QUERIES = range(3)
"""What a random generator is for: its seed's second number."""


@dataclass(frozen=True)
class Question:
    """A query: its text, and the vectors that the text has."""

    text: str
    dense: FloatArray
    sparse: SparseVector


@dataclass(frozen=True)
class Recipe:
    """How points are made.

    Args:
        data: "clustered": a mixture of gaussians in 64 dimensions, projected into 1,024, as the
            vectors of texts are; queries are drawn near points. "gaussian": every number by
            itself, the worst there is for an index.
        seed: The same seed makes the same points; fewer points are the first of more.
    """

    data: str
    seed: int = 0

    @property
    def digest(self) -> str:
        """Tells two recipes apart, and two versions of this code."""
        code = hashlib.sha256(f"{self.data} {self.seed} ".encode())
        code.update(Path(__file__).read_bytes())
        return code.hexdigest()[:12]

    def blocks(self, size: int) -> Iterator[tuple[int, FloatArray, list[SparseVector]]]:
        """The first `size` points' vectors: each block's first number, (n, 1024) and n sparse."""
        for first in range(0, size, BLOCK):
            rng = self._rng(_POINTS, first // BLOCK)
            dense = self._dense(rng, self._latent(rng, BLOCK))
            count = min(BLOCK, size - first)
            sparse = [_sparse(rng, _TOKENS) for _ in range(count)]
            yield first, dense[:count], sparse

    def questions(self, number: int) -> list[Question]:
        """Queries, those of a smaller number the first of those of a larger one."""
        made: list[Question] = []
        near = self._latent(self._rng(_POINTS, 0), BLOCK)  # the latent places of the first points
        for i in range(number):
            rng = self._rng(_QUERIES, i)
            place = near[rng.integers(len(near))] + rng.normal(0, _NEAR, _LATENT)
            dense = self._dense(rng, place[None].astype(np.float32))[0]
            made.append(Question(f"question {i}", dense, _sparse(rng, _QUERY_TOKENS)))
        return made

    def nodes(self, first: int, dense: FloatArray) -> list[TextNode]:
        """LlamaIndex's nodes for the points from number `first` on, with texts and embeddings."""
        return [self._node(first + i, vector) for i, vector in enumerate(dense)]

    def _node(self, number: int, vector: FloatArray) -> TextNode:
        rng = self._rng(_POINTS, number, 1)
        text = " ".join(self._words[i] for i in rng.integers(_WORDS, size=_WORDS_A_TEXT))
        file = number // _TEXTS_A_FILE
        source = RelatedNodeInfo(node_id=str(uuid.UUID(int=2**64 + file)))
        return TextNode(
            id_=str(uuid.UUID(int=number)),
            text=f"{number}: {text}",  # no two texts are the same
            metadata={"file_name": f"file-{file}.txt", "page_label": str(number % _TEXTS_A_FILE)},
            relationships={NodeRelationship.SOURCE: source},
            embedding=vector.tolist(),
        )

    def _rng(self, *of: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *of))

    def _latent(self, rng: np.random.Generator, count: int) -> FloatArray:
        centres = self._centres[rng.integers(_CLUSTERS, size=count)]
        return (centres + rng.normal(0, _WITHIN, centres.shape)).astype(np.float32)

    def _dense(self, rng: np.random.Generator, latent: FloatArray) -> FloatArray:
        """Vectors of length 1, (n, 1024), at places of the latent space, (n, 64)."""
        shape = len(latent), DIMENSION
        if self.data == "clustered":
            drawn = latent @ self._projection + rng.normal(0, _NOISE, shape)
        else:
            drawn = rng.normal(size=shape)
        found: FloatArray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return found.astype(np.float32)

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


def structs(
    nodes: list[TextNode], dense: FloatArray, sparse: list[SparseVector]
) -> list[models.PointStruct]:
    """Points as LlamaIndex's QdrantVectorStore makes them of nodes."""
    return [
        models.PointStruct(
            id=node.node_id,
            payload=node_to_metadata_dict(node, remove_text=False, flat_metadata=False),
            vector={
                DENSE_VECTOR: row.tolist(),
                SPARSE_VECTOR: models.SparseVector(**cast("dict[str, Any]", weights.to_qdrant())),
            },
        )
        for node, row, weights in zip(nodes, dense, sparse, strict=True)
    ]


class Prepared(BGE_M3_Embedder):
    """An embedder that has no model: the vectors of texts are what `known` says.

    A text's way through it is that of every other one, cache included.

    Attributes:
        known: Text to (dense, sparse).
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, tuple[FloatArray, SparseVector]] = {}

    @property
    def checkpoint(self) -> Checkpoint:
        """What is asked of the files of a model."""
        made = SimpleNamespace(
            dimension=DIMENSION, max_length=8192, pooling="cls", digest="made up", revision="none"
        )
        return cast("Checkpoint", made)

    @property
    def runtime(self) -> Runtime:
        """What a model would run on."""
        return Runtime("torch", "cpu", "fp32", "there is no model")

    def _run(
        self,
        texts: Sequence[str],
        role: Role,  # noqa: ARG002 — the model's signature
        heads: frozenset[HeadName],
    ) -> Iterator[tuple[str, dict[HeadName, Value]]]:
        for text in texts:
            dense, sparse = self.known[text]
            values: dict[HeadName, Value] = {"dense": dense, "sparse": sparse}
            yield text, {head: values[head] for head in heads}


def _sparse(rng: np.random.Generator, tokens: int) -> SparseVector:
    """Weights of that many different tokens: the token of rank r comes with probability ~ 1 / r."""
    drawn: dict[int, None] = {}
    while len(drawn) < tokens:
        ranks = np.floor(_VOCABULARY ** rng.random(2 * tokens)).astype(int) - 1
        drawn.update(dict.fromkeys(ranks.tolist()))
    chosen = list(drawn)[:tokens]
    weights = rng.uniform(0.02, 0.4, tokens)
    return SparseVector.from_dict(dict(zip(chosen, weights.tolist(), strict=True)))
