"""`unified-embeddings quantize`: a model in int8, and what each precision costs on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import export_onnx, shared
from unified_embeddings.errors import InputError, ModelLoadError, UnifiedEmbeddingsError

if TYPE_CHECKING:
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
    from unified_embeddings.evaluation.measurement import Candidate

Precision = Literal["fp32", "int8"]
_PREFIX = "unified-embeddings-"


def quantize(
    model: Annotated[
        str, typer.Argument(help="A choice (see models), hub id, folder or TOML file.")
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Where to: a new or empty folder. With --compare the exports go into FOLDER/fp32 "
            "and FOLDER/int8, or are taken from there; a temporary folder if none is named."
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Export in it. [default: int8; with --compare both]"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure each precision on this machine.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For --compare: a folder in BEIR's layout (corpus.jsonl, queries.jsonl, "
            "qrels/test.tsv). [default: the Python reference, without nDCG]"
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="For --compare: another model or export to measure; repeatable."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="For --compare: also precisions that do not pay here.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For --compare: print JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="For --compare: write comparison.json, .md and .png into this folder."),
    ] = None,
) -> None:
    """Write a model in int8, or with --compare measure what each precision costs and loses.

    Every candidate runs in a process of its own beside torch in fp32. Leave the machine alone
    meanwhile; it takes as long as embedding the texts several times.
    """
    if compare:
        _compare(model, folder, precision, data, against or [], every, as_json, out)
        return
    for option, given in (
        ("--data", data), ("--against", against), ("--all", every), ("--json", as_json),
        ("--out", out),
    ):  # fmt: skip
        if given:
            raise InputError(f"{option} is for a comparison; add --compare")
    if folder is None:
        raise InputError("name the folder to write into, or add --compare")
    export_onnx.export_onnx(model, folder, precision or "int8")


def _compare(
    model: str,
    folder: Path | None,
    precision: Precision | None,
    data: Path | None,
    against: list[str],
    every: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Whatever can be refused is refused before the long work begins."""
    from unified_embeddings.cli import precision_report as shown
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
    from unified_embeddings.evaluation.corpora import read_beir, read_python_reference
    from unified_embeddings.evaluation.measurement import Candidate, compare

    precisions: tuple[Precision, ...] = ("fp32", "int8") if precision is None else (precision,)
    if out is not None:
        shown.require_folder(out)
    corpus = read_python_reference() if data is None else read_beir(data)
    embedder = _reference(model)
    for name in against:
        _ = BGE_M3_Embedder(name).checkpoint
    reference = Candidate(f"{embedder.runtime.engine} fp32", model, precision="fp32")
    with ExitStack() as stack:
        kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
        exports = [_exported(embedder, kept / one, one) for one in precisions]
        comparison = compare(
            reference,
            [
                *_other_precisions(embedder, every=every),
                *exports,
                *(Candidate(name, name) for name in against),
            ],
            corpus,
            show_progress=shared.is_terminal(),
            on_step=_step,
        )
    if out is not None:
        shown.write(comparison, out)
        _step(f"written to {out}")
    if as_json:
        typer.echo(json.dumps(asdict(comparison), ensure_ascii=False))
    else:
        shown.print_tables(comparison)


def _reference(model: str) -> BGE_M3_Embedder:
    """The model in fp32, its files looked up.

    Raises:
        InputError: If it is an export, which has one precision.
    """
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder

    embedder = BGE_M3_Embedder(model, precision="fp32", cache=None)
    if embedder.checkpoint.is_exported:
        raise InputError(
            f"{model} is an export, of {embedder.checkpoint.exported.get('model')!r}; name that "
            f"model, and the export with --against {model}"
        )
    return embedder


def _other_precisions(embedder: BGE_M3_Embedder, *, every: bool) -> Iterator[Candidate]:
    """The reference's engine in the precision that pays on this hardware, or in every one."""
    from unified_embeddings.engines import registry
    from unified_embeddings.evaluation.measurement import Candidate

    engine = embedder.runtime.engine
    pays = registry.plan(engine, "auto", "auto", lambda: embedder.checkpoint).precision
    for precision in ("bf16", "fp16"):
        if every or precision == pays:
            yield Candidate(
                f"{engine} {precision}", embedder.model_name, engine=engine, precision=precision
            )


def _exported(embedder: BGE_M3_Embedder, folder: Path, precision: Precision) -> Candidate:
    """The model's export in a folder, made if it is not there; or why it cannot be made."""
    from unified_embeddings.evaluation.measurement import Candidate

    name = f"onnx {precision}"
    try:
        if _is_export_of(embedder, folder, precision):
            _step(f"{name}: taken from {folder}")
        else:
            from unified_embeddings.export.folder import export_onnx as export

            _step(f"{name}: writing")
            export(embedder.model_name, folder, precision=precision)
    except InputError:
        raise
    except UnifiedEmbeddingsError as error:
        return Candidate(name, str(folder), problem=str(error))
    return Candidate(name, str(folder))


def _is_export_of(embedder: BGE_M3_Embedder, folder: Path, precision: str) -> bool:
    from unified_embeddings.models.resolve import resolve

    if not folder.is_dir():
        return False
    try:
        found = resolve(folder, local_files_only=True)
        return (
            found.is_exported
            and found.digest == embedder.checkpoint.digest
            and found.exported["precision"] == precision
        )
    except ModelLoadError:
        return False


def _step(step: str) -> None:
    typer.echo(f"{step} ...", err=True)
