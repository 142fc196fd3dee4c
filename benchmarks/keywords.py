"""What is a keyword list worth as the third list, and how much weight does it deserve?

Indexes judged sets in BEIR's layout into an embedded store, with BM25 on words beside the model's
own dense and sparse vectors, and searches for the three lists of each question once. Prints nDCG@10
of each list alone, of the model's own two lists and of the three, by weights of DBSF and of RRF,
with the difference to the model's own fusion and its 95% bootstrap interval.

Then the same with identifiers: 150 documents of each set get a sentence with a part number, an
option or a function's name, of which many differ by a character or a word, and each is asked for.
There, the figure is MRR@10.

    python benchmarks/keywords.py ../shared/data/med ../shared/data/cacm ../shared/data/xquad_r/en
    python benchmarks/keywords.py --keywords bm25:german ../shared/data/xquad_r/de
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrieval import index
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.evaluation.fusion_choices import (
    BM25_ALONE,
    DEEPEST,
    DENSE_ALONE,
    SPARSE_ALONE,
    SearchedQuery,
    fuse_documents,
)
from unified_embeddings.evaluation.metrics import QueryScores
from unified_embeddings.evaluation.rankings import ndcg_by_query
from unified_embeddings.evaluation.significance import compare_scores
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.both_lists import search_both_lists
from unified_embeddings.search.ranking import id_order

_IDENTIFIERS = 150
"""Documents of a set that get one."""
_SEED = 7
_TOP = 10

_DBSF_WEIGHTS = (
    (0.6, 0.0, 0.4), (0.6, 0.2, 0.2), (0.5, 0.2, 0.3), (0.5, 0.1, 0.4), (0.4, 0.2, 0.4),
    (0.4, 0.3, 0.3), (0.4, 0.1, 0.5), (0.3, 0.2, 0.5),
)  # fmt: skip
_RRF_WEIGHTS = ((1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (1.0, 0.5, 0.5))

_VERBS = ("get", "set", "find", "load", "make", "read", "send", "open")
_NOUNS = ("User", "Order", "Page", "Image", "Token", "Record", "Price", "Label")
_MANNERS = ("ById", "ByName", "ForDate", "InBatch", "AsText")
_LIMITS = ("max", "min", "default", "initial", "final")
_SUBJECTS = ("length", "depth", "retries", "workers", "timeout", "batch", "size")


@dataclass(frozen=True)
class SearchedSet:
    """A set whose lists were searched.

    Attributes:
        corpus: Texts, questions and judgements.
        searched: Query id → its three lists.
    """

    corpus: Corpus
    searched: Mapping[str, SearchedQuery]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets named on the command line, and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="judged sets in BEIR's layout")
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    parser.add_argument("--keywords", default="bm25", help="default: bm25, for English")
    options = parser.parse_args(arguments)
    config = UnifiedEmbeddingConfig(options.model, keywords=options.keywords)
    own = config.embedder.fusion
    print(f"{options.model}, its own fusion: {own}; with {options.keywords}: {KEYWORD_FUSION}\n")
    corpora = [read_beir(folder) for folder in options.folders]
    judged = [search_lists(config, corpus) for corpus in corpora]
    print(format_table("nDCG@10", judged, own))
    hidden = [search_lists(config, hide_identifiers(corpus)) for corpus in corpora]
    print(format_table("MRR@10, identifiers", hidden, own))


def search_lists(config: UnifiedEmbeddingConfig, corpus: Corpus) -> SearchedSet:
    """Index a set, and search for the three lists of each question."""
    assert corpus.qrels is not None
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
        store = config.vector_store("judged", path=work)
        index(config, store, corpus)
        judged_ids = {document for grades in corpus.qrels.values() for document in grades}
        searched = search_both_lists(
            store,
            config.embedder,
            corpus.queries,
            judged_ids,
            depth=DEEPEST,
            document_field="document",
        )
        store.client.close()
    return SearchedSet(corpus, searched)


def hide_identifiers(corpus: Corpus) -> Corpus:
    """Return a set of which some documents have a sentence with an identifier, which is asked for.

    A part number, an option or a function's name, in turns; no two are the same, and many differ by
    a character or a word. Questions name it as it is written, in small letters, or in a sentence.
    """
    draw = random.Random(_SEED)
    documents = dict(corpus.documents)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    used: set[str] = set()
    for number, document_id in enumerate(draw.sample(list(documents), _IDENTIFIERS)):
        identifier = _draw_identifier(draw, number % 3)
        while identifier in used:
            identifier = _draw_identifier(draw, number % 3)
        used.add(identifier)
        sentences = documents[document_id].split(". ")
        place = draw.randint(0, len(sentences))
        sentences.insert(place, f"See {identifier} for that")
        documents[document_id] = ". ".join(sentences)
        query_id = f"identifier {number}"
        questions = (identifier, identifier.lower(), f"what is {identifier} for?")
        queries[query_id] = draw.choice(questions)
        qrels[query_id] = {document_id: 1}
    return replace(corpus, documents=documents, queries=queries, qrels=qrels)


def _draw_identifier(draw: random.Random, kind: int) -> str:
    if kind == 0:
        letters = "".join(draw.choices("ABCDEF", k=2))
        return f"{letters}-{draw.randint(1000, 1400)}{draw.choice(['', 'A', 'B', 'C'])}"
    if kind == 1:
        return f"--{draw.choice(_LIMITS)}-{draw.choice(_SUBJECTS)}-{draw.choice(_SUBJECTS)}"
    return draw.choice(_VERBS) + draw.choice(_NOUNS) + draw.choice(_MANNERS)


def list_ways(own: Fusion) -> dict[str, Fusion]:
    """Return the ways to fuse by name, the model's own first."""
    ways = {
        f"own two lists ({own})": own,
        "dense alone": DENSE_ALONE,
        "sparse alone": SPARSE_ALONE,
        "BM25 alone": BM25_ALONE,
    }
    for weights in _DBSF_WEIGHTS:
        choice = Fusion(weights=weights, candidates=DEEPEST, method="dbsf")
        ways[str(choice)] = choice
    for weights in _RRF_WEIGHTS:
        choice = Fusion(weights=weights, candidates=DEEPEST)
        ways[str(choice)] = choice
    return ways


def score(searched_set: SearchedSet, fusion: Fusion, *, by_rank: bool) -> QueryScores:
    """Return each question's nDCG@10, or the reciprocal rank of its one document."""
    qrels = searched_set.corpus.qrels
    assert qrels is not None
    found = {
        query_id: fuse_documents(searched_set.searched[query_id], fusion, tie_key=id_order)[:_TOP]
        for query_id in qrels
    }
    if not by_rank:
        run = {
            query_id: {name: -float(rank) for rank, name in enumerate(documents)}
            for query_id, documents in found.items()
        }
        return ndcg_by_query(run, qrels)
    scores: QueryScores = {}
    for query_id, documents in found.items():
        (wanted,) = qrels[query_id]
        scores[query_id] = 1 / (documents.index(wanted) + 1) if wanted in documents else 0.0
    return scores


def format_table(measure: str, searched_sets: Sequence[SearchedSet], own: Fusion) -> str:
    """Return the scores of all ways on all sets, each with its difference to the model's own."""
    by_rank = not measure.startswith("nDCG")
    names = [searched_set.corpus.name for searched_set in searched_sets]
    lines = [
        f"| {measure} | {' | '.join(names)} | mean |",
        "|---" + "|--:" * (len(names) + 1) + "|",
    ]
    base = [score(searched_set, own, by_rank=by_rank) for searched_set in searched_sets]
    for name, fusion in list_ways(own).items():
        cells, means = [], []
        for searched_set, own_scores in zip(searched_sets, base, strict=True):
            scores = score(searched_set, fusion, by_rank=by_rank)
            means.append(sum(scores.values()) / len(scores))
            gain = compare_scores(own_scores, scores)
            interval = f"[{gain.low:+.3f}, {gain.high:+.3f}]"
            cells.append(f"{means[-1]:.4f} {gain.mean:+.3f} {interval}")
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(means) / len(means):.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
