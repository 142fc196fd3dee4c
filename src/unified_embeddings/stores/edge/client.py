"""Qdrant in this process: qdrant-client's interface over Qdrant's own core, in a folder.

What lives here: opening and closing a folder, and what concerns its files. The methods about
collections, those that write points and those that read them are in `collection_methods`,
`point_writing` and `point_reading`. What happens inside is in `store`; the modules beside it
convert what goes in and comes out. `EdgeQdrantClient` takes and returns qdrant-client's models, so
that a program moves to a server by putting `QdrantClient(url=...)` in its place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qdrant_client import QdrantClient
from qdrant_client.client_base import QdrantBase
from qdrant_client.migrate.migrate import migrate

from unified_embeddings.errors import InputError, StoreError, UnifiedEmbeddingsError
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.edge.bulk_writing import BulkWriting
from unified_embeddings.stores.edge.collection_changes import CollectionChanges
from unified_embeddings.stores.edge.collection_methods import CollectionMethods
from unified_embeddings.stores.edge.facets import Facets
from unified_embeddings.stores.edge.grouping import Grouping
from unified_embeddings.stores.edge.naming import check_is_text
from unified_embeddings.stores.edge.store import EmbeddedStore
from unified_embeddings.stores.edge.translation import unsupported_method


class EdgeQdrantClient(CollectionMethods, CollectionChanges, BulkWriting, Grouping, Facets):
    """QdrantClient over a folder, on Qdrant's own core, in this process.

    Thread-safe. Only one process, and one client in it, can open a folder at a time. A write that
    has returned survives a killed process; `flush` makes it survive a loss of power. Searches read
    every vector until `optimize` has built an index. The core holds Python's interpreter during a
    call: some milliseconds for a search over 10,000 points, about 20 over 50,000.

    Methods and options that only a server has (shards, replicas, snapshots) raise an InputError
    that names them, and so does what a server refuses. `wait`, `ordering`, `consistency` and
    `timeout` are accepted and change nothing: each write returns when it is done, and reads see all
    completed writes. Plain dicts are taken for qdrant-client's models, as a server's client does.

    Args:
        path: The folder; created if it does not exist.

    Raises:
        StoreError: If the folder is in use, cannot be written, or was made by other or newer
            software.

    Attributes:
        path: The folder, absolute.
        released: Set once the client is closed and another one may open the folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from qdrant_client import models
        >>> from unified_embeddings import EdgeQdrantClient
        >>> with TemporaryDirectory() as folder, EdgeQdrantClient(folder) as client:
        ...     created = client.create_collection(
        ...         "animals",
        ...         vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT),
        ...     )
        ...     stored = client.upsert(
        ...         "animals",
        ...         [
        ...             models.PointStruct(id=1, vector=[1.0, 0.0], payload={"name": "fox"}),
        ...             models.PointStruct(id=2, vector=[0.0, 1.0], payload={"name": "owl"}),
        ...         ],
        ...     )
        ...     response = client.query_points("animals", query=[0.2, 0.9], limit=1)
        >>> response.points[0].payload
        {'name': 'owl'}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            problem = f"it is not a usable path of a folder: {error}"
            raise StoreError.of_place(str(path)[:200], "opening", problem) from error
        super().__init__(EmbeddedStore(self.path))
        self.released = self._store.released

    def __enter__(self) -> EdgeQdrantClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be copied or pickled.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"a client of the folder {str(self.path)!r} can be neither copied nor pickled, as only "
            "one can hold the folder open; share the client"
        )

    if not TYPE_CHECKING:  # or a type checker would accept any misspelt attribute

        def __getattr__(self, name: str) -> Any:
            """Refuse a method that only a server has, by its name.

            The error is an AttributeError as well, so that `hasattr` is False.
            """
            if name.startswith("_") or not callable(getattr(QdrantClient, name, None)):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise unsupported_method(name)

    @property
    def aclient(self) -> AsyncView:
        """Return AsyncQdrantClient's methods over this client, each run in a worker thread."""
        return AsyncView(self)

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._store.closed

    @property
    def forked(self) -> bool:
        """Tell whether it was opened by the process that this one was forked from."""
        return self._store.forked

    def close(self) -> None:
        """Flush everything and let another process open the folder. Idempotent.

        Raises:
            StoreError: If the disk is full; what was acknowledged is in the log all the same.
        """
        self._store.close()

    def flush(self, collection_name: str | None = None) -> None:
        """Force one collection, or all of them, to the disk.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        self._store.flush(collection_name)

    def optimize(self, collection_name: str) -> bool:
        """Merge a collection's points and index them (HNSW), for fast searches over many points.

        It pays from about 20,000 points. The index is approximate, so measure recall. On large
        collections it takes minutes, in a separate process; reads go on meanwhile, writes wait.
        Points that are added later are searched one by one until the next call.

        Returns:
            Whether there was something to do.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the disk lacks space for three copies, or the core fails.
        """
        return self._store.optimize(collection_name)

    def clear(self, collection_name: str) -> None:
        """Delete all points of a collection and free their space at once; atomic.

        The collection keeps its settings, its metadata, its payload indexes and its aliases. After
        a crash it has all its points or none. A running `optimize` is ended.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the collection cannot be read, or a new one cannot be written, as on a
                full disk.
        """
        check_is_text(collection_name)
        self._store.clear_collection(collection_name)

    def disk_bytes(self, collection_name: str) -> int:
        """Return the bytes that a collection's files take on disk.

        Raises:
            InputError: If there is no such collection.
        """
        shard, _ = self._store.collection(collection_name)
        return shard.disk_bytes()

    def migrate(
        self,
        dest_client: QdrantBase,
        collection_names: list[str] | None = None,
        batch_size: int = 100,
        recreate_on_collision: bool = False,
    ) -> None:
        """Copy collections to another client by qdrant-client's own function.

        `unified-embeddings copy` does the same and can be resumed.

        Raises:
            InputError: If batch_size < 1, or a collection exists there already.
        """
        try:
            migrate(
                cast("QdrantBase", self),  # it has the methods that are called
                dest_client,
                collection_names=collection_names,
                batch_size=batch_size,
                recreate_on_collision=recreate_on_collision,
            )
        except UnifiedEmbeddingsError:
            raise
        except (AssertionError, ValueError) as error:
            raise InputError(f"the collections cannot be migrated: {error}") from error
