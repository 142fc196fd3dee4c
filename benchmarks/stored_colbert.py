"""What do stored ColBERT vectors cost, and what does pooling and quantising them lose?

Indexes a judged set in BEIR's layout into embedded stores, one for each way to store ColBERT
vectors, asks every question through the retriever, and prints nDCG@10, what it loses against
encoding the candidates in full, and the bytes of a passage's vectors as the disk holds them. Then
it fills stores with points like these, with a little noise, and asks the same questions of all of
them in turn: milliseconds and CPU milliseconds of a query, and the medians of their ratios to the
hybrid query without reranking, the question's vectors in the cache or encoded anew.

    python benchmarks/stored_colbert.py ../shared/data/xquad_r/en
    python benchmarks/stored_colbert.py --points 1000 --queries 20 ...    # a quick look
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import models as qm

from report import table
from retrieval import index, mean
from unified_embeddings import StoredColbert, UnifiedEmbeddingConfig
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.evaluation.rankings import Run, ndcg_by_query
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR, FULL
from unified_embeddings.system.progress import progress_bar

_CACHE_BYTES = 2 * 2**30
_BLOCK = 512
"""Bytes of a block in `st_blocks`, which says what a file takes: the core's files have holes."""
_POINTS_PER_UPSERT = 250
_NOISE = 0.02
"""Standard deviation of what is added to each number of a dense vector to make another one."""
WAYS = (
    *(StoredColbert(pool, None) for pool in (1, 2, 3, 4)),
    StoredColbert(2, "float16"),
    *(StoredColbert(pool, "turbo8") for pool in (1, 2, 3)),
    *(StoredColbert(pool, "turbo4") for pool in (1, 2, 3, 4)),
    StoredColbert(2, "int8"),
    StoredColbert(2, "binary"),
)
TIMED = (
    FULL,
    StoredColbert(1, "turbo4"),
    StoredColbert(2, None),
    StoredColbert(2, "turbo8"),
    StoredColbert(2, "turbo4"),
    StoredColbert(2, "int8"),
)


@dataclass(frozen=True)
class Measured:
    """What one way to store ColBERT vectors gives.

    Attributes:
        ndcg: Mean nDCG@10.
        disk: Bytes of a passage's vectors on the disk, originals included.
        read: Bytes of those that a question reads: beside "int8" not the originals, which only
            "binary" scores anew.
    """

    ndcg: float
    disk: float
    read: float


@dataclass
class Times:
    """How long each question took, in milliseconds: by the clock, and of the processors' time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def note(self, ask: Callable[[], object]) -> None:
        """Time one question."""
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        self.cpu.append(1000 * (time.process_time() - cpu))
        self.wall.append(1000 * (time.perf_counter() - wall))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the set named on the command line, and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a judged set in BEIR's layout")
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    parser.add_argument("--points", type=int, default=10_000, help="of the stores that are timed")
    parser.add_argument("--queries", type=int, default=150, help="that are timed")
    options = parser.parse_args(arguments)
    config = UnifiedEmbeddingConfig(options.model, cache=EmbeddingCache(_CACHE_BYTES))
    corpus = read_beir(options.folder)
    rows = config.embedder.encode_documents(list(corpus.documents.values()), colbert=True).colbert
    assert rows is not None
    config.embedder.encode_queries(list(corpus.queries.values()), colbert=True)
    print(
        f"{options.model}, {corpus.name}: {len(corpus.documents):,} passages of "
        f"{statistics.mean(map(len, rows)):.0f} rows of {rows[0].shape[1]} numbers on average, "
        f"{len(corpus.queries):,} questions\n"
    )
    print(format_quality(measure_quality(config, corpus)))
    print(format_times(measure_times(config, corpus, options.points, options.queries)))


# --- quality and bytes --------------------------------------------------------------------------


def measure_quality(
    config: UnifiedEmbeddingConfig, corpus: Corpus
) -> dict[StoredColbert | str, Measured]:
    """Return what each way gives, and what neither reranking nor storing gives."""
    measured: dict[StoredColbert | str, Measured] = {}
    for way in (None, *WAYS):
        with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
            store = config.vector_store("judged", path=work, colbert=way)
            index(config, store, corpus)
            store.client.optimize("judged")  # makes what is quantised beside the originals
            if way is None:
                measured["hybrid"] = Measured(search(config, store, corpus, None), 0, 0)
                measured["encoded"] = Measured(search(config, store, corpus, "colbert"), 0, 0)
            else:
                ndcg = search(config, store, corpus, "colbert")
                store.client.flush()
                measured[way] = Measured(
                    ndcg, *stored_bytes(Path(work), len(corpus.documents), way)
                )
                print(f"{way}: {measured[way]}", file=sys.stderr)
            store.client.close()
    return measured


def search(config: UnifiedEmbeddingConfig, store: Any, corpus: Corpus, rerank: Any) -> float:
    """Ask every question, and return the mean nDCG@10."""
    retriever = config.retriever(store, rerank=rerank)
    run: Run = {}
    with progress_bar("Searching", len(corpus.queries)) as advance:
        for query_id, text in corpus.queries.items():
            found = [scored.node.metadata["document"] for scored in retriever.retrieve(text)]
            run[query_id] = {document: -place for place, document in enumerate(found)}
            advance(1)
    assert corpus.qrels is not None
    return mean(ndcg_by_query(run, corpus.qrels))


def stored_bytes(folder: Path, passages: int, way: StoredColbert) -> tuple[float, float]:
    """Return the bytes of a passage's ColBERT vectors: on the disk, and those a question reads."""
    is_read_alone = way.quantisation == "int8"
    originals = quantised = 0
    for file in folder.rglob("*"):
        parts = [part for part in file.parts if part.endswith(f"-{COLBERT_VECTOR}")]
        if not parts or not file.is_file():
            continue
        size = file.stat().st_blocks * _BLOCK
        if file.name.startswith("quantized"):
            quantised += size
        else:
            originals += size
    disk = (originals + quantised) / passages
    return disk, quantised / passages if is_read_alone and quantised else disk


def format_quality(measured: dict[StoredColbert | str, Measured]) -> str:
    """Return the table of quality and bytes."""
    full, reference = measured["encoded"], measured[FULL]
    lines = []
    for way, result in measured.items():
        cells = ["-", "-", "-", "-"]
        if isinstance(way, StoredColbert):
            share = reference.disk / result.disk
            cells = [
                f"{result.disk:,.0f}",
                f"1/{share:.1f}",
                f"{result.read:,.0f}",
                f"1/{reference.disk / result.read:.1f}",
            ]
        lost = f"{100 * (1 - result.ndcg / full.ndcg):.2f}%"
        lines.append([_name(way), f"{result.ndcg:.4f}", lost, *cells])
    head = ["", "nDCG@10", "lost", "bytes on disk", "share", "bytes read", "share"]
    return f"### Quality and bytes of a passage\n\n{table(head, lines)}\n"


def _name(way: StoredColbert | str) -> str:
    names = {"hybrid": "hybrid, not reranked", "encoded": "candidates encoded at each query"}
    return str(way) if isinstance(way, StoredColbert) else names[way]


# --- time ---------------------------------------------------------------------------------------


def measure_times(
    config: UnifiedEmbeddingConfig, corpus: Corpus, points: int, queries: int
) -> dict[StoredColbert | str, Times]:
    """Return how long each question takes, for each way; all ways take turns at a question."""
    texts = list(corpus.queries.values())[:queries]
    times: dict[StoredColbert | str, Times] = {way: Times() for way in ("hybrid", *TIMED)}
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
        retrievers: dict[StoredColbert | str, Any] = {}
        stores = []
        for number, way in enumerate(TIMED):
            store = config.vector_store("docs", path=Path(work) / str(number), colbert=way)
            fill(config, store, corpus, points)
            stores.append(store)
            retrievers[way] = config.retriever(store, rerank="colbert")
        retrievers["hybrid"] = config.retriever(stores[0])
        for retriever in retrievers.values():
            retriever.retrieve(texts[0])
        names = list(times)
        for number, text in enumerate(texts):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                times[name].note(partial(retrievers[name].retrieve, text))
        for store in stores:
            store.client.close()
    times["encoding"] = time_encoding(config, texts)
    return times


def fill(config: UnifiedEmbeddingConfig, store: Any, corpus: Corpus, points: int) -> None:
    """Fill a store with points like a set's passages, and index it where that is of use."""
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores.utils import node_to_metadata_dict

    texts = list(corpus.documents.values())
    embeddings = config.embedder.encode_documents(texts)
    assert embeddings.dense is not None
    sparse = [
        qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
        for vector in embeddings.sparse or ()
    ]
    rows = config.embedder.encode_pooled(texts, store.stored_colbert.pool)
    random = np.random.default_rng(0)
    batch: list[qm.PointStruct] = []
    for number in range(points):
        place = number % len(texts)
        noise = random.normal(0, _NOISE, embeddings.dense.shape[1])
        payload = node_to_metadata_dict(TextNode(text=texts[place]), flat_metadata=False)
        point = qm.PointStruct.model_construct(
            id=number,
            payload=payload,
            vector={
                DENSE_VECTOR: (embeddings.dense[place] + noise).tolist(),
                SPARSE_VECTOR: sparse[place],
                COLBERT_VECTOR: rows[place].tolist(),
            },
        )
        batch.append(point)
        if len(batch) == _POINTS_PER_UPSERT or number == points - 1:
            store.client.upsert("docs", batch)
            batch = []
    if store.stored_colbert.quantisation in ("int8", "binary"):
        store.client.optimize("docs")  # makes what is quantised beside the originals


def time_encoding(config: UnifiedEmbeddingConfig, texts: Sequence[str]) -> Times:
    """Return how long the model takes for each question."""
    bare = UnifiedEmbeddingConfig(config.model_choice, cache=None).embedder
    bare.encode_query(texts[0], colbert=True)
    times = Times()
    for text in texts:
        times.note(partial(bare.encode_query, text, colbert=True))
    return times


def format_times(times: dict[StoredColbert | str, Times]) -> str:
    """Return the table of times; a ratio is the median of the questions' own ratios."""
    encoding, hybrid = times["encoding"], times["hybrid"]
    lines = []
    for way, values in times.items():
        if way == "encoding":
            continue
        lines.append(
            [
                _name(way),
                f"{statistics.median(values.wall):.2f}",
                f"{statistics.median(values.cpu):.2f}",
                f"{ratio(values.wall, hybrid.wall):.2f}",
                f"{ratio(values.cpu, hybrid.cpu):.2f}",
                f"{ratio(values.wall, hybrid.wall, encoding.wall):.2f}",
                f"{ratio(values.cpu, hybrid.cpu, encoding.cpu):.2f}",
            ]
        )
    head = ["", "ms", "CPU ms", "ratio", "ratio (CPU)", "with encoding", "with encoding (CPU)"]
    note = (
        f"Encoding a question takes {statistics.median(encoding.wall):.1f} ms, "
        f"{statistics.median(encoding.cpu):.1f} ms of CPU time; the first four columns are "
        "without it."
    )
    return f"### Time of a query\n\n{table(head, lines)}\n\n{note}\n"


def ratio(
    values: Sequence[float], base: Sequence[float], both: Sequence[float] | None = None
) -> float:
    """Return the median of values / base, question by question, with the same added to both."""
    added = both or [0.0] * len(values)
    rows = zip(values, base, added, strict=True)
    return statistics.median((value + own) / (least + own) for value, least, own in rows)


if __name__ == "__main__":
    main()
