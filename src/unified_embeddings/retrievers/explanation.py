"""Why a passage has its score: the values that `UnifiedHybridRetriever.explain` returns.

What lives here: the parts of a score, and their form as JSON. What does not: computing them
(`explain`), and printing them (`cli.explained`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import TypeAlias

from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import FloatArray

PlainValues: TypeAlias = dict[str, object]
"""Names with values that JSON can hold."""


@dataclass(frozen=True)
class PieceShare:
    """What one entry of the vocabulary adds to a sparse score.

    Attributes:
        text: The entry, without the vocabulary's marks for beginnings and continuations.
        token_id: Its number: the index in the sparse vectors.
        query_weight: Its value in the question's vector. Where the model sums up repeated tokens
            (mini-m3), it is the sum.
        passage_weight: Its value in the passage's stored vector; 0 if the passage lacks it.
        idf: What Qdrant multiplies the two with: its inverse document frequency in the collection,
            or 1 where the collection has no such modifier; None if the passage lacks it.
        contribution: query_weight · passage_weight · idf.
    """

    text: str
    token_id: int
    query_weight: float
    passage_weight: float
    idf: float | None
    contribution: float


@dataclass(frozen=True)
class TokenShare:
    """What a word of the question adds to a sparse score: the sum of its pieces.

    A piece that several of the question's words share counts for the first of them.

    Attributes:
        text: The word, as the question has it.
        query_weight: The sum of its pieces' weights in the question.
        passage_weight: The sum of their weights in the passage.
        contribution: The sum of their contributions.
        pieces: The word's entries of the vocabulary, one for most words.
    """

    text: str
    pieces: tuple[PieceShare, ...]
    query_weight: float = field(init=False)
    passage_weight: float = field(init=False)
    contribution: float = field(init=False)

    def __post_init__(self) -> None:
        for name in ("query_weight", "passage_weight", "contribution"):
            total = math.fsum(getattr(piece, name) for piece in self.pieces)
            object.__setattr__(self, name, total)


@dataclass(frozen=True)
class SparsePart:
    """The sparse score as a sum over the question's words.

    Attributes:
        score: What Qdrant gives; 0 if the texts share no token.
        tokens: The question's words, the largest contribution first; those that the passage lacks
            contribute 0.
    """

    score: float
    tokens: tuple[TokenShare, ...]


@dataclass(frozen=True)
class DensePart:
    """The dense score.

    Attributes:
        score: What Qdrant gives: the cosine similarity, or what else the collection measures.
    """

    score: float


@dataclass(frozen=True)
class TokenMatch:
    """A token of the question, and the token of the passage that is most similar to it.

    Attributes:
        query: The question's token.
        passage: The passage's token.
        query_word: The word that the question's token is a part of; empty for a special token.
        passage_word: The same of the passage's token.
        passage_position: Which row of the passage that is, from 0.
        score: Their similarity: the dot product of their vectors.
    """

    query: str
    passage: str
    query_word: str
    passage_word: str
    passage_position: int
    score: float


@dataclass(frozen=True)
class ColbertPart:
    """The ColBERT score as a mean over the question's tokens.

    Attributes:
        score: The mean of the matches' scores.
        matches: One for each token of the question, in its order.
        query_tokens: The question's tokens.
        passage_tokens: The passage's tokens.
        similarities: All dot products, float32 (question's tokens, passage's tokens), read-only.
    """

    score: float
    matches: tuple[TokenMatch, ...]
    query_tokens: tuple[str, ...]
    passage_tokens: tuple[str, ...]
    similarities: FloatArray = field(repr=False, compare=False)


@dataclass(frozen=True)
class Ranks:
    """Where the passage stands, from 1; None where it is not among the candidates.

    Attributes:
        dense: In the dense list; None too if that was not searched.
        sparse: In the sparse list; the same.
        fused: In the fused list, before it is cut at `similarity_top_k` and reranked.
        bm25: In the keyword list; None too where the collection has none.
    """

    dense: int | None
    sparse: int | None
    fused: int | None
    bm25: int | None = None


@dataclass(frozen=True)
class ListShare:
    """What one list adds to the fused score.

    Attributes:
        name: "dense", "sparse" or "bm25".
        rank: The passage's rank in it, from 1; None if it is not among the candidates.
        weight: The list's weight. In "min_max" and "z", its share of the searched lists' weights.
        value: What is weighted: 1 / (k + rank) in RRF, the normalised score in the other methods; 0
            without a rank.
        contribution: weight · value.
    """

    name: str
    rank: int | None
    weight: float
    value: float
    contribution: float


@dataclass(frozen=True)
class FusedPart:
    """The fused score as a sum over the lists.

    Attributes:
        score: What the retriever gives; 0 if no list has the passage.
        fusion: How the lists are fused.
        lists: The lists that were searched.
    """

    score: float
    fusion: Fusion
    lists: tuple[ListShare, ...]


@dataclass(frozen=True)
class Explanation:
    """Why a passage has the score and the rank that it has for a question.

    `UnifiedHybridRetriever.explain` makes it. Sparse and dense scores are Qdrant's own, of the
    vectors that are stored. The ColBERT part is computed from the passage's text, as reranking
    does.

    Attributes:
        query: The question.
        node_id: The passage's id.
        text: The passage as it is embedded: with the metadata that is.
        sparse: None if the mode is "dense".
        dense: None if the mode is "sparse", or the point has no dense vector.
        colbert: None if the model has no such vectors, or they were not asked for.
        ranks: The passage's ranks in the lists.
        fused: None unless the mode is "hybrid".
        candidates: How deep each list was searched.
        matches_filters: Whether the passage meets the retriever's filters. Otherwise it is in no
            list, however high its scores.
        reranked: Whether the retriever orders the candidates by ColBERT score.
        bm25: The score in the keyword list, in parts as the sparse one is; None unless the mode is
            "hybrid" and the collection has such a list.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> embedder = FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="The sea is calm.")]
        >>> ids = store.add(UnifiedTextEmbedding(embedder)(nodes))
        >>> retriever = UnifiedHybridRetriever(store, embedder, weights=(1, 1))
        >>> explanation = retriever.explain("Which foxes jump?", ids[0])
        >>> [token.text for token in explanation.sparse.tokens if token.contribution > 0]
        ['foxes', 'jump']
        >>> explanation.ranks
        Ranks(dense=1, sparse=1, fused=1, bm25=None)
        >>> [round(of_list.contribution, 4) for of_list in explanation.fused.lists]   # 1/61 each
        [0.0164, 0.0164]
        >>> [(match.query, match.passage) for match in explanation.colbert.matches][1:3]
        [('foxes', 'foxes'), ('jump', 'jump')]
    """

    query: str
    node_id: str
    text: str
    sparse: SparsePart | None
    dense: DensePart | None
    colbert: ColbertPart | None
    ranks: Ranks
    fused: FusedPart | None
    candidates: int
    matches_filters: bool
    reranked: bool
    bm25: SparsePart | None = None

    @property
    def score(self) -> float | None:
        """Return what the retriever scores the passage with; None if that was not computed.

        That is the ColBERT score if it reranks, the fused score in the mode "hybrid", or else the
        one list's.
        """
        if self.reranked:
            return None if self.colbert is None else self.colbert.score
        part = self.fused or self.dense or self.sparse
        return None if part is None else part.score

    @property
    def is_candidate(self) -> bool:
        """Tell whether a list has the passage, so that it can be in the answer."""
        ranks = (self.ranks.dense, self.ranks.sparse, self.ranks.bm25)
        return any(rank is not None for rank in ranks)

    def to_dict(self) -> PlainValues:
        """Return the fields as plain values, fit for JSON, without the map of similarities."""
        values: PlainValues = {one.name: getattr(self, one.name) for one in fields(self)}
        values["score"] = self.score
        for name in ("sparse", "dense", "bm25", "ranks"):
            values[name] = None if values[name] is None else asdict(getattr(self, name))
        if self.colbert is not None:
            parts = {one.name: getattr(self.colbert, one.name) for one in fields(self.colbert)}
            del parts["similarities"]
            parts["matches"] = [asdict(match) for match in self.colbert.matches]
            values["colbert"] = parts
        if self.fused is not None:
            lists = [asdict(of_list) for of_list in self.fused.lists]
            fusion = self.fused.fusion.to_dict()
            values["fused"] = {"score": self.fused.score, "fusion": fusion, "lists": lists}
        return values
