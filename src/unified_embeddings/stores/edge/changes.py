"""Changes to a collection's settings, as `update_collection` takes them.

What lives here: which settings can be changed, and how a change is merged into them. What does not:
applying them to the files, which the next `optimize` does (`shard`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.arguments import refuse_several
from unified_embeddings.stores.edge.bounds import check_settings
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.points import to_json_payload
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import unsupported

ModelT = TypeVar("ModelT", bound=BaseModel)

_TYPES: dict[str, Any] = {
    "optimizers_config": qm.OptimizersConfigDiff,
    "collection_params": qm.CollectionParamsDiff,
    "vectors_config": dict[str, qm.VectorParamsDiff],
    "hnsw_config": qm.HnswConfigDiff,
    "quantization_config": qm.QuantizationConfigDiff,
    "sparse_vectors_config": dict[str, qm.SparseVectorParams],
}
"""Option of `update_collection` → its type."""
_INSTEAD = (
    "; make a collection with the settings you want and copy this one's points into it (scroll and "
    "upsert; nothing has to be embedded again)"
)


def changed_settings(settings: Settings, metadata: Any, options: Mapping[str, Any]) -> Settings:
    """Return a collection's settings after a change.

    Args:
        settings: What they are.
        metadata: Metadata to merge into the collection's, key by key; a None removes its key.
        options: The other options of `update_collection`. What is not set keeps its value.

    Raises:
        InputError: If an option is unknown here, out of bounds, about a vector that the collection
            lacks, or cannot be changed once there are points.
    """
    given = {name: coerce(_TYPES[name], value, name) for name, value in options.items()}
    changed = replace(
        settings,
        hnsw_config=_merged(settings.hnsw_config, given["hnsw_config"]),
        optimizers_config=_merged(settings.optimizers_config, given["optimizers_config"]),
        quantization_config=_changed_quantization(settings, given["quantization_config"]),
        vectors=_changed_vectors(settings, given["vectors_config"] or {}),
        sparse_vectors=_changed_sparse_vectors(settings, given["sparse_vectors_config"] or {}),
        **_changed_params(given["collection_params"]),
    )
    check_settings(changed)
    if metadata is not None:
        additions, _ = to_json_payload(metadata)
        changed = replace(changed, metadata=_merge_metadata(settings.metadata, additions))
    return changed


def _merged(old: ModelT | None, change: ModelT | None) -> ModelT | None:
    """Return a model with the fields replaced that a change sets."""
    if old is None or change is None:
        return change or old
    set_fields = {name: getattr(change, name) for name in type(change).model_fields}
    return old.model_copy(
        update={name: value for name, value in set_fields.items() if value is not None}
    )


def _changed_quantization(settings: Settings, change: Any) -> Any:
    if change is None:
        return settings.quantization_config
    if isinstance(change, qm.Disabled):
        if settings.quantization_config is None:
            return None
        raise unchangeable("the quantisation of a whole collection cannot be switched off")
    return change


def _changed_vectors(
    settings: Settings, changes: Mapping[str, qm.VectorParamsDiff]
) -> dict[str, qm.VectorParams]:
    vectors = dict(settings.vectors)
    for name, change in changes.items():
        old = vectors.get(name)
        if old is None:
            raise InputError(f"the collection has no dense vector named {name!r}")
        update: dict[str, Any] = {"hnsw_config": _merged(old.hnsw_config, change.hnsw_config)}
        if isinstance(change.quantization_config, qm.Disabled):
            if settings.quantization_config is not None:
                raise unchangeable(
                    f"vector {name!r} has the collection's quantisation, which cannot be switched "
                    "off for one vector"
                )
            update["quantization_config"] = None
        elif change.quantization_config is not None:
            update["quantization_config"] = change.quantization_config
        for option in ("on_disk", "memory"):
            if getattr(change, option) is not None:
                update[option] = getattr(change, option)
        vectors[name] = old.model_copy(update=update)
    return vectors


def _changed_sparse_vectors(
    settings: Settings, changes: Mapping[str, qm.SparseVectorParams]
) -> dict[str, qm.SparseVectorParams]:
    vectors = dict(settings.sparse_vectors)
    for name, change in changes.items():
        old = vectors.get(name)
        if old is None:
            raise InputError(f"the collection has no sparse vector named {name!r}")
        if change.modifier is not None and change.modifier != (old.modifier or qm.Modifier.NONE):
            raise unchangeable(f"the modifier of the sparse vector {name!r} cannot be changed")
        index = _merged(old.index, change.index)
        datatypes = [each and each.datatype for each in (old.index, index)]
        if datatypes[0] != datatypes[1]:
            raise unchangeable(f"the datatype of the sparse vector {name!r} cannot be changed")
        vectors[name] = old.model_copy(update={"index": index})
    return vectors


def _changed_params(change: qm.CollectionParamsDiff | None) -> dict[str, Any]:
    """Return the fields of `Settings` that a change of collection_params sets.

    Raises:
        InputError: If it is about the nodes of a cluster.
    """
    if change is None:
        return {}
    refuse_several(
        replication_factor=change.replication_factor,
        write_consistency_factor=change.write_consistency_factor,
    )
    for name in ("read_fan_out_factor", "read_fan_out_delay_ms"):
        if getattr(change, name) is not None:
            raise unsupported(f"collection_params({name}=...)")
    names = ("on_disk_payload", "payload", "id_tracker")
    return {name: getattr(change, name) for name in names if getattr(change, name) is not None}


def _merge_metadata(old: dict[str, Any] | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Merge metadata as a server does: a key whose value is None is removed."""
    if old is None:
        return changes
    removed = {key for key, value in changes.items() if value is None}
    return {key: value for key, value in {**old, **changes}.items() if key not in removed}


def unchangeable(problem: str) -> InputError:
    """Return the error for a setting that stays as it is, with what to do instead."""
    return InputError(f"{problem} in the embedded store{_INSTEAD}")
