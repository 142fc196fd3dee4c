"""Whose texts are in the next pass: requests take turns.

What lives here: the queue. What does not: running passes (`batcher`), their results (`passes`).
Nothing here waits or runs in another thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from unified_embeddings.types import Embeddings, HeadName, Role, Text

Kind: TypeAlias = tuple[Role, tuple[HeadName, ...]]
"""What texts must share to be in one pass: their role and the heads that are computed."""

_SHARE = 8
"""A request gets an eighth of a pass at a time, so that eight take part if as many wait."""
_MOST_SKIPPED = 32
"""Requests passed over because their next text is too long for what is left of a pass."""


@dataclass(frozen=True)
class Batched:
    """The vectors of one request, and where its time went.

    Attributes:
        embeddings: In the order of the request's texts.
        queue_seconds: Until its first text entered a pass.
        compute_seconds: Of the passes that its texts were in.
    """

    embeddings: Embeddings
    queue_seconds: float
    compute_seconds: float


@dataclass(eq=False, kw_only=True)
class Request:
    """One request, with what is computed of it so far."""

    texts: Sequence[Text]
    tokens: Sequence[int]
    kind: Kind
    future: asyncio.Future[Batched]
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    compute_seconds: float = 0.0
    next_text: int = 0
    rows: dict[int, Embeddings] = field(default_factory=dict)

    @property
    def is_taken(self) -> bool:
        """Tell whether each of its texts is in a pass, or was."""
        return self.next_text == len(self.texts)


@dataclass(frozen=True)
class Place:
    """One text of a pass: whose it is, and which of its texts."""

    request: Request
    index: int

    @property
    def tokens(self) -> int:
        """Return how many tokens the text is."""
        return self.request.tokens[self.index]


class Turns:
    """The requests with texts that are in no pass yet.

    Kinds take turns pass by pass, and within a kind requests take turns by an eighth of a pass, or
    by one text where that is longer. A text that does not fit into what is left of a pass keeps its
    request in front, so that it begins the next pass of its kind.

    Adding and withdrawing cost the same however many wait; choosing a pass costs what it holds.
    """

    def __init__(self) -> None:
        self._kinds: OrderedDict[Kind, OrderedDict[Request, None]] = OrderedDict()
        self.tokens = 0
        self.requests = 0

    def add(self, request: Request) -> None:
        """Put a request with n >= 1 texts at the end of the queue."""
        self._kinds.setdefault(request.kind, OrderedDict())[request] = None
        self.requests += 1
        self.tokens += sum(request.tokens)

    def withdraw(self, request: Request) -> None:
        """Take what is left of a request out of the queue; without effect if nothing is."""
        if request.is_taken:
            return
        self.tokens -= sum(request.tokens[request.next_text :])
        request.next_text = len(request.texts)
        self._remove(request)

    def waiting(self) -> list[Request]:
        """Return all requests with texts that wait."""
        return [request for requests in self._kinds.values() for request in requests]

    def take(self, budget: int) -> list[Place]:
        """Choose the texts of the next pass, all of one kind; none if none wait.

        Args:
            budget: The most tokens of the pass. A longer text is taken alone.
        """
        if not self._kinds:
            return []
        kind, requests = next(iter(self._kinds.items()))
        self._kinds.move_to_end(kind)
        places: list[Place] = []
        room = budget
        share = max(1, budget // _SHARE)
        skipped: list[Request] = []
        while requests and room > 0 and len(skipped) < _MOST_SKIPPED:
            request, _ = requests.popitem(last=False)
            taken = self._take_from(request, share=share, room=room, must_take=not places)
            room -= sum(place.tokens for place in taken)
            places += taken
            if not taken:
                skipped.append(request)
            elif request.is_taken:
                self.requests -= 1
            else:
                requests[request] = None
        for request in reversed(skipped):
            requests[request] = None
            requests.move_to_end(request, last=False)
        if not requests:
            del self._kinds[kind]
        return places

    def _take_from(
        self, request: Request, *, share: int, room: int, must_take: bool
    ) -> list[Place]:
        """Take a request's next texts: as many as its share holds, and one that is longer."""
        taken: list[Place] = []
        while not request.is_taken:
            cost = request.tokens[request.next_text]
            limit = min(share, room) if taken else room
            if cost > limit and not (must_take and not taken):
                break
            taken.append(Place(request, request.next_text))
            share -= cost
            room -= cost
            self.tokens -= cost
            request.next_text += 1
        if taken and request.started is None:
            request.started = time.perf_counter()
        return taken

    def _remove(self, request: Request) -> None:
        requests = self._kinds[request.kind]
        del requests[request]
        self.requests -= 1
        if not requests:
            del self._kinds[request.kind]
