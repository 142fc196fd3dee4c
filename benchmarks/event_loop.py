"""The event loop's longest pause while many questions are asked at once.

    python benchmarks/event_loop.py [--points 10000] [--questions 400] [--at-once 16] [--work DIR]

An index of made-up passages (mini-m3) is asked hybrid questions by that many tasks at once, each
question for the first time, and a heartbeat in the same loop notes how late it wakes up. Measured
in turn: LlamaIndex's retriever over our store, our retriever, the embedded core alone (the
same requests in as many threads: what its calls cost the loop whoever makes them), and the stock
store, over our embedded core and over qdrant-client's local mode, with the same sparse vectors.

Pauses are milliseconds. "longest" is by the clock, whoever caused it. "ours" is the longest for
which this process can be at fault: without the time that the loop's thread was ready and no
processor was free, and at most the processor time that this process used meanwhile. On a machine
with nothing else to do both are nearly the same. The program fails if "ours" is above 20 ms for our
store or our retriever, and above what the core alone causes.

`gc.freeze()` is called before each: otherwise Python's garbage collector stops every thread for 130
to 200 ms now and then, to walk through the objects of the imported libraries. A service that must
not pause calls it, too, when all is loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import qdrant_edge as core
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm
from tokenizers import Tokenizer

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.sparse_functions import sparse_options
from unified_embeddings.models.mini_m3 import mini_m3_folder
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.edge.core_types import CoreShard
from unified_embeddings.stores.edge.queries import to_core_query
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.opening import async_view
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.types import Embeddings

LIMIT_MS = 20.0
_BEAT = 0.001
"""Seconds that the heartbeat sleeps."""
_PASSAGE_WORDS, _QUESTION_WORDS = 60, 10
_DEPTH = 30
"""How deep the core alone is asked for each list, as our retriever asks it."""
_FIRST = "a question before the others, which loads the model and looks the collection up"
_NAME = "points"
_LOCAL_SHARE = 10
"""Local mode is asked this many times fewer questions: each takes it hundreds of times longer."""

_POINT = {"id", "payload", "vector"}

Ask: TypeAlias = Callable[[str], Awaitable[object]]


@dataclass(frozen=True)
class Pause:
    """How late the heartbeat woke up, in seconds.

    Attributes:
        seconds: By the clock.
        ready: Of these, how long the loop's thread was ready to run and no processor was free.
        used: Processor time that all threads of this process used meanwhile.
    """

    seconds: float
    ready: float
    used: float

    @property
    def ours(self) -> float:
        """The part for which this process can be at fault."""
        return max(min(self.seconds - self.ready, self.used), 0.0)


def main(arguments: list[str] | None = None) -> None:
    """Measure all of them and print a table."""
    options = _parse_arguments(arguments)
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    words = _read_words()
    draw = random.Random(17)

    def questions(number: int = options.questions) -> list[str]:
        return [" ".join(draw.choices(words, k=_QUESTION_WORDS)) for _ in range(number)]

    with _work_folder(options.work) as work, EdgeQdrantClient(work / "store") as client:
        store = config.vector_store(_NAME, client=client)
        _fill(store, config, words, options.points)
        print(
            f"{options.points:,} points, {options.questions} questions, {options.at_once} at once"
        )
        print(
            f"{'pauses, ms':40}{'longest':>9}{'ours':>9}{'99.9%':>9}{'questions/s':>13}", flush=True
        )
        ask = _asking_llama_index(store, config)
        ours = _measure("LlamaIndex's retriever, our store", ask, questions(), options.at_once)
        ask = config.retriever(store).aretrieve
        ours += _measure("our retriever", ask, questions(), options.at_once)
        embedded = questions()
        ask = _asking_the_core(client, config.embedder, embedded)
        of_core = _measure("the embedded core alone", ask, embedded, options.at_once)
        stock = _stock_store(config.embedder, client, async_view(client))
        ask = _asking_llama_index(stock, config)
        _measure("stock store over the embedded core", ask, questions(), options.at_once)
        local = _stock_store(config.embedder, QdrantClient(":memory:"), _copy_to_local(client))
        few = questions(max(1, options.questions // _LOCAL_SHARE))
        ask = _asking_llama_index(local, config)
        _measure("stock store over local mode", ask, few, options.at_once)
    limit = max(LIMIT_MS, 1000 * max(pause.ours for pause in of_core))
    worst = 1000 * max(pause.ours for pause in ours)
    if worst > limit:
        sys.exit(f"expected pauses of at most {limit:.1f} ms, got {worst:.1f} ms")


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--work", type=Path, help="keep the collection here for another run")
    return parser.parse_args(arguments)


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder for the collection: the given one, or one that is removed at the end."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _read_words() -> list[str]:
    """Return words that are one token of the model each."""
    pieces = Tokenizer.from_file(str(mini_m3_folder() / "tokenizer.json")).get_vocab()
    return sorted(piece for piece in pieces if piece.isascii() and piece.isalpha())


def _fill(
    store: FingerprintedStore, config: UnifiedEmbeddingConfig, words: list[str], points: int
) -> None:
    """Write passages until there are as many as asked for."""
    present = store.client.count(_NAME).count
    draw = random.Random(present)
    while present < points:
        number = min(1000, points - present)
        nodes = [
            TextNode(
                text=" ".join(draw.choices(words, k=_PASSAGE_WORDS)),
                metadata={"file_name": f"{present + row}.txt"},
            )
            for row in range(number)
        ]
        store.add(config.text_model(nodes))
        present += number
        print(f"{present:,} passages written", end="\r", file=sys.stderr, flush=True)


# --- who is asked -------------------------------------------------------------------------------


def _asking_llama_index(store: QdrantVectorStore, config: UnifiedEmbeddingConfig) -> Ask:
    index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
    retriever = index.as_retriever(
        vector_store_query_mode="hybrid", similarity_top_k=10, sparse_top_k=20
    )
    return retriever.aretrieve


def _asking_the_core(
    client: EdgeQdrantClient, embedder: TextEmbedder, questions: Sequence[str]
) -> Ask:
    """Return what sends a question's two searches to the core in a thread, and reads no answer."""

    def translate(settings: Settings, core_shard: CoreShard) -> tuple[CoreShard, dict[str, Any]]:
        queried = client._queried(_NAME, settings, core_shard)
        batches = {}
        for question in (*questions, _FIRST):
            requests = _requests(embedder.encode_query(question))
            batches[question] = [to_core_query(request, queried) for request in requests]
        return core_shard, batches

    shard, batches = client._store.read(_NAME, "preparing", translate)

    async def ask(question: str) -> object:
        batch = core.QueryBatchRequest(batches[question])
        return await asyncio.to_thread(shard.query_batch, batch)

    return ask


def _requests(embeddings: Embeddings) -> list[qm.QueryRequest]:
    assert embeddings.dense is not None
    assert embeddings.sparse is not None
    sparse = qm.SparseVector(
        indices=embeddings.sparse[0].indices.tolist(), values=embeddings.sparse[0].values.tolist()
    )
    options: dict[str, Any] = {"limit": _DEPTH, "with_payload": True}
    return [
        qm.QueryRequest(query=embeddings.dense[0].tolist(), using=DENSE_VECTOR, **options),
        qm.QueryRequest(query=sparse, using=SPARSE_VECTOR, **options),
    ]


def _stock_store(
    embedder: TextEmbedder, client: Any, aclient: AsyncQdrantClient
) -> QdrantVectorStore:
    return QdrantVectorStore(
        _NAME,
        client=client,
        aclient=aclient,
        dense_vector_name=DENSE_VECTOR,
        **sparse_options(embedder, SPARSE_VECTOR),
    )


def _copy_to_local(client: EdgeQdrantClient) -> AsyncQdrantClient:
    """Return an async client in local mode that holds the same points."""
    local = AsyncQdrantClient(":memory:")
    vectors = client.get_collection(_NAME).config.params

    async def copy() -> None:
        await local.create_collection(
            _NAME,
            vectors_config=vectors.vectors,
            sparse_vectors_config=vectors.sparse_vectors,
        )
        offset = None
        while True:
            page, offset = client.scroll(_NAME, limit=1000, offset=offset, with_vectors=True)
            points = [qm.PointStruct(**record.model_dump(include=_POINT)) for record in page]
            await local.upsert(_NAME, points)
            if offset is None:
                return

    asyncio.run(copy())
    return local


# --- the heartbeat ------------------------------------------------------------------------------


def _measure(name: str, ask: Ask, questions: Sequence[str], at_once: int) -> list[Pause]:
    """Print and return the pauses of a loop in which the questions are asked."""
    gc.collect()
    gc.freeze()
    pauses, seconds = asyncio.run(_ask_all(ask, questions, at_once))
    longest = max(pause.seconds for pause in pauses)
    ours = [pause.ours for pause in pauses]
    print(
        f"{name:40}{1000 * longest:9.1f}{1000 * max(ours):9.1f}"
        f"{1000 * float(np.quantile(ours, 0.999)):9.1f}{len(questions) / seconds:13.0f}",
        flush=True,
    )
    return pauses


async def _ask_all(ask: Ask, questions: Sequence[str], at_once: int) -> tuple[list[Pause], float]:
    """Return the heartbeat's pauses while all questions are asked, and how long that took."""
    await ask(_FIRST)
    waiting = list(questions)
    pauses: list[Pause] = []
    beating = asyncio.create_task(_beat(pauses))
    started = time.perf_counter()

    async def work() -> None:
        while waiting:
            await ask(waiting.pop())

    await asyncio.gather(*[work() for _ in range(at_once)])
    seconds = time.perf_counter() - started
    beating.cancel()
    return pauses, seconds


async def _beat(pauses: list[Pause]) -> None:
    """Note how late each wake-up is, until cancelled."""
    with _thread_statistics() as ready_seconds:
        while True:
            ready, used = ready_seconds(), time.process_time()
            due = time.perf_counter() + _BEAT
            await asyncio.sleep(_BEAT)
            pauses.append(
                Pause(
                    seconds=time.perf_counter() - due,
                    ready=ready_seconds() - ready,
                    used=time.process_time() - used,
                )
            )


@contextmanager
def _thread_statistics() -> Iterator[Callable[[], float]]:
    """Yield what tells how long this thread has been ready to run without a processor, so far.

    Where Linux does not count it, that is 0.
    """
    statistics = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
    if not statistics.exists():
        yield lambda: 0.0
        return
    descriptor = os.open(statistics, os.O_RDONLY)

    def ready_seconds() -> float:
        # One call, as each gives the interpreter lock away for a while.
        _, waited, _ = os.pread(descriptor, 100, 0).split()
        return int(waited) / 1e9

    try:
        yield ready_seconds
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
