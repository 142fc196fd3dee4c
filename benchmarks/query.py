"""What one query costs beside the model: the cache, Python, the tokenizer, the first call, threads.

    python benchmarks/query.py [--model mini-m3] [--engines onnx torch] [--rounds 9]
                               [--queries 100] [--flame FILE.svg]

Cached: microseconds of one call for a text that was embedded before. `BaseEmbedding` is the same
call through LlamaIndex's own spans and events, as it is made where a handler listens to them.

Uncached: milliseconds of one query of a dozen words that is new. The overhead is what is left of
the whole without the tokenizer's Rust and the engine's tensors (`InferenceSession.run`, or torch's
encoder and heads).

The first call: seconds in a process that has imported everything. The tokenizer is loaded beside
the weights, so that it does not add to them on two cores.

Threads (the engine onnx): milliseconds of a pass over one short text with one thread and with all.

Medians, with the least and the greatest round in brackets. "CPU" is the time of the calling thread,
of all threads where it says so; beside other programs only that can be compared.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from flame import Panel, draw, sampled
from unified_embeddings import ModelEmbedder, UnifiedTextEmbedding
from unified_embeddings.embedders.single_model import load_tokenizer
from unified_embeddings.embedders.tokenizer_file import read_tokenizer
from unified_embeddings.engines import registry
from unified_embeddings.engines.base import Engine, PipelinedEngine
from unified_embeddings.system import hardware
from unified_embeddings.types import IntArray

_WORDS = (
    *("what", "does", "the", "quick", "brown", "fox", "do", "over", "lazy", "dogs", "while"),
    *("nobody", "looks", "at", "all"),
)
_QUERY_WORDS = 12
_CALLS = 200
"""Calls of a cached query in one round."""
_TEXT = "What does the fox do over the lazy dog?"
_LENGTHS = (8, 16, 32, 128)
"""Tokens of the texts on which numbers of threads are compared."""
_FLAME_SECONDS = 3.0

Row = tuple[str, str]


def main(arguments: list[str] | None = None) -> None:
    """Measure each engine and print a table of it."""
    options = _parse_arguments(arguments)
    print(hardware.cpu().name)
    panels: list[Panel] = []
    for engine in options.engines:
        # Not in the cache of another engine, and loaded by the first call.
        embedder = ModelEmbedder(options.model, engine=engine)
        rows = [*_load_rows(embedder, options.rounds), *_first_call_rows(embedder)]
        rows += _cached_rows(embedder, options.rounds)
        rows += _uncached_rows(embedder, options.queries)
        if engine == "onnx":
            rows += _thread_rows(embedder, options.rounds)
        _print_table(f"{options.model}, engine {engine}, {embedder.runtime.precision}", rows)
        if options.flame is not None:
            panels += _sample(embedder, engine)
        embedder.close()
    if options.flame is not None:
        draw(panels, options.flame)
        print(f"flame graphs: {options.flame}")


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-m3", help="a choice, a hub id or a folder")
    parser.add_argument("--engines", nargs="+", default=["onnx", "torch"])
    parser.add_argument("--rounds", type=_positive, default=9)
    parser.add_argument("--queries", type=_positive, default=100, help="new queries, each once")
    parser.add_argument("--flame", type=Path, help="draw flame graphs into this file")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _print_table(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}")
    for name, value in rows:
        print(f"  {name:64}{value}", flush=True)


def _ranged(samples: Sequence[float], digits: int) -> str:
    median = statistics.median(samples)
    return f"{median:.{digits}f} ({min(samples):.{digits}f} to {max(samples):.{digits}f})"


# --- loading ------------------------------------------------------------------------------------


def _load_rows(embedder: ModelEmbedder, rounds: int) -> list[Row]:
    """Return how long the tokenizer takes to load, and its parts."""
    checkpoint = embedder.checkpoint
    path = checkpoint.tokenizer_file
    loads: dict[str, Callable[[], object]] = {
        "tokenizer: reading the file": path.read_bytes,
        "tokenizer: reading, parsing and checking it": lambda: read_tokenizer(checkpoint),
        "tokenizer: all of it": lambda: load_tokenizer(checkpoint, embedder.max_length),
    }
    rows: list[Row] = []
    for name, load in loads.items():
        seconds = [_seconds(load, time.thread_time) for _ in range(min(rounds, 5))]
        size = f", {path.stat().st_size / 1e6:.1f} MB" if not rows else ""
        rows.append((f"{name}, ms of CPU{size}", _ranged([1000 * each for each in seconds], 1)))
    return rows


def _first_call_rows(embedder: ModelEmbedder) -> list[Row]:
    """Return what the first call takes, and how much longer its pass is than a later one."""
    runs: list[float] = []
    load_engine = embedder._load_engine

    def load() -> Engine:
        engine = load_engine()
        # On a CPU a pass that was started is done.
        name = "start" if isinstance(engine, PipelinedEngine) else "run"
        note = _noting(getattr(engine, name), runs)
        patched.enter_context(mock.patch.object(engine, name, note))
        return engine

    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(embedder, "_load_engine", load))
        first = _seconds(lambda: embedder.encode_query(_new_text(0)), time.perf_counter)
        for number in range(1, 8):
            embedder.encode_query(_new_text(number))
    later = statistics.median(runs[1:])
    return [
        ("first call, s: weights, tokenizer and one pass", f"{first:.2f}"),
        ("first pass, ms; a later one", f"{1000 * runs[0]:.1f}; {1000 * later:.1f}"),
    ]


def _noting(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Return the function, noting how long each call takes."""

    def noting(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - started)

    return noting


def _seconds(function: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    result = function()
    seconds = clock() - started
    del result  # freeing a tokenizer takes a quarter of the time of loading it
    return seconds


# --- a query that is cached ---------------------------------------------------------------------


def _cached_rows(embedder: ModelEmbedder, rounds: int) -> list[Row]:
    """Return microseconds of CPU of each public call for one cached text."""
    model = UnifiedTextEmbedding(embedder)
    calls: dict[str, Callable[[], object]] = {
        "encode_query": lambda: embedder.encode_query(_TEXT),
        "encode_queries of one text": lambda: embedder.encode_queries([_TEXT]),
        "get_query_embedding": lambda: model.get_query_embedding(_TEXT),
        "get_agg_embedding_from_queries of one text": lambda: model.get_agg_embedding_from_queries(
            [_TEXT]
        ),
        "get_query_embedding through BaseEmbedding": lambda: BaseEmbedding.get_query_embedding(
            model, _TEXT
        ),
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    embedder.encode_query(_TEXT)
    for _ in range(rounds):  # in turn, so that other programs disturb all of them alike
        for name, call in calls.items():
            seconds = _seconds(lambda call=call: _repeat(call, _CALLS), time.thread_time)  # type: ignore[misc]
            samples[name].append(1e6 * seconds / _CALLS)
    return [(f"cached: {name}, µs of CPU", _ranged(each, 1)) for name, each in samples.items()]


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


# --- a query that is new ------------------------------------------------------------------------


@dataclass
class _Clock:
    """Wall and thread seconds spent in some functions."""

    wall: float = 0.0
    thread: float = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its time added up here."""

        def timed(*arguments: Any, **options: Any) -> Any:
            wall, thread = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                self.wall += time.perf_counter() - wall
                self.thread += time.thread_time() - thread

        return timed


@dataclass
class _Rust:
    """A tokenizer of the library with a clock at its one function that texts pass."""

    tokenizer: Any
    encode_batch_fast: Callable[..., Any] = field(init=False)
    clock: _Clock = field(default_factory=_Clock)

    def __post_init__(self) -> None:
        self.encode_batch_fast = self.clock.around(self.tokenizer.encode_batch_fast)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def _uncached_rows(embedder: ModelEmbedder, queries: int) -> list[Row]:
    """Return milliseconds of a new query: the whole, its parts, and what is left."""
    tokenizer = embedder._load_tokenizer()
    rust, engine = _Rust(tokenizer._rust), _Clock()
    whole: list[float] = []
    parts: dict[str, list[float]] = {"tokenizer": [], "engine": [], "overhead": [], "CPU": []}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(tokenizer, "_rust", rust))
        for owner, name in _tensor_functions(embedder):
            timed = _method(engine.around(owner.__dict__[name]))
            stack.enter_context(mock.patch.object(owner, name, timed))
        for number in range(queries):
            rust.clock.wall = rust.clock.thread = engine.wall = engine.thread = 0.0
            wall, thread = time.perf_counter(), time.thread_time()
            embedder.encode_query(_new_text(1000 + number))
            thread, wall = time.thread_time() - thread, time.perf_counter() - wall
            whole.append(1000 * wall)
            parts["tokenizer"].append(1000 * rust.clock.wall)
            parts["engine"].append(1000 * engine.wall)
            parts["overhead"].append(1000 * (wall - rust.clock.wall - engine.wall))
            parts["CPU"].append(1000 * (thread - rust.clock.thread - engine.thread))
    return [
        ("uncached: the whole, ms", _quartiles(whole)),
        ("uncached: the tokenizer's Rust, ms", _quartiles(parts["tokenizer"])),
        ("uncached: the engine's tensors, ms", _quartiles(parts["engine"])),
        ("uncached: overhead, ms", _quartiles(parts["overhead"])),
        ("uncached: overhead, ms of CPU", _quartiles(parts["CPU"])),
    ]


def _tensor_functions(embedder: ModelEmbedder) -> list[tuple[type[Any], str]]:
    """Return the functions in which an engine computes with tensors, each by its class."""
    if embedder.runtime.engine == "onnx":
        from onnxruntime import InferenceSession

        owner = next(kind for kind in InferenceSession.__mro__ if "run" in kind.__dict__)
        return [(owner, "run")]
    from unified_embeddings.engines.encoder import Encoder
    from unified_embeddings.engines.torch import TorchEngine

    return [(Encoder, "__call__"), (TorchEngine, "_compute_heads")]


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        return function(self, *arguments, **options)

    return method


def _quartiles(samples: Sequence[float]) -> str:
    low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
    return f"{median:.2f} (quartiles {low:.2f} and {high:.2f})"


def _new_text(number: int) -> str:
    """Return a text of a dozen words that is not like any other's."""
    draw_words = random.Random(number)
    return " ".join([*draw_words.choices(_WORDS, k=_QUERY_WORDS - 1), str(number)])


# --- threads ------------------------------------------------------------------------------------


def _thread_rows(embedder: ModelEmbedder, rounds: int) -> list[Row]:
    """Return the time of a pass over one text, with one thread and with all."""
    counts = sorted({1, hardware.thread_count()})
    engines = {}
    for count in counts:
        with mock.patch("unified_embeddings.engines.onnx_session.thread_count", lambda c=count: c):
            engines[count] = registry.load(embedder.checkpoint, embedder.runtime)
    rows = []
    ids = cast("IntArray", np.full(max(_LENGTHS), 5, dtype=np.int32))
    heads = frozenset(embedder.heads) - {"colbert"}
    for length in _LENGTHS:
        samples: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
        for turn in range(rounds + 1):
            for count, engine in engines.items():
                used, started = time.process_time(), time.perf_counter()
                engine.run([ids[:length]], heads)
                ended = time.perf_counter() - started, time.process_time() - used
                if turn:  # the first has to find its memory
                    samples[count].append(ended)
        for count in counts:
            walls, cpus = zip(*samples[count], strict=True)
            text = f"{1000 * statistics.median(walls):.1f}; {1000 * statistics.median(cpus):.1f}"
            rows.append((f"{length} tokens, {count} threads, ms; ms of CPU of all threads", text))
    return rows


# --- flame graphs -------------------------------------------------------------------------------


def _sample(embedder: ModelEmbedder, engine: str) -> list[Panel]:
    """Return flame graphs of a cached and of a new query, as LlamaIndex asks for them."""
    if not hasattr(signal, "setitimer"):
        sys.exit("--flame needs interval timers, which this system has not; leave it out")
    model = UnifiedTextEmbedding(embedder)
    cached = Panel(f"get_query_embedding, cached ({embedder.model_name}, {engine})")
    with sampled(cached.stacks, _ask_again):
        _ask_again(model)
    new = Panel(f"get_query_embedding, new, without the engine ({embedder.model_name}, {engine})")
    with (
        sampled(new.stacks, _ask_anew),
        mock.patch.object(embedder, "_engine", _Recorded(embedder)),
    ):
        _ask_anew(model)
    return [cached, new]


def _ask_again(model: UnifiedTextEmbedding) -> None:
    end = time.perf_counter() + _FLAME_SECONDS
    while time.perf_counter() < end:
        model.get_query_embedding(_TEXT)


def _ask_anew(model: UnifiedTextEmbedding) -> None:
    end = time.perf_counter() + _FLAME_SECONDS
    number = 10**6
    while time.perf_counter() < end:
        number += 1
        model.get_query_embedding(_new_text(number))


class _Recorded:
    """An engine that gives what the real one gave for a text of that length before.

    The model would fill the whole graph otherwise.
    """

    def __init__(self, embedder: ModelEmbedder) -> None:
        _, self._engine = embedder._load()
        self._answers: dict[tuple[int, frozenset[str]], Any] = {}
        self.padded = self._engine.padded
        self.runtime = self._engine.runtime

    def run(self, batch: Sequence[Any], heads: frozenset[Any], role: Any) -> Any:
        key = (len(batch[0]), heads)
        if key not in self._answers:
            self._answers[key] = self._engine.run(batch, heads, role)
        return self._answers[key]


if __name__ == "__main__":
    main()
