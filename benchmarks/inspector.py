"""How fast the inspector's pages are, on an embedded store with mini-m3.

    python benchmarks/inspector.py [--passages 10000] [--searches 20] [--work FOLDER] [--out FILE]

Prints, for each view, the seconds of the first request in a new server and the median of later
ones, over HTTP as a browser asks, and the processor time that the server took for it: on a machine
that does other work, only the second is the page's own. For searches, each with a question of its
own, the server tells its stages (the header Server-Timing), and what is not the model's is named.
The peer is the same search by the retriever in the same process, without any page.

The passages are made of words drawn by frequency, with a topic each, so that lists and maps have
something to show. The store is made once and kept in --work.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uvicorn
from llama_index.core.schema import TextNode

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.inspector.app import make_app
from unified_embeddings.inspector.library import Library, Place
from unified_embeddings.inspector.server import address_of, open_port
from unified_embeddings.stores.opening import open_folder

NAME = "passages"
MODEL_STAGES = ("embed", "rerank")
_TOPICS = ("animals", "cooking", "law", "music", "ships", "stars", "trade", "weather")
_BATCH = 500


@dataclass(frozen=True)
class Timing:
    """How long a view took.

    Attributes:
        view: The view.
        first: Seconds of the first request in a new server.
        later: Median seconds of later requests.
        processor: Median processor seconds of later requests, of all threads of the server.
        beyond_model: Median seconds of a search's stages that are not the model's; None elsewhere.
    """

    view: str
    first: float
    later: float
    processor: float
    beyond_model: float | None = None


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "inspector")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.work / f"store-{arguments.passages}"
    make_store(folder, arguments.passages)
    questions = make_questions(arguments.searches)
    timings = measure(folder, questions)
    plain, plain_processor = measure_retriever(folder, questions)
    print(f"{arguments.passages:,} passages, {arguments.searches} searches; milliseconds")
    print(f"{'view':<12}{'first':>9}{'later':>9}{'processor':>11}{'beyond the model':>18}")
    for timing in timings:
        beyond = "" if timing.beyond_model is None else f"{1000 * timing.beyond_model:.0f}"
        print(
            f"{timing.view:<12}{1000 * timing.first:>9.0f}{1000 * timing.later:>9.0f}"
            f"{1000 * timing.processor:>11.0f}{beyond:>18}"
        )
    print(f"{'retriever':<12}{'':>9}{1000 * plain:>9.0f}{1000 * plain_processor:>11.0f}")
    (search,) = (timing for timing in timings if timing.view == "search")
    print(f"a search's page takes {search.processor / plain_processor:.1f} x the retriever's time")
    if arguments.out is not None:
        values = {"passages": arguments.passages, "views": [asdict(one) for one in timings]}
        values["retriever"] = {"later": plain, "processor": plain_processor}
        arguments.out.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def make_store(folder: Path, passages: int) -> None:
    """Make the store, unless it is there."""
    if folder.is_dir():
        return
    config = UnifiedEmbeddingConfig("mini-m3")
    unfinished = folder.with_suffix(".new")
    store = config.vector_store(NAME, path=unfinished)
    nodes = [
        TextNode(text=text, metadata={"topic": topic}, excluded_embed_metadata_keys=["topic"])
        for topic, text in make_passages(passages)
    ]
    for start in range(0, passages, _BATCH):
        store.add(config.text_model(nodes[start : start + _BATCH]))
        print(f"  {min(start + _BATCH, passages):,} of {passages:,} passages stored")
    store.client.close()
    unfinished.rename(folder)


def make_passages(count: int) -> Iterator[tuple[str, str]]:
    """Yield passages of about 60 words with their topics."""
    random = np.random.default_rng(3)
    vocabulary = _read_vocabulary()
    frequency = 1 / np.arange(1, len(vocabulary) + 1)
    frequency /= frequency.sum()
    for number in range(count):
        topic = _TOPICS[number % len(_TOPICS)]
        words = random.choice(vocabulary, size=60, p=frequency).tolist()
        words[:: len(words) // 4] = [topic] * len(words[:: len(words) // 4])
        yield topic, " ".join(words) + "."


def make_questions(count: int) -> list[str]:
    """Return questions of five words, all different."""
    random = np.random.default_rng(5)
    vocabulary = _read_vocabulary()
    return [
        f"{_TOPICS[number % len(_TOPICS)]} {' '.join(random.choice(vocabulary[:500], size=4))}?"
        for number in range(count)
    ]


def measure(folder: Path, questions: list[str]) -> list[Timing]:
    """Return the time of each view."""
    searches = [f"search?q={urllib.parse.quote(question)}" for question in questions]
    views = {
        "first view": ["search"] * len(searches),
        "search": searches,
        "reranked": [f"{path}&rerank=1" for path in searches[:5]],
        "collection": ["collection"] * 5,
        "compare": [path.replace("search?", "compare?") for path in searches],
    }
    timings = []
    for view, paths in views.items():
        with _running(folder) as address:
            timings.append(_time_view(view, paths, address))
    return timings


def measure_retriever(folder: Path, questions: list[str]) -> tuple[float, float]:
    """Return the median seconds of the same searches without a page, and the processor's."""
    config = UnifiedEmbeddingConfig("mini-m3")
    with open_folder(folder) as client:
        store = config.vector_store(NAME, client=client)
        config.embedder.encode_query("warm-up")
        taken = [
            _time(partial(config.retriever(store).retrieve, question)) for question in questions
        ]
    seconds, processor = (statistics.median(column) for column in zip(*taken, strict=True))
    return seconds, processor


@contextmanager
def _running(folder: Path) -> Iterator[str]:
    """Serve a new inspector in a thread, with its model loaded; yield its address."""
    with open_folder(folder) as client, open_port(0) as listener:
        library = Library(client, Place(path=folder))
        library.open(NAME).embedder.encode_query("warm-up")
        app = make_app(library)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join()


def _time_view(view: str, paths: list[str], address: str) -> Timing:
    seconds, processor, beyond = [], [], []
    for path in paths:
        headers: list[str] = []
        taken = _time(partial(_get, address + path, headers))
        seconds.append(taken[0])
        processor.append(taken[1])
        stages = re.findall(r"([a-z-]+);dur=([0-9.]+)", headers[0])
        beyond.append(
            sum(float(value) for name, value in stages if name not in MODEL_STAGES) / 1000
        )
    is_search = view in ("search", "reranked")
    return Timing(
        view=view,
        first=seconds[0],
        later=statistics.median(seconds[1:] or seconds),
        processor=statistics.median(processor[1:] or processor),
        beyond_model=statistics.median(beyond) if is_search else None,
    )


def _get(url: str, headers: list[str]) -> None:
    """Ask for a page, and note its header Server-Timing."""
    with urllib.request.urlopen(url) as answer:
        answer.read()
        headers.append(str(answer.headers.get("server-timing", "")))


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds and the processor seconds that work takes, in all threads."""
    began, began_processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - began_processor


def _read_vocabulary() -> list[str]:
    """Return the words of the Python reference, the most frequent first."""
    from collections import Counter
    from pydoc_data.topics import topics

    counts = Counter(re.findall(r"[a-z]{3,}", " ".join(topics.values()).lower()))
    return [word for word, _ in counts.most_common(3000)]


if __name__ == "__main__":
    main()
