"""Parts to a Ray cluster: one task is one part.

What lives here: the tasks, and how many are under way. What does not: what a task computes
(`worker`). A task gives its part's content back, and this process publishes it: a task that Ray
runs twice is harmless, and the machines need no folder in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from types import TracebackType

import ray

from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.worker import (
    Assignment,
    Finished,
    PartComputer,
    WorkerSettings,
    publish_part,
)
from unified_embeddings.errors import UnifiedEmbeddingsError

_AHEAD = 2
"""Tasks under way for each worker, so that none waits for its next part."""
_RETRIES = 4
"""How often Ray runs a part's task again after its process died."""

_computers: dict[str, PartComputer] = {}
"""In a worker's process: the models that are loaded, by what they were made with."""


class RayPool:
    """A Ray cluster that computes parts; used like a `WorkerPool`.

    Args:
        settings: Of the workers; how many there are is how many tasks run at a time.
        address: Of a running cluster; None starts one on this machine.
        gpus: Graphics processors of a task.

    Attributes:
        runtime: What the workers run on, once one has answered.
        deaths: Not counted here: Ray repeats a task whose process died.
    """

    def __init__(
        self, settings: list[WorkerSettings], *, address: str | None = None, gpus: float = 0
    ) -> None:
        self._settings = settings
        self.runtime: dict[str, str] = {}
        self.deaths = 0
        self._has_started = not ray.is_initialized()
        if self._has_started:
            ray.init(
                address=address,
                num_cpus=None if address else len(settings),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)(compute_part)
        self._pending: dict[object, PartTask] = {}

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for reference in self._pending:
            ray.cancel(reference, force=True)
        if self._has_started:
            ray.shutdown()

    def compute(self, tasks: Iterable[PartTask]) -> Iterator[Finished]:
        """Compute parts; see `WorkerPool.compute`.

        Raises:
            UnifiedEmbeddingsError: If a task fails for good.
        """
        for task in tasks:
            while len(self._pending) >= _AHEAD * len(self._settings):
                yield from self._receive()
            # The cores of a worker are Ray's to give.
            settings = dataclasses.replace(self._settings[0], cores=None)
            self._pending[self._task.remote(settings, Assignment(task))] = task
        while self._pending:
            yield from self._receive()

    def stop_after_parts_in_hand(self) -> Iterator[Finished]:
        """Wait for the tasks that are under way, and yield their parts."""
        while self._pending:
            yield from self._receive()

    def _receive(self) -> Iterator[Finished]:
        ready, _ = ray.wait(list(self._pending), num_returns=1)
        for reference in ready:
            task = self._pending.pop(reference)
            try:
                finished, content, runtime = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise UnifiedEmbeddingsError(
                    f"part {task.number} failed on the cluster: {_first_line(error)}"
                ) from None
            self.runtime = runtime
            publish_part(content, self._settings[0].folder, finished.part)
            yield finished


def compute_part(
    settings: WorkerSettings, assignment: Assignment
) -> tuple[Finished, bytes, dict[str, str]]:
    """Compute one part in a Ray task; the model stays loaded in the task's process."""
    key = repr((settings.make_embedder, sorted(settings.options.items(), key=str), settings.heads))
    if key not in _computers:
        _computers.clear()  # Another job's model.
        _computers[key] = PartComputer(settings, _ignore)
    computer = _computers[key]
    finished, content = computer.compute(assignment)
    return finished, content, computer.runtime


def _ignore(_: object) -> None:
    pass


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
