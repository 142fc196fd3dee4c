"""Is a fusion that is tuned on judged queries better on queries that it was not tuned on?

Indexes judged sets in BEIR's layout into an embedded store, searches for both lists of each query,
and prints nDCG@10 of the model's own fusion, of the better list alone and of tuning by ten-fold
cross-validation, with the differences' 95% bootstrap intervals. Then it tunes on random draws of a
few queries, judges the choice on all the others, and prints the mean gain and how often the choice
is worse by more than 0.005, by the number of standard errors that a choice must beat the model's
own fusion by.

    python benchmarks/tuning.py ../shared/data/med ../shared/data/xquad_r/en
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval import format_difference, index
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.evaluation.fusion_choices import (
    DEEPEST,
    SearchedQuery,
    list_choices,
    score_choices,
)
from unified_embeddings.evaluation.metrics import QueryScores
from unified_embeddings.evaluation.tuning import TuningReport, tune_fusion
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.both_lists import search_both_lists
from unified_embeddings.search.ranking import id_order
from unified_embeddings.system.progress import progress_bar

_THRESHOLDS = (0.0, 1.0, 1.5, 2.0, 2.5)
"""Standard errors by which a choice must beat the default; the product's is 1.5."""
_SIZES = (15, 25, 50, 200)
_DRAWS = 300
_WORSE = 0.005

Table = NDArray[np.float64]
"""nDCG@10, (choices, queries), the default first."""


@dataclass(frozen=True)
class TunedSet:
    """One set, and what tuning does on it.

    Attributes:
        name: The set's.
        documents: How many it has.
        scores: Each choice's nDCG@10 by query.
        report: What tuning chooses.
    """

    name: str
    documents: int
    scores: Mapping[Fusion, QueryScores]
    report: TuningReport


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets named on the command line, and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="judged sets in BEIR's layout")
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    options = parser.parse_args(arguments)
    config = UnifiedEmbeddingConfig(options.model)
    own = config.embedder.fusion
    print(f"{options.model}, its own fusion: {own} ({own.source})\n")
    tuned_sets = [tune_set(config, folder) for folder in options.folders]
    print(format_reports(tuned_sets))
    print(format_draws(tuned_sets))


def tune_set(config: UnifiedEmbeddingConfig, folder: Path) -> TunedSet:
    """Index a set, search it and tune on it.

    Raises:
        InputError: If the folder is not a judged set in BEIR's layout.
    """
    corpus = read_beir(folder)
    assert corpus.qrels is not None
    searched = search_set(config, corpus, corpus.queries)
    own = config.embedder.fusion
    choices = list_choices(own)
    with progress_bar(f"Fusing {corpus.name}", len(choices)) as advance:
        scores = score_choices(searched, corpus.qrels, choices, tie_key=id_order, on_choice=advance)
    return TunedSet(
        name=corpus.name,
        documents=len(corpus.documents),
        scores=scores,
        report=tune_fusion(scores, own),
    )


def search_set(
    config: UnifiedEmbeddingConfig, corpus: Corpus, queries: Mapping[str, str]
) -> dict[str, SearchedQuery]:
    """Index a set's documents, and search for both lists of each query."""
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
        store = config.vector_store("judged", path=work)
        index(config, store, corpus)
        with progress_bar(f"Searching {corpus.name}", len(queries)) as advance:
            searched = search_both_lists(
                store,
                config.embedder,
                queries,
                corpus.documents,
                depth=DEEPEST,
                document_field="document",
                on_query=advance,
            )
        store.client.close()
    return searched


# --- tables -------------------------------------------------------------------------------------


def format_reports(tuned_sets: Sequence[TunedSet]) -> str:
    """Return what tuning chooses on each set and what that gains, held out."""
    lines = [
        "### Held out, by ten-fold cross-validation\n",
        "| set | queries | own fusion | better list alone | tuned | more than own | more than the "
        "list alone | choice on all queries |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for tuned_set in tuned_sets:
        report = tuned_set.report
        cells = (
            tuned_set.name,
            report.queries,
            f"{report.means[report.default]:.4f}",
            f"{report.means[report.best_single]:.4f} ({report.best_single})",
            f"{report.held_out:.4f}",
            format_difference(report.against_default),
            format_difference(report.against_single),
            report.choice,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def format_draws(tuned_sets: Sequence[TunedSet]) -> str:
    """Return what tuning on a few queries gains on all the others."""
    headings = " | ".join(f"{threshold:g} SE" for threshold in _THRESHOLDS)
    lines = [
        f"### Tuned on n queries, judged on the others: mean gain over {_DRAWS} draws, and "
        f"the share of draws that lose more than {_WORSE}\n",
        f"| set | n | {headings} |",
        f"|---|--:|{'--:|' * len(_THRESHOLDS)}",
    ]
    for tuned_set in tuned_sets:
        query_ids = list(tuned_set.scores[tuned_set.report.default])
        table = np.array(
            [[scores[name] for name in query_ids] for scores in tuned_set.scores.values()]
        )
        for size in _SIZES:
            if size < len(query_ids) - 4:
                cells = [_format_gains(table, size, threshold) for threshold in _THRESHOLDS]
                lines.append(f"| {tuned_set.name} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format_gains(table: Table, size: int, threshold: float) -> str:
    gains = draw_gains(table, size, threshold)
    return f"{gains.mean():+.4f}, {(gains < -_WORSE).mean():.0%}"


def draw_gains(table: Table, size: int, threshold: float, *, draws: int = _DRAWS) -> Table:
    """Return how much more than the default a choice gets on the queries it was not made on.

    Args:
        table: nDCG@10, (choices, queries), the default first.
        size: Queries that each choice is made on.
        threshold: Standard errors by which it must beat the default.
        draws: How often to draw; the same draws for each threshold.

    Returns:
        The mean gain of each draw, (draws,).
    """
    generator = np.random.default_rng(1)
    gains = []
    for _ in range(draws):
        order = generator.permutation(table.shape[1])
        seen, others = order[:size], order[size:]
        best = int(table[:, seen].mean(axis=1).argmax())
        differences = table[best, seen] - table[0, seen]
        if differences.mean() <= threshold * differences.std(ddof=1) / math.sqrt(size):
            best = 0
        gains.append(float((table[best, others] - table[0, others]).mean()))
    return np.array(gains)


if __name__ == "__main__":
    main()
