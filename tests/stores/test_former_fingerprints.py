"""Collections that an earlier version stamped are recognised, and stamped anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from unified_embeddings import ClipEmbedder, EdgeQdrantClient
from unified_embeddings.embedders.clip_text import ClipTextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import FingerprintMismatchError
from unified_embeddings.stores.creating import ensure_collection
from unified_embeddings.stores.schema import METADATA_KEY, check_collection


class Upgraded(FakeEmbedder):
    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        return ("former",)


def stamped(client: QdrantClient, fingerprint: str) -> None:
    ensure_collection(client, "docs", Upgraded())
    record = {"fingerprint": fingerprint, "model": "fake", "revision": "1"}
    client.update_collection("docs", metadata={METADATA_KEY: record, "other": 1})


@pytest.fixture(params=["embedded", "local"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> QdrantClient:
    if request.param == "embedded":
        return EdgeQdrantClient(tmp_path / "store")  # type: ignore[return-value]
    return QdrantClient(":memory:")


def test_a_former_stamp_is_recognised_and_replaced(client: QdrantClient) -> None:
    stamped(client, "former")
    check_collection("docs", client.get_collection("docs"), Upgraded())
    ensure_collection(client, "docs", Upgraded())
    metadata = client.get_collection("docs").config.metadata
    assert metadata is not None
    assert metadata[METADATA_KEY]["fingerprint"] == Upgraded().fingerprint
    assert metadata["other"] == 1
    # From now on an embedder that knows nothing of former stamps is content too.
    ensure_collection(client, "docs", FakeEmbedder())


def test_another_models_stamp_is_refused_and_stays(client: QdrantClient) -> None:
    stamped(client, "another")
    with pytest.raises(FingerprintMismatchError):
        ensure_collection(client, "docs", Upgraded())
    metadata = client.get_collection("docs").config.metadata
    assert metadata is not None
    assert metadata[METADATA_KEY]["fingerprint"] == "another"


def test_every_embedder_of_files_knows_its_former_fingerprint(xlmr: Path, clip: Path) -> None:
    text = ModelEmbedder(str(xlmr))
    images = ClipTextEmbedder(ClipEmbedder(str(clip)))
    pair = PairedEmbedder(text, text)
    for embedder in (text, images, pair):
        (former,) = embedder.former_fingerprints
        assert len(former) == len(embedder.fingerprint)
        assert former != embedder.fingerprint
