"""A service of a fake embedder in a process of its own, told by its test what to do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from conftest import fake_config
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import ModelLoadError, UnifiedEmbeddingsError
from unified_embeddings.serving.listening import address_of, open_socket
from unified_embeddings.serving.logs import set_up_logging
from unified_embeddings.serving.server import serve
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.types import Embeddings, HeadName, Role, Text


class ChildEmbedder(FakeEmbedder):
    """A FakeEmbedder that loads and behaves as it is told.

    The model is loaded once "load" has come; "fail" makes loading fail. A text with "hang" never
    ends, one with "slow" takes 0.3 s, and "exit" raises SystemExit.
    """

    def __init__(self, orders: Connection) -> None:
        super().__init__(32, cache=None)
        self._orders = orders
        self._is_loaded = False

    def encode(self, texts: Sequence[Text], *, role: Role, heads: Sequence[HeadName]) -> Embeddings:
        if not self._is_loaded:
            if self._orders.recv() == "fail":
                raise ModelLoadError("fake", "the weights are not there; download them first")
            self._is_loaded = True
        words = " ".join(map(str, texts)).split()
        if "hang" in words:
            threading.Event().wait()
        if "slow" in words:
            time.sleep(0.3)
        if "exit" in words:
            raise SystemExit(7)
        return super().encode(texts, role=role, heads=heads)


def run(settings: dict[str, Any], orders: Connection, errors: Path) -> None:
    """Serve until told to stop.

    Args:
        settings: Fields of ServiceSettings.
        orders: Gets the address, and "ready"; brings what to do about the model.
        errors: File for what goes to standard error.
    """
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    set_up_logging()
    made = ServiceSettings(**{"port": 0, **settings})
    config = fake_config()
    config._embedder = ChildEmbedder(orders)
    listener = open_socket(made.host, made.port)
    orders.send(address_of(listener))
    try:
        serve(config, made, listener=listener, on_ready=lambda _: orders.send("ready"))
    except UnifiedEmbeddingsError as error:
        sys.exit(f"error: {error}")
