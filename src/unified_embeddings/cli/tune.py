"""`unified-embeddings tune`: choose how a collection's rankings are fused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.cli.calibrating import fit_and_record, reset_calibration
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.evaluation.corpora import Corpus
    from unified_embeddings.evaluation.significance import PairedDifference
    from unified_embeddings.evaluation.tuning import TuningReport
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.models.fusion import Fusion

_SHOWN_CHOICES = 5
"""The best choices that the table shows besides the default and the single lists."""


def tune(
    collection: Annotated[str, typer.Argument(help="The collection's name.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Judged queries in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/test.tsv.",
        ),
    ] = None,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    document_field: Annotated[
        str | None,
        typer.Option(
            "--document-field",
            help="Payload field with the judged documents' ids, as in metadata.source.",
            show_default="found by itself",
        ),
    ] = None,
    adopt: shared.Adopt = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Choose and report, but record nothing.")
    ] = False,
    accept_generated: Annotated[
        bool,
        typer.Option(
            "--accept-generated", help="Record a choice by generated queries (make-queries) too."
        ),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Fit how likely hits are relevant (score='relevance') instead."
        ),
    ] = False,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset", help="Remove the choice (or calibration) recorded in the collection."
        ),
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Choose how a collection's rankings are fused, by judged queries.

    Tries reciprocal rank fusion and score fusion with several weights and depths, and each list
    alone, by ten-fold cross-validation. The choice is recorded in the collection's metadata if it
    is not worse than the model's own on held-out queries. Retrievers made from then on use it.

    With --calibrate, the fusion stays: what is fitted is the relevance of hits, from 0 to 1.
    """
    if reset:
        if data is not None or dry_run:
            raise InputError("--reset only removes the recorded choice; leave --data out")
        if calibrate:
            reset_calibration(collection, path, url)
        else:
            _reset(collection, path, url)
        return
    if data is None:
        raise InputError(
            "--data FOLDER is missing: judged queries in BEIR's layout. Twenty or more of your own "
            "are worth more than any number that `unified-embeddings make-queries` generates"
        )
    from unified_embeddings.evaluation.corpora import read_beir
    from unified_embeddings.evaluation.generated_folder import is_generated
    from unified_embeddings.evaluation.tuning import require_queries
    from unified_embeddings.models.bm25 import KEYWORD_FUSION

    corpus = read_beir(data)
    require_queries(len(corpus.qrels or {}))
    config = shared.open_config(model, sparse_model, model_url)
    store = shared.open_store(config, collection, path, url, create=False, adopt=adopt)
    if calibrate:
        fit_and_record(
            store,
            config.embedder,
            corpus,
            document_field,
            dry_run=dry_run,
            is_refused=is_generated(data) and not accept_generated,
            as_json=as_json,
        )
        return
    default = config.embedder.fusion if store.keywords is None else KEYWORD_FUSION
    report = _tune(store, config.embedder, default, corpus, document_field)
    choice = replace(report.choice, source=_describe_source(report, corpus))
    obstacle = _find_obstacle(data, dry_run=dry_run, accept_generated=accept_generated)
    written = report.is_accepted and obstacle is None
    if written:
        _write(store, choice)
    if as_json:
        typer.echo(json.dumps(_to_json(report, collection, choice, written=written)))
        return
    _print_report(report, corpus)
    name = shared.printable(collection)
    if written:
        shared.print_line(f"\nRecorded in {name}: {choice}")
        shared.print_line("Retrievers made from now on use it. To undo: tune --reset")
    else:
        _print_refusal(report, obstacle, kept=_recorded(store))


def _find_obstacle(data: Path, *, dry_run: bool, accept_generated: bool) -> str | None:
    """Return why not even an accepted choice is recorded; None if it is."""
    from unified_embeddings.evaluation.generated_folder import is_generated

    if dry_run:
        return "--dry-run"
    if is_generated(data) and not accept_generated:
        return (
            "the queries are generated. They favour lexical matches, and a choice by them may make "
            "answers to people's questions worse; --accept-generated records it all the same"
        )
    return None


def _reset(collection: str, path: Path, url: str | None) -> None:
    from unified_embeddings.stores.fusion_choice import FUSION_KEY, write_choice

    client, name, is_recorded = shared.look_for_record(collection, path, url, FUSION_KEY)
    shown = shared.printable(name)
    if not is_recorded:
        shared.print_line(f"{shown}: no choice is recorded; the model's own fusion is used")
        return
    write_choice(client, name, None)
    shared.print_line(f"{shown}: the choice is removed; the model's own fusion is used again")


def _tune(
    store: FingerprintedStore,
    embedder: TextEmbedder,
    default: Fusion,
    corpus: Corpus,
    document_field: str | None,
) -> TuningReport:
    """Search for the lists of each query, score every choice and choose."""
    from unified_embeddings.evaluation.fusion_choices import DEEPEST, list_choices, score_choices
    from unified_embeddings.evaluation.tuning import tune_fusion
    from unified_embeddings.retrievers.both_lists import search_both_lists
    from unified_embeddings.search.ranking import id_order
    from unified_embeddings.system.progress import progress_bar

    assert corpus.qrels is not None  # read_beir's corpora have judgements
    judged_ids = {document for grades in corpus.qrels.values() for document in grades}
    shown = shared.is_terminal()
    with progress_bar("Searching", len(corpus.queries), shown=shown) as advance:
        searched = search_both_lists(
            store,
            embedder,
            corpus.queries,
            judged_ids,
            # A model's own fusion may reach deeper than any other choice.
            depth=max(DEEPEST, default.candidates),
            document_field=document_field,
            on_query=advance,
        )
    choices = list_choices(default, keywords=store.keywords is not None)
    with progress_bar("Fusing in each way", len(choices), shown=shown) as advance:
        scores = score_choices(searched, corpus.qrels, choices, tie_key=id_order, on_choice=advance)
    return tune_fusion(scores, default)


def _write(store: FingerprintedStore, choice: Fusion) -> None:
    from unified_embeddings.stores.fusion_choice import write_choice

    write_choice(store.client, store.collection_name, choice)


def _recorded(store: FingerprintedStore) -> Fusion | None:
    from unified_embeddings.stores.errors import store_errors
    from unified_embeddings.stores.fusion_choice import read_choice

    with store_errors(store.collection_name, "reading the collection's settings"):
        info = store.client.get_collection(store.collection_name)
    return read_choice(store.collection_name, info)


# --- output -------------------------------------------------------------------------------------


def _describe_source(report: TuningReport, corpus: Corpus) -> str:
    return (
        f"tuned on {corpus.name}, {report.queries} queries: held out "
        f"{_format_difference(report.against_default)} nDCG@10 to the model's own"
    )


def _format_difference(difference: PairedDifference) -> str:
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _print_report(report: TuningReport, corpus: Corpus) -> None:
    """Print what each choice scores on all queries, and what the choice gains held out."""
    from unified_embeddings.evaluation.fusion_choices import SINGLE_LISTS

    shared.print_line(f"{shared.printable(corpus.name)}: {report.queries} judged queries\n")
    shared.print_line("nDCG@10 on all queries, the best ones optimistic:")
    best = sorted(report.means, key=lambda choice: -report.means[choice])[:_SHOWN_CHOICES]
    singles = [single for single in SINGLE_LISTS if single in report.means]
    shown = dict.fromkeys((*best, report.choice, report.default, *singles))
    for choice in sorted(shown, key=lambda choice: -report.means[choice]):
        note = ""
        if choice == report.default:
            note = "  (the model's own)"
        elif choice == report.choice:
            note = "  (the choice)"
        shared.print_line(f"  {report.means[choice]:.4f}  {choice}{note}")
    shared.print_line(
        f"\nHeld out, each query judged by a choice made without it: {report.held_out:.4f}"
    )
    differences = {
        "the model's own": report.against_default,
        str(report.best_single): report.against_single,
    }
    for name, difference in differences.items():
        shared.print_line(
            f"  {_format_difference(difference)} to {name}, p = {difference.p_value:.3f}"
        )


def _print_refusal(report: TuningReport, obstacle: str | None, *, kept: Fusion | None) -> None:
    """Print why nothing was recorded, and what the collection uses then."""
    reason = "no choice is clearly better than the model's own"
    if report.is_accepted:
        reason = f"{obstacle}. The choice is: {report.choice}"
    elif report.is_change:
        reason = f"held out, the choice ({report.choice}) is worse than the model's own"
    shared.print_line(f"\nNothing is recorded: {reason}")
    if kept is not None:
        shared.print_line(
            f"The collection keeps its earlier choice: {kept}. To remove: tune --reset"
        )


def _to_json(
    report: TuningReport, collection: str, choice: Fusion, *, written: bool
) -> dict[str, object]:
    """Return a report as values that JSON can hold."""
    means = sorted(report.means.items(), key=lambda pair: -pair[1])
    return {
        "collection": collection,
        "queries": report.queries,
        "default": report.default.to_dict(),
        "choice": choice.to_dict(),
        "is_change": report.is_change,
        "accepted": report.is_accepted,
        "written": written,
        "held_out_ndcg": report.held_out,
        "against_default": asdict(report.against_default),
        "against_best_single": asdict(report.against_single),
        "best_single": report.best_single.to_dict(),
        "folds": [
            {
                "choice": fold.choice.to_dict(),
                "queries": fold.queries,
                "ndcg": fold.ndcg,
                "default_ndcg": fold.default_ndcg,
            }
            for fold in report.folds
        ],
        "choices": [{**fusion.to_dict(), "ndcg": mean} for fusion, mean in means],
    }
