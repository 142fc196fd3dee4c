"""Where each node that was found stands in each list, in its metadata.

What lives here: the form of that note. What does not: keeping it out of the store
(`llama.payloads`), and the reasons for a score (`explain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from llama_index.core.schema import NodeWithScore
from qdrant_client import models as qm

from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.search.fusing import Ranking

_Places: TypeAlias = dict[qm.ExtendedPointId, dict[str, float]]
"""Where each point of a list stands: its rank and its score."""


def note_ranks(
    nodes: Sequence[NodeWithScore],
    best: Ranking,
    lists: Mapping[str, Ranking],
    *,
    fused: Ranking | None = None,
) -> None:
    """Write each node's rank and score in each list into its metadata.

    The metadata has them under `RETRIEVAL_KEY`: the list's name → its rank, from 1, and its score;
    None where the list lacks the node. The key is excluded from what is embedded and from the
    prompt, and a store that the node is added to leaves it out.

    Args:
        nodes: The nodes found, which nobody else holds.
        best: Their points with the scores that they got, in the same order.
        lists: The searched lists by name.
        fused: What was fused from them; it is noted as the list "fused". None if nothing was.
    """
    places: dict[str, _Places] = {name: _places(ranking) for name, ranking in lists.items()}
    if fused is not None:
        places["fused"] = {
            point.id: {"rank": rank, "score": score} for rank, (point, score) in enumerate(fused, 1)
        }
    for scored, (point, _) in zip(nodes, best, strict=True):
        node = scored.node
        node.metadata[RETRIEVAL_KEY] = {name: at.get(point.id) for name, at in places.items()}
        for excluded in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
            if RETRIEVAL_KEY not in excluded:
                excluded.append(RETRIEVAL_KEY)


def _places(ranking: Ranking) -> _Places:
    return {
        point.id: {"rank": rank, "score": point.score} for rank, (point, _) in enumerate(ranking, 1)
    }
