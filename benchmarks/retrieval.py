"""Is the default retrieval better than dense vectors alone, and than BM25?

Indexes judged sets in BEIR's layout into an embedded store, asks every question through the
retriever, and prints nDCG@10 of each way to search, its difference to dense vectors alone and to
BM25 over the same tokens (whole texts, k1 = 1.2, b = 0.75), the differences' 95% bootstrap
intervals, and p of the paired randomisation test.

    python benchmarks/retrieval.py ../shared/data/med ../shared/data/cacm ../shared/data/xquad_r/en
    python benchmarks/retrieval.py --choose ...    # also every weighting, and one set left out
    python benchmarks/retrieval.py --sparse-model bm25 ...    # BM25 on words as the second list

"Default" goes through the retriever's own fusion. With --choose, the two rankings are fused here
with other weights, k and depths. Each set is then judged by the choice that is best on the others.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bm25 import Bm25
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.evaluation.rankings import Run, ndcg_by_query, sort_by_score
from unified_embeddings.evaluation.significance import PairedDifference, compare_scores
from unified_embeddings.fusion import rrf
from unified_embeddings.system.progress import progress_bar

DEPTH = 100
"""Documents of each ranking that are kept for fusing with other weights."""
_INSERT_BATCH = 256
_WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
"""Weights of the sparse ranking that are tried; the dense one has 1."""
_KS = (10, 20, 60)
_CANDIDATES = (20, 50, 100)

Scores = dict[str, float]
"""Query id → nDCG@10."""
Choice = tuple[float, int, int]
"""Weight of the sparse ranking, k, candidates."""


@dataclass(frozen=True)
class JudgedSet:
    """One set's rankings and scores.

    Attributes:
        corpus: Texts and judgements.
        runs: Name of a way to search → what it found.
        scores: Name of a way to search → nDCG@10 of each query.
    """

    corpus: Corpus
    runs: dict[str, Run]
    scores: dict[str, Scores]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets named on the command line, and print tables in Markdown."""
    options = _parse_arguments(arguments)
    config = UnifiedEmbeddingConfig(options.model, sparse_model=options.sparse_model)
    fusion = config.embedder.fusion
    name = " + ".join(filter(None, (options.model, options.sparse_model)))
    print(
        f"{name}, default fusion: weights {fusion.weights}, k {fusion.k}, "
        f"{fusion.candidates} candidates ({fusion.source})\n"
    )
    judged_sets = [measure(config, folder) for folder in options.folders]
    for judged_set in judged_sets:
        print(format_table(judged_set))
    print(format_means(judged_sets))
    if options.choose:
        print(format_choices(judged_sets))


def measure(config: UnifiedEmbeddingConfig, folder: Path) -> JudgedSet:
    """Index a set and search it in every way.

    Raises:
        InputError: If the folder is not a judged set in BEIR's layout.
    """
    corpus = read_beir(folder)
    ways: dict[str, dict[str, Any]] = {
        "dense": {"mode": "dense", "similarity_top_k": DEPTH},
        "sparse": {"mode": "sparse", "similarity_top_k": DEPTH},
        "plain RRF": {"weights": (1, 1), "candidates": 20},
        "default": {},
    }
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
        store = config.vector_store("judged", path=work)
        index(config, store, corpus)
        config.embedder.encode_queries(list(corpus.queries.values()))  # in large batches
        for name, options in ways.items():
            retriever = config.retriever(store, **options)
            runs[name] = {}
            for query_id, text in corpus.queries.items():
                nodes = retriever.retrieve(text)
                runs[name][query_id] = _to_scores(
                    scored.node.metadata["document"] for scored in nodes
                )
        store.client.close()
    runs["BM25"] = _search_by_bm25(config.embedder.tokenise, corpus)
    assert corpus.qrels is not None
    scores = {name: ndcg_by_query(run, corpus.qrels) for name, run in runs.items()}
    return JudgedSet(corpus=corpus, runs=runs, scores=scores)


def index(config: UnifiedEmbeddingConfig, store: Any, corpus: Corpus) -> None:
    """Put a set's documents into a store, their ids into the metadata field `document`."""
    from llama_index.core.schema import TextNode

    nodes = [
        TextNode(
            id_=str(uuid.uuid5(uuid.NAMESPACE_URL, document_id)),
            text=text,
            metadata={"document": document_id},
            excluded_embed_metadata_keys=["document"],
        )
        for document_id, text in corpus.documents.items()
    ]
    with progress_bar(f"Indexing {corpus.name}", len(nodes)) as advance:
        for start in range(0, len(nodes), _INSERT_BATCH):
            batch = nodes[start : start + _INSERT_BATCH]
            store.add(config.text_model(batch))
            advance(len(batch))


def _search_by_bm25(tokenise: Callable[[str], list[int]], corpus: Corpus) -> Run:
    document_ids = list(corpus.documents)
    index = Bm25([tokenise(text) for text in corpus.documents.values()])
    run: Run = {}
    for query_id, text in corpus.queries.items():
        scores = dict(zip(document_ids, index.scores(tokenise(text)).tolist(), strict=True))
        found = {document_id: score for document_id, score in scores.items() if score > 0}
        run[query_id] = _to_scores(sort_by_score(found)[:DEPTH])
    return run


def _to_scores(document_ids: Iterable[str]) -> dict[str, float]:
    """Return scores that keep the order given, whatever ties a scorer would break."""
    return {document_id: -float(rank) for rank, document_id in enumerate(document_ids)}


# --- tables -------------------------------------------------------------------------------------


def mean(scores: Scores) -> float:
    """Return the mean over the queries."""
    return math.fsum(scores.values()) / len(scores)


def format_table(judged_set: JudgedSet) -> str:
    """Return one set's ways to search, compared with dense vectors alone and with BM25."""
    corpus, scores = judged_set.corpus, judged_set.scores
    lines = [
        f"### {corpus.name}: {len(corpus.documents)} documents, {len(corpus.queries)} queries\n",
        "| way | nDCG@10 | more than dense | more than BM25 |",
        "|---|--:|--:|--:|",
    ]
    for name, query_scores in scores.items():
        differences = []
        for reference in ("dense", "BM25"):
            text = ""
            if name != reference:
                text = format_difference(compare_scores(scores[reference], query_scores))
            differences.append(text)
        lines.append(f"| {name} | {mean(query_scores):.4f} | {' | '.join(differences)} |")
    return "\n".join(lines) + "\n"


def format_difference(difference: PairedDifference) -> str:
    """Return a difference with its interval and its p."""
    return (
        f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], "
        f"p = {difference.p_value:.4f}"
    )


def format_means(judged_sets: Sequence[JudgedSet]) -> str:
    """Return the means over the sets, each set counting the same."""
    lines = ["### Mean over the sets\n", "| way | nDCG@10 | more than dense |", "|---|--:|--:|"]
    dense = average(mean(judged_set.scores["dense"]) for judged_set in judged_sets)
    for name in judged_sets[0].scores:
        value = average(mean(judged_set.scores[name]) for judged_set in judged_sets)
        lines.append(f"| {name} | {value:.4f} | {value - dense:+.4f} |")
    return "\n".join(lines) + "\n"


def average(values: Iterable[float]) -> float:
    """Return the mean of values, at least one."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


# --- choosing -----------------------------------------------------------------------------------


def fuse(judged_set: JudgedSet, choice: Choice) -> Scores:
    """Return nDCG@10 of each query, its two rankings fused as the choice says."""
    weight, k, candidates = choice
    run: Run = {}
    for query_id in judged_set.corpus.queries:
        rankings = [
            list(judged_set.runs[name][query_id])[:candidates] for name in ("dense", "sparse")
        ]
        fused = rrf(rankings, k, (1.0, weight), tie_key=str)
        run[query_id] = _to_scores(document_id for document_id, _ in fused)
    assert judged_set.corpus.qrels is not None
    return ndcg_by_query(run, judged_set.corpus.qrels)


def format_choices(judged_sets: Sequence[JudgedSet]) -> str:
    """Return every choice's gain over dense alone, and each set judged by the others' choice."""
    gains: dict[Choice, list[float]] = {}
    for choice in itertools.product(_WEIGHTS, _KS, _CANDIDATES):
        gains[choice] = [
            mean(fuse(judged_set, choice)) - mean(judged_set.scores["dense"])
            for judged_set in judged_sets
        ]
    names = [judged_set.corpus.name for judged_set in judged_sets]
    lines = [
        "### Gain over dense alone, by weight of the sparse ranking, k and candidates\n",
        f"| weight | k | candidates | {' | '.join(names)} | mean |",
        f"|--:|--:|--:|{'--:|' * (len(names) + 1)}",
    ]
    for (weight, k, candidates), set_gains in gains.items():
        cells = " | ".join(f"{gain:+.4f}" for gain in (*set_gains, average(set_gains)))
        lines.append(f"| {weight} | {k} | {candidates} | {cells} |")
    lines += ["", "### Each set by the choice that is best on the others\n"]
    lines += _leave_one_out(gains, names)
    return "\n".join(lines) + "\n"


def _leave_one_out(gains: Mapping[Choice, Sequence[float]], names: Sequence[str]) -> list[str]:
    lines = ["| set left out | weight | k | candidates | its gain |", "|---|--:|--:|--:|--:|"]
    for position, name in enumerate(names):

        def gain_on_others(choice: Choice, position: int = position) -> float:
            others = [gain for i, gain in enumerate(gains[choice]) if i != position]
            return average(others)

        best = max(gains, key=gain_on_others)
        cells = " | ".join(map(str, best))
        lines.append(f"| {name} | {cells} | {gains[best][position]:+.4f} |")
    return lines


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="judged sets in BEIR's layout")
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    parser.add_argument("--sparse-model", help="gives the sparse vectors in its stead: bm25, ...")
    parser.add_argument("--choose", action="store_true", help="also try other weights, k, depths")
    options = parser.parse_args(arguments)
    if options.choose and len(options.folders) < 2:
        parser.error("--choose needs at least two sets: each is judged by the others' choice")
    return options


if __name__ == "__main__":
    main()
