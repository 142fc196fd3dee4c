"""Running the systems that `evaluate` compares, so that each answers as its users are answered.

What lives here: opening what a system needs, and asking it. What does not: the notation of systems
(`evaluation.systems`), and rating what they find (`evaluation.reports`).

A model embeds the judged documents into a temporary embedded store, which all systems of one model
share. Every system, but a finished run, is then asked through UnifiedHybridRetriever: nothing of
fusion or reranking is done a second time, in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Corpus, require_questions
from unified_embeddings.evaluation.rankings import Run, sort_by_score
from unified_embeddings.evaluation.systems import (
    CollectionSystem,
    Mode,
    ModelSystem,
    RunSystem,
    Search,
    System,
)
from unified_embeddings.evaluation.trec import read_run
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import HeadName, Options

if TYPE_CHECKING:
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever


class Asked(Protocol):
    """A system that is ready to be asked."""

    def ask(self) -> Run:
        """Return what it finds for the judged queries."""
        ...


@contextmanager
def open_systems(
    systems: Sequence[System], corpus: Corpus, *, depth: int
) -> Iterator[dict[str, Asked]]:
    """Open systems: files are read, models looked up and collections opened, before any is asked.

    Args:
        systems: What to open; their names differ.
        corpus: The judged set.
        depth: How many results to ask of each system for a query.

    Yields:
        The systems by name, in the same order. They can be asked within the context.

    Raises:
        InputError: If a file or a folder cannot be read, or a model does not give the vectors that
            a system needs.
        StoreError: If a collection does not exist or cannot be read.
        FingerprintMismatchError: If a collection was made with another model.
        ModelLoadError: If there is no such model.

    Example:
        >>> from unified_embeddings.evaluation.corpora import Corpus
        >>> from unified_embeddings.evaluation.systems import parse_systems
        >>> corpus = Corpus("tiny", {"d1": "Foxes jump."}, {"q1": "a fox"}, {"q1": {"d1": 1}})
        >>> with open_systems(parse_systems(["mini-m3:dense"]), corpus, depth=20) as opened:
        ...     list(opened["mini-m3:dense"].ask()["q1"])
        ['d1']
    """
    models: dict[tuple[str | None, str | None], _SharedModel] = {}
    with ExitStack() as stack:
        opened: dict[str, Asked] = {}
        for system in systems:
            if isinstance(system, RunSystem):
                opened[system.name] = _FinishedRun(_read_run(system, corpus), depth)
                continue
            key = system.model, system.sparse_model
            if key not in models:
                models[key] = _SharedModel(*key, corpus, stack)
            models[key].note_need(system.search)
            if isinstance(system, ModelSystem):
                opened[system.name] = _ModelOnTheSpot(system, models[key], depth)
            else:
                opened[system.name] = _LiveCollection(system, models[key], depth)
        yield opened


def _read_run(system: RunSystem, corpus: Corpus) -> Run:
    """Read a run of the judged queries, perhaps among others.

    Raises:
        InputError: If the file cannot be read, or has none of them, as a run of other data would.
    """
    run = read_run(system.file)
    judged = corpus.qrels or {}
    if not run.keys() & judged.keys():
        raise InputError(
            f"system {system.name!r}: {system.file} answers none of the judged queries, such as "
            f"{next(iter(judged), 'none')!r}, but others, such as {next(iter(run))!r}; name a run "
            "of this data"
        )
    return run


class _SharedModel:
    """What the systems of one model share: its weights, the documents, the queries' vectors."""

    def __init__(
        self, model: str | None, sparse_model: str | None, corpus: Corpus, stack: ExitStack
    ) -> None:
        self.config = shared.open_config(model, sparse_model)
        self.corpus = corpus
        self._stack = stack
        self._needed_heads: set[HeadName] = set()
        self._store: FingerprintedStore | None = None
        self._queries_are_embedded = False

    def note_need(self, search: Search) -> None:
        """Note which vectors a system needs; refuse, without loading, a model that lacks them.

        Raises:
            InputError: If the model gives no such vectors, or a query is blank.
        """
        from unified_embeddings.search.options import check_heads

        mode = search.mode or _default_mode(self.config)
        check_heads(self.config.embedder, mode, "colbert" if search.rerank else None)
        require_questions(self.corpus.queries)
        if mode != "sparse":
            self._needed_heads.add("dense")
        if mode != "dense":
            self._needed_heads.add("sparse")
        if search.rerank:
            self._needed_heads.add("colbert")

    def retriever(
        self, store: FingerprintedStore, search: Search, depth: int
    ) -> UnifiedHybridRetriever:
        options: Options = {**search.options(), "similarity_top_k": depth}
        return self.config.retriever(store, **options)

    def embed_queries(self) -> None:
        """Embed all queries in large batches, once; retrievers then find them in the cache."""
        if not self._queries_are_embedded:
            texts = list(self.corpus.queries.values())
            self.config.embedder.encode(texts, role="query", heads=sorted(self._needed_heads))
        self._queries_are_embedded = True

    def embed_documents(self) -> FingerprintedStore:
        """Return a temporary store that holds the documents, one point each; made once."""
        from unified_embeddings.retrievers.judged_store import open_judged_store

        if self._store is None:
            documents = self.corpus.documents
            title = f"Embedding {self.corpus.name} with {self.config.model_choice}"
            with progress_bar(title, len(documents), shown=shared.is_terminal()) as advance:
                self._store = self._stack.enter_context(
                    open_judged_store(self.config.embedder, documents, on_documents=advance)
                )
        return self._store


class _FinishedRun:
    """A run from elsewhere, cut as deep as the others are asked."""

    def __init__(self, run: Run, depth: int) -> None:
        self._run = run
        self._depth = depth

    def ask(self) -> Run:
        cut: Run = {}
        for query_id, scores in self._run.items():
            best_ids = sort_by_score(scores)[: self._depth]
            cut[query_id] = {document_id: scores[document_id] for document_id in best_ids}
        return cut


class _ModelOnTheSpot:
    """A model that embeds the documents when the first of its systems is asked."""

    def __init__(self, system: ModelSystem, model: _SharedModel, depth: int) -> None:
        self._system = system
        self._model = model
        self._depth = depth

    def ask(self) -> Run:
        from unified_embeddings.retrievers.judged_store import DOCUMENT_FIELD
        from unified_embeddings.retrievers.runs import collect_run

        store = self._model.embed_documents()
        retriever = self._model.retriever(store, self._system.search, self._depth)
        self._model.embed_queries()
        queries = self._model.corpus.queries
        with _asking(self._system, queries) as advance:
            return collect_run(retriever, queries, document_field=DOCUMENT_FIELD, on_query=advance)


class _LiveCollection:
    """An existing collection, which is only read."""

    def __init__(self, system: CollectionSystem, model: _SharedModel, depth: int) -> None:
        self._system = system
        self._model = model
        store = shared.open_store(
            model.config,
            system.collection,
            system.path or Path(),
            system.url,
            create=False,
            adopt=system.adopt,
        )
        self._retriever = model.retriever(store, system.search, depth)

    def ask(self) -> Run:
        from unified_embeddings.retrievers.runs import collect_run, find_document_field

        self._model.embed_queries()
        corpus = self._model.corpus
        field = self._system.document_field
        if field is None:
            judged_ids = {name for grades in (corpus.qrels or {}).values() for name in grades}
            field = find_document_field(self._retriever, corpus.queries, judged_ids)
        with _asking(self._system, corpus.queries) as advance:
            run = collect_run(
                self._retriever, corpus.queries, document_field=field, on_query=advance
            )
        if not any(run.values()):
            raise InputError(
                f"system {self._system.name!r} found no point with the field {field!r}; name the "
                "field of the payload that holds the judged documents' ids, with field="
            )
        if not _finds_any(run, corpus):
            shared.print_note(
                f"system {self._system.name!r} found no relevant document at all. Documents are "
                f"taken to be named by the field {field!r} of the payload; if they are not, name "
                "the right one with field=, and make sure that this is their collection"
            )
        return run


def _finds_any(run: Run, corpus: Corpus) -> bool:
    """Tell whether a run has a relevant document for at least one query."""
    qrels = corpus.qrels or {}
    for query_id, scores in run.items():
        grades = qrels.get(query_id, {})
        if any(grades.get(document_id, 0) > 0 for document_id in scores):
            return True
    return False


@contextmanager
def _asking(system: System, queries: dict[str, str]) -> Iterator[Callable[[int], None]]:
    title = f"Asking {shared.one_line(system.name, 40)}"
    with progress_bar(title, len(queries), shown=shared.is_terminal()) as advance:
        yield advance


def _default_mode(config: UnifiedEmbeddingConfig) -> Mode:
    return "hybrid" if "sparse" in config.embedder.heads else "dense"
