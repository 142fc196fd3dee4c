"""What child processes do in the tests of `system`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from unified_embeddings.errors import InputError
from unified_embeddings.system.files import publish_folder, replace_file, scratch_folder

FILES = 5
SIZE = 200_000


def content(generation: int) -> bytes:
    return f"{generation:9d}\n".encode() * (SIZE // 10)


def publish_generations(folder: str, first: int) -> None:
    """Publish and replace without end; print each number that is there for good."""
    parent = Path(folder)
    for generation in itertools.count(first):
        replace_file(parent / "file", content(generation))
        with scratch_folder(parent) as scratch:
            (scratch / "new" / "inner").mkdir(parents=True)
            for number in range(FILES):
                (scratch / "new" / "inner" / str(number)).write_bytes(content(generation))
            publish_folder(scratch / "new", parent / f"folder {generation}")
        print(generation, flush=True)


def hold_scratch(folder: str) -> None:
    """Hold a scratch folder until killed."""
    with scratch_folder(Path(folder)) as scratch:
        (scratch / "half").write_text("written")
        print(scratch.parent.name, flush=True)
        time.sleep(600)


# --- run by `ChildProcess` ----------------------------------------------------------------------


def double(value: Any) -> Any:
    return value + value


def raise_own(index: int) -> None:
    raise InputError("cannot be used", index=index)


def raise_unexpected() -> None:
    raise KeyError("no such key")


def raise_unpicklable() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("local")


def return_unpicklable() -> Any:
    return threading.Lock()


def exit_with(code: int) -> None:
    print("a word", "of farewell", file=sys.stderr, flush=True)
    os._exit(code)


def kill_self(signal: int) -> None:
    os.kill(os.getpid(), signal)


def print_and_return() -> str:
    print("to standard output")
    subprocess.run([sys.executable, "-c", "print('from a grandchild')"], check=True)
    print("to standard error", file=sys.stderr)
    return "returned"


def read_input() -> str:
    return sys.stdin.read()


def write_pid_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def write_variable(handle: int, name: str) -> None:
    os.write(handle, os.environ[name].encode())


def loaded_modules() -> set[str]:
    return set(sys.modules)


def import_path() -> list[str]:
    return sys.path


def sleep_in_child(path: str) -> None:
    """Wait for a child process that sleeps; it writes its id into a file."""
    import child_functions
    from unified_embeddings.system.processes import run_in_child

    run_in_child(child_functions.write_pid_and_sleep, [path])


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "publish_generations":
        publish_generations(arguments[0], int(arguments[1]))
    elif name == "hold_scratch":
        hold_scratch(arguments[0])
    else:
        sleep_in_child(arguments[0])
