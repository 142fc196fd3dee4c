"""UnifiedHybridRetriever as a model of mteb's: sparse, hybrid and reranked search in its tasks.

What lives here: what mteb asks of a model that searches by itself. What does not: dense vectors
alone, which mteb compares itself (`evaluation.mteb`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.mteb import describe_model, require_mteb
from unified_embeddings.evaluation.rankings import Run
from unified_embeddings.llama.stock_arguments import RetrieverOptions
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.judged_store import DOCUMENT_FIELD, open_judged_store
from unified_embeddings.retrievers.runs import collect_run
from unified_embeddings.types import Options
from unified_embeddings.validation import require_whole_number

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from typing_extensions import Unpack

_DEPTH = 100
"""Results for a query, unless told otherwise: recall@100 is the deepest figure that papers give."""


class MtebSearch:
    """Search by UnifiedHybridRetriever, as `mteb.evaluate` asks for it.

    The corpus of a task is embedded into a temporary embedded store, each document as one point.

    Args:
        embedder: Embeds documents and queries.
        depth: The most results for a query; mteb's figures at a larger k count no more.
        **options: Those of UnifiedHybridRetriever, but `similarity_top_k`: mode, rerank, weights,
            rrf_k, candidates.

    Raises:
        InputError: If `depth` is below 1. The other options are checked when a corpus is indexed.
        MissingExtraError: If mteb is not installed.

    Example:
        >>> import mteb                                                       # doctest: +SKIP
        >>> from unified_embeddings import BGE_M3_Embedder
        >>> from unified_embeddings.retrievers.mteb_search import MtebSearch
        >>> search = MtebSearch(BGE_M3_Embedder("bge-m3"), mode="sparse")     # doctest: +SKIP
        >>> tasks = mteb.get_tasks(["MIRACLRetrieval"], languages=["deu"])    # doctest: +SKIP
        >>> result = mteb.evaluate(search, tasks)                             # doctest: +SKIP
    """

    def __init__(
        self, embedder: TextEmbedder, *, depth: int = _DEPTH, **options: Unpack[RetrieverOptions]
    ) -> None:
        require_mteb()
        self._depth = require_whole_number("depth", depth)
        if "similarity_top_k" in options:
            raise InputError("leave similarity_top_k out; depth is how many results there are")
        self._embedder = embedder
        self._options: Options = {**options, "similarity_top_k": self._depth}
        self._stack = ExitStack()
        self._retriever: UnifiedHybridRetriever | None = None

    def index(self, corpus: Iterable[Mapping[str, Any]], **_: Any) -> None:
        """Embed a corpus, in place of the one before.

        Args:
            corpus: mteb's rows, each with "id", "text" and perhaps "title".
            **_: What mteb says about the task, and how to batch: the embedder decides itself.

        Raises:
            InputError: If a row is not a text, or an option does not fit the model.
        """
        self.close()
        documents: dict[str, str] = {}
        for row in corpus:
            title = row.get("title") or ""
            documents[row["id"]] = f"{title} {_require_text(row)}".strip()  # as mteb joins them
        store = self._stack.enter_context(open_judged_store(self._embedder, documents))
        self._retriever = UnifiedHybridRetriever(store, self._embedder, **self._options)

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: object = None,
        **_: Any,
    ) -> Run:
        """Return what is found for each query, at most `top_k` documents.

        Args:
            queries: mteb's rows, each with "id" and "text", and perhaps an "instruction".
            top_k: The most documents of a query.
            top_ranked: Documents to choose from, in tasks of reranking, which are refused.
            **_: What mteb says about the task, and how to batch.

        Raises:
            InputError: If nothing was indexed, a row is not a text, or the task is one of
                reranking.
        """
        if self._retriever is None:
            raise InputError("index a corpus before searching it")
        if top_ranked is not None:
            raise InputError(
                "this model searches the whole corpus; give a reranking task to MtebEncoder"
            )
        texts: dict[str, str] = {}
        for row in queries:
            instruction = row.get("instruction") or ""
            texts[row["id"]] = f"{_require_text(row)} {instruction}".strip()
        return collect_run(self._retriever, texts, document_field=DOCUMENT_FIELD, depth=top_k)

    def close(self) -> None:
        """Remove the temporary store, if there is one."""
        self._retriever = None
        self._stack.close()

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Return what mteb's results say of the model; its revision names the weights."""
        return describe_model(self._embedder, self._options)


def _require_text(row: Mapping[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f"expected a text for {row.get('id')!r}, got {type(text).__name__}")
    return text
