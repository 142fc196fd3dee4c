"""What `/metrics` tells: every name it had before, and what the embedder and the machine do."""

from __future__ import annotations

import sys

import httpx
from prometheus_client.parser import text_string_to_metric_families

from running_service import RunningService
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.monitoring.families import EMBEDDER, MACHINE, PREFIX, SEARCHES, SERVICE
from unified_embeddings.monitoring.reading import Samples, read_metrics
from unified_embeddings.serving.metrics import merge_metrics

FORMER = {
    "requests_total", "request_seconds_bucket", "request_seconds_count", "request_seconds_sum",
    "requests_in_flight", "ready", "waiting_tokens", "waiting_requests", "passes_total",
    "cache_bytes", "texts_total", "tokens_total", "truncated_texts_total", "cache_hits_total",
    "cache_misses_total",
}  # fmt: skip
"""Names that dashboards may have been built on."""


def ask(service: RunningService) -> str:
    httpx.post(f"{service.url}/embed", json={"inputs": "What do foxes jump over?"})
    answer = httpx.get(f"{service.url}/metrics")
    assert answer.status_code == 200
    return answer.text


def metrics_of(service: RunningService) -> Samples:
    return read_metrics(ask(service))


def test_no_name_was_lost(service: RunningService) -> None:
    names = {sample.name for sample in metrics_of(service).samples}
    assert {PREFIX + name for name in FORMER} <= names


def test_the_table_of_metrics_is_what_is_told(service: RunningService) -> None:
    told = {
        family.name: (family.type, family.documentation)
        for family in text_string_to_metric_families(ask(service))
        if not family.name.endswith("_created")
    }
    families = (*EMBEDDER, *MACHINE, *SEARCHES, *SERVICE)
    named = {PREFIX + f.name: (f.kind, f.meaning) for f in families}
    assert told == {name: named[name] for name in told}
    assert {name for name in named if "_gpu_" not in name} <= set(told)


def test_forward_passes_are_told_by_length_and_engine(service: RunningService) -> None:
    before = metrics_of(service).total("unified_embeddings_forward_seconds_count", length="129-512")
    text = "Foxes jump over dogs. " * 40  # some 200 tokens
    for number in range(3):
        httpx.post(f"{service.url}/embed", json={"inputs": f"{number} {text}"})
    metrics = metrics_of(service)
    found = metrics.find("unified_embeddings_forward_seconds_count", length="129-512")
    assert sum(sample.value for sample in found) - (before or 0) == 3
    assert {sample.labels["model"] for sample in found} == {"mini-m3"}
    assert {sample.labels["engine"] for sample in found} <= {"torch", "onnx"}
    capacity = metrics.total("unified_embeddings_batch_capacity_tokens_total")
    tokens = metrics.total("unified_embeddings_tokens_total")
    assert tokens is not None
    assert capacity is not None
    assert 0 < tokens <= capacity


def test_the_models_memory_is_told() -> None:
    # ONNX Runtime does not tell where its weights are, so that what of them is resident is unknown.
    config = UnifiedEmbeddingConfig("mini-m3", engine="torch", device="cpu")
    with RunningService(config) as service:
        metrics = metrics_of(service)
    weights = metrics.total("unified_embeddings_model_weight_bytes", model="mini-m3")
    assert weights is not None
    assert weights > 80_000_000  # 22 million parameters
    if sys.platform == "linux":
        resident = metrics.total("unified_embeddings_model_resident_bytes", model="mini-m3")
        assert resident is not None
        assert 0 < resident <= weights + 100_000_000


def test_histograms_of_several_workers_are_merged(service: RunningService) -> None:
    text = ask(service)
    merged = read_metrics(merge_metrics({"0": text, "1": text}).decode())
    single = read_metrics(text)
    name = "unified_embeddings_forward_seconds"
    assert merged.total(f"{name}_count") == 2 * (single.total(f"{name}_count") or 0)
    assert merged.total(f"{name}_count", worker="1") == single.total(f"{name}_count")
    assert merged.quantile(name, 0.5) == single.quantile(name, 0.5)


def test_searches_are_told_by_mode(full_service: RunningService) -> None:
    for mode in ("hybrid", "sparse", "sparse"):
        body = {"query": "What do foxes jump over?", "mode": mode}
        assert httpx.post(f"{full_service.url}/search", json=body).status_code == 200
    metrics = read_metrics(httpx.get(f"{full_service.url}/metrics").text)
    counts = {
        sample.labels["mode"]: sample.value
        for sample in metrics.find("unified_embeddings_search_seconds_count")
    }
    assert counts["hybrid"] >= 1
    assert counts["sparse"] >= 2
    assert metrics.total("unified_embeddings_searches_failed_total") == 0
