"""The program that a child process runs: receive a call, make it, send back what came of it.

What lives here: the child's side of `processes`. Nobody imports it; the parent starts the file.

Until the parent's import path has arrived, only the standard library may be imported, and nothing
from the current folder ever is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import sys
import threading
import traceback
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1
"""Linux, prctl(2): the signal to receive when the thread that started this process ends."""
_SIGKILL = 9


def main() -> None:
    """Run one call for the parent process, whose id is the first argument."""
    _end_with_parent_on_linux(int(sys.argv[1]))
    requests, results = _take_pipes()
    try:
        sys.path[:] = pickle.load(requests)  # noqa: S301 — from the process that started this one
        call = pickle.load(requests)  # noqa: S301
    except EOFError:
        sys.exit(1)  # The parent ended.
    threading.Thread(target=end_with_pipe, args=[requests.fileno()], daemon=True).start()
    try:
        outcome = _make_call(call)
    except KeyboardInterrupt:
        sys.exit(130)
    with contextlib.suppress(BrokenPipeError), results:  # The parent may be gone.
        results.write(outcome)


def _end_with_parent_on_linux(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends.

    This works even while a library holds the interpreter's lock, which `end_with_pipe` needs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() != parent:  # It ended before the kernel was asked.
            sys.exit(1)


def end_with_pipe(handle: int) -> None:
    """End this process when the pipe ends, which it does with the process at its other side."""
    os.read(handle, 1)  # Not through a file object, whose lock the interpreter needs to exit.
    os._exit(1)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take over standard input and output, so that the call can neither read nor write them."""
    requests, results = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return os.fdopen(requests, "rb"), os.fdopen(results, "wb")


def _make_call(call: bytes) -> bytes:
    """Make the call and return its pickled outcome: (result, None) or (None, error)."""
    from unified_embeddings.errors import UnifiedEmbeddingsError
    from unified_embeddings.system.processes import ChildFailedError

    try:
        function, arguments = pickle.loads(call)  # noqa: S301
        return pickle.dumps((function(*arguments), None))
    except KeyboardInterrupt:
        raise
    except UnifiedEmbeddingsError as error:
        return pickle.dumps((None, error))
    except BaseException as error:
        # Its class may not exist in the parent, or may not be picklable.
        unexpected = ChildFailedError(f"{type(error).__name__}: {error}")
        unexpected.__notes__ = [traceback.format_exc()]
        return pickle.dumps((None, unexpected))


if __name__ == "__main__":
    main()
