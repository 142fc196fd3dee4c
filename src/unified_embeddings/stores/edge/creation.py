"""The settings of a collection that is about to be made, checked before anything is written."""

from __future__ import annotations

from typing import Any

from qdrant_client import models as qm

from unified_embeddings.stores.edge.arguments import (
    refuse_server_options,
    refuse_several,
    refuse_strict_mode,
)
from unified_embeddings.stores.edge.bounds import check_settings, check_timeout, check_wal
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.configuration import to_core_config, to_settings
from unified_embeddings.stores.edge.core_types import CoreConfig
from unified_embeddings.stores.edge.naming import check_name, check_vectors
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import argument_errors


def new_settings(
    *,
    sharding_method: Any,
    shard_number: int | None,
    replication_factor: int | None,
    write_consistency_factor: int | None,
    timeout: int | None,
    wal_config: Any,
    strict_mode_config: Any,
    **options: Any,
) -> Settings:
    """Return the settings that `create_collection` is called with.

    Args:
        sharding_method: Refused.
        shard_number: One, or refused.
        replication_factor: One, or refused.
        write_consistency_factor: One, or refused.
        timeout: Checked.
        wal_config: Checked.
        strict_mode_config: Refused if it is switched on.
        **options: What `to_settings` takes.

    Raises:
        InputError: If an option is out of a server's bounds, or one that only a server has.
    """
    refuse_server_options("create_collection", sharding_method=sharding_method)
    refuse_several(
        shard_number=shard_number,
        replication_factor=replication_factor,
        write_consistency_factor=write_consistency_factor,
    )
    check_timeout(timeout)
    check_wal(coerce(qm.WalConfigDiff, wal_config, "wal_config"))
    refuse_strict_mode(coerce(qm.StrictModeConfig, strict_mode_config, "strict_mode_config"))
    return to_settings(**options)


def checked_config(name: str, settings: Settings) -> CoreConfig:
    """Return the core's settings of a collection that can be made under a name.

    Raises:
        InputError: If the name is invalid, or the settings are not supported.
    """
    check_name(name)
    check_vectors(settings)
    check_settings(settings)
    with argument_errors("the settings"):
        return to_core_config(settings)
