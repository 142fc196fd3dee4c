"""The metrics by name: one table, which collectors, dashboard and documentation share.

What lives here: name, kind, labels and meaning of each metric. What does not: their values
(`collectors`), and the requests of the service (`serving.metrics`). It needs no library, so that
the dashboard can be printed where none is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "unified_embeddings_"
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Family:
    """One metric.

    Attributes:
        name: Without the prefix; a counter's samples end in "_total" besides.
        kind: "counter", "gauge" or "histogram".
        meaning: In one sentence.
        labels: The names of its labels.

    Example:
        >>> from unified_embeddings.monitoring.families import Family
        >>> Family("texts", "counter", "Texts asked for.").exposed
        'unified_embeddings_texts_total'
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """Return the name under which it is found in Prometheus; a histogram's has suffixes."""
        suffix = "_total" if self.kind == "counter" else ""
        return f"{PREFIX}{self.name}{suffix}"


# --- an embedder --------------------------------------------------------------------------------

TEXTS = Family("texts", "counter", "Texts asked for.")
TOKENISED = Family("tokenised_texts", "counter", "Texts tokenised, since a vector was missing.")
TRUNCATED = Family("truncated_texts", "counter", "Texts cut at the model's length.")
TOKENS = Family("tokens", "counter", "Tokens run through the model.")
BATCHES = Family("batches", "counter", "Batches run through the model.")
CAPACITY = Family(
    "batch_capacity_tokens", "counter", "Tokens that these batches had room for at most."
)
FORWARD_SECONDS = Family(
    "forward_seconds",
    "histogram",
    "Forward passes, by the tokens of their longest text.",
    ("model", "engine", "length"),
)
CACHE_HITS = Family("cache_hits", "counter", "Vectors found in the cache.")
CACHE_MISSES = Family("cache_misses", "counter", "Vectors that had to be computed.")
CACHE_EVICTIONS = Family("cache_evictions", "counter", "Vectors dropped from memory for room.")
CACHE_BYTES = Family("cache_bytes", "gauge", "Bytes held by the cache.")
CACHE_ENTRIES = Family("cache_entries", "gauge", "Vectors held by the cache in memory.")

# --- this machine -------------------------------------------------------------------------------

MODEL_WEIGHTS = Family(
    "model_weight_bytes", "gauge", "Bytes of a loaded model's weights.", ("model", "runs_on")
)
MODEL_RESIDENT = Family(
    "model_resident_bytes",
    "gauge",
    "Bytes of these weights in physical memory (Linux).",
    ("model", "runs_on"),
)
PROCESS_RESIDENT = Family("process_resident_bytes", "gauge", "Resident bytes of this process.")
GPU_USED = Family("gpu_memory_used_bytes", "gauge", "Bytes in use on a GPU.", ("gpu",))
GPU_TOTAL = Family("gpu_memory_total_bytes", "gauge", "Bytes that a GPU has.", ("gpu",))
GPU_UTILISATION = Family(
    "gpu_utilisation_ratio", "gauge", "Share of the time in which a GPU was at work.", ("gpu",)
)

# --- retrieval and collections ------------------------------------------------------------------

SEARCH_SECONDS = Family("search_seconds", "histogram", "Searches answered.", ("mode",))
SEARCHES_FAILED = Family("searches_failed", "counter", "Searches that raised an error.", ("mode",))
POINTS = Family("collection_points", "gauge", "Points in a collection.", ("collection",))
INDEXED = Family(
    "collection_indexed_vectors", "gauge", "Vectors of a collection in an index.", ("collection",)
)
SEGMENTS = Family("collection_segments", "gauge", "Segments of a collection.", ("collection",))
COLLECTION_BYTES = Family(
    "collection_bytes", "gauge", "Bytes of an embedded collection on disk.", ("collection",)
)

# --- quality and drift --------------------------------------------------------------------------

QUALITY = Family(
    "quality_ratio",
    "gauge",
    "A measure of the last evaluation, 0 to 1.",
    ("data", "system", "measure"),
)
QUALITY_TIME = Family(
    "quality_timestamp_seconds", "gauge", "When the last evaluation was made, since 1970.", ()
)
DRIFT_QUERIES = Family("drift_queries", "gauge", "Queries in the window that drift is told of.")
DRIFT_COSINE = Family(
    "drift_centre_cosine", "gauge", "Mean cosine of recent queries to the collection's centre."
)
DRIFT_REFERENCE = Family(
    "drift_reference_cosine", "gauge", "The same of the first queries, to compare with."
)
DRIFT_WEAK = Family(
    "drift_weak_queries_ratio", "gauge", "Share of recent queries whose best score is weak."
)
DRIFT_THRESHOLD = Family("drift_weak_threshold", "gauge", "The score below which a best is weak.")

SOURCE_UP = Family(
    "source_up", "gauge", "Whether a source of metrics could be read at this scrape.", ("source",)
)

EMBEDDER = (
    TEXTS, TOKENISED, TRUNCATED, TOKENS, BATCHES, CAPACITY, FORWARD_SECONDS, CACHE_HITS,
    CACHE_MISSES, CACHE_EVICTIONS, CACHE_BYTES, CACHE_ENTRIES,
)  # fmt: skip
MACHINE = (
    MODEL_WEIGHTS, MODEL_RESIDENT, PROCESS_RESIDENT, GPU_USED, GPU_TOTAL, GPU_UTILISATION,
)  # fmt: skip
SEARCHES = (SEARCH_SECONDS, SEARCHES_FAILED)
COLLECTIONS = (POINTS, INDEXED, SEGMENTS, COLLECTION_BYTES)
WATCHING = (
    QUALITY, QUALITY_TIME, DRIFT_QUERIES, DRIFT_COSINE, DRIFT_REFERENCE, DRIFT_WEAK,
    DRIFT_THRESHOLD, SOURCE_UP,
)  # fmt: skip

# --- the service ---------------------------------------------------------------------------------

REQUESTS = Family("requests", "counter", "Requests answered.", ("method", "route", "status"))
REQUEST_SECONDS = Family(
    "request_seconds", "histogram", "From the first byte of a request to its answer.", ("route",)
)
IN_FLIGHT = Family("requests_in_flight", "gauge", "Requests being answered.")
READY = Family("ready", "gauge", "Whether requests are answered.")
WAITING_TOKENS = Family("waiting_tokens", "gauge", "Tokens that wait for a pass.")
WAITING_REQUESTS = Family("waiting_requests", "gauge", "Requests that wait for a pass.")
PASSES = Family("passes", "counter", "Passes handed to the engine.")
SERVICE = (
    REQUESTS, REQUEST_SECONDS, IN_FLIGHT, READY, WAITING_TOKENS, WAITING_REQUESTS, PASSES,
)  # fmt: skip

FAMILIES = (*EMBEDDER, *MACHINE, *SEARCHES, *COLLECTIONS, *WATCHING, *SERVICE)
"""All of them, in the order of the documentation."""
