"""Do queries generated from a collection rank systems as people's judged questions do?

Indexes judged sets in BEIR's layout into an embedded store, generates queries from their documents
as `make-queries` does, and scores systems by nDCG@10 with both kinds of queries. Kendall's τ-b says
how alike the two orders are: 1 for the same, 0 for unrelated ones, -1 for the reverse. Two sets of
systems are ranked: ways to weigh dense against sparse rankings (one list alone, RRF, DBSF), and
dense vectors cut to their first dimensions, which differ in quality and not in kind. The last
columns say what tuning by generated queries would choose, and what that gets from the real ones.

    python benchmarks/generated_queries.py ../shared/data/med ../shared/data/xquad_r/en
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuning import search_set
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.corpora import Corpus, Qrels, read_beir
from unified_embeddings.evaluation.fusion_choices import (
    DENSE_ALONE,
    SPARSE_ALONE,
    list_choices,
    score_choices,
)
from unified_embeddings.evaluation.generated_queries import (
    QUERY_KINDS,
    GeneratedQuery,
    Passage,
    QueryKind,
    generate_queries,
)
from unified_embeddings.evaluation.metrics import QueryScores
from unified_embeddings.evaluation.rank_correlation import kendall_tau
from unified_embeddings.evaluation.rankings import Run, ndcg
from unified_embeddings.evaluation.tuning import tune_fusion
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.ranking import id_order
from unified_embeddings.types import FloatArray

_SHARES = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 1)
"""Of a dense vector's dimensions, how many are kept."""
_FEWEST = 10
"""Queries of a kind below which no correlation is given."""
_TOP = 10


@dataclass(frozen=True)
class Comparison:
    """How generated queries and judged ones rank systems on one set.

    Attributes:
        name: The set's.
        kinds: Generated queries by kind.
        mixes: τ over ways to weigh dense against sparse, by all generated queries.
        mixes_by_kind: The same by the queries of each kind that has ten or more.
        cuts: τ over dense vectors cut to their first dimensions.
        generated: nDCG@10 of dense alone, sparse alone and the model's own, generated queries.
        real: The same, judged queries.
        choice: What tuning by generated queries chooses.
        choice_real: Its nDCG@10 by judged queries.
    """

    name: str
    kinds: dict[QueryKind, int]
    mixes: float
    mixes_by_kind: dict[QueryKind, float]
    cuts: float
    generated: tuple[float, float, float]
    real: tuple[float, float, float]
    choice: Fusion
    choice_real: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets named on the command line, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="judged sets in BEIR's layout")
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    parser.add_argument("--queries", type=int, default=300, help="default: 300")
    options = parser.parse_args(arguments)
    config = UnifiedEmbeddingConfig(options.model)
    comparisons = [compare(config, folder, options.queries) for folder in options.folders]
    print(format_correlations(comparisons))
    print(format_scores(comparisons))


def compare(config: UnifiedEmbeddingConfig, folder: Path, count: int) -> Comparison:
    """Rank systems on one set by generated and by judged queries.

    Raises:
        InputError: If the folder is not a judged set in BEIR's layout.
    """
    corpus = read_beir(folder)
    assert corpus.qrels is not None
    queries = _generate(corpus, count)
    texts = {name: query.text for name, query in queries.items()}
    qrels: Qrels = {name: dict.fromkeys(query.documents, 1) for name, query in queries.items()}
    own = config.embedder.fusion
    choices = list_choices(own)
    searched = search_set(config, corpus, {**corpus.queries, **texts})
    generated = score_choices(searched, qrels, choices, tie_key=id_order)
    real = score_choices(searched, corpus.qrels, choices, tie_key=id_order)
    real_means = _means(real)
    kinds = {
        kind: [name for name, query in queries.items() if query.kind == kind]
        for kind in QUERY_KINDS
    }
    by_kind = {
        kind: kendall_tau(_means(generated, names), real_means)
        for kind, names in kinds.items()
        if len(names) >= _FEWEST
    }
    choice = tune_fusion(generated, own).choice
    shown = (DENSE_ALONE, SPARSE_ALONE, own)
    return Comparison(
        name=corpus.name,
        kinds={kind: len(names) for kind, names in kinds.items()},
        mixes=kendall_tau(_means(generated), real_means),
        mixes_by_kind=by_kind,
        cuts=_correlate_cuts(config, corpus, texts, qrels),
        generated=_pick(generated, shown),
        real=_pick(real, shown),
        choice=choice,
        choice_real=mean(real[choice]),
    )


def _generate(corpus: Corpus, count: int) -> dict[str, GeneratedQuery]:
    passages = [
        Passage(passage_id=name, text=text, document=name)
        for name, text in corpus.documents.items()
    ]
    queries = generate_queries(passages, count)
    return {f"generated {number}": query for number, query in enumerate(queries)}


def _correlate_cuts(
    config: UnifiedEmbeddingConfig, corpus: Corpus, texts: Mapping[str, str], qrels: Qrels
) -> float:
    """Return τ over dense vectors cut to their first dimensions, by generated and real queries."""
    assert corpus.qrels is not None
    embedder = config.embedder
    documents = embedder.encode_documents(list(corpus.documents.values()), sparse=False).dense
    real = embedder.encode_queries(list(corpus.queries.values()), sparse=False).dense
    generated = embedder.encode_queries(list(texts.values()), sparse=False).dense
    assert documents is not None
    assert real is not None
    assert generated is not None
    names = list(corpus.documents)
    scores: list[tuple[float, float]] = []
    for share in _SHARES:
        width = round(share * embedder.dimension)
        real_run = _rank(real[:, :width], documents[:, :width], list(corpus.queries), names)
        run = _rank(generated[:, :width], documents[:, :width], list(texts), names)
        scores.append((ndcg(run, qrels), ndcg(real_run, corpus.qrels)))
    return kendall_tau([first for first, _ in scores], [second for _, second in scores])


def _rank(
    queries: FloatArray, documents: FloatArray, query_ids: Sequence[str], names: Sequence[str]
) -> Run:
    """Return the ten documents of the highest cosine for each query."""
    documents = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    run: Run = {}
    for query_id, query in zip(query_ids, queries, strict=True):
        scores = documents @ query
        best = np.argsort(-scores, kind="stable")[:_TOP]
        run[query_id] = {names[row]: float(scores[row]) for row in best}
    return run


def mean(scores: QueryScores, query_ids: Sequence[str] | None = None) -> float:
    """Return the mean over some queries, or over all."""
    names = list(scores) if query_ids is None else query_ids
    return math.fsum(scores[name] for name in names) / len(names)


def _means(
    scores: Mapping[Fusion, QueryScores], query_ids: Sequence[str] | None = None
) -> list[float]:
    return [mean(query_scores, query_ids) for query_scores in scores.values()]


def _pick(
    scores: Mapping[Fusion, QueryScores], shown: tuple[Fusion, Fusion, Fusion]
) -> tuple[float, float, float]:
    dense, sparse, own = (mean(scores[fusion]) for fusion in shown)
    return dense, sparse, own


# --- tables -------------------------------------------------------------------------------------


def format_correlations(comparisons: Sequence[Comparison]) -> str:
    """Return τ of both sets of systems on each set, and by kind of query."""
    lines = [
        "### Kendall's τ between generated and judged queries\n",
        "| set | mixes of dense and sparse | cut dense vectors | mixes, by kind (queries) |",
        "|---|--:|--:|---|",
    ]
    for comparison in comparisons:
        kinds = ", ".join(
            f"{kind} {tau:+.2f} ({comparison.kinds[kind]})"
            for kind, tau in comparison.mixes_by_kind.items()
        )
        lines.append(
            f"| {comparison.name} | {comparison.mixes:+.2f} | {comparison.cuts:+.2f} | {kinds} |"
        )
    return "\n".join(lines) + "\n"


def format_scores(comparisons: Sequence[Comparison]) -> str:
    """Return nDCG@10 by both kinds of queries, and what tuning by generated ones would do."""
    lines = [
        "### nDCG@10: dense alone, sparse alone, the model's own fusion; tuned by generated ones\n",
        "| set | generated | judged | choice by generated queries | its judged nDCG@10 |",
        "|---|---|---|---|--:|",
    ]
    for comparison in comparisons:
        generated = ", ".join(f"{value:.3f}" for value in comparison.generated)
        real = ", ".join(f"{value:.3f}" for value in comparison.real)
        lines.append(
            f"| {comparison.name} | {generated} | {real} | {comparison.choice} "
            f"| {comparison.choice_real:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
