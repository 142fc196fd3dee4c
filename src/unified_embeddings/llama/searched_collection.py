"""A collection that is searched: what is known about it, and whether it fits the model.

What lives here: looking a collection up once, its vectors' names, and what was chosen for it. What
does not: searching (`hybrid_search`), and the calls to Qdrant (`collection_reader`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import StoreError
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.sparse_proof import gives_sparse_vectors
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.keywords import read_keywords
from unified_embeddings.search.options import (
    Mode,
    Score,
    refuse_keyword_list,
    require_calibration,
)
from unified_embeddings.search.relevance_scores import has_usual_scores
from unified_embeddings.stores.calibration_record import read_calibration
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.schema import (
    check_collection,
    dense_vectors,
    recorded_model,
    stored_colbert,
)
from unified_embeddings.stores.stored_colbert import StoredColbert
from unified_embeddings.types import Options


class SearchedCollection:
    """Know a collection that is searched, and reject one that does not fit the model.

    The collection is looked up once, before the first search.

    Args:
        store: Over the collection, with a sync client, an async one, or both.
        embedder: Its model.
        adopt: "trust" accepts a collection that does not record its model.
        why_no_sparse: Why no sparse vectors are to be searched though the model gives them, in
            words; "" if they are.
        doubts_sparse: Whether sparse vectors of a collection that records no model are compared
            with the model's for a few texts, before they are searched.
    """

    def __init__(
        self,
        store: QdrantVectorStore,
        embedder: TextEmbedder,
        *,
        adopt: Adopt | None = None,
        why_no_sparse: str = "",
        doubts_sparse: bool = False,
    ) -> None:
        self.reader = CollectionReader(store)
        self._store = store
        self._embedder = embedder
        self._adopt = adopt
        self._why_no_sparse = why_no_sparse
        self._doubts_sparse = doubts_sparse
        self._info: qm.CollectionInfo | None = None
        self._keywords: TextEmbedder | None = None
        self._checked_modes: frozenset[Mode] = frozenset()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle store and model: a copy looks the collection up again."""
        options: Options = {
            "adopt": self._adopt,
            "why_no_sparse": self._why_no_sparse,
            "doubts_sparse": self._doubts_sparse,
        }
        return partial(SearchedCollection, **options), (self._store, self._embedder)

    def check(self, mode: Mode, *, anew: bool = False) -> qm.CollectionInfo:
        """Look the collection up, unless that was done, and reject one that does not fit.

        Args:
            mode: Which of its vectors are needed.
            anew: Whether to look it up again.

        Raises:
            FingerprintMismatchError: If it was made with another model.
            StoreError: If it does not exist, lacks the vectors that the mode needs, or does not
                record its model, or Qdrant fails.
        """
        info = self._info
        if info is None or anew:
            info = self.reader.look_up()
        self.check_info(info, mode)
        if self._needs_proof(info, mode):
            self._prove_sparse(self.reader.sample(self.sparse_name))
        return info

    async def acheck(self, mode: Mode, *, anew: bool = False) -> qm.CollectionInfo:
        """Like `check`, but without blocking the event loop."""
        info = self._info
        if info is None or anew:
            info = await self.reader.alook_up()
        if info is not self._info or mode not in self._checked_modes:
            # The model's fingerprint may read its files, which can take seconds.
            await asyncio.to_thread(self.check_info, info, mode)
        if self._needs_proof(info, mode):
            points = await self.reader.asample(self.sparse_name)
            await self._embedder.in_thread(partial(self._prove_sparse, points))
        return info

    def check_info(self, info: qm.CollectionInfo, mode: Mode) -> qm.CollectionInfo:
        """Reject a collection whose vectors do not fit, and keep what is known about it.

        Raises:
            FingerprintMismatchError, StoreError: Like `check`.
        """
        if info is self._info and mode in self._checked_modes:
            return info
        needed_dense = needed_sparse = None
        if mode != "sparse":
            needed_dense = self._find_dense_name(info)
        if mode != "dense":
            needed_sparse = self.sparse_name
        check_collection(
            self.reader.collection,
            info,
            self._embedder,
            dense=needed_dense,
            sparse=None if self._why_no_sparse else needed_sparse,
            adopt=self._adopt,
        )
        if needed_sparse is not None and self._why_no_sparse:
            raise StoreError(
                self.reader.collection,
                "choosing its vectors",
                f"search it with mode='dense'; {self._why_no_sparse}",
            )
        if mode == "hybrid":
            self._keywords = read_keywords(self.reader.collection, info)
        known_modes = self._checked_modes if info is self._info else frozenset[Mode]()
        self._info = info
        self._checked_modes = known_modes | {mode}
        return info

    def _needs_proof(self, info: qm.CollectionInfo, mode: Mode) -> bool:
        """Tell whether nothing says yet that the sparse vectors to be searched are the model's."""
        return mode != "dense" and self._doubts_sparse and recorded_model(info) is None

    def _prove_sparse(self, points: Sequence[qm.Record]) -> None:
        """Reject sparse vectors that the model does not give for a few of the texts.

        Raises:
            StoreError: If it does not.
        """
        probes = []
        for point in points:
            with contextlib.suppress(StoreError):  # a point without a text proves nothing
                (scored,) = self.reader.to_nodes([point], [0.0])
                probes.append((point, scored.node))
        if points and not gives_sparse_vectors(self._embedder, self.sparse_name, probes):
            raise StoreError(
                self.reader.collection,
                "checking",
                f"search it with mode='dense'; its sparse vectors ({self.sparse_name!r}) are not "
                f"those of {self._embedder.model_name!r} for a few of its texts: other software "
                "fills them with another model's (SPLADE, BM25). If this model made them, open it "
                "by UnifiedEmbeddingConfig.vector_store(..., sparse_vector_name=...)",
            )
        self._doubts_sparse = False

    def read_choice(self) -> Fusion | None:
        """Return the fusion that was chosen for the collection, or that suits its keyword list.

        None if nothing was chosen and there is no such list, or neither is known yet.

        Raises:
            StoreError: If its record cannot be read.
        """
        if self._info is None:
            return None
        own = None if self._keywords is None else KEYWORD_FUSION
        return read_choice(self.reader.collection, self._info) or own

    @property
    def keywords(self) -> TextEmbedder | None:
        """What counts words for the keyword list; None without one, or before the mode "hybrid"."""
        return self._keywords

    def find_calibration(self, score: Score, fusion: Fusion) -> Calibration | None:
        """Return by what relevance is computed: the collection's own calibration, or the model's.

        Args:
            score: What the nodes' score is to be.
            fusion: How the lists are fused.

        Returns:
            The calibration; None if there is none, the collection has not been looked up, or its
            keyword list is fused too: relevance is calibrated on the two others.

        Raises:
            InputError: If relevance is wanted, and the collection is known to have none, or its
                keyword list is fused too.
            StoreError: If the collection's own cannot be read.
        """
        if self._info is None:
            return None
        if self._keywords is not None and fusion.keyword_weight > 0:
            if score == "relevance":
                refuse_keyword_list(fusion)
            return None
        calibration = read_calibration(self.reader.collection, self._info)
        if calibration is None and has_usual_scores(
            self._info,
            dense_name=self.dense_name,
            sparse_name=self.sparse_name,
            sparse_idf=self._embedder.sparse_idf,
        ):
            calibration = self._embedder.calibration
        if score == "relevance":
            return require_calibration(calibration, fusion, self._embedder.model_name)
        return calibration

    @property
    def stored_colbert(self) -> StoredColbert | None:
        """How points hold ColBERT vectors; None if they hold none, or it is not known yet."""
        return None if self._info is None else stored_colbert(self._info)

    @property
    def dense_name(self) -> str:
        """Name of the dense vectors; "" for unnamed ones."""
        if self._info is None:
            return str(self._store.dense_vector_name)
        return self._find_dense_name(self._info)

    @property
    def sparse_name(self) -> str:
        """Name of the sparse vectors."""
        return str(self._store.sparse_vector_name)

    def _find_dense_name(self, info: qm.CollectionInfo) -> str:
        name = str(self._store.dense_vector_name)
        vectors = dense_vectors(info)
        # LlamaIndex's older collections, and its stores without a hybrid mode, name no vectors.
        return "" if name not in vectors and "" in vectors else name
