"""Whether a collection can be copied: what two collections must have in common, and aliases.

Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.aliases import read_aliases
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.schema import dense_vectors, recorded_model, sparse_vectors


def read_source_info(source: Client, name: str) -> qm.CollectionInfo:
    """Return what the source reports about a collection to copy.

    Raises:
        StoreError: If it does not exist there, is an alias, or is sharded by keys.
    """
    existing_names = sorted(collection.name for collection in source.get_collections().collections)
    if name not in existing_names:
        alias_target = read_aliases(source).get(name)
        problem = "it does not exist"
        if alias_target:
            problem = f"it is an alias of {alias_target!r}, copy that"
        shown_names = ", ".join(map(repr, existing_names)) or "none"
        raise StoreError(name, "copying", f"{problem}; collections in the source: {shown_names}")
    info = source.get_collection(name)
    if info.config.params.sharding_method == qm.ShardingMethod.CUSTOM:
        raise StoreError(
            name,
            "copying",
            "its shards are chosen by keys (sharding_method custom), where several points may have "
            "the same id; only collections with automatic sharding can be copied",
        )
    return info


def check_same_shape(name: str, source: qm.CollectionInfo, target: qm.CollectionInfo) -> None:
    """Refuse a target whose vectors have another shape or were made by another model.

    Args:
        name: The target's name, for messages.
        source: What the source reports about its collection.
        target: What the target reports about its collection.

    Raises:
        StoreError: If they differ; it names every difference.
    """
    source_shape, target_shape = _describe_shape(source), _describe_shape(target)
    differences = []
    for part in sorted(source_shape.keys() | target_shape.keys()):
        in_source = source_shape.get(part, "none")
        in_target = target_shape.get(part, "none")
        if in_source != in_target:
            differences.append(f"{part}: {in_source} in the source, {in_target} in the target")
    if differences:
        raise StoreError(
            name,
            "copying",
            f"the target's collection does not fit: {'; '.join(differences)}. Copy under another "
            "name, or delete the target's collection first",
        )


def _describe_shape(info: qm.CollectionInfo) -> dict[str, str]:
    """Return what two collections must have in common, part by part, in words.

    Settings that are left out are described by their defaults, so that they equal those that are
    spelled out.
    """
    model = recorded_model(info)
    shape = {"model": "not recorded" if model is None else model.fingerprint}
    for name, dense in dense_vectors(info).items():
        datatype = (dense.datatype or qm.Datatype.FLOAT32).value
        description = f"{dense.size} x {dense.distance.value}, {datatype}"
        if dense.multivector_config is not None:
            description += f", multi-vector {dense.multivector_config.comparator.value}"
        shape[f"vector {name!r}"] = description
    for name, sparse in sparse_vectors(info).items():
        modifier = (sparse.modifier or qm.Modifier.NONE).value
        shape[f"sparse vector {name!r}"] = f"modifier {modifier}"
    return shape


def check_alias(
    alias: str,
    target_name: str,
    target_collections: Collection[str],
    target_aliases: Mapping[str, str],
) -> None:
    """Refuse to copy an alias that means something else in the target, where it may be in use.

    Args:
        alias: The source's alias.
        target_name: The copy's name.
        target_collections: Names of the collections in the target.
        target_aliases: Alias → collection in the target.

    Raises:
        StoreError: If a collection, or an alias of another one, has this name.
    """
    taken_by = None
    if alias in target_collections or alias == target_name:
        taken_by = "a collection"
    if target_aliases.get(alias, target_name) != target_name:
        taken_by = f"an alias of {target_aliases[alias]!r}"
    if taken_by is not None:
        raise StoreError(
            target_name,
            "copying",
            f"the source's alias {alias!r} would be copied too, but in the target that name is "
            f"{taken_by}; copy without aliases, or free the name first",
        )
