"""`unified-embeddings evaluate`: which system finds more, and whether that is more than luck."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from unified_embeddings.evaluation.corpora import Corpus
    from unified_embeddings.evaluation.rankings import Run
    from unified_embeddings.evaluation.systems import System

_LEAST_DEPTH = 20
"""Results asked for unless told otherwise: as many as are reranked, or fused in plain RRF.

Asking for more would rerank or fuse more, and so measure something else than users get.
"""
_QRELS_FILE = "qrels.txt"


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder in BEIR's layout: corpus.jsonl, queries.jsonl and qrels/test.tsv."
        ),
    ],
    system: Annotated[
        list[str],
        typer.Option(
            "--system",
            "-s",
            help="What to evaluate; repeatable. A model: mini-m3, mini-m3:dense, "
            "mini-m3:hybrid+colbert, or with options mini-m3:hybrid,k=60,weights=1/0.3 (also "
            "fusion=dbsf, min_max or z, candidates=, sparse=MODEL, name=). A live collection: "
            "path=STORE,collection=NAME (or url=ADDRESS; also model=, mode=, rerank=colbert, "
            "field=, adopt=trust and those above). A TREC run: run=FILE.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The system that the others are compared with, by its name.",
            show_default="the first",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Results that count.")] = 10,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Results to ask for, at least k; MAP counts them all.",
            show_default="20, or k if that is more",
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            help="Judgements in TREC's format, instead of the folder's.", show_default=False
        ),
    ] = None,
    worst: Annotated[
        int, typer.Option(min=0, help="Queries to name for each system: its largest losses.")
    ] = 5,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write a TREC run of each system to, and the judgements.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="JSON file to write all figures to."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="File to draw the comparison into.")
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Compare ways to search on judged queries: models, modes, fusions, live collections.

    Prints nDCG, recall, precision, MRR and MAP of each system, the differences to the first one
    with their intervals and p-values, and the queries that lose most.
    """
    from unified_embeddings.cli import evaluation_report
    from unified_embeddings.cli.evaluated_systems import open_systems
    from unified_embeddings.evaluation.plots import draw_evaluation
    from unified_embeddings.evaluation.reports import evaluate_runs
    from unified_embeddings.evaluation.systems import parse_systems

    systems = parse_systems(system)
    chosen_depth = _choose_depth(k, depth)
    _check_baseline(baseline, systems)
    corpus = _read_corpus(data, qrels)
    _check_outputs(corpus, run, plot, output)
    with open_systems(systems, corpus, depth=chosen_depth) as opened:
        runs = {name: asked.ask() for name, asked in opened.items()}
    evaluation = evaluate_runs(
        corpus, runs, baseline=baseline, k=k, depth=chosen_depth, weak_queries=worst
    )
    # The figures come first: a file that cannot be written must not cost them.
    if as_json:
        typer.echo(evaluation_report.to_json(evaluation))
    else:
        evaluation_report.print_evaluation(evaluation)
    if output is not None:
        evaluation_report.write_json(evaluation, output)
    if plot is not None:
        draw_evaluation(evaluation, plot)
    if run is not None:
        _write_runs(run, runs, corpus)


def _choose_depth(k: int, depth: int | None) -> int:
    if depth is None:
        return max(k, _LEAST_DEPTH)
    if depth < k:
        raise InputError(f"--depth {depth} asks for fewer results than the {k} that count (--k)")
    return depth


def _check_baseline(baseline: str | None, systems: list[System]) -> None:
    names = [system.name for system in systems]
    if baseline is not None and baseline not in names:
        raise InputError(
            f"--baseline {baseline!r} is none of the systems: {', '.join(map(repr, names))}"
        )


def _read_corpus(data: Path, qrels: Path | None) -> Corpus:
    """Return the judged set, with other judgements if they are given.

    Raises:
        InputError: If a file is missing or malformed, or a judged query has no text.
    """
    from unified_embeddings.evaluation.corpora import read_beir
    from unified_embeddings.evaluation.trec import read_qrels

    if qrels is None:
        return read_beir(data)
    return read_beir(data, qrels=read_qrels(qrels))


def _check_outputs(
    corpus: Corpus, run: Path | None, plot: Path | None, output: Path | None
) -> None:
    """Refuse what could not be written, before anything is computed.

    Raises:
        InputError: If a folder cannot be made or written to, a file is a folder, or an id cannot
            stand in a TREC file.
        MissingExtraError: If the plot cannot be drawn.
    """
    from unified_embeddings.evaluation.plots import require_matplotlib
    from unified_embeddings.evaluation.trec import check_ids, write_qrels

    if plot is not None:
        require_matplotlib()
    for option, file in (("--plot", plot), ("--output", output)):
        if file is not None:
            _require_writable(option, file)
    if run is not None:
        check_ids(corpus.documents, "the document id")
        write_qrels(run / _QRELS_FILE, corpus.qrels or {})


def _require_writable(option: str, file: Path) -> None:
    """Check that a file can be written, without touching one that is there.

    Raises:
        InputError: If it cannot.
    """
    from unified_embeddings.system.files import make_folder, scratch_folder

    if file.is_dir():
        raise InputError(f"{option} {file} is a folder; name a file in it")
    try:
        make_folder(file.parent)
        with scratch_folder(file.parent):
            pass
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {file} cannot be written: {error}; name another file") from None


def _write_runs(folder: Path, runs: dict[str, Run], corpus: Corpus) -> None:
    """Write a TREC run of each system, and the judgements, so that trec_eval can rate them."""
    from unified_embeddings.evaluation.trec import write_run

    file_names: set[str] = set()
    for name, found in runs.items():
        tag = re.sub(r"[^\w.+=-]+", "_", name).strip("._") or "system"
        unique = tag
        while unique.lower() in file_names:  # some file systems ignore the case
            unique += "_"
        file_names.add(unique.lower())
        judged = {query_id: found[query_id] for query_id in corpus.queries if query_id in found}
        write_run(folder / f"{unique}.run", judged, tag=unique)
