"""Stores of each kind for the tests of migrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from qdrant_server import running_server
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.opening import Client


@pytest.fixture(params=["memory", "embedded", "server"])
def any_client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """A client of each kind of store."""
    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as client:
            yield client
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)
