"""Measuring for `stores`: write collections, reopen them, query them, optimize them, query again.

What lives here: what is measured, and what makes it fair: batches, processes and questions go to
the stores in turn. What does not: the points (`points`), the collections (`store_collections`),
what a new process does (`open_store`), the command line and how results are shown (`stores`).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as qm

from open_store import CANDIDATES, LIMIT, NAME, OPEN, fused_request
from points import DIMENSION, Prepared, Question, Recipe
from report import Results, Row, spread
from store_collections import BATCH, LABELS, Collections, rates_of, summary, timed
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import DENSE_VECTOR
from unified_embeddings.system.progress import progress_bar

_WARM_QUESTIONS = 3
"""Questions before those that count."""
_CHILD_QUERIES = 20
_WARM_STARTS = 1
_LLAMA_POINTS = 2_000
_TIE = 1e-6
"""Scores that differ by less count as equal."""
_SCRIPT = Path(__file__).with_name("open_store.py")


@dataclass
class Store:
    """An open store and the whole retriever over it."""

    client: Client
    retriever: UnifiedHybridRetriever


class Run:
    """One run over all sizes.

    Args:
        options: The command line.
        recipe: How points are made.
        work: Folder for the collections.
    """

    def __init__(self, options: argparse.Namespace, recipe: Recipe, work: Path) -> None:
        self.options = options
        self.collections = Collections(recipe, work)
        self.work = work
        self.embedder = Prepared()
        self.questions = recipe.questions(options.queries + _WARM_QUESTIONS)
        self.embedder.known = {
            question.text: (question.dense, question.sparse) for question in self.questions
        }
        # From here on the cache has all their vectors, and no query has anything to compute.
        self.embedder.encode_queries([question.text for question in self.questions])

    def measure(self) -> Iterator[Results]:
        """Yield the results so far, after each size."""
        options = self.options
        results: Results = {
            "data": options.data,
            "dimension": DIMENSION,
            "queries": options.queries,
            "limit": LIMIT,
            "candidates": CANDIDATES,
            "batch": BATCH,
            "starts": options.starts,
            "llama_index": None,
            "sizes": {},
        }
        results["llama_index"] = self.collections.add_nodes(min(_LLAMA_POINTS, options.sizes[-1]))
        for size in options.sizes:
            print(f"{size:,} points", flush=True)
            results["sizes"][str(size)] = self._measure_size(size)
            yield results

    def _measure_size(self, size: int) -> Results:
        """Measure everything at one size."""
        options = self.options
        names = ["edge"]
        if size <= options.local_up_to:
            names.insert(0, "local")
        folders = {name: self.collections.folder(name, size) for name in (*names, "optimized")}
        rows: dict[str, Row] = {}
        for name, row in self.collections.write(
            size, {name: folders[name] for name in names}
        ).items():
            rows[name] = {"label": LABELS[name], "in": "folder", **row}
        if options.optimize:
            row = self.collections.optimize(folders["edge"], folders["optimized"])
            rows["optimized"] = {"label": LABELS["optimized"], "in": "folder", **row}
        self._reopen(rows, folders)
        with ExitStack() as stack:
            stores: dict[str, Store] = {}
            for name in rows:
                client = stack.enter_context(closing(OPEN[name](str(folders[name] / "store"))))
                stores[name] = self._open_retriever(client)
            if options.local_up_to < size <= options.in_memory_up_to:
                client = stack.enter_context(closing(QdrantClient(":memory:")))
                seconds = self.collections.fill({"local": client}, size)["local"]
                write = rates_of(seconds, size)
                rows["local"] = {"label": LABELS["local"], "in": "memory", "write": write}
                stores["local"] = self._open_retriever(client)
            ratios = self._query(rows, stores)
            for name in ratios:
                rows[name]["recall"] = self._recall(name, stores[name].client)
        if options.work is None:
            # A small disk is enough if each size leaves before the next one comes.
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
        return {"rows": rows, "times_local": ratios}

    def _reopen(self, rows: dict[str, Row], folders: dict[str, Path]) -> None:
        """Open each store in new processes, in turn: seconds to the first answer, and memory."""
        answers: dict[str, list[Row]] = {name: [] for name in rows}
        queries = []
        for question in self.questions[:_CHILD_QUERIES]:
            sparse = question.sparse
            queries.append(
                [question.dense.tolist(), sparse.indices.tolist(), sparse.values.tolist()]
            )
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            file = Path(folder) / "queries.json"
            file.write_text(json.dumps(queries), "utf-8")
            starts = self.options.starts + _WARM_STARTS
            with progress_bar("  new processes", starts * len(rows)) as advance:
                for _ in range(starts):
                    for name in rows:
                        answers[name].append(_open_in_child(name, folders[name] / "store", file))
                        advance(1)
        for name, row in rows.items():
            counted = answers[name][_WARM_STARTS:]
            seconds = {
                stage: spread([answer["seconds"][stage] for answer in counted])
                for stage in counted[0]["seconds"]
            }
            seconds["all"] = spread([sum(answer["seconds"].values()) for answer in counted])
            row["reopen_seconds"] = seconds
            row["count"] = counted[0]["count"]
            row["memory"] = {when: counted[-1][when] for when in ("before", "after")}

    def _open_retriever(self, client: Client) -> Store:
        store = build_vector_store(self.embedder, NAME, client=client)
        return Store(client, UnifiedHybridRetriever(store, self.embedder, similarity_top_k=LIMIT))

    def _query(self, rows: dict[str, Row], stores: dict[str, Store]) -> Results:
        """Ask all stores the same questions, in turn.

        Returns:
            How many times faster than local mode each other store is.
        """
        ratios: Results = {name: {} for name in stores if name != "local"}
        kinds = {"query": _query_seconds, "retriever": _retriever_seconds}
        with progress_bar("  asking", len(kinds) * len(self.questions)) as advance:
            for kind, measure_seconds in kinds.items():
                times: dict[str, dict[int, float]] = {name: {} for name in stores}
                for turn, question in enumerate(self.questions):
                    for name in self._stores_in_turn(stores, turn):
                        times[name][turn] = 1000 * measure_seconds(stores[name], question)
                    advance(1)
                for name, by_turn in times.items():
                    rows[name][f"{kind}_ms"] = summary(_counted(by_turn))
                    if "local" in times and name != "local":
                        ratios[name][kind] = _times_local(times["local"], by_turn)
        return ratios

    def _stores_in_turn(self, stores: dict[str, Store], turn: int) -> list[str]:
        """Return the stores that get a question, in random order.

        The order matters: after local mode the processor's cache is cold. Local mode takes seconds
        where the others take milliseconds, so it gets only every n-th question.
        """
        names = list(stores)
        random.Random(turn).shuffle(names)
        interval = max(1, len(self.questions) // self.options.local_queries)
        is_warm_up = turn < _WARM_QUESTIONS
        if not is_warm_up and (turn - _WARM_QUESTIONS) % interval != 0 and "local" in names:
            names.remove("local")
        return names

    def _recall(self, name: str, client: Client) -> dict[str, float]:
        """Return the mean recall of the dense and of the fused search over all questions."""
        shares: dict[str, list[float]] = {"dense": [], "fused": []}
        requests = {"dense": _dense_request, "fused": _fused_request}
        counted = self.questions[_WARM_QUESTIONS:]
        with progress_bar(f"  recall, {LABELS[name]}", len(counted)) as advance:
            for question in counted:
                for kind, make_request in requests.items():
                    request = make_request(question, exact=False, limit=LIMIT)
                    exact_request = make_request(question, exact=True, limit=2 * CANDIDATES)
                    points = client.query_points(**request).points
                    exact_points = client.query_points(**exact_request).points
                    shares[kind].append(recall(points, exact_points))
                advance(1)
        return {kind: sum(values) / len(values) for kind, values in shares.items()}


def recall(found: Sequence[qm.ScoredPoint], exact: Sequence[qm.ScoredPoint]) -> float:
    """Return the share of the best exact results that was found.

    Fused scores are often equal, and which of two such points comes first is random. So a point
    that scores as much as the last of the best counts as one of them.

    Args:
        found: The points that were found.
        exact: All candidates, best first; more than are looked for.
    """
    count = min(LIMIT, len(exact))
    least_score = exact[count - 1].score - _TIE
    good_ids = {point.id for point in exact if point.score >= least_score}
    hits = good_ids & {point.id for point in found}
    return min(count, len(hits)) / count


def _query_seconds(store: Store, question: Question) -> float:
    # The request is made before the clock starts: an application has its lists already.
    request = _fused_request(question, exact=False, limit=LIMIT)
    return timed(store.client.query_points, **request)


def _retriever_seconds(store: Store, question: Question) -> float:
    return timed(store.retriever.retrieve, question.text)


def _fused_request(question: Question, *, exact: bool, limit: int) -> dict[str, Any]:
    indices, values = question.sparse.indices.tolist(), question.sparse.values.tolist()
    sparse = qm.SparseVector(indices=indices, values=values)
    return fused_request(question.dense.tolist(), sparse, exact=exact, limit=limit)


def _dense_request(question: Question, *, exact: bool, limit: int) -> dict[str, Any]:
    return {
        "collection_name": NAME,
        "query": question.dense.tolist(),
        "using": DENSE_VECTOR,
        "limit": limit,
        "search_params": qm.SearchParams(exact=True) if exact else None,
    }


def _open_in_child(name: str, folder: Path, queries: Path) -> Row:
    """Open a store in a new process and return what that process measured."""
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), name, str(folder), str(queries)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: Row = json.loads(done.stdout.splitlines()[-1])
    return answer


def _counted(by_turn: dict[int, float]) -> list[float]:
    """Return the times of the questions that count."""
    return [time for turn, time in by_turn.items() if turn >= _WARM_QUESTIONS]


def _times_local(local: dict[int, float], other: dict[int, float]) -> Row:
    """Divide local mode's time by another store's, for each question that both were asked."""
    turns = [turn for turn in local if turn >= _WARM_QUESTIONS]
    return summary([local[turn] / other[turn] for turn in turns])
