"""The results of a pass: which text is at fault if it fails, and whose vectors are whose.

What lives here: running `encode` so that each text has an outcome, and giving the outcomes to
their requests. What does not: which texts share a pass (`turns`), when it runs (`batcher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from unified_embeddings.embedders.isolation import isolate_failures
from unified_embeddings.errors import InputError
from unified_embeddings.serving.turns import Batched, Place, Request
from unified_embeddings.types import Embeddings, HeadName, Role, Text

Encode: TypeAlias = Callable[[Sequence[Text], Role, tuple[HeadName, ...]], Embeddings]

Outcome: TypeAlias = "Embeddings | Exception"
"""What became of one text: its vectors (n = 1), or what is wrong."""

_HOPELESS = 3
"""Requests that fail, one after the other, before the rest of a failed pass is given up."""


class EngineDiedError(RuntimeError):
    """The engine raised what ends a thread or a process, such as SystemExit."""


def encode_each(encode: Encode, places: Sequence[Place]) -> list[Outcome]:
    """Compute the texts of a pass, and find out which of them are at fault if it fails.

    A pass that fails is halved until the bad text is alone, so that the others are answered. Its
    request has failed then, whatever becomes of its other texts. If the texts of several requests
    in a row fail alone, the engine is at fault and not they; then the rest is given up.

    Args:
        encode: Computes vectors.
        places: n texts of one kind.

    Returns:
        n outcomes, in the order of the places.
    """
    errors: dict[Request, Exception] = {}

    def note_failure(place: Place, error: Exception) -> None:
        errors[place.request] = error

    found = isolate_failures(
        lambda group: _encode_rows(encode, group),
        places,
        hopeless=_HOPELESS,
        is_needless=lambda place: place.request in errors,
        note_failure=note_failure,
    )
    outcomes: list[Outcome] = []
    for place, outcome in zip(places, found, strict=True):
        outcomes.append(outcome if outcome is not None else errors[place.request])
    return outcomes


def _encode_rows(encode: Encode, places: Sequence[Place]) -> list[Embeddings]:
    """Return each text's vectors.

    Raises:
        EngineDiedError: In place of SystemExit and the like, which would end more than this pass.
        RuntimeError: If there are not as many vectors as texts.
    """
    texts = [place.request.texts[place.index] for place in places]
    role, heads = places[0].request.kind
    try:
        embeddings = encode(texts, role, heads)
    except Exception:
        raise
    except BaseException as error:
        raise EngineDiedError(f"the engine raised {type(error).__name__}") from None
    if len(embeddings) != len(texts):
        raise RuntimeError(f"{len(embeddings)} vectors for {len(texts)} texts")
    return [embeddings[index : index + 1] for index in range(len(embeddings))]


def hand_out(places: Sequence[Place], outcomes: Sequence[Outcome], seconds: float) -> list[Request]:
    """Give each request its outcomes, and its answer if it is complete.

    Returns:
        The requests that got an error: the rest of their texts need not be computed.
    """
    for request in dict.fromkeys(place.request for place in places):
        request.compute_seconds += seconds
    failed: list[Request] = []
    for place, outcome in zip(places, outcomes, strict=True):
        request = place.request
        if request.future.done():
            continue
        if isinstance(outcome, Exception):
            request.future.set_exception(_at_index(outcome, place.index))
            failed.append(request)
            continue
        request.rows[place.index] = outcome
        if len(request.rows) == len(request.texts):
            _complete(request)
    return failed


def _at_index(error: Exception, index: int) -> Exception:
    """Return an InputError that names the text's place in its request, not in its pass."""
    if isinstance(error, InputError):
        return InputError(error.problem, index=index)
    return error


def _complete(request: Request) -> None:
    """Give a request its answer, or the error that putting it together raised."""
    started = request.started or request.arrived
    try:
        rows = [request.rows[index] for index in range(len(request.texts))]
        embeddings = Embeddings.join(rows)
        if set(embeddings) != set(request.kind[1]):
            raise ValueError(f"expected {request.kind[1]} vectors, got {embeddings}")
    except Exception as error:  # an engine whose vectors do not fit together
        request.future.set_exception(error)
        return
    request.future.set_result(
        Batched(
            embeddings=embeddings,
            queue_seconds=started - request.arrived,
            compute_seconds=request.compute_seconds,
        )
    )
