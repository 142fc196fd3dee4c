"""One call to an embedder: what it asks for, and as those see it who watch the embedder.

What lives here: the heads asked for, the record of a call, and which call a thread is working for.
What does not: who watches (`monitoring`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from unified_embeddings.errors import InputError
from unified_embeddings.system.watching import Watchers
from unified_embeddings.types import HEAD_NAMES, Embeddings, HeadName, Role, Text


@dataclass
class EncodeCall:
    """One call to an embedder.

    Attributes:
        model: The embedder's name.
        texts: What is to be embedded.
        role: "document" or "query".
        heads: The vectors asked for.
        tokens: Tokens run through a model for this call; none for texts found in the cache.
        embeddings: The answer; None before it is there, and if the call fails.
        on_text: Set by a watcher; called with each text once a model has computed its vectors, so
            not for texts found in the cache, and by each of several models.
    """

    model: str
    texts: Sequence[Text]
    role: Role
    heads: tuple[HeadName, ...]
    tokens: int = 0
    embeddings: Embeddings | None = None
    on_text: Callable[[Text], None] | None = None


CURRENT_CALL: ContextVar[EncodeCall | None] = ContextVar("current_call", default=None)
"""The call that this thread is working for; None unless somebody watches."""


def tell_computed(text: Text) -> None:
    """Tell the call that this thread is working for that a text's vectors were computed."""
    call = CURRENT_CALL.get()
    if call is not None and call.on_text is not None:
        call.on_text(text)


class WatchedCalls:
    """The part of an embedder that lets something see each call, as tracing does."""

    model_name: str
    _watchers: Watchers[EncodeCall] | None = None

    def watch(
        self, watcher: Callable[[EncodeCall], AbstractContextManager[None]]
    ) -> Callable[[], None]:
        """Let something see each call, as tracing does; return what ends that.

        Args:
            watcher: Called before each call; the context manager that it returns is around the
                call. It belongs to this object, and is not pickled with it.
        """
        if self._watchers is None:
            self._watchers = Watchers()
        return self._watchers.add(watcher)

    @contextmanager
    def _watched(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...]
    ) -> Iterator[EncodeCall]:
        """Let those who watch see a call; what is done inside adds no frame to a traceback."""
        call = EncodeCall(model=self.model_name, texts=texts, role=role, heads=heads)
        if not self._watchers:
            yield call
            return
        with self._watchers.around(call):
            token = CURRENT_CALL.set(call)
            try:
                yield call
            finally:
                CURRENT_CALL.reset(token)


def choose_heads(
    model_name: str,
    heads: tuple[HeadName, ...],
    *,
    dense: bool | None,
    sparse: bool | None,
    colbert: bool,
) -> tuple[HeadName, ...]:
    """Return the heads that a call asks for; None asks for a head where the model has it.

    Args:
        model_name: The model's name, for messages.
        heads: What it can produce.
        dense: Whether dense vectors are asked for.
        sparse: Whether sparse ones are.
        colbert: Whether ColBERT vectors are.

    Raises:
        InputError: If that is none, or one that the model does not give.
    """
    asked_for = {"dense": dense, "sparse": sparse, "colbert": colbert}
    chosen: list[HeadName] = []
    for head in HEAD_NAMES:
        if asked_for[head] or (asked_for[head] is None and head in heads):
            chosen.append(head)
    if not chosen:
        raise InputError("ask for at least one of dense, sparse and colbert")
    for head in chosen:
        if head not in heads:
            raise InputError(
                f"{model_name!r} gives {' and '.join(heads)} vectors, no {head} ones; leave {head} "
                "out, or take a model that gives them"
            )
    return tuple(chosen)
