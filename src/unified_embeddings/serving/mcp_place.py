"""The Qdrant place whose collections MCP clients search: open only while it is used.

What lives here: opening, sharing and releasing the place, and naming its collections. What does
not: the tools (`mcp_tools`) and the protocol (`mcp`).

One process at a time can have the folder of an embedded store open, and an assistant keeps its MCP
servers running all day. So the place is released a moment after the last call, and a call waits a
moment for another process that has it: two servers share a folder, and files can be indexed while
they run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError, StoreError, hide_passwords
from unified_embeddings.system.files import LockHeldError

if TYPE_CHECKING:
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.stores.measuring import CollectionSize
    from unified_embeddings.stores.opening import Client

_LOG = logging.getLogger(__name__)
_IDLE_SECONDS = 2.0
_PATIENCE_SECONDS = 6.0
"""How long to wait for another process: longer than one of our own keeps an unused folder."""
_RETRY_SECONDS = 0.1
_DEFAULT_MODEL = "bge-m3"


class OpenPlace:
    """A place that is open, with the collections that were used.

    Args:
        config: Of the model.
        client: Of the place.
        place: The place in words.
        only: The one collection that is offered; None offers all.
    """

    def __init__(
        self, config: UnifiedEmbeddingConfig, client: Client, place: str, only: str | None
    ) -> None:
        self._config = config
        self._client = client
        self._place = place
        self._only = only
        self._stores: dict[str, FingerprintedStore] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of the collections that are offered, sorted.

        Raises:
            StoreError: If the place cannot be read.
        """
        from unified_embeddings.stores.errors import place_errors

        if self._only is not None:
            return [self._only]
        with place_errors(self._place, "listing the collections"):
            infos = self._client.get_collections().collections
        return sorted(info.name for info in infos)

    def measure(self) -> list[CollectionSize]:
        """Return what each collection that is offered and exists holds.

        Raises:
            StoreError: If the place cannot be read.
        """
        from unified_embeddings.stores.aliases import resolve_name
        from unified_embeddings.stores.measuring import measure_collection

        names = [resolve_name(self._client, name) for name in self.names()]
        return [measure_collection(self._client, name) for name in names if self._exists(name)]

    def choose(self, name: str | None) -> str:
        """Return the name of the collection to use: the one that was asked for, or the only one.

        Raises:
            InputError: If it is not offered, or none was asked for and there are several.
            StoreError: If the place cannot be read, or has none.
        """
        if self._only is not None:
            if name not in (None, self._only):
                raise InputError(f"this server offers the collection {self._only!r} alone")
            return self._only
        if name is not None:
            return name
        names = self.names()
        if not names:
            raise StoreError.of_place(
                self._place, "choosing a collection", "it has none; index some files first"
            )
        if len(names) > 1:
            raise InputError(
                f"collection is missing, and there are several: {', '.join(map(repr, names))}"
            )
        return names[0]

    def expects_model(self) -> bool:
        """Tell whether any collection that is offered may be the model's.

        Raises:
            StoreError: If the place cannot be read.
        """
        from unified_embeddings.stores.aliases import resolve_name

        for name in self.names():
            with contextlib.suppress(StoreError):
                self._check_model(resolve_name(self._client, name))
                return True
        return False

    def open_store(self, name: str, *, create: bool = False) -> FingerprintedStore:
        """Return the store of a collection, whose model has been compared with the config's.

        Args:
            name: The collection's name, or an alias.
            create: Whether to make it if it does not exist.

        Raises:
            StoreError: If it does not exist, does not record its model, or cannot be opened.
            FingerprintMismatchError: If another model made it.
        """
        from unified_embeddings.stores.aliases import resolve_name

        own_name = resolve_name(self._client, name)
        with self._lock:
            if own_name not in self._stores:
                if self._exists(own_name):
                    self._check_model(own_name)
                elif not create:
                    raise self._missing(name)
                self._stores[own_name] = self._config.vector_store(own_name, client=self._client)
            return self._stores[own_name]

    def close(self) -> None:
        """Release the place."""
        self._client.close()

    def _exists(self, name: str) -> bool:
        from unified_embeddings.stores.errors import store_errors

        with store_errors(name, f"opening at {self._place}"):
            return self._client.collection_exists(name)

    def _check_model(self, name: str) -> None:
        """Refuse a collection of another model than the default one, before that is downloaded."""
        from unified_embeddings.models.catalogue import MODELS
        from unified_embeddings.stores.errors import store_errors
        from unified_embeddings.stores.schema import recorded_model

        if self._config.url is not None or self._config.model_choice != _DEFAULT_MODEL:
            return
        with store_errors(name, "opening"):
            recorded = recorded_model(self._client.get_collection(name))
        if recorded is None or recorded.name in (_DEFAULT_MODEL, MODELS[_DEFAULT_MODEL].model_id):
            return
        raise StoreError(
            name,
            "opening",
            f"model {recorded.name!r} made it, and this server has {_DEFAULT_MODEL!r}; start the "
            "server with --model",
        )

    def _missing(self, name: str) -> StoreError:
        if self._only is not None:
            return StoreError(
                name,
                "opening",
                f"it does not exist at {self._place}, and this server offers no other one",
            )
        names = ", ".join(map(repr, self.names())) or "none"
        return StoreError(
            name, "opening", f"it does not exist at {self._place}; existing collections: {names}"
        )


class Place:
    """A folder or a server that is opened when it is used, and shared by all who use it.

    Args:
        config: Of the model that made the collections.
        path: Folder of an embedded store; ignored if `url` is given.
        url: Address of a server.
        only: The one collection to offer; None offers all.
        may_create: Whether a folder that does not exist is made.
        idle_seconds: How long the place stays open after its last use.
        patience_seconds: How long to wait for another process that has the folder open.
    """

    def __init__(
        self,
        config: UnifiedEmbeddingConfig,
        *,
        path: Path,
        url: str | None = None,
        only: str | None = None,
        may_create: bool = False,
        idle_seconds: float = _IDLE_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self.config = config
        self.path = path
        self.url = url
        self.only = only
        self._may_create = may_create
        self._idle_seconds = idle_seconds
        self._patience_seconds = patience_seconds
        self._lock = threading.Lock()
        self._open: OpenPlace | None = None
        self._users = 0
        self._last_used = 0.0

    @contextlib.contextmanager
    def use(self) -> Iterator[OpenPlace]:
        """Keep the place open for the block.

        Raises:
            StoreError: If it does not exist, or another process has it open for too long.
        """
        with self._lock:
            if self._open is None:
                self._open = OpenPlace(self.config, self._connect(), self.name, self.only)
            opened = self._open
            self._users += 1
        try:
            yield opened
        finally:
            with self._lock:
                self._users -= 1
                self._last_used = time.monotonic()
                if not self._users:
                    self._release_later()

    @property
    def name(self) -> str:
        """Return the place in words."""
        return self.url or f"the folder {self.path}"

    def close(self, timeout: float = 5.0) -> None:
        """Release the place, also under a call that is still running."""
        if self._lock.acquire(timeout=timeout):
            try:
                self._release()
            finally:
                self._lock.release()

    def _connect(self) -> Client:
        if self.url:
            from qdrant_client import QdrantClient

            return QdrantClient(url=self.url, check_compatibility=False)
        # A client of its own: the one that this process shares must not be closed under others.
        from unified_embeddings.stores.edge.client import EdgeQdrantClient

        folder = self.path.expanduser().resolve()
        if not folder.is_dir() and not self._may_create:
            raise StoreError.of_place(
                str(self.path), "opening", "there is no such folder; --path names another"
            )
        until = time.monotonic() + self._patience_seconds
        while True:
            try:
                return EdgeQdrantClient(folder)
            except StoreError as error:
                if not isinstance(error.__cause__, LockHeldError) or time.monotonic() > until:
                    raise
            time.sleep(_RETRY_SECONDS)

    def _release_later(self) -> None:
        timer = threading.Timer(self._idle_seconds, self._release_if_idle)
        timer.daemon = True
        timer.start()

    def _release_if_idle(self) -> None:
        with self._lock:
            is_idle = time.monotonic() - self._last_used >= self._idle_seconds
            if not self._users and is_idle:
                self._release()

    def _release(self) -> None:
        opened, self._open = self._open, None
        if opened is None:
            return
        try:
            opened.close()
        except Exception as error:
            _LOG.warning("closing %s failed: %s", hide_passwords(self.name), error)
