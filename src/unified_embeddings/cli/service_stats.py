"""What a running service has done, from its `/info` and `/metrics`.

What lives here: asking the service, and the few numbers that people want of its many. What does
not: printing them (`stats`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unified_embeddings.cli import shared
from unified_embeddings.embedders.remote_options import require_key, require_seconds, require_url
from unified_embeddings.errors import InputError, ServiceError
from unified_embeddings.monitoring import families as f
from unified_embeddings.monitoring.reading import Samples, read_metrics

if TYPE_CHECKING:
    import httpx

    from unified_embeddings.monitoring.families import Family

Facts = dict[str, object]
_ADVICE = "Is this the address of a service started with `unified-embeddings serve`?"
_PROBES = ("/health", "/ready", "/metrics", "/info")
"""Routes that probes ask again and again, and that do no work."""


def ask_service(url: str, api_key: str | None, timeout: float) -> Facts:
    """Return what a service is and has done.

    Args:
        url: Its address.
        api_key: Its key, if it has one.
        timeout: Seconds for each of two requests.

    Raises:
        InputError: If the address or the key cannot be one.
        ServiceError: If there is no service of ours there, or it refuses.
    """
    import httpx

    address = require_url(url)
    key = require_key(api_key, name="--api-key")
    with httpx.Client(
        base_url=address,
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        timeout=require_seconds("--timeout", timeout),
        trust_env=False,
    ) as client:
        text = _get(client, address, "/metrics").text
        try:
            metrics = read_metrics(text)
        except InputError as error:
            raise ServiceError(address, "GET /metrics", f"{error}. {_ADVICE}") from error
        if not metrics.find(f.READY.exposed):
            raise ServiceError(
                address,
                "GET /metrics",
                f"the answer holds no metrics of unified-embeddings. {_ADVICE}",
            )
        facts: Facts = {"service": address}
        if metrics.total(f.READY.exposed):
            facts |= _describe_model(_get(client, address, "/info"))
    return facts | summarise(metrics)


def summarise(metrics: Samples) -> Facts:
    """Return the numbers that people want of a service's metrics; None for what is not known.

    Requests for health and metrics do not count as requests.
    """
    ready = metrics.find(f.READY.exposed)
    work = metrics.without("route", _PROBES)
    failed = 0.0
    for sample in work.find(f.REQUESTS.exposed):
        if not sample.labels.get("status", "").startswith("2"):
            failed += sample.value
    return {
        "workers": len(ready),
        "workers_ready": sum(sample.value > 0 for sample in ready),
        "requests": _whole(work, f.REQUESTS),
        "requests_refused_or_failed": int(failed),
        "request_seconds_median": work.quantile(f.REQUEST_SECONDS.exposed, 0.5),
        "request_seconds_p95": work.quantile(f.REQUEST_SECONDS.exposed, 0.95),
        "waiting_tokens": _whole(metrics, f.WAITING_TOKENS),
        "texts": _whole(metrics, f.TEXTS),
        "texts_cut": _whole(metrics, f.TRUNCATED),
        "tokens": _whole(metrics, f.TOKENS),
        "batches": _whole(metrics, f.BATCHES),
        "batch_fill": _share(_whole(metrics, f.TOKENS), _whole(metrics, f.CAPACITY)),
        "forward_seconds_median": metrics.quantile(f.FORWARD_SECONDS.exposed, 0.5),
        "cache_found": _share(
            _whole(metrics, f.CACHE_HITS),
            (_whole(metrics, f.CACHE_HITS) or 0) + (_whole(metrics, f.CACHE_MISSES) or 0),
        ),
        "cache_bytes": _whole(metrics, f.CACHE_BYTES),
        "model_resident_bytes": _whole(metrics, f.MODEL_RESIDENT),
        "process_resident_bytes": _whole(metrics, f.PROCESS_RESIDENT),
        "gpu_memory_used_bytes": _whole(metrics, f.GPU_USED),
    }


def _whole(metrics: Samples, family: Family) -> int | None:
    total = metrics.total(family.exposed)
    if total is None or not math.isfinite(total):
        return None  # A process that cannot measure something may tell NaN.
    return int(total)


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _describe_model(info: httpx.Response) -> Facts:
    try:
        ours = info.json()["unified_embeddings"]
        return {
            name: ours[name]
            for name in ("model", "fingerprint", "dimension", "engine", "precision", "device")
        }
    except (ValueError, LookupError, TypeError):
        return {}  # Another version's; the metrics tell the rest.


def _get(client: httpx.Client, address: str, path: str) -> httpx.Response:
    import httpx

    operation = f"GET {path}"
    try:
        response = client.get(path)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        problem = str(error) or type(error).__name__
        raise ServiceError(address, operation, f"{problem}. Is the service running?") from error
    if response.status_code == 200:
        return response
    said = shared.one_line(response.text, 160) or "no text"
    advice = _ADVICE
    if response.status_code in (401, 403):
        advice = "Give its key as UNIFIED_EMBEDDINGS_API_KEY or --api-key"
    raise ServiceError(
        address,
        operation,
        f"status {response.status_code}: {said}. {advice}",
        status=response.status_code,
    )
