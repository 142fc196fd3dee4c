"""The same application on Ray Serve, which adds and removes replicas as requests queue.

What lives here: the deployment, and running it from the command until a signal. What does not: the
application (`app`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from fastapi import FastAPI

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.listening import open_socket
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.system.hardware import cpu, share_machine
from unified_embeddings.types import Options

# Ray would report its use over the network.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray import serve
except ImportError as error:
    raise MissingExtraError("Ray Serve, which the runner 'ray' is,", extra="ray") from error

_NAME = "unified-embeddings"
_TARGET_REQUESTS = 16
"""Requests that each replica should have in hand. With more, a replica is added: a pass takes texts
of that many requests together, and the ones after that would wait."""
_MOST_REQUESTS = 10_000
"""Requests that a replica is given at once. Its own queue refuses what is too much with 429."""
_HEALTH_PERIOD = 2.0
"""Seconds between two questions to a replica whether it works."""


def make_application(options: Options, settings: ServiceSettings) -> serve.Application:
    """Return the service as an application of Ray Serve.

    Its replicas are between 1 and the settings' `workers`. Each takes its share of the cores of a
    machine like this one, or a GPU.

    Args:
        options: Of `UnifiedEmbeddingConfig`; they must be picklable.
        settings: Of the service. Where it listens is up to Ray Serve.

    Example:
        >>> from ray import serve
        >>> from unified_embeddings.serving.ray_serve import make_application
        >>> from unified_embeddings.serving.settings import ServiceSettings
        >>> application = make_application(
        ...     {"model_choice": "mini-m3"}, ServiceSettings(workers=4))
        >>> serve.run(application)    # doctest: +SKIP
    """
    processes = settings.workers

    def build() -> FastAPI:
        share_machine(processes)
        return _make_waiting_app(options, settings)

    deployment = serve.deployment(
        serve.ingress(build)(_Replica),
        name=_NAME,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": processes,
            "target_ongoing_requests": _TARGET_REQUESTS,
        },
        max_ongoing_requests=_MOST_REQUESTS,
        health_check_period_s=_HEALTH_PERIOD,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        max_constructor_retry_count=1,
        ray_actor_options=_choose_resources(options, processes),
    )
    return deployment.bind()


def serve_on_ray(
    options: Options, settings: ServiceSettings, *, note: Callable[[str], None]
) -> None:
    """Serve on the cluster that RAY_ADDRESS names, or on one started here, until a signal.

    Args:
        options: Of `UnifiedEmbeddingConfig`.
        settings: Of the service.
        note: Tells the user something.

    Raises:
        InputError: If the address cannot be used.
        UnifiedEmbeddingsError: If Ray cannot start the service.
    """
    if settings.port == 0:
        raise InputError("the runner 'ray' cannot choose a port: name one with --port")
    open_socket(settings.host, settings.port).close()  # Ray would try for ever.
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={"host": settings.host, "port": settings.port},
            logging_config={"log_level": "WARNING"},
        )
        address = f"http://{settings.host}:{settings.port}"
        note(f"listening on {address}, loading {options.get('model_choice', 'bge-m3')} on Ray")
        with _catch_signals() as was_told_to_end:
            application = make_application(options, settings)
            try:
                serve.run(application, name=_NAME, logging_config={"log_level": "WARNING"})
            except RuntimeError as error:
                raise UnifiedEmbeddingsError(
                    f"Ray could not start the service; its log above says why ({error})"
                ) from error
            note(f"ready at {address}")
            was_told_to_end.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


class _Replica:
    """What Ray asks a replica, besides requests."""

    app: FastAPI

    def check_health(self) -> None:
        """Tell Ray whether this replica works; it is replaced otherwise.

        Raises:
            RuntimeError: If it does not.
        """
        service: EmbeddingService = self.app.state.service
        if service.problem is not None:
            raise RuntimeError(service.problem)


def _make_waiting_app(options: Options, settings: ServiceSettings) -> FastAPI:
    """Return the application, which has started only once its model is loaded.

    Ray sends requests to a replica as soon as it has started, and there are others to answer them.
    """
    app = make_app(UnifiedEmbeddingConfig(**options), settings)
    start = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def start_and_load(application: FastAPI) -> AsyncIterator[None]:
        async with start(application):
            await application.state.service.loaded()
            yield

    app.router.lifespan_context = start_and_load
    return app


def _choose_resources(options: Options, processes: int) -> dict[str, float]:
    """Return what Ray reserves for a replica: a GPU if it is to use one, and a share of cores."""
    resources: dict[str, float] = {"num_cpus": max(1, cpu().cores // processes)}
    device = str(options.get("device", "auto"))
    has_gpus = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1
    if device.startswith("cuda") or (device == "auto" and has_gpus):
        resources["num_gpus"] = 1
    return resources


@contextlib.contextmanager
def _catch_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    was_told_to_end = threading.Event()
    kinds = (signal.SIGTERM, signal.SIGINT)
    previous = {kind: signal.signal(kind, lambda *_: was_told_to_end.set()) for kind in kinds}
    try:
        yield was_told_to_end
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
