"""`unified-embeddings migrate-vectors`: texts embedded anew, into one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from unified_embeddings.cli import shared
from unified_embeddings.cli.embed import choose_input, hyphenate_flags, read_heads, split_names
from unified_embeddings.cli.embed_progress import Reporter, open_reporter
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from unified_embeddings.bulk.moving import MoveFormat, MoveReport
    from unified_embeddings.bulk.old_vectors import OldVectors
    from unified_embeddings.bulk.options import BulkOptions

_FORMATS = "npy, jsonl, parquet, chroma, pinecone, pinecone-documents or qdrant"
_SUFFIXES = (".npy", ".jsonl", ".parquet")


class HyphenCommand(TyperCommand):
    """A command whose flags may be written with underscores."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Write the flags' names with hyphens, and let Typer parse them."""
        return super().parse_args(ctx, hyphenate_flags(args))


def migrate_vectors(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT", help="A file, a folder of files, a URL, or - for standard input."
        ),
    ] = None,
    input_file: Annotated[
        str | None, typer.Option("--input", "--input-file", help="The same as INPUT.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The new file.", show_default="INPUT's name, here"),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help=_FORMATS + ".", show_default="by --output"),
    ] = None,
    model: shared.Model = None,
    heads: Annotated[
        str | None,
        typer.Option(
            help="Vectors to compute, with commas: dense, sparse, colbert.",
            show_default="dense; for qdrant sparse too",
        ),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", help="Field with the text.", show_default="looked for"),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            "--id-field", help="Field with the id.", show_default="id, or else the row's number"
        ),
    ] = None,
    keep_fields: Annotated[
        str | None,
        typer.Option(
            "--keep-fields",
            help="Fields to keep as metadata, with commas.",
            show_default="all but the text",
        ),
    ] = None,
    with_texts: Annotated[
        bool, typer.Option("--text/--no-text", help="Whether stores get the texts too.")
    ] = True,
    old: Annotated[
        Path | None, typer.Option("--old", help="The old vectors (.npy), to be compared in words.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, ...")] = "auto",
    engine: Annotated[str, typer.Option(help="torch, onnx, sentence or flag.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "auto",
    max_length: Annotated[
        int, typer.Option("--max-length", min=3, metavar="N", help="Most tokens of a text.")
    ] = 8192,
    max_workers: Annotated[
        int, typer.Option("--max-workers", min=1, metavar="N", help="Processes that compute.")
    ] = 1,
    checkpoint_interval: Annotated[
        int,
        typer.Option(
            "--checkpoint-interval",
            min=1,
            metavar="N",
            help="Rows of a part: what a crash loses at most.",
        ),
    ] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Embed all texts with a new model, into one new file with ids and metadata.

    It is never added to old vectors. To resume an interrupted run, run the same command again.
    """
    from unified_embeddings.bulk.options import BulkOptions
    from unified_embeddings.bulk.rows import InputOptions

    given = choose_input(source, input_file, [], flag="--input")
    chosen = _choose_format(format_name, output)
    target = _choose_output(given, output, chosen)
    kept = None if keep_fields is None else tuple(split_names(keep_fields, "--keep-fields"))
    options = BulkOptions(
        models=[model or "bge-m3"],
        heads=None if heads is None else read_heads(heads),
        with_texts=with_texts,
        checkpoint_interval=checkpoint_interval,
        max_workers=max_workers,
        devices=tuple(split_names(device, "--device")),
        model_options={"engine": engine, "precision": precision, "max_length": max_length},
        input=InputOptions(
            text_field=text_field, id_field=id_field, find_id=True, keep_fields=kept
        ),
    )
    with open_reporter(as_json=as_json) as reporter:
        _move(given, target, chosen, options, old, reporter, as_json=as_json)


def _move(
    source: str,
    output: Path,
    output_format: MoveFormat,
    options: BulkOptions,
    old_file: Path | None,
    reporter: Reporter,
    *,
    as_json: bool,
) -> None:
    """Do the job, and print what there is to say.

    Raises:
        typer.Exit: After Ctrl-C.
    """
    from unified_embeddings.bulk.moving import move_vectors
    from unified_embeddings.bulk.old_vectors import read_old_vectors
    from unified_embeddings.bulk.options import InterruptedJobError

    old = None if old_file is None else read_old_vectors(old_file, output)
    try:
        moved = move_vectors(source, output, output_format, options, on_progress=reporter.progress)
    except InterruptedJobError as error:
        shared.print_error(str(error))
        raise typer.Exit(130) from None
    reporter.report(moved.report)
    if not as_json:
        ids = f"field {moved.id_field!r}" if moved.id_field else "numbers of the rows"
        shared.print_line(f"{moved.dimension:,} numbers for each vector; ids: {ids}")
    if old is not None and old_file is not None:
        _tell_of_old(old_file, old, moved, as_json=as_json)


def _tell_of_old(old_file: Path, old: OldVectors, moved: MoveReport, *, as_json: bool) -> None:
    from unified_embeddings.bulk.old_vectors import compare_vectors

    words = compare_vectors(
        old_file,
        old,
        rows=moved.report.rows,
        dimension=moved.dimension,
        fingerprint=moved.fingerprint,
    )
    if as_json:
        content = {"event": "compared", "old_rows": old.rows, "old_dimension": old.dimension}
        typer.echo(json.dumps({**content, "dimension": moved.dimension, "words": words}))
    else:
        shared.print_line(words)


def _choose_format(name: str | None, output: str | None) -> MoveFormat:
    """Return the format that is asked for, or that the output's name tells."""
    from unified_embeddings.bulk.moving import MOVE_FORMATS, find_suffix

    suffix = "" if output is None else Path(output).suffix.lower()
    for known in MOVE_FORMATS:
        ending = find_suffix(known)
        if name is None and suffix == ending:
            return known
        if name != known:
            continue
        if suffix in _SUFFIXES and not ending.endswith(suffix):
            raise InputError(
                f"--format {name} writes files that end in {ending}, and --output is {output}; "
                "name another output or format"
            )
        return known
    if name is not None:
        raise InputError(f"--format {name!r}: expected {_FORMATS}")
    return "npy"


def _choose_output(source: str, output: str | None, output_format: MoveFormat) -> Path:
    """Return the file of the vectors: by default the input's name with another ending, here."""
    from unified_embeddings.bulk.moving import find_suffix
    from unified_embeddings.bulk.object_store import is_url

    if output is not None:
        if is_url(output):
            raise InputError(
                f"--output {output} is no file on this machine; `unified-embeddings embed` writes "
                "to object stores"
            )
        return Path(output)
    if source == "-":
        raise InputError("name the file of the vectors with --output")
    stem = Path(source.rstrip("/")).name.split(".")[0] or "vectors"
    return Path(stem + find_suffix(output_format))
