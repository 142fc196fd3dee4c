"""Which metadata keys the passages of a collection have.

What lives here: telling what is wrong with a key that none of them has, and saying so where a
filter on it finds nothing. What does not: what a filter on a key means (`filters`).
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from unified_embeddings.errors import StoreError

if TYPE_CHECKING:
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore

_LOG = logging.getLogger(__name__)
_NODES_TO_LOOK_AT = 1000
_SHOWN_KEYS = 12
_MOST_TOLD = 1000
"""Keys that are warned of in one process: they may come from anybody's requests."""
_MET_WITHOUT_KEY = (FilterOperator.IS_EMPTY, FilterOperator.NE, FilterOperator.NIN)
"""Conditions that a passage without the key meets, so that they are not why nothing was found."""
_told: set[tuple[str, str]] = set()
"""Collections and keys that were warned of."""


def none_of(*filters: MetadataFilter) -> MetadataFilters:
    """Return a filter that holds where none of these does."""
    return MetadataFilters(filters=list(filters), condition=FilterCondition.NOT)


def is_empty(key: str) -> MetadataFilter:
    """Return a filter that holds where a key has no value."""
    return MetadataFilter(key=key, value=None, operator=FilterOperator.IS_EMPTY)


def has_key(store: FingerprintedStore, key: str) -> bool:
    """Tell whether any passage has a value under a key.

    Raises:
        StoreError: If Qdrant fails.
    """
    return bool(store.get_nodes(filters=none_of(is_empty(key)), limit=1))


def describe_unknown_key(store: FingerprintedStore, key: str) -> str | None:
    """Return what is wrong with a key that no passage has, and which keys there are.

    Args:
        store: Of the collection.
        key: A key under which no passage has a value, as `has_key` tells.

    Returns:
        A problem without the name of the option; None if a passage has the key without a value, or
        the collection has no metadata.

    Raises:
        StoreError: If Qdrant fails.
    """
    keys: set[str] = set()
    for node in store.get_nodes(limit=_NODES_TO_LOOK_AT):
        keys.update(node.metadata)
    if not keys or key in keys:
        return None
    by_lower_case = {known.lower(): known for known in sorted(keys)}
    nearest = difflib.get_close_matches(key.lower(), by_lower_case, n=3, cutoff=0.5)
    if nearest:
        names = ", ".join(repr(by_lower_case[name]) for name in nearest)
        advice = f"nearest are {names}"
    else:
        names = ", ".join(repr(known) for known in sorted(keys)[:_SHOWN_KEYS])
        advice = f"there are {names}{', ...' if len(keys) > _SHOWN_KEYS else ''}"
    return f"no passage has metadata {key!r}; {advice}"


def warn_of_unknown_keys(store: FingerprintedStore, filters: MetadataFilters | None) -> None:
    """Log, once for each, the keys of filters that no passage has.

    Called where nothing was found, since that is all that such a filter finds. A mistyped key gives
    an empty answer, as a condition that no passage meets does.

    Args:
        store: Of the collection.
        filters: What was asked for.
    """
    for key in dict.fromkeys(_keys_of(filters)):
        collection = store.collection_name
        if (collection, key) in _told or len(_told) >= _MOST_TOLD:
            continue
        with contextlib.suppress(StoreError):  # the answer itself is good
            problem = None if has_key(store, key) else describe_unknown_key(store, key)
            if problem is not None:
                _told.add((collection, key))
                _LOG.warning("A filter on collection %r finds nothing: %s", collection, problem)


def _keys_of(filters: MetadataFilters | None) -> Iterator[str]:
    """Yield the keys that a passage must have to meet the filters."""
    if filters is None or filters.condition == FilterCondition.NOT:
        return
    for each in filters.filters:
        if isinstance(each, MetadataFilters):
            yield from _keys_of(each)
        elif each.operator not in _MET_WITHOUT_KEY:
            yield each.key
