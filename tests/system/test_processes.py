"""A child process hands back results and errors, and ends with whoever waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import child_functions
from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.optimizer import optimize_folder
from unified_embeddings.system import child_program, processes
from unified_embeddings.system.processes import ChildFailedError, ChildProcess, run_in_child

PATIENCE = 60.0
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_pid(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# --- results and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 2.5, b"x" * 5_000_000])
def test_a_result_comes_back(value: object) -> None:
    if value is None:
        assert run_in_child(list) == []
    else:
        assert run_in_child(child_functions.double, [value]) == child_functions.double(value)


def test_an_error_of_ours_comes_back_whole() -> None:
    with pytest.raises(InputError, match="item 7: cannot be used") as caught:
        run_in_child(child_functions.raise_own, [7])
    assert caught.value.index == 7
    assert caught.value.problem == "cannot be used"


def test_an_unexpected_error_comes_back_as_its_type_and_message() -> None:
    with pytest.raises(ChildFailedError) as caught:
        run_in_child(child_functions.raise_unexpected)
    assert str(caught.value) == "KeyError: 'no such key'"
    assert "in raise_unexpected" in caught.value.__notes__[0]
    with pytest.raises(ChildFailedError, match="LocalError: local"):
        run_in_child(child_functions.raise_unpicklable)
    with pytest.raises(ChildFailedError, match=r"cannot pickle '_thread.lock'"):
        run_in_child(child_functions.return_unpicklable)
    with pytest.raises(ChildFailedError, match="SystemExit: 3"):
        run_in_child(sys.exit, [3])


def test_what_cannot_be_sent_is_an_error_before_there_is_a_process() -> None:
    with pytest.raises(Exception, match="pickle"):
        run_in_child(lambda: None)
    with pytest.raises(TypeError, match="pickle"):
        run_in_child(child_functions.double, [threading.Lock()])


@pytest.mark.parametrize("code", [0, 5])
def test_a_process_that_ends_without_a_result_says_how(code: int) -> None:
    with pytest.raises(ChildFailedError, match=f"^its process ended with exit code {code}$"):
        run_in_child(child_functions.exit_with, [code])
    with (
        ChildProcess(child_functions.exit_with, [code], show_stderr=False) as child,
        pytest.raises(ChildFailedError, match=f"exit code {code}: a word of farewell$"),
    ):
        child.result()


@posix
def test_a_killed_process_may_have_run_out_of_memory() -> None:
    with pytest.raises(ChildFailedError, match=r"exit code -9; .* out of memory"):
        run_in_child(child_functions.kill_self, [signal.SIGKILL])
    with pytest.raises(ChildFailedError, match=r"exit code -15$"):
        run_in_child(child_functions.kill_self, [signal.SIGTERM])


def test_a_program_that_is_not_python_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildFailedError, match="exit code 1"):
        run_in_child(child_functions.double, [b"x" * 5_000_000])


def test_a_frozen_program_is_told_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ChildFailedError, match="frozen"):
        run_in_child(child_functions.double, [1])


def test_standard_output_is_not_the_childs(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_in_child(child_functions.print_and_return) == "returned"
    out, err = capfd.readouterr()
    assert out == ""
    assert "to standard error" in err
    with ChildProcess(child_functions.print_and_return, show_stderr=False) as child:
        assert child.result() == "returned"
    assert capfd.readouterr() == ("", "")
    assert run_in_child(child_functions.read_input) == ""


# --- what it imports ----------------------------------------------------------------------------


def test_it_imports_nothing_that_the_function_does_not_need() -> None:
    modules = run_in_child(child_functions.loaded_modules)
    heavy = {"torch", "llama_index", "transformers", "qdrant_client", "numpy", "pydantic"}
    assert not heavy & modules


def test_optimizing_imports_the_core_alone(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from unified_embeddings.stores.edge.optimizer import optimize_folder\n"
        "print([name for name in ('torch', 'llama_index', 'qdrant_client', 'numpy', 'pydantic')\n"
        "       if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(ChildFailedError, match="does not exist"):
        run_in_child(optimize_folder, [str(tmp_path / "nothing")])


@pytest.mark.parametrize("entry", ["", ".", "absolute"])
def test_what_lies_in_the_current_folder_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    for name in (
        "ctypes",
        "pickle",
        "typing",
        "threading",
        "unified_embeddings",
        "child_functions",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path) if entry == "absolute" else entry)
    assert run_in_child(child_functions.double, [2]) == 4
    assert str(tmp_path) not in run_in_child(child_functions.import_path)


def test_a_current_folder_that_is_trusted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) not in processes._import_path()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["somewhere", str(tmp_path)]))
    assert str(tmp_path) in processes._import_path()
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setattr(processes, "_PACKAGE_ROOT", tmp_path)
    assert str(tmp_path) in processes._import_path()


# --- how it ends --------------------------------------------------------------------------------


def test_it_can_be_killed_from_another_thread(tmp_path: Path) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        ChildProcess(child_functions.write_pid_and_sleep, [str(tmp_path / "pid")]) as child,
    ):
        waiting = pool.submit(child.result)
        assert read_pid(tmp_path / "pid") == child.pid
        child.kill()
        child.kill()
        with pytest.raises(ChildFailedError, match="was stopped"):
            waiting.result(PATIENCE)
    assert not is_running(child.pid)


def test_leaving_the_context_ends_it(tmp_path: Path) -> None:
    with ChildProcess(child_functions.write_pid_and_sleep, [str(tmp_path / "pid")]) as child:
        read_pid(tmp_path / "pid")
    assert not is_running(child.pid)


@posix
def test_control_c_ends_it_and_reaches_the_parent_alone(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, child_functions.__file__, "sleep_in_child", str(tmp_path / "pid")],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    child = read_pid(tmp_path / "pid")
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    assert err.count("KeyboardInterrupt") == 1
    wait_for(lambda: not is_running(child))


@posix
def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, child_functions.__file__, "sleep_in_child", str(tmp_path / "pid")]
    )
    child = read_pid(tmp_path / "pid")
    assert is_running(child)
    process.kill()
    process.wait()
    wait_for(lambda: not is_running(child))


@posix
def test_it_ends_with_the_pipe_alone(tmp_path: Path) -> None:
    """Without Linux's signal: the pipe is closed, the parent lives."""
    child = ChildProcess(child_functions.write_pid_and_sleep, [str(tmp_path / "pid")])
    read_pid(tmp_path / "pid")
    assert child._process.stdin is not None
    child._process.stdin.close()
    with pytest.raises(ChildFailedError, match=r"exit code 1$"):
        child.result()


@posix
def test_the_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "import threading, time\n"
        f"from {child_program.__name__} import end_with_pipe\n"
        "threading.Thread(target=end_with_pipe, args=[0]).start()\nprint('up', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        child.stdin.close()
        assert child.wait(30) == 1


@posix
def test_one_whose_parent_is_gone_before_the_call_arrives_ends() -> None:
    for arguments, given in (([str(os.getpid())], b""), (["1"], b"")):
        done = subprocess.run(
            [sys.executable, processes._PROGRAM, *arguments],
            input=given,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


# --- what a service's workers need --------------------------------------------------------------


@posix
def test_it_inherits_handles_and_variables() -> None:
    reading, writing = os.pipe()
    try:
        arguments = [writing, "UNIFIED_TEST_VARIABLE"]
        variables = {"UNIFIED_TEST_VARIABLE": "its value"}
        with ChildProcess(
            child_functions.write_variable, arguments, handles=[writing], variables=variables
        ) as child:
            child.result()
        assert os.read(reading, 100) == b"its value"
        assert "UNIFIED_TEST_VARIABLE" not in os.environ
        with (
            ChildProcess(child_functions.write_variable, arguments, variables=variables) as child,
            pytest.raises(ChildFailedError, match="Bad file descriptor"),
        ):
            child.result()  # Without being named, no handle is inherited.
    finally:
        os.close(reading)
        os.close(writing)


@posix
def test_it_can_be_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    child = ChildProcess(child_functions.write_pid_and_sleep, [str(tmp_path / "pid")])
    read_pid(tmp_path / "pid")
    assert not child.wait(0.05)
    child.terminate()
    assert child.wait(PATIENCE)
    with pytest.raises(ChildFailedError, match="exit code -15"):
        child.result()
    child.close()
    child.close()
