"""How long each step of an answer took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One step of an answer.

    Attributes:
        name: What was done.
        seconds: How long it took.
        is_model: Whether the model was at work.
    """

    name: str
    seconds: float
    is_model: bool

    @property
    def milliseconds(self) -> float:
        """Return the time as pages show it."""
        return 1000 * self.seconds


class Stages:
    """The steps of one answer, in their order.

    Example:
        >>> from unified_embeddings.inspector.stages import Stages
        >>> stages = Stages()
        >>> with stages.measure("fuse"):
        ...     pass
        >>> [stage.name for stage in stages.done]
        ['fuse']
    """

    def __init__(self) -> None:
        self.done: list[Stage] = []

    @contextmanager
    def measure(self, name: str, *, is_model: bool = False) -> Iterator[None]:
        """Note how long the block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.done.append(Stage(name, time.perf_counter() - began, is_model))

    @property
    def seconds(self) -> float:
        """Return the time of all steps."""
        return sum(stage.seconds for stage in self.done)

    def header(self) -> str:
        """Return the steps as the header Server-Timing has them, for a browser's own tools."""
        return ", ".join(
            f"{stage.name.replace(' ', '-')};dur={stage.milliseconds:.2f}" for stage in self.done
        )
