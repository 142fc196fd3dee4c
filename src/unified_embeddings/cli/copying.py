"""`unified-embeddings copy`: collections from one place to another."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
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
_STORE_FILES = ("catalog.json", "meta.json")  # either tells a store's folder from another
_TIMEOUT = 120  # seconds: a server takes a while to store 16 MB of vectors
_DEFAULT_PORT = 6333

_PLACE = "FOLDER|URL"


def copy(
    source: Annotated[
        str,
        typer.Option("--from", metavar=_PLACE, help="A folder, or a server's http(s):// address."),
    ],
    target: Annotated[str, typer.Option("--to", metavar=_PLACE, help="The same, of the copy.")],
    collections: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            help="What to copy. May be given repeatedly. [default: all collections there are]",
        ),
    ] = None,
    new_name: Annotated[
        str | None, typer.Option("--as", help="The copy's name, if one collection is copied.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Send the points that are there already, too.")
    ] = False,
    aliases: Annotated[
        bool, typer.Option("--aliases", help="Copy the aliases of the collections, too.")
    ] = False,
    shard_number: shared.ShardNumber = None,
    replication_factor: shared.ReplicationFactor = None,
    write_consistency: shared.WriteConsistency = None,
    from_api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_FROM_API_KEY", help="Key of the server --from.")
    ] = None,
    to_api_key: Annotated[
        str | None, typer.Option(envvar="QDRANT_TO_API_KEY", help="Key of the server --to.")
    ] = None,
    as_json: shared.AsJson = False,
) -> None:
    """Copy collections between a folder and a Qdrant server, or any two places.

    Vectors are copied, nothing is embedded again. Run it again after it was stopped: points that
    are there already are left alone.
    """
    try:
        reports = _copy(
            _Place(source, from_api_key),
            _Place(target, to_api_key),
            collections,
            new_name,
            overwrite=overwrite,
            aliases=aliases,
            settings=shared.server_settings(shard_number, replication_factor, write_consistency),
        )
    except KeyboardInterrupt:
        shared.complain("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps([asdict(report) for report in reports], ensure_ascii=False))
        return
    for report in reports:
        shared.out.print(_told(report), markup=False, highlight=False, soft_wrap=True)


class _Place:
    """A folder or a server, as the user named it."""

    def __init__(self, given: str, api_key: str | None) -> None:
        self.given = given
        self.is_server = bool(_ADDRESS.match(given))
        self._api_key = api_key
        if not given.strip():
            raise InputError("--from and --to should be a folder or an address, got a blank one")
        if not self.is_server and _LIKE_AN_ADDRESS.match(given):
            raise InputError(
                f"{given!r} is neither a folder nor an address that begins with http:// or "
                "https://; for a folder of that name write ./ before it"
            )

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two spellings of one place."""
        if not self.is_server:
            return ("folder", str(Path(self.given).expanduser().resolve()))
        try:
            parts = urlsplit(self.given)
            port = parts.port or _DEFAULT_PORT
        except ValueError as error:
            raise InputError(f"the address {self.given!r} cannot be read: {error}") from error
        if not parts.hostname:
            raise InputError(f"the address {self.given!r} names no host")
        return ("server", parts.hostname, str(port), parts.path.rstrip("/"))

    def require(self) -> None:
        """Refuse a folder that holds no store: opening it would make one."""
        folder = Path(self.given).expanduser()
        if self.is_server or any((folder / name).is_file() for name in _STORE_FILES):
            return
        problem = "holds no collections" if folder.is_dir() else "there is no such folder"
        raise StoreError(self.given, "opening", f"{problem}; give the folder of a store")

    def open(self) -> Client:
        """Its client."""
        from qdrant_client import QdrantClient

        from unified_embeddings.stores.edge.catalog import is_local_mode_folder
        from unified_embeddings.stores.opening import open_folder, open_old_folder

        if self.is_server:
            return QdrantClient(
                url=self.given, api_key=self._api_key, timeout=_TIMEOUT, check_compatibility=False
            )
        old = is_local_mode_folder(Path(self.given).expanduser())
        return open_old_folder(self.given) if old else open_folder(self.given)


def _copy(
    source: _Place,
    target: _Place,
    collections: list[str] | None,
    new_name: str | None,
    *,
    overwrite: bool,
    aliases: bool,
    settings: dict[str, Any],
) -> list[CopyReport]:
    """Check all that is to be copied, then copy it."""
    if settings and not target.is_server:
        raise InputError(
            "--shard-number, --replication-factor and --write-consistency are settings of a "
            f"Qdrant server, and {target.given!r} is a folder; leave them out"
        )
    same_place = source.identity == target.identity
    source.require()
    from unified_embeddings.stores.copying import check_copy, collection_names, copy_collection
    from unified_embeddings.system.progress import open_ended_progress_bar

    with ExitStack() as opened:
        reader = opened.enter_context(closing(source.open()))
        there = collection_names(reader, source.given)
        names = list(dict.fromkeys(collections or there))
        if not names:
            raise StoreError(source.given, "copying", "there are no collections to copy")
        if new_name and len(names) > 1:
            raise InputError(
                f"--as names one copy, and {len(names)} collections are to be copied; name one of "
                f"them with --collection: {', '.join(map(repr, names))}"
            )
        if same_place and new_name in (None, *names):
            raise InputError(
                "--from and --to are the same place; give the copy another name with --as"
            )
        writer = reader if same_place else opened.enter_context(closing(target.open()))
        collection_names(writer, target.given)  # an address that is wrong is named as such
        options: dict[str, Any] = {"target_name": new_name, "aliases": aliases}
        for name in names:
            check_copy(reader, writer, name, **options)
        reports = []
        for name in names:
            title = f"Copying {escape(shared.printable(name))}"
            with open_ended_progress_bar(title, shown=shared.is_terminal()) as (start, step):
                report = copy_collection(
                    reader,
                    writer,
                    name,
                    overwrite=overwrite,
                    on_total=start,
                    on_points=step,
                    **options,
                    **settings,
                )
            reports.append(report)
        return reports


def _told(report: CopyReport) -> str:
    """A report as one line."""
    name = report.collection
    name += "" if report.target == name else f" as {report.target}"
    line = (
        f"{name}: {report.copied} points copied, {report.already_there} already there, "
        f"{report.total} in all, {report.seconds:.1f} s"
    )
    if report.aliases:
        done = "copied too" if report.aliases_copied else "not copied (--aliases copies them)"
        line += f"; aliases {', '.join(report.aliases)} {done}"
    return shared.printable(line)
