"""An embedder as a model of mteb's, and a judged set as one of its tasks.

What lives here: what mteb, the benchmark of text embeddings, asks of an encoder (its version 2).
What does not: mteb's own tasks and scores. They are how the published figures of MIRACL, MLDR and
BEIR are reproduced where weights and data are at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.types import FloatArray, Role

if TYPE_CHECKING:
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.models import ModelMeta

_ORGANISATION = "unified-embeddings"
"""Stands before the names of models that are not on the hub: mteb wants organisation/model."""
_SPLIT = "test"


class MtebEncoder:
    """Dense vectors of an embedder, as `mteb.evaluate` asks for them.

    Queries and documents get the model's own prefixes, whatever prompt a task suggests. The
    similarity is the cosine.

    Args:
        embedder: Gives dense vectors.

    Raises:
        InputError: If it gives none.
        MissingExtraError: If mteb is not installed.

    Example:
        >>> import mteb                                                       # doctest: +SKIP
        >>> from unified_embeddings import BGE_M3_Embedder
        >>> from unified_embeddings.evaluation.mteb import MtebEncoder
        >>> encoder = MtebEncoder(BGE_M3_Embedder("bge-m3"))                  # doctest: +SKIP
        >>> tasks = mteb.get_tasks(["MIRACLRetrieval"], languages=["deu"])    # doctest: +SKIP
        >>> result = mteb.evaluate(encoder, tasks)                            # doctest: +SKIP
    """

    def __init__(self, embedder: TextEmbedder) -> None:
        if "dense" not in embedder.heads:
            raise InputError(
                f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no dense "
                "ones, which mteb compares; choose a model that does"
            )
        require_mteb()
        self._embedder = embedder

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        prompt_type: str | None = None,
        **_: Any,
    ) -> FloatArray:
        """Return the dense vectors of texts, float32 (n, dimension), of unit length.

        Args:
            inputs: mteb's batches, each with n_i texts under "text".
            prompt_type: "query" for queries; anything else, or None, for documents.
            **_: What mteb says about the task, and how to batch: the embedder decides itself.

        Raises:
            InputError: If a batch holds no texts.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(
                    f"expected texts, got {', '.join(map(str, batch))}; no other kind is taken"
                )
            texts += batch["text"]
        role: Role = "query" if prompt_type == "query" else "document"
        vectors = self._embedder.encode(texts, role=role, heads=["dense"]).dense
        assert vectors is not None
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> FloatArray:
        """Return the cosine of each of n vectors with each of m, float32 (n, m)."""
        return _to_unit_rows(embeddings1) @ _to_unit_rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> FloatArray:
        """Return the cosines of n pairs of vectors, float32 (n,)."""
        products: FloatArray = np.sum(
            _to_unit_rows(embeddings1) * _to_unit_rows(embeddings2), axis=1
        )
        return products

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Return what mteb's results say of the model; its revision names the weights."""
        return describe_model(self._embedder)


def describe_model(embedder: TextEmbedder, search: Mapping[str, object] | None = None) -> ModelMeta:
    """Return what mteb's results say of a model.

    Args:
        embedder: The model.
        search: How it searches, where it does that by itself; a part of the name that mteb files
            its results under.

    Raises:
        MissingExtraError: If mteb is not installed.
    """
    require_mteb()
    from mteb.models import ModelMeta

    name = embedder.model_name
    # A folder's name may hold slashes anywhere, a hub id holds one.
    if name.count("/") != 1 or name.startswith(("/", ".")):
        name = f"{_ORGANISATION}/{name.replace('/', '_').strip('._') or 'model'}"
    fields: dict[str, object] = {
        "name": name,
        "revision": embedder.revision,
        "embed_dim": embedder.dimension,
        "max_tokens": embedder.max_length,
        "framework": _find_frameworks(embedder),
    }
    if search is None:
        fields["similarity_fn_name"] = "cosine"
    else:
        fields["model_type"] = [str(search.get("mode", "hybrid"))]
        fields["experiment_kwargs"] = {key: str(value) for key, value in search.items()}
    meta: ModelMeta = ModelMeta.create_empty(fields)
    return meta


def _find_frameworks(embedder: TextEmbedder) -> list[str]:
    """Return what runs a model's passes, in mteb's words."""
    engines = {model.runtime.engine for model in embedder.models}
    if not engines:  # It is behind an address.
        return ["API"]
    return sorted({"ONNX" if engine == "onnx" else "PyTorch" for engine in engines})


def require_mteb() -> None:
    """Check that mteb is installed.

    Raises:
        MissingExtraError: If it is not.
    """
    try:
        import mteb  # noqa: F401 — only to see whether it is installed
    except ImportError as error:
        raise MissingExtraError("mteb", extra="mteb") from error


def make_task(
    corpus: Corpus, *, name: str | None = None, languages: Sequence[str] = ("eng-Latn",)
) -> AbsTaskRetrieval:
    """Return a judged set as a retrieval task of mteb's, which needs no download.

    Args:
        corpus: The set, as `corpora.read_beir` reads it.
        name: The task's name; None takes the set's.
        languages: The languages of its texts, in mteb's notation.

    Raises:
        InputError: If the set has no judgements.
        MissingExtraError: If mteb is not installed.
    """
    if corpus.qrels is None:
        raise InputError(f"{corpus.name} has no relevance judgements, which mteb needs")
    require_mteb()
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class JudgedSet(AbsTaskRetrieval):  # type: ignore[misc]  # mteb may not be installed
        """The set, already in memory."""

        metadata = TaskMetadata(
            name=name or corpus.name,
            description=f"{corpus.name}, from a folder in BEIR's layout.",
            dataset={"path": corpus.name, "revision": "local"},
            type="Retrieval",
            category="t2t",
            eval_splits=[_SPLIT],
            eval_langs=list(languages),
            main_score="ndcg_at_10",
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            """Hand the texts over; they are titles and texts in one already."""
            self.corpus = {_SPLIT: {key: {"text": text} for key, text in documents.items()}}
            self.queries = {_SPLIT: dict(corpus.queries)}
            self.relevant_docs = {_SPLIT: {key: dict(grades) for key, grades in qrels.items()}}
            self.data_loaded = True  # mteb does not ask again

    documents, qrels = corpus.documents, corpus.qrels
    return JudgedSet()


def _to_unit_rows(vectors: Any) -> FloatArray:
    """Return vectors as float32 (n, d) of unit length; a single one becomes a row.

    Args:
        vectors: An array or a tensor; rows of zeros stay zero.
    """
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    unit: FloatArray = rows / lengths
    return unit
