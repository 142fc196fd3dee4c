"""`unified-embeddings quantize`: a model in int8, and what each precision costs on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import export_onnx, shared
from unified_embeddings.errors import InputError, ModelLoadError, UnifiedEmbeddingsError
from unified_embeddings.models.naming import model_name

# A comparison loads a model library, which `--help` and a plain export must not wait for: what it
# needs is imported inside the functions.
if TYPE_CHECKING:
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
    from unified_embeddings.evaluation.comparison import Comparison
    from unified_embeddings.evaluation.measurement import Candidate

Precision = Literal["fp32", "int8"]
_EXPORT_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def quantize(
    model: Annotated[
        str, typer.Argument(help="A choice (see models), hub id, folder or TOML file.")
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Destination: a new or empty folder. With --compare, exports are kept in "
            "FOLDER/fp32 and FOLDER/int8 and reused from there; without FOLDER they are temporary."
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Export precision (default: int8; with --compare both)."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure each precision on this machine.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For --compare: a folder in BEIR's layout (corpus.jsonl, queries.jsonl, "
            "qrels/test.tsv). Default: the Python reference, without nDCG."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="For --compare: another model or export to measure; repeatable."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="For --compare: also precisions that bring no gain on this machine."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For --compare: print JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="For --compare: write comparison.json, .md and .png into this folder."),
    ] = None,
) -> None:
    """Export a model in int8, or with --compare measure what each precision costs and loses.

    Each candidate runs in a process of its own and is compared with torch in fp32. Do not use the
    machine for other work meanwhile. It takes as long as embedding the texts several times.
    """
    if not compare:
        comparison_options = {
            "--data": data,
            "--against": against,
            "--all": every,
            "--json": as_json,
            "--out": out,
        }
        _export(model, folder, precision or "int8", comparison_options)
        return
    from unified_embeddings.cli import precision_report

    # Whatever can be rejected is rejected before the long work begins, the report's folder too.
    if out is not None:
        precision_report.prepare_folder(out)
    comparison = _compare_precisions(model, folder, precision, data, against or [], every=every)
    if out is not None:
        precision_report.write_report(comparison, out)
        _print_step(f"written to {out}")
    if as_json:
        typer.echo(json.dumps(asdict(comparison), ensure_ascii=False))
    else:
        precision_report.print_tables(comparison)


def _export(
    model: str,
    folder: Path | None,
    precision: Precision,
    comparison_options: Mapping[str, object],
) -> None:
    """Export a model, without a comparison.

    Raises:
        InputError: If there is no folder, or an option is given that only a comparison uses.
    """
    for option, value in comparison_options.items():
        if value:
            raise InputError(f"{option} is for a comparison; add --compare")
    if folder is None:
        raise InputError("name the folder to write into, or add --compare")
    export_onnx.export_onnx(model, folder, precision)


def _compare_precisions(
    model: str,
    folder: Path | None,
    precision: Precision | None,
    data: Path | None,
    against: Sequence[str],
    *,
    every: bool,
) -> Comparison:
    """Measure a model in fp32 and in other precisions, and other models if named.

    Args:
        model: The model's name.
        folder: Folder of the exports; None for a temporary one.
        precision: Precision of the only export to measure; None for all of them.
        data: Folder in BEIR's layout; None for the Python reference.
        against: Names of other models or exports to measure.
        every: Whether to measure precisions that bring no gain on this hardware.
    """
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
    from unified_embeddings.evaluation.comparison import compare
    from unified_embeddings.evaluation.corpora import read_beir, read_python_reference
    from unified_embeddings.evaluation.measurement import Candidate

    precisions = _EXPORT_PRECISIONS if precision is None else (precision,)
    corpus = read_python_reference() if data is None else read_beir(data)
    embedder = _open_reference(model)
    for name in against:
        _ = BGE_M3_Embedder(name).checkpoint  # Raises an error if the model has no files.
    reference = Candidate(name=f"{embedder.runtime.engine} fp32", model=model, precision="fp32")
    candidates = list(_other_precisions(embedder, every=every))
    with ExitStack() as stack:
        if folder is None:
            temporary_folder = tempfile.TemporaryDirectory(prefix="unified-embeddings-")
            folder = Path(stack.enter_context(temporary_folder))
        for export_precision in precisions:
            export_folder = folder / export_precision
            candidates.append(_find_or_write_export(embedder, export_folder, export_precision))
        for name in against:
            candidates.append(Candidate(name=name, model=name))
        return compare(
            reference,
            candidates,
            corpus,
            show_progress=shared.is_terminal(),
            on_step=_print_step,
        )


def _open_reference(model: str) -> BGE_M3_Embedder:
    """Return the model in fp32, its files looked up but not loaded.

    Raises:
        InputError: If it is an export, which has only one precision.
    """
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder

    embedder = BGE_M3_Embedder(model, precision="fp32", cache=None)
    if embedder.checkpoint.is_exported:
        raise InputError(
            f"{model} is an export of {embedder.checkpoint.export_notes.source!r}; name that "
            f"model instead, and the export with --against {model}"
        )
    return embedder


def _other_precisions(embedder: BGE_M3_Embedder, *, every: bool) -> Iterator[Candidate]:
    """Yield the reference's engine in the half precision that suits this hardware, or in both."""
    from unified_embeddings.engines import registry
    from unified_embeddings.evaluation.measurement import Candidate

    engine = embedder.runtime.engine
    best_runtime = registry.plan(engine, "auto", "auto", lambda: embedder.checkpoint)
    for precision in ("bf16", "fp16"):
        if every or precision == best_runtime.precision:
            yield Candidate(
                name=f"{engine} {precision}",
                model=embedder.model_name,
                engine=engine,
                precision=precision,
            )


def _find_or_write_export(
    embedder: BGE_M3_Embedder, folder: Path, precision: Precision
) -> Candidate:
    """Return the model's export in a folder, and write it first unless it is there.

    A model that cannot be exported gives a candidate that says why.

    Raises:
        InputError: If the folder holds something else.
    """
    from unified_embeddings.evaluation.measurement import Candidate

    name = f"onnx {precision}"
    try:
        if _is_export_of(embedder, folder, precision):
            _print_step(f"{name}: reusing {folder}")
        else:
            from unified_embeddings.export.folder import export_onnx as write_export

            _print_step(f"{name}: exporting")
            write_export(embedder.model_name, folder, precision=precision)
    except InputError:
        raise
    except UnifiedEmbeddingsError as error:
        return Candidate(name=name, model=model_name(folder), problem=str(error))
    return Candidate(name=name, model=model_name(folder))


def _is_export_of(embedder: BGE_M3_Embedder, folder: Path, precision: str) -> bool:
    """Tell whether a folder holds the export of exactly this model in this precision."""
    from unified_embeddings.models.resolve import resolve

    if not folder.is_dir():
        return False
    try:
        checkpoint = resolve(folder, local_files_only=True)
        return (
            checkpoint.is_exported
            and checkpoint.digest == embedder.checkpoint.digest
            and checkpoint.export_notes.precision == precision
        )
    except ModelLoadError:
        return False


def _print_step(step: str) -> None:
    """Print what is being done to standard error, so that standard output stays valid JSON."""
    typer.echo(f"{step} ...", err=True)
