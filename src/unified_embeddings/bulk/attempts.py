"""A part on its way through workers that may die, and how long a worker may be silent.

What lives here: which conclusion follows from a worker's death, whatever runs the workers. What
does not: running them (`pool`, `ray_pool`).

A part whose worker died is given out again. If it dies at the same texts again, those are computed
one at a time, and the one at which it dies the third time is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.worker import Assignment, Begun, is_full_disk
from unified_embeddings.errors import UnifiedEmbeddingsError

FAILED_STARTS = 3
"""Starts in a row that may fail before the model counts as impossible to load."""
_HANG_FLOOR = 60.0
"""Seconds that a slice may take in any case before its worker counts as hanging."""
_FIRST_SECONDS = 0.1
"""Seconds that a character of the first slice may take: a slow processor with a large model needs a
few thousandths of one."""
_HANG_FACTOR = 30
"""How many times longer than predicted a slice may take before its worker counts as hanging."""


@dataclass(eq=False)
class PartAttempt:
    """A part on its way, with what happened to it.

    Attributes:
        task: The part.
        suspects: Places of the texts at which its worker died the last time.
        alone: Places of the texts that are computed one at a time.
        poison: Place of a text that is left out → why.
    """

    task: PartTask
    suspects: frozenset[int] = frozenset()
    alone: frozenset[int] = frozenset()
    poison: dict[int, str] = field(default_factory=dict)

    @property
    def assignment(self) -> Assignment:
        """Return what a worker is to do."""
        return Assignment(self.task, self.alone, dict(self.poison))

    def note_death(self, places: tuple[int, ...], reason: str) -> None:
        """Draw the conclusion from a worker's death at some of the part's texts."""
        in_hand = frozenset(places)
        if len(in_hand) == 1 and in_hand <= self.alone | self.suspects:
            (place,) = in_hand
            self.poison[place] = reason
            self.suspects = frozenset()
        elif in_hand and in_hand == self.suspects:
            self.alone |= in_hand
        else:
            # The first time may be chance: somebody, or the system, killed the process.
            self.suspects = in_hand


class Patience:
    """How long a worker may take for a slice, learned from the slices before.

    Args:
        hang_seconds: A fixed limit; None predicts it.
    """

    def __init__(self, hang_seconds: float | None = None) -> None:
        self._hang_seconds = hang_seconds
        self._slowest: float | None = None

    def note(self, begun: Begun, seconds: float) -> None:
        """Learn how long a slice took."""
        self._slowest = max(self._slowest or 0.0, seconds / max(1, begun.characters))

    def limit(self, begun: Begun) -> float:
        """Return the seconds after which a slice's worker counts as hanging."""
        if self._hang_seconds is not None:
            return self._hang_seconds
        if self._slowest is None:
            return max(_HANG_FLOOR, _FIRST_SECONDS * begun.characters)
        return max(_HANG_FLOOR, _HANG_FACTOR * self._slowest * begun.characters)


def do_nothing() -> None:
    """Stand for a check of which nobody makes use."""


def deadly_reason(reason: str) -> str:
    """Return why a text is left out at which its worker died."""
    return f"it ends the worker: {reason}"


def hanging_reason(seconds: float) -> str:
    """Return why a text is left out at which its worker was silent."""
    return f"no answer in {seconds:.0f} s, and it was stopped"


def as_ours(error: Exception) -> Exception:
    """Return what ended a worker as an error of this library that tells its kind.

    A full disk stays what it is: the job says how to go on after it.
    """
    if is_full_disk(error) or isinstance(error, UnifiedEmbeddingsError):
        return error
    return UnifiedEmbeddingsError(f"{type(error).__name__}: {error}")
