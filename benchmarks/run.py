"""Ours beside FlagEmbedding and sentence-transformers: one run, one machine, equal threads.

    python benchmarks/run.py                      a full-size BGE-M3 with random weights
    python benchmarks/run.py --model FOLDER       a checkpoint of your own

Rounds are interleaved, so that whatever else the machine does falls on all alike. Prints a table
and writes `docs/benchmarks/engines.json` and `engines.png`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import full_size
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.hardware import cpu

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
OUTLIER_WORDS = 700
QUERY_WORDS = 6

Encode = Callable[[list[str]], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a checkpoint; default: random weights")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cpu().cores)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cache = Path(tempfile.gettempdir()) / "unified-embeddings-full-size"
    folder = options.model or full_size.make(cache)
    ours = BGE_M3_Embedder(folder, cache=None)
    engines = {f"ours ({ours.runtime.precision})": ours.encode_documents, **_peers(folder)}
    rng = random.Random(0)
    documents = _documents(rng, options.documents)
    tokens = sum(len(ours.tokenise(text)) + 2 for text in documents)
    print(f"{cpu().name}, {options.threads} threads; {len(documents)} documents, {tokens} tokens")
    for encode in engines.values():
        encode(["warm up"])
    rates: dict[str, list[float]] = {name: [] for name in engines}
    latencies: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(options.rounds):
        for name, encode in engines.items():
            rates[name].append(tokens / _seconds(encode, documents))
        for _ in range(options.queries):
            query = _text(rng, QUERY_WORDS)  # a new one each time: nothing to remember
            for name, encode in engines.items():
                latencies[name].append(_seconds(encode, [query]) * 1000)
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    report = {
        "machine": {"cpu": cpu().name, "flags": cpu().flags, "threads": options.threads,
                    "system": platform.platform(), "torch": torch.__version__},
        "weights": str(options.model.name) if options.model else "random, full size (568M)",
        "documents": {"number": len(documents), "tokens": tokens},
        "rounds": options.rounds,
        "results": _results(rates, latencies),
    }  # fmt: skip
    _print(report["results"])
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "engines.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    _plot(report, OUT / "engines.png")


def _peers(folder: Path) -> dict[str, Encode]:
    """The peers in fp32, each with the batch size that suits its padding."""
    from FlagEmbedding import BGEM3FlagModel
    from sentence_transformers import SentenceTransformer

    flag = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", batch_size=12)
    plain = SentenceTransformer(str(folder), device="cpu")
    plain.max_seq_length = 8192
    return {
        "FlagEmbedding (fp32)": lambda texts: flag.encode(
            texts, max_length=8192, return_dense=True, return_sparse=True
        ),
        "sentence-transformers (fp32, dense only)": lambda texts: plain.encode(
            texts, batch_size=8, normalize_embeddings=True
        ),
    }


def _documents(rng: random.Random, number: int) -> list[str]:
    """Paragraphs of 10 to 130 words, and one outlier."""
    lengths = [rng.randint(10, 130) for _ in range(number - 1)] + [OUTLIER_WORDS]
    texts = [_text(rng, length) for length in lengths]
    rng.shuffle(texts)
    return texts


def _text(rng: random.Random, words: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=3)) for _ in range(words))


def _seconds(encode: Encode, texts: list[str]) -> float:
    started = time.perf_counter()
    encode(texts)
    return time.perf_counter() - started


def _results(
    rates: dict[str, list[float]], latencies: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    first = next(iter(rates))
    ours_rate, ours_ms = statistics.median(rates[first]), statistics.median(latencies[first])
    return {
        name: {
            "tokens_per_second": _spread(rates[name]),
            "query_ms": _spread(latencies[name]),
            "documents_ours_is_times_faster": ours_rate / statistics.median(rates[name]),
            "query_ours_is_times_faster": statistics.median(latencies[name]) / ours_ms,
        }
        for name in rates
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _print(results: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<42}{'tokens/s (min-max)':>24}{'ratio':>8}{'query ms (min-max)':>24}{'ratio':>8}")
    for name, row in results.items():
        rate, query = row["tokens_per_second"], row["query_ms"]
        print(
            f"{name:<42}{rate['median']:>9.0f} ({rate['min']:.0f}-{rate['max']:.0f})".ljust(66)
            + f"{row['documents_ours_is_times_faster']:>8.2f}"
            + f"{query['median']:>12.0f} ({query['min']:.0f}-{query['max']:.0f})".rjust(24)
            + f"{row['query_ours_is_times_faster']:>8.2f}"
        )


def _plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report["results"])
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 3.2))
    for panel, key, title in (
        (panels[0], "tokens_per_second", "documents: tokens/s (more is better)"),
        (panels[1], "query_ms", "one query: ms (less is better)"),
    ):
        spreads = [report["results"][name][key] for name in names]
        medians = [spread["median"] for spread in spreads]
        errors = [
            [spread["median"] - spread["min"] for spread in spreads],
            [spread["max"] - spread["median"] for spread in spreads],
        ]
        panel.barh(names, medians, xerr=errors, capsize=3, color=["#2b6cb0", "#a0aec0", "#a0aec0"])
        panel.invert_yaxis()
        panel.set_title(title)
    panels[1].set_yticklabels([])
    machine = report["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads, weights: {report['weights']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
