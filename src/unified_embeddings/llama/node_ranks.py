"""Where each node that was found stands in each list, in its metadata.

What lives here: the form of that note, and of what is known of relevance. What does not: keeping it
out of the store (`llama.payloads`), and the reasons for a score (`explain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from llama_index.core.schema import NodeWithScore
from qdrant_client import models as qm

from unified_embeddings.llama.payloads import RETRIEVAL_KEY
from unified_embeddings.search.fusing import Ranking
from unified_embeddings.search.relevance_scores import JudgedAnswer


class FoundMetadata(dict[str, Any]):
    """The metadata of a node that was found, with the note of its ranks.

    `str` leaves the note out: LlamaIndex makes the hash of a node of it, and tells by the hash
    whether two questions, or two retrievers, found the same node. `repr` shows all.
    """

    def __str__(self) -> str:
        """Return the text of the metadata that the node had before it was found."""
        return str({key: value for key, value in self.items() if key != RETRIEVAL_KEY})


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
        note = {name: at.get(point.id) for name, at in places.items()}
        metadata = FoundMetadata({**node.metadata, RETRIEVAL_KEY: note})
        for excluded in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
            if RETRIEVAL_KEY not in excluded:
                excluded.append(RETRIEVAL_KEY)
        # Assigned to the node, it would be validated and become a plain dict.
        scored.node = node.model_copy(update={"metadata": metadata})


def note_relevance(nodes: Sequence[NodeWithScore], best: Ranking, judged: JudgedAnswer) -> None:
    """Write each node's relevance, and whether the answer is weak, into its metadata.

    They are beside the ranks: "relevance", 0 to 1, and "weak" unless that is not known.

    Args:
        nodes: The nodes found, with their ranks noted.
        best: Their points, in the same order.
        judged: How relevant they are.
    """
    relevances = {point.id: relevance for point, relevance in judged.ranking}
    for scored, (point, _) in zip(nodes, best, strict=True):
        note = scored.node.metadata[RETRIEVAL_KEY]
        note["relevance"] = relevances[point.id]
        if judged.weak is not None:
            note["weak"] = judged.weak


def _places(ranking: Ranking) -> _Places:
    return {
        point.id: {"rank": rank, "score": point.score} for rank, (point, _) in enumerate(ranking, 1)
    }
