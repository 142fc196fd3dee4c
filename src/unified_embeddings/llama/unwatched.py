"""A query's way around LlamaIndex's instrumentation while nobody listens to it.

What lives here: telling whether anything could notice that a query is embedded. What does not: the
embedding itself (`text`).

LlamaIndex makes two spans and two events for each query, with their ids, times and payloads, and
notes each in its callback manager. That takes several times as long as finding a cached vector, and
without a handler all of it is thrown away. So where none is there, the query is embedded directly.
A handler that is added later is told of every query from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation.event_handlers import NullEventHandler
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR, Dispatcher

Method = TypeVar("Method", bound=Callable[..., object])

_NULL_HANDLERS = {NullEventHandler, NullSpanHandler}
_THEIR_METHODS = {
    name: BaseEmbedding.__dict__[name] for name in ("get_query_embedding", "aget_query_embedding")
}
"""LlamaIndex's methods as they were imported. A tracer may put a wrapper in their place."""


def is_watched(model: BaseEmbedding, own_dispatcher: Dispatcher) -> bool:
    """Tell whether anything but the caller can notice that this model embeds a query.

    Args:
        model: The model that is asked.
        own_dispatcher: The dispatcher of the module that defines its private methods.
    """
    # The first releases of LlamaIndex 0.14 have no rate limiter.
    if model.callback_manager.handlers or getattr(model, "rate_limiter", None) is not None:
        return True
    if model.embeddings_cache is not None:
        return True
    for name, method in _THEIR_METHODS.items():
        if BaseEmbedding.__dict__[name] is not method:
            return True
    return _has_handlers(own_dispatcher) or _has_handlers(_DISPATCHER)


def spans_itself(method: Method) -> Method:
    """Keep LlamaIndex from wrapping an overriding method into a span.

    Its base class does that with every method that overrides a wrapped one, unless it carries the
    mark of a wrapped one. The method has to call the overridden one wherever `is_watched`.
    """
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


def _has_handlers(dispatcher: Dispatcher) -> bool:
    """Tell whether a dispatcher, or one that it passes things on to, has a handler."""
    while True:
        if _tells_somebody(dispatcher.event_handlers) or _tells_somebody(dispatcher.span_handlers):
            return True
        if not dispatcher.propagate:
            return False
        dispatcher = dispatcher.parent


def _tells_somebody(handlers: Sequence[object]) -> bool:
    return not _NULL_HANDLERS.issuperset(map(type, handlers))


_DISPATCHER = get_dispatcher(BaseEmbedding.__module__)
