"""`unified-embeddings embed`: the vectors of many rows, in parts that survive a crash."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperCommand

from unified_embeddings.cli import shared
from unified_embeddings.cli.embed_progress import open_reporter
from unified_embeddings.errors import InputError
from unified_embeddings.types import HEAD_NAMES, HeadName, Options

if TYPE_CHECKING:
    from unified_embeddings.bulk.options import BulkOptions, CollectionTarget

_FORMATS = ("npy", "jsonl", "parquet")
_SEVERAL = "--models"


class SeveralModelsCommand(TyperCommand):
    """A command whose `--models` takes several names after one flag: `--models bge-m3 e5-large-v2`.

    The input comes before `--models`, or as `--input-file`.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Repeat the flag before each name, and let Typer parse the rest."""
        return super().parse_args(ctx, repeat_flag(hyphenate_flags(args), _SEVERAL))


def hyphenate_flags(args: list[str]) -> list[str]:
    """Return arguments in which the names of flags have hyphens: `--max_workers` is accepted too.

    The names are rewritten and not declared twice, since the help has no room for both.

    Example:
        >>> hyphenate_flags(["--batch_size", "8", "--text_field=a_b", "in_1.jsonl"])
        ['--batch-size', '8', '--text-field=a_b', 'in_1.jsonl']
    """
    return [_hyphenate(arg) if arg.startswith("--") else arg for arg in args]


def _hyphenate(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value


def repeat_flag(args: list[str], flag: str) -> list[str]:
    """Return arguments in which a flag stands before each of the values that follow it.

    Example:
        >>> repeat_flag(["in.jsonl", "--models", "a", "b", "--device", "cpu"], "--models")
        ['in.jsonl', '--models', 'a', '--models', 'b', '--device', 'cpu']
    """
    repeated: list[str] = []
    is_value = False
    for arg, next_arg in zip(args, [*args[1:], "-"], strict=True):
        if arg == flag:
            is_value = True
            if next_arg.startswith("-"):
                repeated.append(arg)  # It has no value, which the parser shall tell.
        elif arg.startswith("-"):
            is_value = False
            repeated.append(arg)
        elif is_value:
            repeated += [flag, arg]
        else:
            repeated.append(arg)
    return repeated


def embed(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT", help="A file, a folder of files, a URL, or - for standard input."
        ),
    ] = None,
    input_file: Annotated[
        str | None, typer.Option("--input-file", help="The same as INPUT.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            "--output-dir",
            help="Folder of outputs, or its URL on an object store.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            _SEVERAL,
            "-m",
            "--model",
            metavar="NAME",
            help="One model or several.",
            show_default="bge-m3",
        ),
    ] = None,
    heads: Annotated[
        str, typer.Option(help="Vectors to compute, with commas: dense, sparse, colbert.")
    ] = "dense",
    formats: Annotated[
        str, typer.Option("--format", help="Outputs, with commas: npy, jsonl, parquet.")
    ] = "npy,jsonl",
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(
            metavar="TYPE", help="Numbers of dense and ColBERT vectors: float32 or float16."
        ),
    ] = "float32",
    text_field: Annotated[
        str | None,
        typer.Option("--text-field", help="Field with the text.", show_default="looked for"),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option("--id-field", help="Field that each row must have."),
    ] = None,
    keep_fields: Annotated[
        str | None,
        typer.Option(
            "--keep-fields",
            help="Fields to keep, with commas.",
            show_default="all but the text",
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Text before each text, in place of the model's own prefix."),
    ] = None,
    role: Annotated[
        Literal["document", "query"],
        typer.Option(metavar="ROLE", help="The model's prefix to use: document or query."),
    ] = "document",
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, metavar="N", help="Most rows at a time.", show_default="64"
        ),
    ] = None,
    batch_tokens: Annotated[
        int,
        typer.Option("--batch-tokens", min=1, metavar="N", help="Tokens of a forward pass."),
    ] = 4096,
    max_workers: Annotated[
        int,
        typer.Option("--max-workers", min=1, metavar="N", help="Processes that compute."),
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
    device: Annotated[
        str, typer.Option(help="cpu, cuda:0, ...; several with commas, one for each worker.")
    ] = "auto",
    engine: Annotated[
        str, typer.Option(help="torch, onnx, sentence or flag; ray is --runner ray.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "auto",
    max_length: Annotated[
        int, typer.Option("--max-length", min=3, metavar="N", help="Most tokens of a text.")
    ] = 8192,
    dedupe: Annotated[
        bool, typer.Option("--dedupe/--no-dedupe", help="Compute equal texts once.")
    ] = True,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="End at the first row that fails.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute again the rows that failed before.")
    ] = False,
    keep_parts: Annotated[
        bool, typer.Option("--keep-parts", help="Keep the parts beside the outputs.")
    ] = False,
    to_collection: Annotated[
        str | None,
        typer.Option("--to-collection", help="Collection that the rows go into as well."),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            parser=shared.require_path,
            metavar="<path>",
            help="Folder of the collection's embedded Qdrant store.",
        ),
    ] = None,
    url: shared.StoreUrl = None,
    runner: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes here, or a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            help="Address of a running cluster.",
            show_default="one on this machine",
        ),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "--work-dir",
            help="Folder of the parts, if the outputs go to an object store.",
            show_default="in the user's cache",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate tokens, time and disk; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Embed many rows with one model or several, and resume where it was interrupted.

    To resume an interrupted job, run the same command again. Flags may be written with underscores:
    --input_file, --output_dir, --max_workers.
    """
    from unified_embeddings.bulk.options import BulkOptions
    from unified_embeddings.bulk.rows import InputOptions

    if engine == "ray":
        engine, runner = "auto", "ray"
    given = choose_input(source, input_file, models or [])
    if output is None:
        raise InputError("name the folder of the outputs with --output")
    kept = None if keep_fields is None else tuple(split_names(keep_fields, "--keep-fields"))
    options = BulkOptions(
        models=models or ["bge-m3"],
        heads=read_heads(heads),
        role=role,
        prefix=prefix,
        dtype=dtype,
        formats=_read_formats(formats),
        checkpoint_interval=checkpoint_interval,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        max_workers=max_workers,
        devices=tuple(split_names(device, "--device")),
        dedupe=dedupe,
        fail_fast=fail_fast,
        retry_failed=retry_failed,
        keep_parts=keep_parts,
        collection=_choose_collection(to_collection, path, url),
        runner=runner,
        ray_address=ray_address,
        work_dir=work_dir,
        model_options=_model_options(engine, precision, max_length),
        input=InputOptions(
            text_field=text_field,
            id_field=id_field,
            keep_fields=kept,
        ),
    )
    _run_job(given, output, options, dry_run=dry_run, as_json=as_json)


def _run_job(
    source: str, output: str, options: BulkOptions, *, dry_run: bool, as_json: bool
) -> None:
    """Do the job, or estimate what it would cost, and print what there is to say.

    Raises:
        typer.Exit: After Ctrl-C, or if a row failed.
    """
    from unified_embeddings.bulk.options import InterruptedJobError
    from unified_embeddings.bulk.run import embed_rows, estimate

    with open_reporter(as_json=as_json) as reporter:
        if dry_run:
            for estimated in estimate(source, output, options):
                reporter.estimate(estimated)
            return
        try:
            reports = embed_rows(source, output, options, on_progress=reporter.progress)
        except InterruptedJobError as error:
            shared.print_error(str(error))
            raise typer.Exit(130) from None
        for report in reports:
            reporter.report(report)
        if any(report.failed for report in reports):
            raise typer.Exit(1)  # As `index` does: what could be done is done, and some is missing.


def choose_input(
    source: str | None, input_file: str | None, models: list[str], *, flag: str = "--input-file"
) -> str:
    """Return the input, given as an argument or with a flag.

    Raises:
        InputError: If it is given twice or not at all.
    """
    if source is not None and input_file is not None:
        raise InputError(f"INPUT and {flag} are the same; give one of them")
    given = source if source is not None else input_file
    if given is None:
        hint = ""
        if len(models) > 1 and Path(models[-1]).is_file():
            hint = f". {models[-1]!r} was taken for a model: write it before --models"
        raise InputError(f"name an input: a file, a folder, or - for standard input{hint}")
    return given


def _choose_collection(
    name: str | None, path: Path | None, url: str | None
) -> CollectionTarget | None:
    from unified_embeddings.bulk.options import CollectionTarget

    if name is None:
        if path is not None or url is not None:
            raise InputError("--path and --url say where a collection is; name --to-collection")
        return None
    if path is not None and url is not None:
        raise InputError("give --path or --url, not both")
    if url is not None:
        return CollectionTarget(name=name, url=url)
    return CollectionTarget(name=name, path=path or shared.DEFAULT_PATH)


def split_names(text: str, flag: str) -> list[str]:
    """Return the names in a flag's value, which commas separate.

    Raises:
        InputError: If there is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise InputError(f"{flag} {text!r} names nothing")
    return parts


def read_heads(text: str) -> tuple[HeadName, ...]:
    """Return the heads that `--heads` names, in the usual order.

    Raises:
        InputError: If one is unknown.
    """
    names = split_names(text, "--heads")
    for name in names:
        if name not in HEAD_NAMES:
            raise InputError(f"--heads {name!r}: expected {', '.join(HEAD_NAMES)}")
    return tuple(head for head in HEAD_NAMES if head in names)


def _read_formats(text: str) -> tuple[Literal["npy", "jsonl", "parquet"], ...]:
    names = split_names(text, "--format")
    chosen: list[Literal["npy", "jsonl", "parquet"]] = []
    for name in names:
        if name == "npy" or name == "numpy":
            chosen.append("npy")
        elif name == "jsonl":
            chosen.append("jsonl")
        elif name == "parquet":
            chosen.append("parquet")
        else:
            raise InputError(f"--format {name!r}: expected {', '.join(_FORMATS)}")
    return tuple(dict.fromkeys(chosen))


def _model_options(engine: str, precision: str, max_length: int) -> Options:
    return {"engine": engine, "precision": precision, "max_length": max_length}
