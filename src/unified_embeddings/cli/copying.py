"""`unified-embeddings copy`: copy collections from one place to another.

What lives here: understanding the two places, and checking everything that can be checked before
the first point is written. What does not: the copy itself (`stores.copying`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError, StoreError

if TYPE_CHECKING:
    from unified_embeddings.stores.copying import CopyReport
    from unified_embeddings.stores.opening import Client

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_LIKE_AN_ADDRESS = re.compile(r"\w+://|[\w.-]+:\d+/?$")
_STORE_FILES = ("catalog.json", "meta.json")
"""A folder with one of these holds a store: of the embedded core, or of qdrant-client."""
_TIMEOUT = 120
"""Seconds that a server may take for one request; storing 16 MB of vectors takes a while."""
_DEFAULT_PORT = 6333

_PLACE = "FOLDER|URL"


def copy(
    source: Annotated[
        str,
        typer.Option("--from", metavar=_PLACE, help="Source: a folder or a server's http(s) URL."),
    ],
    target: Annotated[
        str, typer.Option("--to", metavar=_PLACE, help="Destination: a folder or a URL.")
    ],
    collections: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            help="Collection to copy; repeatable.",
            show_default="all collections",
        ),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--as", help="Name of the copy, if one collection is copied.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also send points that the destination has already.")
    ] = False,
    aliases: Annotated[
        bool, typer.Option("--aliases", help="Also copy the aliases of the collections.")
    ] = False,
    shard_number: shared.ShardNumber = None,
    replication_factor: shared.ReplicationFactor = None,
    write_consistency: shared.WriteConsistency = None,
    from_api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_FROM_API_KEY", help="API key of the source.")
    ] = None,
    to_api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_TO_API_KEY", help="API key of the destination.")
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Copy collections between a folder and a Qdrant server, or between any two places.

    Vectors are copied; nothing is embedded again. To resume an interrupted copy, run the same
    command again: points that the destination has already are skipped.
    """
    try:
        reports = _copy_collections(
            _Place(source, from_api_key),
            _Place(target, to_api_key),
            collections or [],
            _CopyOptions(
                new_name=new_name,
                overwrite=overwrite,
                aliases=aliases,
                server_settings=shared.server_settings(
                    shard_number, replication_factor, write_consistency
                ),
            ),
        )
    except KeyboardInterrupt:
        shared.print_error("interrupted; run the same command again to resume")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], ensure_ascii=False))
        return
    for report in reports:
        shared.print_line(_report_line(report))


@dataclass(frozen=True)
class _CopyOptions:
    """How collections are copied.

    Attributes:
        new_name: Name of the copy; None keeps the source's name.
        overwrite: Whether to send points that the target has already.
        aliases: Whether to copy the aliases.
        server_settings: Settings of the collections that are created on a server.
    """

    new_name: str | None
    overwrite: bool
    aliases: bool
    server_settings: dict[str, int]


class _Place:
    """A folder or a server, as the user named it."""

    def __init__(self, name: str, api_key: str | None) -> None:
        self.name = name
        self.is_server = bool(_ADDRESS.match(name))
        self._api_key = api_key
        if not name.strip():
            raise InputError("--from and --to each need a folder or a URL; one of them is blank")
        if not self.is_server and _LIKE_AN_ADDRESS.match(name):
            raise InputError(
                f"{name!r} is neither a folder nor a URL that begins with http:// or https://; "
                "for a folder of that name write ./ before it"
            )

    @property
    def identity(self) -> tuple[str, ...]:
        """A value that is equal for two spellings of the same place."""
        if not self.is_server:
            return ("folder", str(Path(self.name).expanduser().resolve()))
        try:
            parts = urlsplit(self.name)
            port = parts.port or _DEFAULT_PORT
        except ValueError as error:
            raise InputError(f"the URL {self.name!r} cannot be read: {error}") from error
        if not parts.hostname:
            raise InputError(f"the URL {self.name!r} names no host")
        return ("server", parts.hostname, str(port), parts.path.rstrip("/"))

    def require_store(self) -> None:
        """Refuse a folder that does not hold a store; opening it would create one."""
        folder = Path(self.name).expanduser()
        if self.is_server or any((folder / name).is_file() for name in _STORE_FILES):
            return
        problem = "it holds no collections" if folder.is_dir() else "there is no such folder"
        raise StoreError.of_place(self.name, "opening", f"{problem}; name the folder of a store")

    def open(self) -> Client:
        """Open the place and return its client."""
        from qdrant_client import QdrantClient

        from unified_embeddings.stores.edge.catalog import is_local_mode_folder
        from unified_embeddings.stores.opening import open_folder, open_local_mode_folder

        if self.is_server:
            return QdrantClient(
                url=self.name, api_key=self._api_key, timeout=_TIMEOUT, check_compatibility=False
            )
        if is_local_mode_folder(Path(self.name).expanduser()):
            return open_local_mode_folder(self.name)
        return open_folder(self.name)


def _copy_collections(
    source: _Place, target: _Place, requested_names: Sequence[str], options: _CopyOptions
) -> list[CopyReport]:
    """Check the whole order, then copy one collection after another.

    Args:
        source: Place to copy from.
        target: Place to copy to.
        requested_names: Collections to copy; none of them means all.
        options: How they are copied.

    Raises:
        InputError: If the options contradict each other or the places.
        StoreError: If a place cannot be opened, or a collection cannot be copied.
    """
    if options.server_settings and not target.is_server:
        raise InputError(
            "--shard-number, --replication-factor and --write-consistency are settings of a "
            f"Qdrant server, and {target.name!r} is a folder; omit them"
        )
    is_same_place = source.identity == target.identity
    source.require_store()
    from unified_embeddings.stores.copying import check_copy, collection_names

    with ExitStack() as stack:
        reader = stack.enter_context(closing(source.open()))
        # Listed even if names were given: a source that cannot be reached fails here.
        existing_names = collection_names(reader, source.name)
        names = list(dict.fromkeys(requested_names or existing_names))
        if not names:
            raise StoreError.of_place(source.name, "copying", "there are no collections to copy")
        _check_new_name(options.new_name, names, is_same_place=is_same_place)
        writer = reader
        if not is_same_place:
            writer = stack.enter_context(closing(target.open()))
        # The first request to the target: a wrong URL fails here, with an error that names it.
        collection_names(writer, target.name)
        for name in names:
            check_copy(reader, writer, name, target_name=options.new_name, aliases=options.aliases)
        return [_copy_collection(reader, writer, name, options) for name in names]


def _check_new_name(new_name: str | None, names: list[str], *, is_same_place: bool) -> None:
    """Refuse a name for several copies, and a copy onto itself."""
    if new_name and len(names) > 1:
        raise InputError(
            f"--as names one copy, but {len(names)} collections would be copied; choose one of "
            f"them with --collection: {', '.join(map(repr, names))}"
        )
    if is_same_place and (new_name is None or new_name in names):
        raise InputError("--from and --to are the same place; give the copy another name with --as")


def _copy_collection(
    reader: Client, writer: Client, name: str, options: _CopyOptions
) -> CopyReport:
    """Copy one collection and show how far it is."""
    from unified_embeddings.stores.copying import copy_collection
    from unified_embeddings.system.progress import open_ended_progress_bar

    title = f"Copying {escape(shared.printable(name))}"
    with open_ended_progress_bar(title, shown=shared.is_terminal()) as (start, advance):
        return copy_collection(
            reader,
            writer,
            name,
            target_name=options.new_name,
            overwrite=options.overwrite,
            aliases=options.aliases,
            on_total=start,
            on_points=advance,
            **options.server_settings,
        )


def _report_line(report: CopyReport) -> str:
    """Describe a finished copy in one line."""
    name = report.collection
    if report.target != name:
        name = f"{name} as {report.target}"
    line = (
        f"{name}: {report.copied} points copied, {report.already_there} already there, "
        f"{report.total} in all, {report.seconds:.1f} s"
    )
    if report.aliases:
        outcome = "copied too" if report.aliases_copied else "not copied (--aliases copies them)"
        line += f"; aliases {', '.join(report.aliases)} {outcome}"
    return shared.printable(line)
