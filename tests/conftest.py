"""Checkpoints made once a test run, and an environment without network and slow disks."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of each would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[1] / "tools"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A job in a shell's background ignores Ctrl-C, and so would the processes that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from running_service import RunningService
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.stores.opening import Client

settings.register_profile("without a clock", deadline=None)  # the machine may be busy
settings.load_profile("without a clock")

MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and "TMPDIR" not in os.environ:
    # Stores flush to disk at each step, and the tests would wait for it half of their time. What
    # a killed process leaves behind is the same in memory.
    room = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    if room > 8 * 2**30:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # read the environment again

XQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "xquad_r" / "en"


@pytest.fixture(scope="session")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random XLM-RoBERTa in BGE-M3's layout, cls pooling."""
    import checkpoints

    return checkpoints.xlm_roberta(tmp_path_factory.mktemp("models") / "xlmr")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP: 24 dimensions, images of 32 x 32."""
    import checkpoints

    return checkpoints.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT in BGE-M3's layout, mean pooling."""
    import checkpoints

    return checkpoints.bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(params=["memory", "embedded", "server"])
def any_client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """A client of each kind of store, without collections."""
    from qdrant_client import QdrantClient

    from qdrant_server import running_server
    from unified_embeddings.stores.edge.client import EdgeQdrantClient

    if request.param == "memory":
        yield QdrantClient(":memory:")
    elif request.param == "embedded":
        with EdgeQdrantClient(tmp_path / "store") as client:
            yield client
    else:
        with running_server() as (url, _):
            yield QdrantClient(url=url, check_compatibility=False)


PASSAGES = {
    "foxes.txt": "Foxes jump over dogs.",
    "dogs.txt": "Dogs sleep at noon.",
    "sea.txt": "The sea is blue.",
}


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """The service as it is started without settings, over mini-m3."""
    from running_service import RunningService

    with RunningService(served_names=("ada",)) as running:
        yield running


@pytest.fixture(scope="session")
def guarded_service() -> Iterator[RunningService]:
    """A service with two API keys, and small limits."""
    from running_service import RunningService

    with RunningService(
        api_keys=("first-key", "second-key"),
        max_texts=8,
        max_request_tokens=600,
        max_body_bytes=20_000,
        auto_truncate=False,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def full_service(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Iterator[RunningService]:
    """A service with a collection of three passages, and with images (a tiny random CLIP)."""
    from llama_index.core import Document, VectorStoreIndex

    from running_service import RunningService
    from unified_embeddings import UnifiedEmbeddingConfig

    folder = tmp_path_factory.mktemp("serving") / "qdrant_data"
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    store = config.vector_store("animals", path=str(folder))
    index = VectorStoreIndex.from_vector_store(store, embed_model=config.text_model)
    for name, text in PASSAGES.items():
        index.insert(Document(text=text, metadata={"file_name": name}))
    store.client.close()
    served = UnifiedEmbeddingConfig("mini-m3", clip, precision="fp32", device="cpu")
    with RunningService(
        served, store_path=str(folder), collection="animals", images=True
    ) as running:
        yield running


def fake_config(image_model: Path | None = None, **options: Any) -> UnifiedEmbeddingConfig:
    """Return a config whose texts are embedded without weights.

    Args:
        image_model: A checkpoint of a CLIP; None for the default, which is not here.
        **options: As in FakeEmbedder, whose vectors have 32 dimensions.
    """
    from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
    from unified_embeddings.embedders.fake import FakeEmbedder

    images = {} if image_model is None else {"image_model": image_model}
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu", **images)
    config._embedder = FakeEmbedder(32, **options)
    return config


LONGEST = ("test_quality.py", "test_app.py", "test_benchmarks.py", "test_stores.py")


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand out files in the order below, not by their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none runs alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
