"""Compare ours with FlagEmbedding and sentence-transformers on one GPU.

    python benchmarks/gpu.py                       a full-size BGE-M3 with random weights, made here
    python benchmarks/gpu.py --model FOLDER        a checkpoint of your own
    python benchmarks/gpu.py --engines ours,flash  engines whose names contain one of these
    python benchmarks/gpu.py --device cpu --quick  only to see that it runs

All models are on the GPU at the same time, and in each round each engine gets the same new texts.
Each engine is measured at the batch size that it has by default, and at its fastest of several. The
program prints tables, and writes them with all figures into `gpu.json`. What cannot run here is a
row with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gpu_peers
import gpu_stages
import gpu_tables
import machine
from folders import without_folders
from gpu_peers import GpuPeer, Vectors
from gpu_work import GROUPS, KINDS, QUICK, Scale, Texts
from report import percentile, spread

_LIBRARIES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "FlagEmbedding",
    "sentence-transformers",
)  # fmt: skip


@dataclass
class _Engine:
    """One engine of a run, with its model loaded.

    Attributes:
        peer: What it is.
        model: Its model.
        weights: Bytes of GPU memory of its weights.
        sizes: The batch size of each setting, by the kind of documents.
        trials: Tokens/s at each batch size that was tried, by the kind of documents.
        seconds: Seconds of each round, by what was measured.
        memory: Bytes of GPU memory at most, weights included, by the kind of documents.
        exactness: How near its vectors are to those of fp32.
    """

    peer: GpuPeer
    model: Any
    weights: int
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    trials: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    exactness: dict[str, float] = field(default_factory=dict)

    def measure(self, name: str, work: Callable[[], object]) -> float:
        """Do some work, note how long it took under a name, and return that."""
        begun = time.perf_counter()
        work()
        seconds = time.perf_counter() - begun
        self.seconds.setdefault(name, []).append(seconds)
        return seconds


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line names and write the results."""
    options = _parse_arguments(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    folder = options.model or _random_model()
    scale = QUICK if options.quick else Scale()
    texts = Texts(folder, scale)
    sample = _Sample.make(texts, scale)
    reference = gpu_peers.reference_vectors(folder, [*sample.queries, *sample.documents])
    _say("the reference is computed")
    engines, reasons = _load(options.engines, folder, options.device, texts)
    _find_sizes(engines, texts, scale)
    tokens = _measure(engines, texts, scale)
    _measure_memory(engines, texts, options.device)
    for engine in engines:
        engine.exactness = _exactness(engine, sample, reference)
    stages = gpu_stages.measure(folder, options.device, texts.queries, texts.documents)
    results = {
        "scale": vars(scale),
        "tokens": tokens,
        "rows": _rows(engines, reasons, tokens),
        "stages": stages,
    }
    about = machine.about(
        "gpu.py",
        sys.argv[1:] if arguments is None else arguments,
        _LIBRARIES,
        torch.get_num_threads(),
        weights=options.model.name if options.model else "random, full size (568M)",
    )
    about["gpu"] = gpu_stages.describe(options.device)
    if options.commit:
        about["commit"] = options.commit
    content = {"title": "GPU", "about": about, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (options.out / "gpu.json").write_text(text, "utf-8")
    print(gpu_tables.tables(json.loads(text)["results"]), flush=True)


class _Sample(NamedTuple):
    """Texts whose vectors are compared with fp32."""

    queries: list[str]
    documents: list[str]

    @classmethod
    def make(cls, texts: Texts, scale: Scale) -> _Sample:
        documents = [text for kind in KINDS for text in texts.documents(kind, scale.sample)]
        return cls(texts.queries(scale.sample), documents)


def _exactness(engine: _Engine, sample: _Sample, reference: Vectors) -> dict[str, float]:
    """Compare an engine's vectors with the reference: queries one at a time, documents together."""
    peer = engine.peer
    results = [peer.queries(engine.model, [query]) for query in sample.queries]
    results.append(peer.documents(engine.model, sample.documents, peer.default))
    return gpu_tables.exactness([peer.vectors(result) for result in results], reference)


def _load(
    peers: dict[str, GpuPeer], folder: Path, device: str, texts: Texts
) -> tuple[list[_Engine], dict[str, str]]:
    """Load the models; return the engines that run, and the reasons of those that do not."""
    engines, reasons = [], {}
    for name, peer in peers.items():
        reason = peer.missing(device)
        if reason is None:
            before = _allocated(device)
            try:
                model = peer.load(folder, device)
                # Some load with the first text.
                peer.queries(model, texts.queries(1))
            except Exception as error:
                reason = without_folders(f"{type(error).__name__}: {error}")
            else:
                engines.append(_Engine(peer, model, _allocated(device) - before))
        if reason is not None:
            reasons[name] = reason
        _say(f"{name}: {reason or 'loaded'}")
    return engines, reasons


def _find_sizes(engines: list[_Engine], texts: Texts, scale: Scale) -> None:
    """Find each engine's fastest batch size, by the better of two measurements; also a warm-up."""
    for kind in KINDS:
        documents = texts.documents(kind, scale.trials)
        tokens = texts.count(documents)
        for engine in engines:
            rates: dict[int, float] = {}
            for size in engine.peer.sizes:
                times = []
                for _ in range(2):
                    begun = time.perf_counter()
                    engine.peer.documents(engine.model, documents, size)
                    times.append(time.perf_counter() - begun)
                rates[size] = tokens / min(times)
            engine.trials[kind] = rates
            best = max(rates, key=lambda size: rates[size])
            engine.sizes[kind] = {"default": engine.peer.default, "best": best}
    _say("batch sizes are found")


def _measure(engines: list[_Engine], texts: Texts, scale: Scale) -> dict[str, list[int]]:
    """Measure all rounds; return the tokens of each round by the kind of documents."""
    _warm_queries(engines, texts)
    tokens: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for turn in range(scale.rounds):
        in_turn = engines[turn % len(engines) :] + engines[: turn % len(engines)]
        for kind in KINDS:
            documents = texts.documents(kind)
            tokens[kind].append(texts.count(documents))
            for engine in in_turn:
                _measure_documents(engine, kind, documents)
        queries = texts.queries(scale.queries)
        groups = {size: [texts.queries(size) for _ in range(scale.groups)] for size in GROUPS}
        for engine in in_turn:
            for query in queries:
                engine.measure("query", _bind(engine.peer.queries, engine.model, [query]))
            for size, members in groups.items():
                for group in members:
                    engine.measure(
                        f"{size} queries", _bind(engine.peer.queries, engine.model, group)
                    )
        _say(f"round {turn + 1} of {scale.rounds} done")
    for engine in engines:
        _keep_better(engine)
    return tokens


def _keep_better(engine: _Engine) -> None:
    """Let the default be the best too where the rounds show that the trial was misled."""
    for kind, sizes in engine.sizes.items():
        default, best = (engine.seconds[f"{kind} {setting}"] for setting in ("default", "best"))
        if sum(default) < sum(best):
            sizes["best"] = sizes["default"]
            engine.seconds[f"{kind} best"] = default


def _bind(work: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: work(*arguments)


def _warm_queries(engines: list[_Engine], texts: Texts) -> None:
    for engine in engines:
        for size in (1, *GROUPS):
            for _ in range(3):
                engine.peer.queries(engine.model, texts.queries(size))


def _measure_documents(engine: _Engine, kind: str, documents: list[str]) -> None:
    """Measure one round of documents at each different batch size."""
    sizes = engine.sizes[kind]
    for setting, size in sizes.items():
        if setting == "best" and size == sizes["default"]:
            seconds = engine.seconds[f"{kind} default"][-1]
            engine.seconds.setdefault(f"{kind} best", []).append(seconds)
            continue
        engine.measure(
            f"{kind} {setting}", _bind(engine.peer.documents, engine.model, documents, size)
        )


def _measure_memory(engines: list[_Engine], texts: Texts, device: str) -> None:
    """Measure the most GPU memory that mixed documents take, weights included."""
    if device == "cpu":
        return
    documents = texts.documents("mixed")
    for engine in engines:
        for setting, size in engine.sizes["mixed"].items():
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            engine.peer.documents(engine.model, documents, size)
            peak = torch.cuda.max_memory_allocated() - before
            engine.memory[setting] = engine.weights + peak


def _rows(
    engines: list[_Engine], reasons: dict[str, str], tokens: dict[str, list[int]]
) -> dict[str, Any]:
    """Return the row of each engine, in the order of the table of engines."""
    rows: dict[str, Any] = {}
    for engine in engines:
        rows[engine.peer.name] = _row(engine, tokens)
    for name, reason in reasons.items():
        peer = gpu_peers.GPU_PEERS[name]
        rows[name] = {"label": peer.label, "gives": peer.gives, "reason": reason}
    return {name: rows[name] for name in gpu_peers.GPU_PEERS if name in rows}


def _row(engine: _Engine, tokens: dict[str, list[int]]) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for kind in KINDS:
        documents[kind] = {"trials": engine.trials[kind]}
        for setting, size in engine.sizes[kind].items():
            seconds = engine.seconds[f"{kind} {setting}"]
            rates = [count / time for count, time in zip(tokens[kind], seconds, strict=True)]
            documents[kind][setting] = {
                "batch_size": size,
                "unit": engine.peer.unit,
                "seconds": seconds,
                "tokens_per_second": spread(rates),
            }
    queries = {}
    for name in ("query", *(f"{size} queries" for size in GROUPS)):
        times = [1000 * seconds for seconds in engine.seconds[name]]
        queries[name] = {
            "number": len(times),
            "p50_ms": percentile(times, 50),
            "p95_ms": percentile(times, 95),
        }
    return {
        "label": engine.peer.label,
        "gives": engine.peer.gives,
        "reason": None,
        "documents": documents,
        "queries": queries,
        "weights_bytes": engine.weights,
        "peak_bytes": engine.memory,
        "exactness": engine.exactness,
    }


def _allocated(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def _random_model() -> Path:
    import full_size  # a checkpoint of one's own does not need it

    folder = full_size.make(Path(tempfile.gettempdir()) / "unified-embeddings-full-size")
    _say("the checkpoint is made")
    return folder


_BEGUN = time.perf_counter()


def _say(text: str) -> None:
    print(f"{time.perf_counter() - _BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line and exit with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint in BGE-M3's layout; default: random weights")
    add("--engines", default="", help=f"parts of: {', '.join(gpu_peers.GPU_PEERS)}; default: all")
    add("--device", default="cuda:0", help="default: cuda:0")
    add("--quick", action="store_true", help="little of everything, to see that it runs")
    add("--commit", help="the commit of the code, where it runs outside of git")
    add("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks", help="for gpu.json")
    options = parser.parse_args(arguments)
    words = [word.strip() for word in options.engines.split(",") if word.strip()]
    try:
        options.engines = gpu_peers.choose(words)
    except ValueError as error:
        parser.error(str(error))
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(
            f"torch sees no GPU for --device {options.device}; --device cpu --quick shows that "
            "the program runs, and measures nothing of use"
        )
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"{options.model} has no config.json: it is not a checkpoint's folder")
    return options


if __name__ == "__main__":
    main()
