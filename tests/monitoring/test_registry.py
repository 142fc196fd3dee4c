"""The metrics of an application: what its registry tells of what it did."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from qdrant_client import QdrantClient

from unified_embeddings import ModelEmbedder, UnifiedMultiModalRetriever
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.pass_times import LENGTHS, PassCounters
from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.monitoring.collectors import MachineCollector, histogram
from unified_embeddings.monitoring.drift import DriftMonitor
from unified_embeddings.monitoring.families import FAMILIES, PREFIX, SEARCH_SECONDS, SERVICE
from unified_embeddings.monitoring.reading import Samples, read_metrics
from unified_embeddings.monitoring.registry import Registry, watch, watch_drift
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.system.durations import BOUNDS, DurationCounter

TEXTS = ["Foxes jump over dogs.", "Dogs sleep at noon.", "The sea is calm."]


def read(registry: Registry) -> Samples:
    text = registry.text()
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    return read_metrics(text)


def filled_store(client: Any, name: str = "docs", embedder: FakeEmbedder | None = None) -> Any:
    embedder = embedder or FakeEmbedder()
    store = build_vector_store(embedder, name, client=client)
    store.add(UnifiedTextEmbedding(embedder)([TextNode(text=text) for text in TEXTS]))
    return store


def test_an_embedders_counters_are_told(bert: Path) -> None:
    embedder = ModelEmbedder(bert, device="cpu", max_length=16, batch_tokens=64)
    registry = watch(embedder)
    before = read(registry)
    assert before.total("unified_embeddings_texts_total") == 0
    assert before.find("unified_embeddings_model_weight_bytes") == []
    long_text = " ".join(["fox"] * 40)
    embedder.encode_documents([*TEXTS, long_text])
    embedder.encode_documents(TEXTS)
    stats, after = embedder.stats(), read(registry)
    expected = {
        "texts": 7,
        "tokenised_texts": 4,
        "truncated_texts": 1,
        "tokens": stats.tokens,
        "batches": 1,
        "batch_capacity_tokens": 64,
        "cache_hits": stats.cache.hits,
        "cache_misses": 8,  # of four texts, dense and sparse
    }
    for name, value in expected.items():
        assert after.total(f"unified_embeddings_{name}_total") == value, name
    assert 0 < stats.tokens < 64
    assert after.total("unified_embeddings_cache_bytes") == stats.cache.bytes
    (passes,) = after.find("unified_embeddings_forward_seconds_count")
    assert passes.labels == {"model": str(bert), "engine": "torch", "length": "1-32"}
    assert passes.value == 1
    (weights,) = after.find("unified_embeddings_model_weight_bytes")
    assert weights.labels == {"model": str(bert), "runs_on": embedder_runs_on(embedder)}
    assert weights.value > 10_000
    if sys.platform == "linux":
        assert after.total("unified_embeddings_model_resident_bytes") >= weights.value
    assert after.total("unified_embeddings_process_resident_bytes") > weights.value


def embedder_runs_on(embedder: ModelEmbedder) -> str:
    runtime = embedder.runtime
    return f"{runtime.engine}, {runtime.precision}, {runtime.device}"


def test_passes_are_counted_by_the_longest_text() -> None:
    counters = PassCounters("forwards", "tokens", "capacity")
    counters.add_pass([32, 3], 0.004, 100)
    counters.add_pass([33], 0.0025, 100)
    counters.add_pass([8193], 70.0, 100)
    times = counters.pass_times("m", "onnx")
    assert [one.lengths for one in times] == ["1-32", "33-128", "8193-"]
    assert [one.durations.count for one in times] == [1, 1, 1]
    assert times[0].durations.counts[2] == 1  # above 2.5 ms, at most 5 ms
    assert times[1].durations.counts[1] == 1  # a bound belongs to the bucket below it
    assert times[2].durations.counts[-1] == 1
    assert times[2].shortest == LENGTHS[-1] + 1
    # A text longer than a batch fills its own.
    assert counters.snapshot() == {"forwards": 3, "tokens": 8261, "capacity": 8393}


def test_a_histogram_adds_up(bert: Path) -> None:
    embedder = ModelEmbedder(bert, device="cpu", cache=None)
    for text in TEXTS:
        embedder.encode_query(text)
    samples = read(watch(embedder)).find("unified_embeddings_forward_seconds_bucket")
    values = [sample.value for sample in samples]
    assert values == sorted(values)
    assert samples[-1].labels["le"] == "+Inf"
    assert values[-1] == 3


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_is_that_of_prometheus_own(seconds: list[float]) -> None:
    expected, counter = CollectorRegistry(), DurationCounter()
    oracle = Histogram(
        "unified_embeddings_search_seconds", "S.", ("mode",), buckets=BOUNDS, registry=expected
    )
    oracle.labels("dense")
    for one in seconds:
        oracle.labels("dense").observe(one)
        counter.note(one)

    class Told(Collector):
        def collect(self) -> Any:
            yield histogram(SEARCH_SECONDS, [(("dense",), counter.snapshot())])

    registry = Registry()
    registry.add(Told())
    oracles = read_metrics(generate_latest(expected).decode()).samples
    told = {(s.name, s.labels.get("le")): s.value for s in read(registry).samples}
    own = {(s.name, s.labels.get("le")): s.value for s in oracles if "_created" not in s.name}
    assert told == pytest.approx(own)


def test_searches_are_told_by_mode_and_failures_counted() -> None:
    embedder = FakeEmbedder()
    store = filled_store(QdrantClient(":memory:"), embedder=embedder)
    hybrid = UnifiedHybridRetriever(store, embedder)
    dense = UnifiedHybridRetriever(store, embedder, mode="dense")
    registry = watch(embedder, retriever=[hybrid, dense])
    for _ in range(3):
        hybrid.retrieve("foxes")
    dense.retrieve("dogs")
    store.client.delete_collection("docs")
    with pytest.raises(StoreError):
        dense.retrieve("sea")
    metrics = read(registry)
    assert metrics.total("unified_embeddings_search_seconds_count", mode="hybrid") == 3
    assert metrics.total("unified_embeddings_search_seconds_count", mode="dense") == 1
    assert metrics.total("unified_embeddings_searches_failed_total", mode="hybrid") == 0
    assert metrics.total("unified_embeddings_searches_failed_total", mode="dense") == 1


async def test_searches_that_are_awaited_count_too() -> None:
    embedder = FakeEmbedder()
    store = filled_store(QdrantClient(":memory:"), embedder=embedder)
    retriever = UnifiedHybridRetriever(store, embedder)
    monitor = watch_drift(retriever, store, threshold=0.0)
    await retriever.aretrieve("foxes")
    (stats,) = retriever.stats()
    assert (stats.durations.count, stats.failed) == (1, 0)
    assert stats.durations.seconds > 0
    assert monitor.report().queries == 1


def test_a_multimodal_retriever_counts_as_a_whole_and_by_half(clip: Path) -> None:
    from unified_embeddings import ClipEmbedder
    from unified_embeddings.embedders.clip_text import ClipTextEmbedder

    client, embedder = QdrantClient(":memory:"), FakeEmbedder()
    images = ClipEmbedder(clip, device="cpu")
    retriever = UnifiedMultiModalRetriever(
        filled_store(client, embedder=embedder),
        build_vector_store(ClipTextEmbedder(images), "images", client=client),
        embedder,
        images,
    )
    retriever.retrieve("foxes")
    counts = {stats.mode: stats.durations.count for stats in retriever.stats()}
    assert counts == {"multimodal": 1, "hybrid": 1, "dense": 1}


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_collection_tells_its_points_and_its_bytes_on_disk(kind: str, tmp_path: Path) -> None:
    from unified_embeddings.stores.opening import open_folder

    client: Any = QdrantClient(":memory:") if kind == "memory" else open_folder(tmp_path / "store")
    stores = [filled_store(client, "one"), filled_store(client, "two")]
    stores[1].delete_nodes([stores[1].get_nodes()[0].node_id])
    metrics = read(watch(FakeEmbedder(), store=stores))
    assert metrics.total("unified_embeddings_collection_points", collection="one") == 3
    assert metrics.total("unified_embeddings_collection_points", collection="two") == 2
    assert metrics.total("unified_embeddings_collection_segments", collection="one") == 1
    assert metrics.total("unified_embeddings_source_up", source="collection one") == 1
    size = metrics.total("unified_embeddings_collection_bytes", collection="one")
    if kind == "memory":
        assert size is None
    else:
        on_disk = sum(
            512 * path.stat().st_blocks
            for path in tmp_path.rglob("shards/*/**/*")
            if path.is_file()
        )
        both = metrics.total("unified_embeddings_collection_bytes")
        assert size is not None
        assert both is not None
        assert 0.9 * on_disk < both <= on_disk  # a file's last block is not full
        assert 0 < size < both


def test_a_source_that_fails_costs_its_own_metrics_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = FakeEmbedder()
    store = filled_store(QdrantClient(":memory:"), embedder=embedder)
    file = tmp_path / "evaluation.json"
    registry = watch(embedder, store=store, evaluation=file)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            metrics = read(registry)
    assert metrics.total("unified_embeddings_source_up", source="evaluation") == 0
    assert metrics.total("unified_embeddings_collection_points") == 3
    assert len(caplog.records) == 1
    assert "no metrics of evaluation: cannot read" in caplog.text

    system = {"name": "mini-m3", "measures": {"nDCG@10": 0.75, "MRR@10": 0.5}}
    content = {"data": "xquad", "systems": [system], "created": "1970-01-01T00:01:00Z"}
    file.write_text(json.dumps(content))
    metrics = read(registry)
    assert metrics.total("unified_embeddings_source_up", source="evaluation") == 1
    of_system = {"data": "xquad", "system": "mini-m3"}
    name = "unified_embeddings_quality_ratio"
    assert metrics.total(name, measure="nDCG@10", **of_system) == 0.75
    assert metrics.total(name, measure="MRR@10", **of_system) == 0.5
    assert metrics.total("unified_embeddings_quality_timestamp_seconds") == 60

    store.client.delete_collection("docs")
    metrics = read(registry)
    assert metrics.total("unified_embeddings_source_up", source="collection docs") == 0
    assert metrics.find("unified_embeddings_collection_points") == []


def test_drift_is_watched_at_a_retriever() -> None:
    embedder = FakeEmbedder()
    store = filled_store(QdrantClient(":memory:"), embedder=embedder)
    for mode in ("hybrid", "dense"):
        retriever = UnifiedHybridRetriever(store, embedder, mode=mode, similarity_top_k=1)
        monitor = watch_drift(retriever, store, threshold=0.5)
        registry = watch(embedder, retriever=retriever, drift=monitor)
        for text in (*TEXTS, "unrelated words"):
            retriever.retrieve(text)
        metrics = read(registry)
        assert metrics.total("unified_embeddings_drift_queries") == 4
        # The three texts are in the collection: their best score is 1.
        assert metrics.total("unified_embeddings_drift_weak_queries_ratio") == 0.25
        vectors = embedder.encode_documents(TEXTS).dense
        query = embedder.encode_query("unrelated words").dense
        assert vectors is not None
        assert query is not None
        centre = vectors.mean(axis=0)
        centre /= (centre @ centre) ** 0.5
        expected = (sum(vectors @ centre) + float(query[0] @ centre)) / 4
        cosine = metrics.total("unified_embeddings_drift_centre_cosine")
        assert cosine == pytest.approx(expected, abs=1e-5)


def test_a_sparse_search_does_not_count_for_drift_and_an_empty_collection_has_no_centre() -> None:
    embedder, client = FakeEmbedder(), QdrantClient(":memory:")
    store = filled_store(client, embedder=embedder)
    retriever = UnifiedHybridRetriever(store, embedder, mode="sparse")
    monitor = watch_drift(retriever, store)
    retriever.retrieve("foxes")
    assert monitor.report().queries == 0
    empty = build_vector_store(embedder, "empty", client=client)
    with pytest.raises(InputError, match="at least one vector"):
        watch_drift(retriever, empty)


def test_nothing_but_a_config_or_an_embedder_is_watched() -> None:
    with pytest.raises(InputError, match="a UnifiedEmbeddingConfig or an embedder, got str"):
        watch("mini-m3")  # type: ignore[arg-type]


def test_two_registries_share_no_numbers_and_the_default_one_stays_empty() -> None:
    import prometheus_client

    first, second = FakeEmbedder(), FakeEmbedder()
    registries = watch(first), watch(second)
    first.encode_query("foxes")
    totals = [read(registry).total("unified_embeddings_texts_total") for registry in registries]
    assert totals == [1, 0]
    assert PREFIX not in prometheus_client.generate_latest().decode()


def test_a_port_tells_the_metrics_until_it_is_closed() -> None:
    registry = watch(FakeEmbedder())
    with registry.serve(0) as server:
        address = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert "unified_embeddings_texts_total 0.0" in answer.read().decode()
        with pytest.raises(InputError, match="choose another port"):
            registry.serve(server.port)
    server.close()
    with pytest.raises(OSError, match=r"refused|reset"):
        urllib.request.urlopen(address, timeout=10)


def test_memory_is_measured_every_five_seconds_at_most() -> None:
    now, asked = [0.0], [0]

    class Model:
        model_name = "m"
        runtime = Runtime(engine="onnx", device="cpu", precision="fp32", reason="")

        def weights(self) -> Any:
            asked[0] += 1
            return iter([(id(self), 8)])

    collector = MachineCollector(lambda: (Model(),), clock=lambda: now[0])  # type: ignore[arg-type]
    for moment, expected in ((0.0, 1), (4.9, 1), (5.1, 2), (6.0, 2)):
        now[0] = moment
        list(collector.collect())
        assert asked[0] == expected


def test_names_have_units_and_labels_a_bound() -> None:
    for family in FAMILIES:
        assert family.meaning.endswith(".")
        unbounded = {"query", "text", "id", "url", "path", "user", "tenant"}
        assert not unbounded & set(family.labels)
        if family.kind == "histogram":
            assert family.name.endswith("_seconds")
    assert len({family.exposed for family in FAMILIES}) == len(FAMILIES)


def test_every_metric_of_the_table_is_told_somewhere(tmp_path: Path, bert: Path) -> None:
    """All but those of the service and of a GPU, by one application."""
    from unified_embeddings.stores.opening import open_folder

    embedder = ModelEmbedder(bert, device="cpu")
    store = build_vector_store(embedder, "docs", client=open_folder(tmp_path / "store"))
    store.add(UnifiedTextEmbedding(embedder)([TextNode(text=text) for text in TEXTS]))
    retriever = UnifiedHybridRetriever(store, embedder)
    monitor = watch_drift(retriever, store, reference=1)
    retriever.retrieve("foxes")
    file = tmp_path / "e.json"
    system = {"name": "a", "ndcg": 1}
    file.write_text(json.dumps({"systems": [system], "created": "2026-01-01"}))
    registry = watch(embedder, retriever=retriever, store=store, evaluation=file, drift=monitor)
    told = {family.name for family in text_string_to_metric_families(registry.text())}
    named = {PREFIX + family.name for family in FAMILIES if family not in SERVICE}
    on_gpu = {name for name in named if "_gpu_" in name}
    assert told - on_gpu == named - on_gpu - (
        set() if sys.platform == "linux" else {f"{PREFIX}model_resident_bytes"}
    )


def test_the_libraries_cost_nothing_where_they_are_not_asked_for() -> None:
    """What does not monitor neither imports them, where they are installed, nor needs them."""
    code = (
        "import sys\n"
        "from qdrant_client import QdrantClient\n"
        "import unified_embeddings.config.pipeline, unified_embeddings.retrievers.multimodal\n"
        "from unified_embeddings import UnifiedHybridRetriever\n"
        "from unified_embeddings.cli.app import app\n"
        "from unified_embeddings.embedders.fake import FakeEmbedder\n"
        "from unified_embeddings.llama.vector_store import build_vector_store\n"
        "from unified_embeddings.monitoring import dashboard, drift, quality, reading\n"
        "embedder = FakeEmbedder()\n"
        "store = build_vector_store(embedder, 'docs', client=QdrantClient(':memory:'))\n"
        "retriever = UnifiedHybridRetriever(store, embedder)\n"
        "retriever.retrieve('foxes')\n"
        "assert retriever.stats()[0].durations.count == 1\n"
        "libraries = {'prometheus_client', 'opentelemetry', 'pynvml'}\n"
        "assert not libraries & set(sys.modules), libraries & set(sys.modules)\n"
        "for name in libraries:\n"
        "    sys.modules[name] = None\n"
        "for module in ('registry', 'tracing'):\n"
        "    try:\n"
        "        __import__(f'unified_embeddings.monitoring.{module}')\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "unified-embeddings[metrics]" in first
    assert "unified-embeddings[otel]" in second


def test_a_monitor_of_ones_own_is_told() -> None:
    import numpy as np

    monitor = DriftMonitor(np.array([1.0, 0.0], dtype=np.float32), threshold=0.5)
    registry = watch(FakeEmbedder(), drift=monitor)
    assert read(registry).find("unified_embeddings_drift_centre_cosine") == []
    monitor.observe(np.array([0.0, 2.0], dtype=np.float32), 0.4)
    metrics = read(registry)
    assert metrics.total("unified_embeddings_drift_centre_cosine") == 0
    assert metrics.total("unified_embeddings_drift_weak_queries_ratio") == 1
    assert metrics.total("unified_embeddings_drift_weak_threshold") == 0.5


def test_two_collections_of_one_name_are_refused() -> None:
    stores = [filled_store(QdrantClient(":memory:")) for _ in range(2)]
    with pytest.raises(InputError, match="two stores hold a collection 'docs'"):
        watch(FakeEmbedder(), store=stores)


def test_an_evaluation_that_cannot_be_told_costs_its_own_metrics_alone(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"systems": [{"name": "\ud800", "ndcg": 0.5}]}))
    metrics = read(watch(FakeEmbedder(), evaluation=path))
    assert metrics.total("unified_embeddings_source_up", source="evaluation") == 0
    assert metrics.total("unified_embeddings_texts_total") == 0
