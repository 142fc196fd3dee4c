"""How long an assistant, and a person at a terminal, wait for their first passage.

    python benchmarks/first_answer.py [--model mini-m3] [--runs 5]

Two files are indexed with the model. Then, in turn and each in a new process: the command `mcp` is
started by the SDK's client, as an assistant does it, and asked for its tools and two searches; the
command `search` is run; and a Python imports LlamaIndex, and torch, which is what a search that
imports both of them takes at least.

Seconds are medians, counted from the start of the process. "CPU s" is the processor time of that
process until the first passage: it is comparable on a busy machine, where the clock is not. "other
work" is the share of all cores that other programs took meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import anyio
import psutil
from mcp import Client, StdioServerParameters

from other_work import OtherWork

_COMMAND = [sys.executable, "-m", "unified_embeddings"]
_PASSAGES = {"travel.md": "Ask the travel desk for refunds.", "leave.md": "Leave is thirty days."}
_QUESTION = "Who refunds travel?"
_TOOLS = "mcp: tools listed"
_FIRST = "mcp: first search"
_NEXT = "mcp: next search"
_SEARCH = "search"
_IMPORTS = "importing LlamaIndex and torch"


class Seconds:
    """What was measured: seconds by the clock, and of the processor where they are known."""

    def __init__(self) -> None:
        self.clock: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)

    def rows(self) -> list[str]:
        """Return a line for each thing that was measured: its name, and the medians."""
        lines = []
        for name, seconds in self.clock.items():
            used = (
                f"{statistics.median(self.processor[name]):8.2f}" if name in self.processor else ""
            )
            lines.append(f"{name:32}{statistics.median(seconds):8.3f}{used}")
        return lines


async def _ask(options: Sequence[str], seconds: Seconds) -> None:
    """Start the server as an assistant does, and ask it."""
    arguments = [*_COMMAND[1:], "mcp", *options]
    parameters = StdioServerParameters(command=_COMMAND[0], args=arguments, env=dict(os.environ))
    earlier_children = set(psutil.Process().children())
    started = time.perf_counter()
    async with Client(parameters) as client:
        await client.list_tools()
        seconds.clock[_TOOLS].append(time.perf_counter() - started)
        answer = await client.call_tool("search", {"query": _QUESTION, "top_k": 1})
        seconds.clock[_FIRST].append(time.perf_counter() - started)
        (server,) = set(psutil.Process().children()) - earlier_children
        used = server.cpu_times()
        seconds.processor[_FIRST].append(used.user + used.system)
        if answer.is_error:
            raise SystemExit(f"the search failed: {answer.content}")
        asked = time.perf_counter()
        await client.call_tool("search", {"query": "How long is leave?", "top_k": 1})
        seconds.clock[_NEXT].append(time.perf_counter() - asked)


def _run(name: str, command: Sequence[str], seconds: Seconds) -> None:
    """Run a program to its end."""
    before = psutil.Process().cpu_times()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds.clock[name].append(time.perf_counter() - started)
    after = psutil.Process().cpu_times()
    used = after.children_user + after.children_system
    seconds.processor[name].append(used - before.children_user - before.children_system)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini-m3")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args(arguments)
    seconds = Seconds()
    with tempfile.TemporaryDirectory() as work:
        options = ["--path", f"{work}/store", "--model", given.model]
        for name, text in _PASSAGES.items():
            (Path(work) / name).write_text(text, "utf-8")
        index = [*_COMMAND, "index", work, *options]
        subprocess.run(index, check=True, stdout=subprocess.DEVNULL)
        other_work = OtherWork()
        for _ in range(given.runs):
            anyio.run(functools.partial(_ask, options, seconds))
            _run(_SEARCH, [*_COMMAND, "search", _QUESTION, *options], seconds)
            _run(_IMPORTS, [sys.executable, "-c", "import llama_index.core, torch"], seconds)
        share = other_work.share()
    print(f"{'':32}{'seconds':>8}{'CPU s':>8}")
    print("\n".join(seconds.rows()))
    ratio = statistics.median(seconds.processor[_FIRST]) / statistics.median(
        seconds.processor[_IMPORTS]
    )
    print(f"CPU of mcp's first search against those imports alone: {ratio:.2f}")
    print(f"other work: {share:.0%}")


if __name__ == "__main__":
    main()
