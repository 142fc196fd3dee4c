"""Parts to a Ray cluster: one task is one part.

What lives here: the tasks, how many are under way, and giving a part out again whose task was lost.
What does not: what a task computes (`worker`), and what follows from a worker's death (`attempts`).
A task gives its part's content back, and this process publishes it: the machines need no folder in
common.

Before each slice a task notes its texts on a board, an actor, so that this process knows what was
in hand if the task's process dies or hangs.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from unified_embeddings.bulk.attempts import (
    FAILED_STARTS,
    PartAttempt,
    Patience,
    as_ours,
    deadly_reason,
    do_nothing,
    hanging_reason,
)
from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.worker import (
    Assignment,
    Begun,
    Broken,
    Finished,
    PartComputer,
    WorkerSettings,
    publish_part,
)
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.system.hardware import cpu, share_machine

# Ray would report its use over the network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise MissingExtraError("Ray, which the runner 'ray' is,", extra="ray") from error

_AHEAD = 2
"""Tasks under way for each worker, so that none waits for its next part."""
_POLL = 0.25
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
"""How long the board may take to answer."""

_computers: dict[str, PartComputer] = {}
"""In a task's process: the model that is loaded, by what it was made with."""


class Board:
    """What each task has in hand, kept outside of the tasks' processes."""

    def __init__(self) -> None:
        self._slices: dict[int, tuple[Begun, float]] = {}

    def begin(self, begun: Begun) -> None:
        """Note that a task begins a slice of its part."""
        self._slices[begun.part] = (begun, time.monotonic())

    def forget(self, part: int) -> None:
        """Forget what a part's task had in hand, since it starts or has ended."""
        self._slices.pop(part, None)

    def look(self) -> dict[int, tuple[Begun, float]]:
        """Return for each part that is being computed its slice, and for how many seconds."""
        now = time.monotonic()
        return {part: (begun, now - since) for part, (begun, since) in self._slices.items()}


class RayPool:
    """A Ray cluster that computes parts; used like a `WorkerPool`.

    Args:
        settings: Of the workers; how many there are is how many tasks run at a time.
        address: Of a running cluster; None starts one on this machine.
        gpus: Graphics processors of a task.
        hang_seconds: See `WorkerPool`.

    Attributes:
        runtime: What the workers run on, once one has answered.
        deaths: Tasks whose process died, or was stopped because it hung.

    Raises:
        InputError: If there is no cluster at the address.
        UnifiedEmbeddingsError: If Ray does not start.
    """

    def __init__(
        self,
        settings: list[WorkerSettings],
        *,
        address: str | None = None,
        gpus: float = 0,
        hang_seconds: float | None = None,
    ) -> None:
        self._settings = settings[0]
        self._room = _AHEAD * len(settings)
        self._patience = Patience(hang_seconds)
        self._failed_starts = 0
        self._looked_at = 0.0
        self.runtime: Mapping[str, str] = {}
        self.deaths = 0
        task_cpus = max(1, cpu().cores // len(settings))
        self._has_started = not ray.is_initialized()
        if self._has_started:
            _start_ray(address, cpus=task_cpus * len(settings))
            _stay_silent()
        # On a cluster each task takes one processor, which is all that is known to be there.
        self._task = ray.remote(
            num_cpus=1 if address else task_cpus,
            num_gpus=gpus,
            # A task that is lost is given out again from here, where it is known what it had in
            # hand.
            max_retries=0,
        )(compute_part)
        self._board = _make_board()
        self._pending: dict[Any, PartAttempt] = {}

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
        self._pending.clear()
        ray.kill(self._board)
        if self._has_started:
            ray.shutdown()

    def compute(
        self, tasks: Iterable[PartTask], check: Callable[[], None] = do_nothing
    ) -> Iterator[Finished]:
        """Compute parts; see `WorkerPool.compute`."""
        waiting = iter(tasks)
        retries: deque[PartAttempt] = deque()
        is_exhausted = False
        while True:
            check()
            while len(self._pending) < self._room:
                if retries:
                    self._submit(retries.popleft())
                    continue
                task = None if is_exhausted else next(waiting, None)
                if task is None:
                    is_exhausted = True
                    break
                self._submit(PartAttempt(task))
            if not self._pending:
                return
            yield from self._receive(retries)

    def stop_after_parts_in_hand(self) -> Iterator[Finished]:
        """Let the parts that are being computed finish, and yield them."""
        in_hand = ray.get(self._board.look.remote())
        for reference, attempt in list(self._pending.items()):
            if attempt.task.number not in in_hand:
                del self._pending[reference]
                ray.cancel(reference, force=True)
        lost: deque[PartAttempt] = deque()
        while self._pending:
            yield from self._receive(lost)

    def _submit(self, attempt: PartAttempt) -> None:
        reference = self._task.remote(self._settings, attempt.assignment, self._board)
        self._pending[reference] = attempt

    def _receive(self, retries: deque[PartAttempt]) -> Iterator[Finished]:
        """Wait for a part, publish and yield it; put lost ones among the retries."""
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL)
        for reference in ready:
            attempt = self._pending.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise UnifiedEmbeddingsError(
                    f"part {attempt.task.number} failed on the cluster: {_last_line(error)}"
                ) from None
            except ray.exceptions.RayError as error:
                self._note_loss(attempt, _first_line(error))
                retries.append(attempt)
                continue
            if isinstance(answer, Broken):
                raise as_ours(answer.error)
            finished, content, self.runtime = answer
            self._failed_starts = 0
            characters = sum(len(text) for text in attempt.task.texts)
            self._patience.note(Begun(finished.part, (), characters), finished.seconds)
            publish_part(content, self._settings.folder, finished.part)
            yield finished
        self._watch(retries)

    def _note_loss(self, attempt: PartAttempt, reason: str) -> None:
        """Draw the conclusion from a task whose process, or machine, is gone.

        Raises:
            UnifiedEmbeddingsError: If tasks die again and again before they compute anything.
        """
        self.deaths += 1
        in_hand = ray.get(self._board.look.remote()).get(attempt.task.number)
        ray.get(self._board.forget.remote(attempt.task.number))
        if in_hand is not None:
            begun, _ = in_hand
            attempt.note_death(begun.places, deadly_reason(reason))
            return
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise UnifiedEmbeddingsError(
                f"{FAILED_STARTS} workers died while they loaded the model: {reason}"
            )

    def _watch(self, retries: deque[PartAttempt]) -> None:
        """Stop tasks that hang, and learn from the others how long a slice takes."""
        if time.monotonic() - self._looked_at < _POLL:
            return
        self._looked_at = time.monotonic()
        in_hand = ray.get(self._board.look.remote())
        for reference, attempt in list(self._pending.items()):
            number = attempt.task.number
            if number not in in_hand:
                continue
            begun, seconds = in_hand[number]
            if seconds > self._patience.limit(begun):
                del self._pending[reference]
                ray.cancel(reference, force=True)
                ray.get(self._board.forget.remote(number))
                self.deaths += 1
                attempt.note_death(begun.places, hanging_reason(seconds))
                retries.append(attempt)


def compute_part(
    settings: WorkerSettings, assignment: Assignment, board: Any
) -> tuple[Finished, bytes, Mapping[str, str]] | Broken:
    """Compute one part in a Ray task; the model stays loaded in the task's process.

    Args:
        settings: What to compute.
        assignment: The part.
        board: The actor that keeps what is in hand.

    Returns:
        What there is to say of the part, its file's content, and what the model runs on; or why
        this process cannot go on.
    """

    def begin(begun: Begun) -> None:
        _wait_for(board.begin.remote(begun))

    cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    share_machine(max(1, round(cpu().cores / max(cpus, 1.0))))
    try:
        computer = _load_computer(settings)
        finished, content = computer.compute(assignment, begin)
    except Exception as error:
        return Broken(as_ours(error))
    finally:
        _wait_for(board.forget.remote(assignment.task.number))
    return finished, content, computer.runtime


def _load_computer(settings: WorkerSettings) -> PartComputer:
    key = repr(settings)
    if key not in _computers:
        _computers.clear()  # Another job's model.
        _computers[key] = PartComputer(settings)
    return _computers[key]


def _wait_for(reference: Any) -> None:
    """Wait in a task for an actor's answer.

    `ray.get` would give the task's processor away meanwhile, and Ray would start another task in a
    new process, with a model of its own.
    """
    has_answer = threading.Event()
    reference.future().add_done_callback(lambda _: has_answer.set())
    has_answer.wait(_ANSWER_SECONDS)


def _start_ray(address: str | None, *, cpus: int) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        InputError: If there is none at the address.
        UnifiedEmbeddingsError: If Ray does not start.
    """
    try:
        if address:
            _require_answer(address)
        ray.init(
            address=address or "local",
            num_cpus=None if address else cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            configure_logging=False,
        )
    except Exception as error:
        if address:
            raise InputError(
                f"no Ray cluster answers at {address!r}: {_first_line(error)}. Start one with "
                "`ray start --head`, and give its address and port; if it asks for a token, set "
                "RAY_AUTH_TOKEN here as there"
            ) from None
        raise UnifiedEmbeddingsError(f"Ray does not start: {_first_line(error)}") from None


def _stay_silent() -> None:
    """Stop Ray from printing to standard output, which belongs to the job's own events.

    It prints a paragraph there for each process that dies, and has no option against it. What is
    replaced is its own function; a version that has none like it prints.
    """
    import ray._private.worker as driver

    if hasattr(driver, "print_to_stdstream"):
        driver.print_to_stdstream = _ignore


def _ignore(*_: object, **__: object) -> None:
    pass


def _require_answer(address: str) -> None:
    """Refuse an address at which nothing listens; Ray itself would try for minutes.

    Raises:
        OSError: If it does not answer.
    """
    host, separator, port = address.rpartition(":")
    if separator and "/" not in address and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _make_board() -> Any:
    """Start the board on this process's machine, which it then lives as long as."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
    return board.options(scheduling_strategy=here).remote()


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]


def _first_line(error: Exception) -> str:
    return next(iter(_lines(error)), type(error).__name__)


def _last_line(error: Exception) -> str:
    return next(reversed(_lines(error)), type(error).__name__)
