"""Run LlamaIndex's own tests of its Qdrant store on the store of this package.

    python tools/run_stock_store_tests.py FOLDER

The folder is llama-index-integrations/vector_stores/llama-index-vector-stores-qdrant/tests in a
checkout of LlamaIndex, at the version that is installed here: the archives on the package index
hold no tests. Its files are copied to a temporary folder and run there with
our store in the stock one's place. Tests that need a server run if QDRANT_URL is set, those of a
cluster if QDRANT_CLUSTER_URL is set.

Exit status: 0 if every test passes or states stock behaviour that is replaced here (`REPLACED`
says which, and why), 1 if another one fails or one of those passes, 2 if there is nothing to run.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import llama_index.vector_stores.qdrant as stock
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.types import HeadName

FILES = ("conftest.py", "test_vector_stores_qdrant.py")
"""What is run. Other files test options of later versions, or Python's version."""
DIMENSION = 2
"""Width of the vectors in those tests."""
_CONFIGURATION = """[pytest]
asyncio_mode = strict
asyncio_default_fixture_loop_scope = function
"""

_CLEARED = (
    "clear() leaves the collection, empty, with its model's record, settings, indexes and aliases; "
    "the stock store deletes it, and any model may make it anew"
)
_ASYNC_ONLY = (
    "a store is opened with url=, path= or client=, and makes its async client from it, which "
    "works in any number of event loops; an async client alone is refused"
)
_DOC_ID = (
    "the payload index of doc_id is always there, as documents are deleted through it; "
    "index_doc_id=False is refused"
)
_TIES = (
    "points with equal scores are ordered by id; the stock store takes them as Qdrant happens to "
    "return them, and its test searches with a vector of zeros, for which all are equal"
)
_SHARDS = "custom sharding is refused when a store is made, rather than ignored when it is searched"

REPLACED: Mapping[str, str] = {
    "test_clear": _CLEARED,
    "test_aclear": _CLEARED,
    "test_async_query_initializes_with_async_client_only": _ASYNC_ONLY,
    "test_hybrid_vector_store_query": _TIES,
    "test_payload_indexes_created": _DOC_ID,
    "test_payload_indexes_created_sync": _DOC_ID,
    "test_payload_indexes_created_on_existing_collection": _DOC_ID,
    "test_payload_indexes_created_on_existing_collection_sync": _DOC_ID,
    "test_shard_vector_store_async": _SHARDS,
    "test_shard_vector_store_sync": _SHARDS,
    "test_shard_vector_store_aquery": _SHARDS,
    "test_shard_vector_store_query": _SHARDS,
    "test_validate_custom_sharding": _SHARDS,
    "test_generate_shard_key_selector_custom": _SHARDS,
    "test_shard_keys_created": _SHARDS,
    "test_shard_keys_created_sync": _SHARDS,
    "test_arecreate_shard_keys": _SHARDS,
    "test_recreate_shard_keys": _SHARDS,
}
"""Test that states stock behaviour which is replaced here → what stands in its place."""


class StandIn(FingerprintedStore):
    """Takes the stock store's arguments and opens a store of ours.

    An async client in local mode is left out, since it shares no data with the sync one. A mock in
    place of a client becomes a real client in memory, with the vectors of the mocked collection.
    """

    def __new__(  # type: ignore[misc]  # what is made is the store that it stands in for
        cls,
        collection_name: str,
        client: QdrantClient | None = None,
        aclient: object = None,  # noqa: ARG004
        enable_hybrid: bool = False,
        fastembed_sparse_model: str | None = None,
        **options: object,
    ) -> FingerprintedStore:
        """Open the store that the arguments describe."""
        is_hybrid = enable_hybrid or fastembed_sparse_model is not None
        if isinstance(client, Mock):
            client, is_hybrid = _real_client(client, collection_name)
        heads: tuple[HeadName, ...] = ("dense", "sparse") if is_hybrid else ("dense",)
        return build_vector_store(
            FakeEmbedder(DIMENSION, heads=heads),
            collection_name,
            client=client,
            adopt="trust",  # what the tests made themselves, or the mock tells, has no record
            **options,  # type: ignore[arg-type]  # the store refuses what it does not know
        )


def _real_client(mock: Mock, collection_name: str) -> tuple[QdrantClient, bool]:
    """Return a client in memory, with the collection that a mocked one tells of if it does.

    The second value tells whether that collection has sparse vectors.
    """
    client = QdrantClient(":memory:")
    params = mock.get_collection(collection_name).config.params
    if not isinstance(params.vectors, dict):
        return client, False
    dense = qm.VectorParams(size=DIMENSION, distance=qm.Distance.COSINE)
    client.create_collection(
        collection_name,
        vectors_config=dict.fromkeys(params.vectors, dense),
        sparse_vectors_config=dict.fromkeys(params.sparse_vectors, qm.SparseVectorParams()),
    )
    return client, bool(params.sparse_vectors)


@dataclass
class Outcomes:
    """A plugin of pytest that notes how each test ends."""

    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the end of a test, or that of its fixtures if they fail."""
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed[name] = report.longreprtext.strip().splitlines()[-1]
        elif report.skipped:
            *_, reason = (
                report.longrepr if isinstance(report.longrepr, tuple) else (report.longrepr,)
            )
            self.skipped[name] = str(reason).removeprefix("Skipped: ")
        elif report.when == "call":
            self.passed.append(name)


def main(arguments: list[str] | None = None) -> int:
    """Run the tests in the folder named on the command line, and print how they end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the tests of the stock store")
    folder: Path = parser.parse_args(arguments).folder
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        print(f"{folder} has no {' and no '.join(missing)}; name the folder of the stock tests")
        return 2
    outcomes = run_tests(folder)
    return print_outcomes(outcomes)


def run_tests(folder: Path) -> Outcomes:
    """Run copies of the tests with our store in the stock one's place."""
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as copies, pytest.MonkeyPatch.context() as patch:
        for name in FILES:
            shutil.copy(folder / name, copies)
        configuration = Path(copies, "pytest.ini")
        configuration.write_text(_CONFIGURATION)
        patch.setattr(stock, "QdrantVectorStore", StandIn)
        options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
        pytest.main([*options, "-c", str(configuration), copies], plugins=[outcomes])
    return outcomes


def print_outcomes(outcomes: Outcomes) -> int:
    """Print passed, replaced, skipped and unexpected tests; return the exit status."""
    if not (outcomes.passed or outcomes.failed):
        print("no test ran")
        return 2
    replaced = [name for name in outcomes.failed if name in REPLACED]
    failed = [name for name in outcomes.failed if name not in REPLACED]
    surprising = [name for name in outcomes.passed if name in REPLACED]
    print(f"\npassed: {len(outcomes.passed)}")
    print(f"state stock behaviour that is replaced here: {len(replaced)}")
    for name in replaced:
        print(f"  {name}: {REPLACED[name]}")
    print(f"skipped: {len(outcomes.skipped)}")
    for name, reason in outcomes.skipped.items():
        print(f"  {name}: {reason}")
    print(f"unexpected: {len(failed) + len(surprising)}")
    for name in failed:
        print(f"  {name} fails: {outcomes.failed[name]}")
    for name in surprising:
        print(f"  {name} passes, and is listed as replaced")
    return 1 if failed or surprising else 0


if __name__ == "__main__":
    sys.exit(main())
