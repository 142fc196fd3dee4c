"""One process, several, or Ray: what a service's settings ask for.

What lives here: choosing between them, for the command. What does not: how each of them serves
(`server`, `workers`, `ray_serve`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError
from unified_embeddings.serving.listening import address_of, open_socket
from unified_embeddings.serving.logs import set_up_logging
from unified_embeddings.serving.server import serve
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.serving.workers import serve_with_workers
from unified_embeddings.system.hardware import thread_variables
from unified_embeddings.types import Options


def run(options: Options, settings: ServiceSettings, *, note: Callable[[str], None]) -> None:
    """Serve a model until a signal.

    Args:
        options: Of `UnifiedEmbeddingConfig`.
        settings: Of the service.
        note: Tells the user something.

    Raises:
        InputError: If the options name another service's model, the address cannot be used, or
            this system lacks what was asked for.
        MissingExtraError: If Ray was asked for and is not installed.
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    set_up_logging()
    if options.get("url") is not None:
        raise InputError(
            "a service runs its model itself; leave UNIFIED_EMBEDDINGS_URL and the model's url out"
        )
    config = UnifiedEmbeddingConfig(**options)
    if settings.runner == "ray":
        from unified_embeddings.serving.ray_serve import serve_on_ray

        serve_on_ray(options, settings, note=note)
        return

    def tell_ready(address: str) -> None:
        note(f"ready at {address}")

    listener = open_socket(settings.host, settings.port)
    what = f"{config.model_choice} in {settings.workers} processes"
    if settings.workers == 1:
        what = str(config.model_choice)
    note(f"listening on {address_of(listener)}, loading {what}")
    if settings.workers > 1:
        serve_with_workers(options, settings, listener, on_ready=tell_ready)
        return
    # Before a model library is imported, which reads them.
    os.environ.update(thread_variables(processes=1))
    serve(config, settings, listener=listener, on_ready=tell_ready)
