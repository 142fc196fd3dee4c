"""Fit the calibration of a model's relevance, and show how it does on data it was not fitted to.

    python tools/fit_calibration.py ../shared/data
    JUDGED_DATA=../shared/data python tools/fit_calibration.py --model mini-m3

The folder holds judged sets in BEIR's layout: med, cacm and xquad_r/{en,de,zh,ar}. Each is indexed
into an embedded store and searched for both lists of each question. Questions of one English set
that are asked of another are added: nothing that they find is relevant.

Prints the calibration fitted to all of it, as the catalogue has it, and two tables: each set judged
by a calibration that was fitted to the others (also without its questions asked elsewhere), and
each set judged by the same with slope and offset fitted to nine tenths of its own queries.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.evaluation.calibrating import (
    DEPTH,
    CalibrationError,
    JudgedHits,
    Numbers,
    assess,
    cross_validate,
    find_background,
    find_weak_bound,
    fit_calibration,
    judge,
    weigh_hits,
)
from unified_embeddings.evaluation.corpora import Corpus, Qrels, read_beir
from unified_embeddings.evaluation.fusion_choices import SearchedQuery
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.retrievers.both_lists import search_both_lists, sum_query_weights
from unified_embeddings.search.ranking import id_order

SETS = ("med", "cacm", "xquad_r/en", "xquad_r/de", "xquad_r/zh", "xquad_r/ar")
ENGLISH = ("med", "cacm", "xquad_r/en")


@dataclass(frozen=True)
class SearchedSet:
    """What the questions of one set found in the documents of one set.

    Attributes:
        name: "med", or "med asked of cacm".
        searched: Query id → what it found.
        query_weights: Query id → sum of its sparse weights.
        qrels: Its judgements; none where the documents are another set's.
        is_own: Whether the documents are the set's own.
    """

    name: str
    searched: Mapping[str, SearchedQuery]
    query_weights: Mapping[str, float]
    qrels: Qrels
    is_own: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, and print the calibration and the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("JUDGED_DATA")
    parser.add_argument(
        "data", type=Path, nargs="?", default=folder, help="default: the variable JUDGED_DATA"
    )
    parser.add_argument("--model", default="mini-m3", help="default: mini-m3")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("name the folder with the judged sets, or set JUDGED_DATA")
    config = UnifiedEmbeddingConfig(options.model)
    searched_sets = search_sets(config, Path(options.data))
    background = min(find_background(one.searched.values()) for one in searched_sets if one.is_own)
    hits = {
        one.name: weigh_hits(
            one.searched,
            one.query_weights,
            one.qrels,
            config.embedder.fusion,
            background=background,
            tie_key=id_order,
        )
        for one in searched_sets
    }
    print(fit(hits, list(hits), background=background), "\n")
    print("Fitted to the other sets:")
    print_table(*leave_one_out(hits, background=background))
    print("Fitted to the other sets, slope and offset to nine tenths of its own questions:")
    print_table(*adjust_to_own(hits, background=background))


def search_sets(config: UnifiedEmbeddingConfig, folder: Path) -> list[SearchedSet]:
    """Index each set, and search it for its own questions and those of other English sets."""
    corpora = {name: read_beir(folder / name) for name in SETS}
    searched_sets = []
    for name, corpus in corpora.items():
        with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as work:
            store = config.vector_store("judged", path=work)
            index(config, store, corpus)
            for other, asked in corpora.items():
                if other == name or (name in ENGLISH and other in ENGLISH):
                    searched_sets.append(search(config, store, name, corpus, other, asked))
            store.client.close()
    return searched_sets


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
    store.add(config.text_model(nodes))


def search(
    config: UnifiedEmbeddingConfig, store: Any, name: str, corpus: Corpus, other: str, asked: Corpus
) -> SearchedSet:
    """Search one set's documents for the questions of the same or another."""
    searched = search_both_lists(
        store,
        config.embedder,
        asked.queries,
        corpus.documents,
        depth=max(DEPTH, config.embedder.fusion.candidates),
        document_field="document",
    )
    is_own = other == name
    return SearchedSet(
        name=name if is_own else f"{other} asked of {name}",
        searched=searched,
        query_weights=sum_query_weights(config.embedder, asked.queries),
        qrels=(asked.qrels or {}) if is_own else {},
        is_own=is_own,
    )


def join(
    hits: Mapping[str, Mapping[str, JudgedHits]], names: Sequence[str]
) -> dict[str, JudgedHits]:
    """Return the hits of several sets' queries, each id after its set's name."""
    return {
        f"{name}: {query_id}": of_query
        for name in names
        for query_id, of_query in hits[name].items()
    }


def fit_without(
    hits: Mapping[str, Mapping[str, JudgedHits]], left_out: str, *, background: float
) -> Calibration:
    """Fit to all but one set: neither its documents nor its questions take part."""
    others = [name for name in hits if left_out not in name.split(" asked of ")]
    return fit(hits, others, background=background)


def fit(
    hits: Mapping[str, Mapping[str, JudgedHits]], names: Sequence[str], *, background: float
) -> Calibration:
    """Fit to some sets; how many questions are weak is taken from those asked where they belong."""
    calibration = fit_calibration(join(hits, names), base=None, background=background)
    own = join(hits, [name for name in names if name in SETS])
    return replace(calibration, weak_below=find_weak_bound(calibration, own))


def leave_one_out(
    hits: Mapping[str, Mapping[str, JudgedHits]], *, background: float
) -> tuple[dict[str, CalibrationError], CalibrationError]:
    """Return how each set is judged by a calibration fitted to the others, and all of them."""
    errors: dict[str, CalibrationError] = {}
    all_relevances: dict[str, Numbers] = {}
    for name in SETS:
        calibration = fit_without(hits, name, background=background)
        relevances = {key: judge(calibration, of_query) for key, of_query in hits[name].items()}
        errors[name] = assess(hits[name], relevances)
        all_relevances.update({f"{name}: {key}": values for key, values in relevances.items()})
    return errors, assess(join(hits, SETS), all_relevances)


def adjust_to_own(
    hits: Mapping[str, Mapping[str, JudgedHits]], *, background: float
) -> tuple[dict[str, CalibrationError], CalibrationError | None]:
    """Return the same where two numbers are fitted to nine tenths of the set's own questions."""
    errors = {}
    for name in SETS:
        base = fit_without(hits, name, background=background)
        adjust = functools.partial(fit_calibration, base=base, background=background)
        errors[name] = cross_validate(hits[name], adjust)
    return errors, None


def print_table(errors: Mapping[str, CalibrationError], pooled: CalibrationError | None) -> None:
    """Print a row for each set, and one for all of them, in Markdown."""
    print("| set | questions | relevant | mean relevance | ECE | of the first hit | weak | AUC |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    rows = dict(errors) if pooled is None else {**errors, "all": pooled}
    for name, error in rows.items():
        auc = "-" if error.weak_auc is None else f"{error.weak_auc:.3f}"
        print(
            f"| {name} | {error.queries:,} | {error.relevant:.3f} | {error.mean:.3f} | "
            f"{error.ece:.3f} | {error.first_ece:.3f} | {error.weak:.3f} | {auc} |"
        )
    print()


if __name__ == "__main__":
    main()
