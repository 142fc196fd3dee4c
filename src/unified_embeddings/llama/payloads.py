"""What LlamaIndex's store keeps of a node in a point's payload.

What lives here: metadata as JSON, with everything named that is not, and metadata whose keys
LlamaIndex uses itself. What does not: vectors and requests (`vector_store`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.graph_stores.types import VECTOR_SOURCE_KEY
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from pydantic_core import to_jsonable_python

from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import LLAMA_INDEX_KEYS, OWN_METADATA

_RESERVED_KEYS = (*sorted(LLAMA_INDEX_KEYS), OWN_METADATA)
RETRIEVAL_KEY = "_retrieval"
"""Metadata in which a retriever notes a node's ranks; it is never stored."""
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""What JSON's integers may be in Qdrant."""


def build_payloads(nodes: Sequence[BaseNode]) -> list[dict[str, Any]]:
    """Return the payload of each node.

    The nodes are not changed. NumPy's scalars and arrays become Python's numbers and lists.

    Raises:
        InputError: If an item is not a node, or its metadata is not JSON. The message names node
            and key, `index` is the node's position.
    """
    return [_build_payload(node, index) for index, node in enumerate(nodes)]


def _build_payload(node: BaseNode, index: int) -> dict[str, Any]:
    if not isinstance(node, BaseNode):
        raise InputError(f"expected a node, got {type(node).__name__}", index=index)
    if not isinstance(node.metadata.get(RETRIEVAL_KEY, {}), Mapping):
        raise InputError(
            f"metadata {RETRIEVAL_KEY!r} of node {node.node_id} cannot be stored: a retriever "
            "notes ranks there, which are left out of a store; rename it",
            index=index,
        )
    metadata: dict[str, Any] = {}
    for key, value in own_metadata(node).items():
        try:
            metadata[_to_key(key)] = _to_json(value)
        except (InputError, RecursionError) as error:
            problem = "it is nested too deeply"
            if isinstance(error, InputError):
                problem = error.problem
            raise InputError(
                f"metadata {key!r} of node {node.node_id} cannot be stored: {problem}", index=index
            ) from None
    node = without_graph_ids(node)
    # Without its vector, which LlamaIndex would turn into JSON only to drop it.
    stored = node.model_copy(update={"metadata": metadata, "embedding": None, **_excluded(node)})
    payload: dict[str, Any] = node_to_metadata_dict(stored)
    own = {key: metadata[key] for key in _RESERVED_KEYS if key in metadata}
    payload.pop(OWN_METADATA, None)
    if own:
        payload[OWN_METADATA] = own
    return payload


def without_graph_ids(node: BaseNode) -> BaseNode:
    """Return a node so that a property graph's ids are no part of what is embedded of it.

    PropertyGraphIndex embeds an entity's text, and then gives the store a node that has the graph's
    ids in its metadata besides. What embeds the node again (for its sparse vector, for reranking,
    for another model) would embed the ids along with the text, unlike the first time.

    Args:
        node: Any node; it is not changed, and returned as it is unless it is a property graph's.
    """
    if VECTOR_SOURCE_KEY not in node.metadata:
        return node
    return node.model_copy(update={"excluded_embed_metadata_keys": list(node.metadata)})


def own_metadata(node: BaseNode) -> dict[str, Any]:
    """Return a node's metadata without what a retriever notes there."""
    return {key: value for key, value in node.metadata.items() if key != RETRIEVAL_KEY}


def _excluded(node: BaseNode) -> dict[str, list[str]]:
    """Return a node's lists of excluded keys without that of a retriever's note."""
    lists = {
        "excluded_embed_metadata_keys": node.excluded_embed_metadata_keys,
        "excluded_llm_metadata_keys": node.excluded_llm_metadata_keys,
    }
    return {name: [key for key in keys if key != RETRIEVAL_KEY] for name, keys in lists.items()}


def _to_key(key: object) -> str:
    if not isinstance(key, str):
        raise InputError(f"its key is not a str but {type(key).__name__}")
    return _to_text(key)


def _to_json(value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        InputError: If JSON cannot hold it.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _to_text(value)
    if isinstance(value, int | float):
        return _to_number(value)
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return _to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_json(each) for each in value]
    if isinstance(value, dict):
        return {_to_key(key): _to_json(each) for key, each in value.items()}
    try:
        converted = to_jsonable_python(value)
    except ValueError:  # pydantic's errors of serialisation are
        converted = value
    if type(converted) is type(value):
        raise InputError(f"its type is {type(value).__name__}; store a text, a number or a list")
    return _to_json(converted)


def _to_number(number: float) -> float:
    if isinstance(number, int):
        if not _SMALLEST <= number <= _LARGEST:
            raise InputError(
                f"a whole number of {number.bit_length()} bits does not fit into 64; store a text"
            )
    elif not math.isfinite(number):
        raise InputError(f"it is {number}; leave the key out where there is no number")
    return number


def _to_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"it holds a lone surrogate at character {error.start}, which is not valid Unicode"
        ) from None
    return text
