"""What a search may be told: its mode, and how its lists are fused.

What lives here: the options that a store's queries and a retriever share, and which vectors each
mode needs. What does not: LlamaIndex's own arguments (`llama.queries`, `retrievers.options`), and
anything that sends a request or runs a model.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NoReturn, TypeAlias, TypeGuard, get_args

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import PLAIN_RRF, Fusion
from unified_embeddings.types import HeadName
from unified_embeddings.validation import require_list_weights, require_whole_number

Mode = Literal["hybrid", "dense", "sparse"]
Auto = Literal["auto"]
"""Leaves an option to the collection or the model."""
Score = Literal["rrf", "relevance"]
"""What a node's score is: what it was ranked by, or how likely it is relevant."""
FusionOption: TypeAlias = Fusion | Literal["auto", "model"]
"""How to fuse: as given, as chosen for the collection or else the model, or as for the model."""

_HEADS_OF_MODE: dict[Mode, tuple[HeadName, ...]] = {
    "hybrid": ("dense", "sparse"),
    "dense": ("dense",),
    "sparse": ("sparse",),
}
_ADVICE_FOR_MISSING_HEAD: dict[HeadName, str] = {
    "dense": "which this mode needs; choose a model that does",
    "sparse": "which this mode needs; search with mode='dense', or set a sparse_model for it",
    "colbert": "which rerank='colbert' needs; leave rerank out, or choose bge-m3",
}


def choose_fusion(
    own: Fusion,
    *,
    candidates: object,
    rrf_k: object,
    weights: object,
    fusion: object = "auto",
    chosen: Fusion | None = None,
) -> Fusion:
    """Return how a retriever fuses: as its options say, or its collection, or its model.

    A caller who gives weights gets plain RRF with them: other numbers were chosen for other
    weights. A caller who gives rrf_k gets RRF, whose k it is.

    Args:
        own: The model's own.
        candidates: Depth of each ranking, or "auto".
        rrf_k: RRF's damping, or "auto".
        weights: Weights of the dense and the sparse ranking, and of a keyword list; "auto" takes
            those of `fusion`.
        fusion: A `Fusion`; "auto" takes the collection's or else the model's own, "model" the
            model's own.
        chosen: What was chosen for the collection, or suits its keyword list; None if nothing
            does, or it is not known yet.

    Raises:
        InputError: If an option is out of range, or two contradict; the message names the first.
    """
    base = _choose_base(own, chosen, fusion)
    if isinstance(fusion, Fusion) and not (is_auto(weights) and is_auto(rrf_k)):
        raise InputError("fusion= has weights and k of its own; leave weights= and rrf_k= out")
    if not is_auto(weights):
        given_weights = require_list_weights(weights)
        base = Fusion(weights=given_weights, source="given by the caller")
    if not is_auto(rrf_k):
        k = require_whole_number("rrf_k", rrf_k, least=0)
        ranked = next(usable for usable in (base, own, PLAIN_RRF) if usable.method == "rrf")
        base = dataclasses.replace(ranked, k=k)
    if not is_auto(candidates):
        depth = require_whole_number("candidates", candidates)
        base = dataclasses.replace(base, candidates=depth)
    return base


def _choose_base(own: Fusion, chosen: Fusion | None, fusion: object) -> Fusion:
    """Return what the options `weights`, `rrf_k` and `candidates` change.

    Raises:
        InputError: If `fusion` is none of those allowed.
    """
    if isinstance(fusion, Fusion):
        return fusion
    if is_auto(fusion):
        return chosen or own
    if isinstance(fusion, str) and fusion == "model":
        return own
    raise InputError(f"fusion must be 'auto', 'model' or a Fusion, not {fusion!r}")


def is_auto(value: object) -> TypeGuard[Auto]:
    """Tell whether an option is left open; an array compared with a text is not."""
    return isinstance(value, str) and value == "auto"


def check_mode(mode: str, rerank: str | None) -> None:
    """Reject an unknown mode or an unknown way to rerank.

    Raises:
        InputError: If one is unknown; the message names the known ones.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if rerank not in (None, "colbert"):
        raise InputError(f"rerank must be 'colbert' or None, not {rerank!r}")


def check_score(score: object, mode: Mode, rerank: str | None) -> None:
    """Reject an unknown kind of score, or relevance where it is not calibrated.

    Raises:
        InputError: If it is unknown, or relevance is asked for beside a mode or a reranking that it
            is not calibrated for.
    """
    if score not in get_args(Score):
        raise InputError(f"score must be one of {', '.join(get_args(Score))}, not {score!r:.80}")
    if score == "relevance" and (mode != "hybrid" or rerank is not None):
        asked = f"mode={mode!r}" if rerank is None else f"rerank={rerank!r}"
        raise InputError(
            "score='relevance' is calibrated on the fused lists: take mode='hybrid' without "
            f"rerank, not {asked}"
        )


def require_calibration(
    calibration: Calibration | None, fusion: Fusion, model_name: str
) -> Calibration:
    """Return what relevance is computed by.

    Raises:
        InputError: If there is none, or a list that it needs has no weight in the fusion.
    """
    if calibration is None:
        raise InputError(
            f"score='relevance' needs a calibration, and there is none for {model_name!r} with "
            "this collection's scores. Fit one to judged questions: unified-embeddings tune "
            "COLLECTION --data FOLDER --calibrate"
        )
    if 0 in fusion.weights[:2]:
        raise InputError(
            f"score='relevance' needs both lists, and this fusion is {fusion}; take "
            "fusion='model', or weights above 0"
        )
    return calibration


def refuse_keyword_list(fusion: Fusion) -> NoReturn:
    """Refuse relevance where a keyword list is fused: its hits are not calibrated.

    Args:
        fusion: With a weight for the list.

    Raises:
        InputError: Always.
    """
    raise InputError(
        "score='relevance' is calibrated on the dense and the sparse list, and this fusion has a "
        f"keyword list too: {fusion}. Two weights leave it out: weights=(1, 0.5), alpha=0.6 or "
        "--weights 1,0.5, with numbers of your own, or fusion='model'"
    )


def check_heads(embedder: TextEmbedder, mode: Mode, rerank: Literal["colbert"] | None) -> None:
    """Reject an embedder that lacks a type of vector that the mode or the reranking needs.

    Raises:
        InputError: If it lacks one; the message says what to do instead.
    """
    needed_heads: list[HeadName] = [*_HEADS_OF_MODE[mode]]
    if rerank is not None:
        needed_heads.append(rerank)
    for head in needed_heads:
        if head not in embedder.heads:
            raise InputError(
                f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no {head} "
                f"ones, {_ADVICE_FOR_MISSING_HEAD[head]}"
            )
