"""Retrieval with mini-m3's heads, measured on a data set that the fit never reads.

What lives here: nDCG@10 of dense, sparse and fused retrieval by brute force, without Qdrant, so
that a fit can be judged before it is part of the package.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mini_m3_backbone import Backbone, Encoded, FloatArray, IntArray, SparseHead

RRF_K = 20
CANDIDATES = 50
WEIGHTS = (1.0, 0.6)
"""Of the dense and the sparse ranking: mini-m3's own fusion in `models/catalogue.py`."""
TOP_K = 10

Judgements = dict[str, dict[str, int]]
"""Query id → document id → grade."""
Rankings = dict[str, dict[str, float]]
"""Query id → document id → score."""


def dense_vectors(texts: Sequence[Encoded]) -> FloatArray:
    """Return the means over all tokens, [CLS] and [SEP] included, L2-normalised: (n, 384)."""
    means: FloatArray = np.stack([text.hidden.mean(axis=0) for text in texts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means


def lexical_weights(
    text: Encoded, head: SparseHead, special_ids: IntArray, *, sum_repeats: bool
) -> dict[int, float]:
    """Return one weight > 0 per token id: of a repeated token the sum, or else the largest."""
    weights: dict[int, float] = {}
    for index, weight in zip(text.ids.tolist(), head(text.hidden).tolist(), strict=True):
        weight_so_far = weights.get(index, 0.0)
        if sum_repeats:
            weights[index] = weight_so_far + weight
        else:
            weights[index] = max(weight_so_far, weight)
    weights = {index: weight for index, weight in weights.items() if weight > 0}
    for index in special_ids.tolist():
        weights.pop(index, None)
    return weights


def inverse_document_frequencies(
    token_ids: Sequence[IntArray], vocabulary_size: int
) -> NDArray[np.float64]:
    """Return each vocabulary id's idf over texts, (vocabulary,), as Qdrant computes it.

    It is ln(1 + (n - df + 0.5) / (df + 0.5)), for an id that df of n texts hold.
    """
    frequency = np.zeros(vocabulary_size)
    for ids in token_ids:
        frequency[np.unique(ids)] += 1
    idf: NDArray[np.float64] = np.log1p((len(token_ids) - frequency + 0.5) / (frequency + 0.5))
    return idf


def sparse_scores(
    queries: Sequence[dict[int, float]],
    documents: Sequence[dict[int, float]],
    idf: NDArray[np.float64],
) -> FloatArray:
    """Return sums of weight · weight · idf, by an inverted index: (queries, documents)."""
    postings: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row, weights in enumerate(documents):
        for index, weight in weights.items():
            postings[index].append((row, weight))
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, weights in enumerate(queries):
        for index, weight in weights.items():
            for document, document_weight in postings.get(index, ()):
                scores[row, document] += weight * document_weight * idf[index]
    return scores


def best_names(scores: dict[str, float], limit: int) -> list[str]:
    """Return the best ids; ties go to the larger id, as in pytrec_eval."""
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)[:limit]


def candidates(scores: FloatArray, names: Sequence[str], *, above: float) -> list[str]:
    """Return the 50 best `names` by a row of scores (n,), among those with more than `above`."""
    scored = zip(names, scores.tolist(), strict=True)
    return best_names({name: score for name, score in scored if score > above}, CANDIDATES)


def reciprocal_rank_fusion(lists: Sequence[Sequence[str]]) -> dict[str, float]:
    """Sum weight / (20 + rank + 1) over the lists, rank from 0 (Cormack et al., SIGIR 2009)."""
    fused: dict[str, float] = defaultdict(float)
    for names, weight in zip(lists, WEIGHTS, strict=True):
        for rank, name in enumerate(names):
            fused[name] += weight / (RRF_K + rank + 1)
    return dict(fused)


def read_beir(folder: Path) -> tuple[dict[str, str], dict[str, str], Judgements]:
    """Read documents, queries and relevance judgements from a folder in BEIR's layout."""

    def texts(path: Path) -> dict[str, str]:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows}

    judgements: Judgements = defaultdict(dict)
    with (folder / "qrels/test.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, grade = line.split("\t")
            judgements[query][document] = int(grade)
    return texts(folder / "corpus.jsonl"), texts(folder / "queries.jsonl"), dict(judgements)


def ndcg(judgements: Judgements, rankings: Rankings) -> dict[str, float]:
    """Return nDCG@10 of each judged query, with linear gain; 0 if it has no ranking."""
    import pytrec_eval

    evaluator = pytrec_eval.RelevanceEvaluator(judgements, {f"ndcg_cut.{TOP_K}"})
    measured = evaluator.evaluate(rankings)
    return {query: measured.get(query, {}).get(f"ndcg_cut_{TOP_K}", 0.0) for query in judgements}


def evaluate(backbone: Backbone, head: SparseHead, folder: Path) -> None:
    """Print nDCG@10 of dense, sparse and fused, over all queries and over two random halves."""
    corpus, queries, judgements = read_beir(folder)
    documents = backbone.encode(list(corpus.values()))
    questions = backbone.encode(list(queries.values()))
    special_ids = backbone.special_ids
    document_weights = [
        lexical_weights(text, head, special_ids, sum_repeats=False) for text in documents
    ]
    query_weights = [
        lexical_weights(text, head, special_ids, sum_repeats=True) for text in questions
    ]
    idf = inverse_document_frequencies([text.ids for text in documents], backbone.vocabulary_size)
    scores = {
        "dense": dense_vectors(questions) @ dense_vectors(documents).T,
        "sparse": sparse_scores(query_weights, document_weights, idf),
    }
    rankings = rank(scores, list(queries), list(corpus))
    results = {kind: ndcg(judgements, found) for kind, found in rankings.items()}
    print(f"nDCG@{TOP_K} on {folder}: {len(corpus)} documents, {len(judgements)} judged queries")
    print_results(results, sorted(judgements))
    print_weights(document_weights, query_weights)


def rank(
    scores: dict[str, FloatArray], query_names: Sequence[str], document_names: Sequence[str]
) -> dict[str, Rankings]:
    """Rank the documents for each query by dense, by sparse and by fused scores.

    Args:
        scores: "dense" and "sparse": (queries, documents).
        query_names: Ids of the queries, in the order of the rows.
        document_names: Ids of the documents, in the order of the columns.
    """
    rankings: dict[str, Rankings] = {"dense": {}, "sparse": {}, "fused": {}}
    for row, query in enumerate(query_names):
        hits = {
            "dense": candidates(scores["dense"][row], document_names, above=-np.inf),
            # No shared token is no match: a sparse index does not return such a document.
            "sparse": candidates(scores["sparse"][row], document_names, above=0.0),
        }
        fused = reciprocal_rank_fusion(list(hits.values()))
        hits["fused"] = best_names(fused, TOP_K)
        for kind, names in hits.items():
            # pytrec_eval sorts by score, so the order itself is passed as the score.
            rankings[kind][query] = {name: float(-place) for place, name in enumerate(names)}
    return rankings


def print_results(results: dict[str, dict[str, float]], judged: Sequence[str]) -> None:
    """Print the mean nDCG over all judged queries and over two random halves of them."""
    shuffled = np.random.default_rng(0).permutation(judged).tolist()
    middle = len(judged) // 2
    groups = {"all": judged, "half 1": shuffled[:middle], "half 2": shuffled[middle:]}
    print(f"  {'queries':8s} {'dense':>7s} {'sparse':>7s} {'fused':>7s} {'fused - dense':>14s}")
    for group, members in groups.items():
        mean: dict[str, float] = {}
        for kind, by_query in results.items():
            mean[kind] = float(np.mean([by_query[query] for query in members]))
        gain = mean["fused"] - mean["dense"]
        print(
            f"  {group:8s} {mean['dense']:7.4f} {mean['sparse']:7.4f} {mean['fused']:7.4f}"
            f" {gain:+14.4f}"
        )


def print_weights(
    document_weights: Sequence[dict[int, float]], query_weights: Sequence[dict[int, float]]
) -> None:
    """Print how many weights a text has, and how large they are."""
    document_size = np.mean([len(weights) for weights in document_weights])
    query_size = np.mean([len(weights) for weights in query_weights])
    values = np.array([value for weights in document_weights for value in weights.values()])
    print(
        f"  {document_size:.1f} weights a document, {query_size:.1f} a query;"
        f" median {np.median(values):.2f}, largest {values.max():.2f},"
        f" above 1: {100 * (values > 1).mean():.2f}%"
    )
