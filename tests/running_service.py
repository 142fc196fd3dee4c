"""The real service on a port of its own, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import Any

import uvicorn

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.listening import address_of, open_socket
from unified_embeddings.serving.service import EmbeddingService
from unified_embeddings.serving.settings import ServiceSettings

_PATIENCE = 120.0


class RunningService:
    """A context manager: inside it, the service answers at `url`.

    Args:
        config: Of the model; mini-m3 in fp32 if None.
        waits: Whether to enter only once the service is ready, or as soon as it answers.
        **settings: Of the service.
    """

    def __init__(
        self, config: UnifiedEmbeddingConfig | None = None, *, waits: bool = True, **settings: Any
    ) -> None:
        self._waits = waits
        config = config or UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
        # Not localhost: clients switch off what they do for other hosts.
        settings.setdefault("host", "127.0.0.2")
        self.app = make_app(config, ServiceSettings(port=0, **settings))
        self.service: EmbeddingService = self.app.state.service
        self._listener: socket.socket = open_socket(self.service.settings.host, 0)
        self.url = address_of(self._listener)
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, log_config=None, access_log=False, lifespan="on")
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))

    def __enter__(self) -> RunningService:
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not (self.service.is_ready if self._waits else self._server.started):
            assert self.service.load_error is None, self.service.load_error
            assert self._thread.is_alive(), "the server ended"
            assert time.monotonic() < deadline, "the service did not get ready"
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive(), "the server did not end"
