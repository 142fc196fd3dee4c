"""Running a function in a process of its own.

What lives here: a child process that ends with its parent, hands back a result or an error, and
can be stopped. What does not: what it runs (`child_program` receives it, the callers bring it).

`multiprocessing` would run the user's main module a second time in each child, unless that is
guarded by `if __name__ == "__main__"`, which a library cannot ask for.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar, cast

T = TypeVar("T")

_PROGRAM = Path(__file__).with_name("child_program.py")
_PACKAGE_ROOT = Path(__file__).parents[2]


class ChildFailedError(RuntimeError):
    """The child process ended without a result, or its function raised something unexpected."""


class ChildProcess(Generic[T]):
    """A function running in a child process.

    Use it as a context manager: on exit the process has ended. It also ends when this process
    does, even by `kill -9`. On Linux it ends with the thread that started it. On POSIX, Ctrl-C
    reaches this process alone; the child is then killed by the exit from the context.

    The child imports what this process can import, except from the current folder. Its standard
    output goes nowhere.

    Args:
        function: A function of an importable module. The child imports that module and what it
            imports, and nothing else.
        arguments: Its arguments, which are pickled.
        show_stderr: Whether the child's standard error goes to this process's. If not, an error
            quotes its last line.
        handles: File descriptors that the child inherits under the same numbers (POSIX).
        variables: What is added to the child's environment.

    Raises:
        ChildFailedError: If this is a frozen program, which has no interpreter to run.

    Example:
        >>> import math
        >>> with ChildProcess(math.factorial, [5]) as child:
        ...     child.result()
        120
    """

    def __init__(
        self,
        function: Callable[..., T],
        arguments: Sequence[object] = (),
        *,
        show_stderr: bool = True,
        handles: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise ChildFailedError(
                "it needs a Python interpreter to run, which a frozen program lacks"
            )
        # Pickled twice: the child can unpickle functions only after it has the import path.
        call = pickle.dumps((function, tuple(arguments)))
        request = pickle.dumps(_import_path()) + pickle.dumps(call)
        self._was_killed = False
        self._stderr = None if show_stderr else tempfile.TemporaryFile()  # noqa: SIM115 — `_end` closes it
        self._process = subprocess.Popen(  # noqa: S603 — our own interpreter and program
            [sys.executable, str(_PROGRAM), str(os.getpid())],
            # This pipe stays open as long as this process lives, which the child watches.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | dict(variables or {}) | {"PYTHONSAFEPATH": "1"},
            pass_fds=tuple(handles),
            # In a session of its own the terminal's Ctrl-C does not reach the child.
            start_new_session=True,
        )
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # It ended at once; `result` says how.
                self._process.stdin.write(request)
                self._process.stdin.flush()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ChildProcess[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def result(self) -> T:
        """Wait for the function to return, and return its result. Call it once.

        Raises:
            UnifiedEmbeddingsError: If the function raised one; it arrives whole.
            ChildFailedError: If the function raised something else, or the process was killed.
        """
        assert self._process.stdout is not None
        outcome = self._process.stdout.read()
        exit_code = self._process.wait()
        if self._was_killed:
            raise ChildFailedError("its process was stopped")
        if exit_code != 0 or not outcome:
            raise ChildFailedError(self._describe_exit(exit_code))
        result, error = pickle.loads(outcome)  # noqa: S301 — from the child that this one started
        if error is not None:
            raise error
        return cast("T", result)

    def kill(self) -> None:
        """Kill the process, from any thread; `result` then raises ChildFailedError. Idempotent."""
        self._was_killed = True
        self._process.kill()

    def terminate(self) -> None:
        """Ask the process to end, as SIGTERM does; it may finish what it is at. Idempotent."""
        self._process.terminate()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the process to end, and tell whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def close(self) -> None:
        """Kill the process if it lives, and free what it took here. Idempotent."""
        self._process.kill()  # Does nothing if it has ended.
        with contextlib.suppress(OSError), self._process:
            pass  # Closes the pipes and waits.
        if self._stderr is not None:
            self._stderr.close()

    def _describe_exit(self, exit_code: int) -> str:
        description = f"its process ended with exit code {exit_code}"
        if exit_code == -9:
            description += "; the system may have run out of memory"
        if self._stderr is not None:
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").split("\n")
            last_lines = [line.strip() for line in lines if line.strip()][-1:]
            description = ": ".join([description, *last_lines])
        return description


def run_in_child(function: Callable[..., T], arguments: Sequence[object] = ()) -> T:
    """Run a function in a child process and return its result; see `ChildProcess`.

    Raises:
        UnifiedEmbeddingsError: If the function raised one.
        ChildFailedError: If it raised something else, the process was killed, or this is a frozen
            program.

    Example:
        >>> import math
        >>> run_in_child(math.gcd, [12, 18])
        6
    """
    with ChildProcess(function, arguments) as child:
        return child.result()


def _import_path() -> list[str]:
    """Return `sys.path` without the current folder, which may hold anything.

    It stays if PYTHONPATH names it, or if this package is imported from there.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    trusted_folders = {_PACKAGE_ROOT, *(Path(entry).absolute() for entry in named if entry)}
    here = Path.cwd()
    import_path = []
    for entry in sys.path:
        folder = Path(entry).absolute()
        if folder != here or folder in trusted_folders:
            import_path.append(str(folder))
    return import_path
