"""One search, with everything that is worth seeing: the lists, their scores, and the time it took.

What lives here: running a search as the retriever runs it, and keeping each list. What does not:
the search itself (`llama.hybrid_search`), and the page (`pages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import QueryBundle

from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.parameters import Question, SearchOptions
from unified_embeddings.inspector.stages import Stages
from unified_embeddings.inspector.visible import title_of
from unified_embeddings.inspector.words import Segment, mark_words, score_tokens
from unified_embeddings.llama.conditions import check_conditions, parse_conditions, to_filters
from unified_embeddings.llama.filters import translate_filters
from unified_embeddings.llama.hybrid_search import HybridSearch, order_lists
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.llama.store_settings import open_search
from unified_embeddings.models.fusion import PLAIN_CANDIDATES, Fusion
from unified_embeddings.retrievers.explanation import FusedPart
from unified_embeddings.retrievers.questions import embed_question
from unified_embeddings.retrievers.score_parts import explain_fusion
from unified_embeddings.search.fusing import Ranking, fuse
from unified_embeddings.search.options import Mode, check_heads, choose_fusion
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.search.query_vectors import QueryVectors


@dataclass(frozen=True)
class Hit:
    """A passage in a list.

    Attributes:
        point_id: The passage.
        rank: Its place, from 1.
        score: What it was ordered by.
    """

    point_id: str
    rank: int
    score: float


@dataclass(frozen=True)
class RankedList:
    """A list as the page shows it.

    Attributes:
        name: "dense", "sparse", "fused" or "reranked".
        hits: Its first passages, best first.
        depth: How many passages it has.
    """

    name: str
    hits: tuple[Hit, ...]
    depth: int


@dataclass(frozen=True)
class Passage:
    """A passage that is in one of the lists.

    Attributes:
        point_id: Its id.
        title: What to call it.
        text: Its text without metadata.
        segments: An excerpt, with the words marked that met the question.
        places: Its rank in each list that has it.
        fused: What each list added to its fused score; None unless lists were fused.
    """

    point_id: str
    title: str
    text: str
    segments: tuple[Segment, ...]
    places: dict[str, int]
    fused: FusedPart | None


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        lists: The lists that were searched or made, in the order of the steps.
        passages: The passages in them by id.
        mode: What was searched.
        fusion: How the lists were fused.
        reranked: How many passages ColBERT ordered anew; None for none.
        stages: Where the time went.
        notes: What is worth knowing about the filters.
    """

    lists: tuple[RankedList, ...]
    passages: dict[str, Passage]
    mode: Mode
    fusion: Fusion
    reranked: int | None
    stages: Stages
    notes: tuple[str, ...]

    @property
    def answer(self) -> RankedList | None:
        """Return the list that a retriever returns; None where nothing was searched."""
        return self.lists[-1] if self.lists else None


@dataclass(frozen=True)
class _Lists:
    """The whole lists of a search."""

    rankings: dict[str, Ranking]
    weights: list[float]
    fused: Ranking
    reranked: Ranking | None


def choose_mode(opened: OpenedCollection, options: SearchOptions) -> Mode:
    """Return the mode that was asked for, or all that the model gives."""
    if options.mode is not None:
        return options.mode
    return "hybrid" if opened.has_sparse else "dense"


def run_search(opened: OpenedCollection, question: Question) -> Found:
    """Search a collection, and keep every list.

    Args:
        opened: What to search.
        question: What to ask, not blank, and how.

    Raises:
        InputError: If an option cannot be used, or a filter holds for no passage.
        FingerprintMismatchError: If the collection was made anew with another model.
        StoreError: If Qdrant fails.
    """
    options, stages, notes = question.options, Stages(), list[str]()
    with stages.measure("prepare"):
        mode = choose_mode(opened, options)
        check_heads(opened.embedder, mode, "colbert" if options.rerank else None)
        search = open_search(opened.store, opened.embedder)
        search.collection.check(mode)
        plan = build_plan(opened, options, mode, search.collection.read_choice(), notes)
    with stages.measure("embed", is_model=True):
        query = embed_question(
            opened.embedder,
            QueryBundle(question.text),
            mode=mode,
            rerank=options.rerank,
            callback_manager=CallbackManager(),
        )
    lists = _fill_lists(search, query, plan, stages)
    shown = _show_lists(lists, plan)
    with stages.measure("words"):
        passages = _build_passages(opened, search, query, plan, lists, shown)
    return Found(
        lists=tuple(shown),
        passages=passages,
        mode=mode,
        fusion=plan.fusion,
        reranked=None if lists.reranked is None else len(lists.reranked),
        stages=stages,
        notes=tuple(notes),
    )


def _fill_lists(
    search: HybridSearch,
    query: QueryVectors,
    plan: SearchPlan,
    stages: Stages,
) -> _Lists:
    """Search, fuse and rerank, and keep what each step gives."""
    with stages.measure("search"):
        branches = search.build_branches(query, plan)
        found, token_scores = search.search_with_rows(query, branches, plan)
    with stages.measure("fuse"):
        ordered = order_lists(branches, found)
        weights = [branch.weight for branch in branches]
        fused: Ranking = []
        if plan.mode == "hybrid":
            fused = fuse(ordered, plan.fusion, weights)
        elif ordered:
            (fused,) = ordered
        rankings: dict[str, Ranking] = {
            branch.list_name: ranking for branch, ranking in zip(branches, ordered, strict=True)
        }
    reranked = None
    if query.colbert is not None and fused:
        with stages.measure("rerank", is_model=True):
            best = fused[: plan.answer_size]
            reranked = search.rerank(query.colbert, best, token_scores)
    return _Lists(rankings, weights, fused, reranked)


def build_plan(
    opened: OpenedCollection,
    options: SearchOptions,
    mode: Mode,
    chosen: Fusion | None,
    notes: list[str],
) -> SearchPlan:
    """Return what a search is to find, by the rules of the retriever.

    Args:
        opened: What is searched.
        options: As the page has them.
        mode: Which lists.
        chosen: The collection's own fusion; None if it has none.
        notes: What is worth knowing about the filters is added to it.

    Raises:
        InputError: If an option cannot be used, or a filter holds for no passage.
    """
    takes_choice = mode == "hybrid" and options.weights is None
    fusion = choose_fusion(
        opened.embedder.fusion,
        candidates=options.candidates or "auto",
        rrf_k="auto",
        weights=options.weights or "auto",
        chosen=chosen if takes_choice else None,
    )
    conditions = parse_conditions(options.conditions, option="the filter")
    check_conditions(conditions, opened.store, note=notes.append)
    reranked = None
    if options.rerank:
        reranked = options.candidates or PLAIN_CANDIDATES
    return SearchPlan(
        mode=mode,
        top_k=options.top_k,
        fusion=fusion,
        reranked=reranked,
        filter=translate_filters(to_filters(conditions), opened.store.fields),
    )


def _show_lists(lists: _Lists, plan: SearchPlan) -> list[RankedList]:
    """Return the first passages of each list, in the order of the steps."""
    shown = [_to_list(name, ranking, plan.top_k) for name, ranking in lists.rankings.items()]
    if plan.mode == "hybrid" and lists.rankings:
        shown.append(_to_list("fused", lists.fused, plan.top_k))
    if lists.reranked is not None:
        shown.append(_to_list("reranked", lists.reranked, plan.top_k))
    return shown


def _to_list(name: str, ranking: Ranking, top_k: int) -> RankedList:
    hits = [
        Hit(str(point.id), rank, score) for rank, (point, score) in enumerate(ranking[:top_k], 1)
    ]
    return RankedList(name, tuple(hits), len(ranking))


def _build_passages(
    opened: OpenedCollection,
    search: HybridSearch,
    query: QueryVectors,
    plan: SearchPlan,
    lists: _Lists,
    shown: Sequence[RankedList],
) -> dict[str, Passage]:
    """Return the passages that the page shows, each once."""
    wanted = {hit.point_id for ranked in shown for hit in ranked.hits}
    points = {str(point.id): point for point, _ in lists.fused if str(point.id) in wanted}
    for ranking in lists.rankings.values():
        points.update((str(point.id), point) for point, _ in ranking if str(point.id) in wanted)
    shares = score_tokens(search, query.sparse, [point.id for point in points.values()])
    nodes = search.reader.to_nodes(list(points.values()), [0.0] * len(points))
    names, rankings = list(lists.rankings), list(lists.rankings.values())
    explain = partial(explain_fusion, names=names, rankings=rankings, weights=lists.weights)
    places = _find_places(lists, plan)
    passages = {}
    for (point_id, point), scored in zip(points.items(), nodes, strict=True):
        text = scored.node.get_content()
        fused = None
        if plan.mode == "hybrid":
            fused, _ = explain(point.id, fusion=plan.fusion)
        passages[point_id] = Passage(
            point_id=point_id,
            title=title_of(own_metadata(scored.node), point_id),
            text=text,
            segments=tuple(mark_words(opened.embedder, text, shares.get(point_id, {}))),
            places=places.get(point_id, {}),
            fused=fused,
        )
    return passages


def _find_places(lists: _Lists, plan: SearchPlan) -> dict[str, dict[str, int]]:
    """Return the rank of each passage in each list that has it."""
    ids = {name: [str(point.id) for point, _ in r] for name, r in lists.rankings.items()}
    if plan.mode == "hybrid":
        ids["fused"] = [str(point.id) for point, _ in lists.fused]
    if lists.reranked is not None:
        ids["reranked"] = [str(point.id) for point, _ in lists.reranked]
    places: dict[str, dict[str, int]] = {}
    for name, of_list in ids.items():
        for rank, point_id in enumerate(of_list, 1):
            places.setdefault(point_id, {})[name] = rank
    return places
