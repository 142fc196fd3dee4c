"""The Typer app of the command `unified-embeddings`.

What lives here: the list of subcommands, and the rule that no error reaches a user as a traceback.
What does not: the subcommands themselves, one module each.
"""

from __future__ import annotations

import io
import logging
import os
import sys

import typer

from unified_embeddings._version import __version__
from unified_embeddings.cli import (
    add_vectors,
    adopt,
    check,
    copying,
    demo,
    doctor,
    drop,
    embed,
    evaluate,
    export_onnx,
    index,
    info,
    inspect,
    list_collections,
    make_queries,
    mcp,
    migrate,
    migrate_traffic,
    migrate_vectors,
    models,
    optimize,
    ping,
    quantize,
    search,
    serve,
    serve_query,
    stats,
    tune,
)
from unified_embeddings.cli.hints import CompletedHints, DashGroup, know_commands
from unified_embeddings.cli.shared import print_error
from unified_embeddings.errors import UnifiedEmbeddingsError

_COMPLETED_HINTS = CompletedHints()
app = typer.Typer(
    name="unified-embeddings",
    cls=DashGroup,
    help="Embeddings and hybrid retrieval with BGE-M3, LlamaIndex and Qdrant, offline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("index")(index.index)
app.command("search")(search.search)
app.command("inspect")(inspect.inspect)
app.command("embed", cls=embed.SeveralModelsCommand)(embed.embed)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.command("list")(list_collections.list_collections)
app.command("info")(info.info)
app.command("drop")(drop.drop)
app.command("copy")(copying.copy)
app.command("adopt")(adopt.adopt)
app.command("add-vectors")(add_vectors.add_vectors)
app.command("optimize")(optimize.optimize)
app.command("check")(check.check)
app.command("models")(models.models)
app.command("export-onnx")(export_onnx.export_onnx)
app.command("quantize")(quantize.quantize)
app.command("tune")(tune.tune)
app.command("make-queries")(make_queries.make_queries)
app.command("ping")(ping.ping)
app.command("evaluate")(evaluate.evaluate)
app.command("stats")(stats.stats)
app.command("doctor")(doctor.doctor)
app.command("migrate-vectors", cls=migrate_vectors.HyphenCommand)(migrate_vectors.migrate_vectors)
migrate.app.command("shadow")(migrate_traffic.shadow)
migrate.app.command("canary")(migrate_traffic.canary)
migrate.app.command("cutover")(migrate_traffic.cutover)
migrate.app.command("rollback")(migrate_traffic.rollback)
migrate.app.command("retire")(migrate_traffic.retire)
app.add_typer(migrate.app, name="migrate")
know_commands(app)


@app.command(
    "serve-query",
    help=serve_query.HELP,
    # All options are its own parser's, -h as well.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def _serve_query(context: typer.Context) -> None:
    raise typer.Exit(serve_query.main(context.args))


def _print_version(requested: bool) -> None:
    """Print the version and exit, if --version was given."""
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _accept_version_option(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows a question mark
    if logging.lastResort is not None:  # It prints the warnings of libraries.
        logging.lastResort.addFilter(_COMPLETED_HINTS)
    try:
        # Named here, since `python -m unified_embeddings` would be called "python -m ...".
        app(prog_name="unified-embeddings", standalone_mode=True)
    except UnifiedEmbeddingsError as error:
        print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        print_error("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has closed it, as `| head` does. Python flushes standard output
        # once more at exit, and would complain: let it flush into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("UNIFIED_EMBEDDINGS_DEBUG"):
            raise
        print_error(
            f"unexpected {type(error).__name__}: {error}. Set UNIFIED_EMBEDDINGS_DEBUG=1 to see "
            "the traceback"
        )
        sys.exit(1)
