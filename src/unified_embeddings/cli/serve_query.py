"""`unified-embeddings serve-query`: an exported model over HTTP, for queries, quickly started.

Its options are read with argparse, and not with Typer as those of the other subcommands: Typer
imports pydantic when it reads options, which would be a fifth of the start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

HELP = "Serve an exported model on the CPU, quickly started: POST /query, /runsync, GET /health."
_PREFIX = "UNIFIED_EMBEDDINGS_"
_DESCRIPTION = f"""{HELP} Needs neither torch nor LlamaIndex
(requirements/query.txt), and answers about a second after it was started. Each option can also be
given as a variable, such as {_PREFIX}PORT; options win."""
_EPILOG = f"""{_PREFIX}API_KEYS lists API keys, with commas between them. QUANTIZATION (fp32 or
int8) says which precision the exported model must have; {_PREFIX}MAX_LENGTH,
{_PREFIX}CACHE_BYTES and the other options of a model work as everywhere."""


class _Setting(NamedTuple):
    """One option: its type, its default, and what it says."""

    kind: type[str] | type[int] | type[float]
    default: str | int | float | None
    help: str


_SETTINGS = {
    "host": _Setting(str, "127.0.0.1", "address to listen on; 0.0.0.0 serves other machines too"),
    "port": _Setting(int, 8000, "port to listen on; 0 takes a free one, which is printed"),
    "api_key_file": _Setting(str, None, "a key in each line, of which requests must bring one"),
    "queue_size": _Setting(int, 32, "requests that may wait; more get 429"),
    "max_body_bytes": _Setting(int, 2**20, "bytes of a request's body"),
    "request_timeout": _Setting(float, 30.0, "seconds until a request is answered, or fails"),
    "drain_timeout": _Setting(float, 25.0, "seconds for requests in hand after SIGTERM"),
}


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM; return 0, or 1 if it failed, 2 for wrong usage, 130 if interrupted."""
    options = _make_parser().parse_args(arguments)
    try:
        _serve(options, os.environ)
    except UnifiedEmbeddingsError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except Exception as error:
        if os.environ.get(_PREFIX + "DEBUG"):
            raise
        return _fail(
            f"unexpected {type(error).__name__}: {error}. Set {_PREFIX}DEBUG=1 to see the traceback"
        )
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unified-embeddings serve-query", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("-m", "--model", metavar="FOLDER", help="a folder that export-onnx wrote")
    for name, setting in _SETTINGS.items():
        shown = "" if setting.default is None else f" (default: {setting.default})"
        parser.add_argument(
            "--" + name.replace("_", "-"), type=setting.kind, help=setting.help + shown
        )
    return parser


def _serve(options: argparse.Namespace, environ: Mapping[str, str]) -> None:
    # The port opens and the model loads before all else: nothing here imports a web library.
    from unified_embeddings.serving.api_keys import load_keys
    from unified_embeddings.serving.query_server import serve
    from unified_embeddings.serving.query_settings import QuerySettings, query_embedder

    values = {name: _value(name, getattr(options, name), environ) for name in _SETTINGS}
    key_file = values.pop("api_key_file")
    keys = load_keys(
        environ.get(_PREFIX + "API_KEYS", ""), None if key_file is None else Path(str(key_file))
    )
    settings = QuerySettings(**values, api_keys=keys)  # type: ignore[arg-type]  # by _SETTINGS
    serve(query_embedder(options.model, environ), settings)


def _value(
    name: str, given: str | int | float | None, environ: Mapping[str, str]
) -> str | int | float | None:
    """Return an option, or else its variable, or else its default.

    Raises:
        InputError: If the variable does not read as its type.
    """
    setting, variable = _SETTINGS[name], _PREFIX + name.upper()
    text = environ.get(variable, "").strip()
    if given is not None:
        return given
    if not text:
        return setting.default
    try:
        return setting.kind(text)
    except ValueError:
        raise InputError(f"{variable}={text!r} is not usable: expected a number") from None


def _fail(problem: str, *, code: int = 1) -> int:
    printable = problem.encode(errors="replace").decode()
    print(f"error: {printable}", file=sys.stderr)
    return code
