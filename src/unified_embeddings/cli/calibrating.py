"""`unified-embeddings tune --calibrate`: fit how likely a hit is relevant to judged queries."""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.evaluation.calibrating import CalibrationError, JudgedHits
    from unified_embeddings.evaluation.corpora import Corpus
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.models.calibration import Calibration
    from unified_embeddings.models.fusion import Fusion

_ADVICE_FOR_GENERATED = (
    "the queries are generated. They repeat the words of their passages, and people do not; "
    "--accept-generated records it all the same"
)


@dataclass(frozen=True)
class _Report:
    """What came of fitting.

    Attributes:
        calibration: Fitted to all queries, with its error on those held out.
        held_out: How calibrations fitted to nine tenths of the queries do on the others.
        before: How the model's own does on all of them; None if it has none.
        hits: How many hits there were to fit to.
    """

    calibration: Calibration
    held_out: CalibrationError
    before: CalibrationError | None
    hits: int

    @property
    def is_better(self) -> bool:
        """Whether it is closer to the judgements than the model's own."""
        return self.before is None or self.held_out.ece < self.before.ece


def fit_and_record(
    store: FingerprintedStore,
    embedder: TextEmbedder,
    corpus: Corpus,
    document_field: str | None,
    *,
    dry_run: bool,
    is_refused: bool,
    as_json: bool,
) -> None:
    """Fit a calibration to judged queries, print what it is worth, and record it.

    Args:
        store: Over the collection.
        embedder: Its model.
        corpus: With judgements.
        document_field: Field of the payload with the judged documents' ids; None finds it.
        dry_run: Whether to record nothing.
        is_refused: Whether the queries are generated, and it was not said that this is accepted.
        as_json: Whether to print JSON.
    """
    from unified_embeddings.stores.calibration_record import write_calibration

    report = _fit(store, embedder, corpus, document_field)
    written = report.is_better and not dry_run and not is_refused
    if written:
        write_calibration(store.client, store.collection_name, report.calibration)
    if as_json:
        typer.echo(json.dumps(_to_json(report, store.collection_name, written=written)))
        return
    _print_report(report, corpus)
    name = shared.printable(store.collection_name)
    if written:
        shared.print_line(f"\nRecorded in {name}. To undo: tune --calibrate --reset")
        if store.keywords is not None:
            shared.print_line(
                "Its hits are those without the keyword list, and relevance needs fusion='model' "
                "or two weights, which leave that list out"
            )
        return
    reason = "the model's own calibration is as close to the judgements"
    if dry_run:
        reason = "--dry-run"
    elif is_refused:
        reason = _ADVICE_FOR_GENERATED
    shared.print_line(f"\nNothing is recorded: {reason}")


def reset_calibration(collection: str, path: Path, url: str | None) -> None:
    """Remove the calibration that is recorded in a collection."""
    from unified_embeddings.stores.calibration_record import CALIBRATION_KEY, write_calibration

    client, name, is_recorded = shared.look_for_record(collection, path, url, CALIBRATION_KEY)
    shown = shared.printable(name)
    if not is_recorded:
        shared.print_line(f"{shown}: no calibration is recorded")
        return
    write_calibration(client, name, None)
    shared.print_line(f"{shown}: the calibration is removed")


def _fit(
    store: FingerprintedStore,
    embedder: TextEmbedder,
    corpus: Corpus,
    document_field: str | None,
) -> _Report:
    from unified_embeddings.evaluation.calibrating import (
        DEPTH,
        assess,
        cross_validate,
        find_background,
        fit_calibration,
        judge,
        weigh_hits,
    )
    from unified_embeddings.retrievers.both_lists import search_both_lists, sum_query_weights
    from unified_embeddings.search.ranking import id_order
    from unified_embeddings.system.progress import progress_bar

    assert corpus.qrels is not None  # read_beir's corpora have judgements
    judged_ids = {document for grades in corpus.qrels.values() for document in grades}
    queries = {query_id: corpus.queries[query_id] for query_id in corpus.qrels}
    fusion, base = _read_settings(store, embedder)
    depth = DEPTH if base is None else base.depth
    with progress_bar("Searching", len(queries), shown=shared.is_terminal()) as advance:
        searched = search_both_lists(
            store,
            embedder,
            queries,
            judged_ids,
            depth=max(depth, fusion.candidates),
            document_field=document_field,
            on_query=advance,
        )
    background = find_background(searched.values(), depth) if base is None else base.background
    hits: dict[str, JudgedHits] = weigh_hits(
        searched,
        sum_query_weights(embedder, queries),
        corpus.qrels,
        fusion,
        background=background,
        depth=depth,
        tie_key=id_order,
    )
    fit = functools.partial(fit_calibration, base=base, background=background, depth=depth)
    held_out = cross_validate(hits, fit)
    before = None
    if base is not None:
        before = assess(
            hits, {query_id: judge(base, of_query) for query_id, of_query in hits.items()}
        )
    source = f"fitted to {len(hits)} judged questions of {corpus.name}; error on those held out"
    calibration = replace(fit(hits), source=source, ece=held_out.ece, weak_auc=held_out.weak_auc)
    return _Report(
        calibration=calibration,
        held_out=held_out,
        before=before,
        hits=sum(min(len(of_query.relevant), 10) for of_query in hits.values()),
    )


def _read_settings(
    store: FingerprintedStore, embedder: TextEmbedder
) -> tuple[Fusion, Calibration | None]:
    """Return how the collection's lists are fused, and the model's calibration if it holds here.

    Where a keyword list is fused too, the model's own fusion is returned: relevance is to be had
    with that one alone.

    Raises:
        InputError: If one list is left out, for which relevance is not calibrated.
    """
    from unified_embeddings.search.relevance_scores import has_usual_scores
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.fusion_choice import read_choice

    with store_errors(store.collection_name, "reading the collection's settings"):
        info = store.client.get_collection(store.collection_name)
    chosen = read_choice(store.collection_name, info)
    fusion = embedder.fusion if chosen is None or chosen.keyword_weight else chosen
    if 0 in fusion.weights[:2]:
        raise InputError(
            f"the fusion is {fusion}, and relevance is calibrated on both lists; remove the choice "
            f"first: unified-embeddings tune {shlex.quote(store.collection_name)} --reset"
        )
    is_usual = has_usual_scores(
        info,
        dense_name=store.dense_vector_name,
        sparse_name=store.sparse_vector_name,
        sparse_idf=embedder.sparse_idf,
    )
    return fusion, embedder.calibration if is_usual else None


# --- output -------------------------------------------------------------------------------------


def _print_report(report: _Report, corpus: Corpus) -> None:
    held_out = report.held_out
    shared.print_line(
        f"{shared.printable(corpus.name)}: {held_out.queries} judged questions, {report.hits} hits "
        f"among the first ten, {held_out.relevant:.0%} of them relevant\n"
    )
    shared.print_line("Held out, each question judged by a calibration fitted without it:")
    shared.print_line(f"  {_describe(held_out)}")
    if report.before is not None:
        shared.print_line("With the model's own calibration:")
        shared.print_line(f"  {_describe(report.before)}")


def _describe(error: CalibrationError) -> str:
    text = (
        f"mean relevance {error.mean:.3f}, calibration error {error.ece:.3f}, of the first hits "
        f"{error.first_ece:.3f}"
    )
    if error.weak_auc is None:
        return text + "; too few questions without a relevant hit to say who is weak"
    return text + f"; weak: AUC {error.weak_auc:.3f} ({error.weak:.0%} of the questions are)"


def _to_json(report: _Report, collection: str, *, written: bool) -> dict[str, object]:
    """Return a report as values that JSON can hold."""
    return {
        "collection": collection,
        "calibration": report.calibration.to_dict(),
        "written": written,
        "held_out": asdict(report.held_out),
        "model_own": None if report.before is None else asdict(report.before),
        "hits": report.hits,
    }
