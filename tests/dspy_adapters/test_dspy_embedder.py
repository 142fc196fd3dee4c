"""An embedder in DSPy, run with the real DSPy where it is installed."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.types import FloatArray

needs_dspy = pytest.mark.skipif(
    importlib.util.find_spec("dspy") is None, reason="DSPy comes with the extra 'dspy' (100 MB)"
)
TEXTS = ["Foxes jump over dogs.", "The sea is calm.", "Dogs sleep at noon."]


@pytest.fixture
def dspy(tmp_path: Path) -> Iterator[Any]:
    """DSPy with a cache of the test's own; its own one is in the user's home."""
    module = importlib.import_module("dspy")
    module.configure_cache(disk_cache_dir=str(tmp_path / "cache"))
    return module


def make_embedder(*args: Any, **options: Any) -> Any:
    from unified_embeddings.dspy.embedder import DspyEmbedder

    return DspyEmbedder(*args, **options)


def expected_rows(texts: list[str], dimension: int = 32) -> FloatArray:
    rows = FakeEmbedder(dimension).encode_documents(texts).dense
    assert rows is not None
    return rows


def test_without_dspy_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['dspy'] = None\n"
        "from unified_embeddings.errors import MissingExtraError\n"
        "for name in ('embedder', 'search'):\n"
        "    try:\n"
        "        __import__(f'unified_embeddings.dspy.{name}')\n"
        "    except MissingExtraError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == 2 * [str(MissingExtraError("DSPy", extra="dspy"))]


@needs_dspy
def test_it_gives_the_embedders_own_vectors(dspy: Any) -> None:
    embed = make_embedder(FakeEmbedder(32))
    assert isinstance(embed, dspy.Embedder)
    rows = embed(TEXTS)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, expected_rows(TEXTS))
    assert np.array_equal(embed(TEXTS[0]), expected_rows(TEXTS)[0])
    assert np.array_equal(asyncio.run(embed.acall(TEXTS)), rows)
    assert np.array_equal(asyncio.run(embed.acall(TEXTS[0])), rows[0])
    assert embed([]).shape == (0, 32)


@needs_dspy
def test_dspys_cache_mistakes_functions_and_is_left_out(dspy: Any) -> None:
    def as_function(embedder: FakeEmbedder) -> Callable[[list[str]], FloatArray]:
        def embed(texts: list[str]) -> FloatArray:
            rows = embedder.encode_documents(texts).dense
            assert rows is not None
            return rows

        return embed

    small, large = FakeEmbedder(16), FakeEmbedder(32)
    # This is why the class exists: the second function is another model's, and is not asked.
    assert dspy.Embedder(as_function(small))(TEXTS).shape == (3, 16)
    assert dspy.Embedder(as_function(large))(TEXTS).shape == (3, 16)
    assert make_embedder(small)(TEXTS).shape == (3, 16)
    assert make_embedder(large)(TEXTS).shape == (3, 32)
    assert make_embedder(large)(TEXTS, caching=True).shape == (3, 32)


class RoleEmbedder(FakeEmbedder):
    """Puts "passage" and "query" before texts, as some models do."""

    def _encode(self, texts: Any, role: Any, heads: Any, show_progress: bool) -> Any:
        word = {"document": "passage", "query": "query"}[role]
        prefixed = [f"{word} {text}" for text in texts]
        return super()._encode(prefixed, role, heads, show_progress)


@needs_dspy
def test_a_text_is_a_document_unless_told_otherwise() -> None:
    embedder = RoleEmbedder(32)
    as_document = expected_rows(["passage foxes"])
    as_query = expected_rows(["query foxes"])
    assert np.array_equal(make_embedder(embedder)(["foxes"]), as_document)
    assert np.array_equal(make_embedder(embedder, role="query")(["foxes"]), as_query)
    assert np.array_equal(make_embedder(embedder)(["foxes"], role="query"), as_query)
    called = asyncio.run(make_embedder(embedder).acall("foxes", role="query"))
    assert np.array_equal(called, as_query[0])


@needs_dspy
def test_dspys_retriever_finds_by_it(dspy: Any) -> None:
    embedder = RoleEmbedder(64)
    search = dspy.retrievers.EmbeddingsWithScores(TEXTS, make_embedder(embedder), k=2)
    search.embedder = make_embedder(embedder, role="query")
    found = search("Which foxes jump?")
    assert found.passages[0] == "Foxes jump over dogs."
    documents = expected_rows([f"passage {text}" for text in TEXTS], 64)
    query = expected_rows(["query Which foxes jump?"], 64)[0]
    assert found.scores[0] == pytest.approx(float(documents[0] @ query), abs=1e-6)
    search.search_fn.close()


@needs_dspy
def test_dspys_neighbours_are_found_by_it(dspy: Any) -> None:
    examples = [dspy.Example(text=text).with_inputs("text") for text in TEXTS]
    nearest = dspy.KNN(1, examples, make_embedder(FakeEmbedder(64)))(text="a calm sea")
    assert [example.text for example in nearest] == ["The sea is calm."]


@needs_dspy
def test_threads_share_one_computation() -> None:
    embedder = FakeEmbedder(32)
    embed = make_embedder(embedder)
    barrier = threading.Barrier(8)

    def run(_: int) -> FloatArray:
        barrier.wait()
        rows: FloatArray = embed(TEXTS)
        return rows

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(run, range(8)))
    assert all(np.array_equal(answer, expected_rows(TEXTS)) for answer in answers)
    assert embedder.stats().tokenised == len(TEXTS)


@needs_dspy
def test_the_event_loop_is_free_while_it_embeds() -> None:
    loop_ran = threading.Event()

    class Waiting(FakeEmbedder):
        def _encode(self, *args: Any, **options: Any) -> Any:
            assert loop_ran.wait(30), "the event loop was blocked"
            return super()._encode(*args, **options)

    async def embed_and_go_on() -> int:
        task = asyncio.ensure_future(make_embedder(Waiting(32)).acall(TEXTS))
        await asyncio.sleep(0)
        loop_ran.set()
        return len(await task)

    assert asyncio.run(embed_and_go_on()) == 3


@needs_dspy
def test_copies_share_the_embedder_and_pickles_restore_it() -> None:
    embedder = FakeEmbedder(32)
    embed = make_embedder(embedder, role="query")
    copied = copy.deepcopy(embed)
    copied(TEXTS)
    assert embedder.stats().tokenised == 3
    restored = pickle.loads(pickle.dumps(embed))
    assert np.array_equal(restored(TEXTS), embed(TEXTS))
    assert restored._role == copied._role == "query"


@needs_dspy
def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="no dense ones, which DSPy compares"):
        make_embedder(FakeEmbedder(heads=("sparse",)))
    with pytest.raises(InputError, match="role must be one of document, query, got 'passage'"):
        make_embedder(FakeEmbedder(), role="passage")
    embed = make_embedder(FakeEmbedder())
    with pytest.raises(InputError, match="role must be one of"):
        embed(TEXTS, role="passage")
    with pytest.raises(InputError) as refused:
        embed([*TEXTS, 7])
    assert refused.value.index == 3
    with pytest.raises(TypeError, match="dimensions"):
        embed(TEXTS, dimensions=8)  # an option of hosted models
