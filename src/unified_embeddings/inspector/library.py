"""The collections of a store, each opened with the model that made it.

What lives here: which model a collection is searched with. What does not: searching (`searching`).
"""

from __future__ import annotations

import shlex
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qdrant_client import models as qm

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError, hide_passwords
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.stock_arguments import Adopt
from unified_embeddings.stores.aliases import resolve_name
from unified_embeddings.stores.errors import place_errors, store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import RecordedModel, recorded_model

if TYPE_CHECKING:
    from unified_embeddings.embedders.base import TextEmbedder

_PAIR = " + "
"""What stands between the names of two models in a collection's record."""


class UnknownCollectionError(UnifiedEmbeddingsError):
    """The store has no such collection."""


@dataclass(frozen=True)
class Place:
    """Where the collections are, for the code that a page gives; neither is a client of your own.

    Attributes:
        path: Folder of an embedded store.
        url: Address of a server.
    """

    path: Path | None = None
    url: str | None = None

    def __str__(self) -> str:
        return hide_passwords(str(self.url or self.path or "a store in memory"))


@dataclass(frozen=True)
class OpenedCollection:
    """A collection with the model that made it.

    Attributes:
        name: Its own name.
        config: Of the model.
        store: Over it.
        client: Of the place.
        place: Where it is.
        model: What the config was made with, for the code that a page gives.
        samples: Ids that were drawn for its page, by its number of points then. Drawing reads all
            ids of an embedded store, which takes seconds for a million.
    """

    name: str
    config: UnifiedEmbeddingConfig
    store: FingerprintedStore
    client: Client
    place: Place
    model: dict[str, str]
    samples: dict[int, list[qm.ExtendedPointId]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def embedder(self) -> TextEmbedder:
        """Return the model."""
        return self.config.embedder

    @property
    def has_sparse(self) -> bool:
        """Whether the model gives sparse vectors."""
        return "sparse" in self.embedder.heads

    @property
    def has_colbert(self) -> bool:
        """Whether the model gives ColBERT vectors."""
        return "colbert" in self.embedder.heads


class Library:
    """The collections of one place. Only read: it makes no collection.

    Args:
        client: Of the place.
        place: Where that is.
        config: Of the model for collections that it made, or whose model nothing records. None
            takes for each collection the model that it records.
        adopt: "trust" accepts collections that do not record their model as the config's.
    """

    def __init__(
        self,
        client: Client,
        place: Place,
        *,
        config: UnifiedEmbeddingConfig | None = None,
        adopt: Adopt | None = None,
    ) -> None:
        self.client = client
        self.place = place
        self._config = config
        self._adopt: Adopt | None = adopt
        self._lock = threading.Lock()
        self._configs: dict[str, UnifiedEmbeddingConfig] = {}
        self._opened: dict[tuple[str, str], OpenedCollection] = {}

    def names(self) -> list[str]:
        """Return the collections' names sorted.

        Raises:
            StoreError: If the store cannot be read.
        """
        with place_errors(str(self.place), "listing the collections"):
            return sorted(info.name for info in self.client.get_collections().collections)

    def read_info(self, name: str) -> tuple[str, qm.CollectionInfo]:
        """Return a collection's own name and its settings.

        Args:
            name: Its name, or an alias.

        Raises:
            UnknownCollectionError: If there is none of that name; those that exist are named.
            StoreError: If the store fails.
        """
        own_name = resolve_name(self.client, name)
        existing = self.names()
        if own_name not in existing:
            known = ", ".join(map(repr, existing[:20])) or "none"
            raise UnknownCollectionError(
                f"there is no collection {name!r:.200} in {self.place}; there are: {known}"
            )
        with store_errors(own_name, "opening"):
            return own_name, self.client.get_collection(own_name)

    def open(self, name: str) -> OpenedCollection:
        """Return a collection with the model that made it.

        Args:
            name: Its name, or an alias.

        Raises:
            UnknownCollectionError: If there is none of that name.
            InputError: If nothing records its model, and none was given.
            FingerprintMismatchError: If another model made it than the one that it names.
            ModelLoadError: If the model's files are not on this machine.
            StoreError: If the store fails.
        """
        own_name, info = self.read_info(name)
        recorded = recorded_model(info)
        fingerprint = "" if recorded is None else recorded.fingerprint
        with self._lock:
            opened = self._opened.get((own_name, fingerprint))
            if opened is None:
                config = self._choose_config(own_name, recorded)
                store = config.vector_store(own_name, client=self.client, adopt=self._adopt)
                opened = OpenedCollection(
                    name=own_name,
                    config=config,
                    store=store,
                    client=self.client,
                    place=self.place,
                    model=_describe(config),
                )
                self._opened[own_name, fingerprint] = opened
        return opened

    def _choose_config(self, name: str, recorded: RecordedModel | None) -> UnifiedEmbeddingConfig:
        if self._config is not None:
            embedder = self._config.embedder
            own = (embedder.fingerprint, *embedder.former_fingerprints)
            if recorded is None or recorded.fingerprint in own:
                return self._config
        if recorded is None:
            raise InputError(
                f"collection {name!r} does not record which model made it; start the inspector "
                "with --model and --adopt trust, or record it: "
                f"unified-embeddings adopt {shlex.quote(name)}"
            )
        config = self._configs.get(recorded.name)
        if config is None:
            model, _, sparse_model = recorded.name.partition(_PAIR)
            # A page that is looked at downloads nothing.
            config = UnifiedEmbeddingConfig(
                model, sparse_model=sparse_model or None, local_files_only=True
            )
            self._configs[recorded.name] = config
        return config


def _describe(config: UnifiedEmbeddingConfig) -> dict[str, str]:
    """Return what a config of the same model is made with, as far as names tell."""
    if config.url is not None:
        return {"url": config.url}
    described = {"model_choice": config.model_choice}
    embedder = config.embedder
    if isinstance(embedder, PairedEmbedder):
        described["sparse_model"] = embedder.sparse.model_name
    return described
