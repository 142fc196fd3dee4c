"""The inspector as a part of the service: where it may be, and that its pages work there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_index.core.schema import TextNode

from running_service import RunningService
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError
from unified_embeddings.serving.settings import ServiceSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "qdrant_data"
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    store = config.vector_store("animals", path=folder)
    store.add(config.text_model([TextNode(text="Foxes jump over dogs.")]))
    store.client.close()
    return folder


@pytest.fixture(scope="module")
def inspected(folder: Path) -> Any:
    with RunningService(
        host="127.0.0.1", store_path=str(folder), collection="animals", inspect=True
    ) as running:
        yield running


def test_pages_and_their_files_are_under_inspect(inspected: RunningService) -> None:
    with httpx.Client(base_url=inspected.url, follow_redirects=True) as client:
        for start in ("/inspect", "/inspect/"):
            answer = client.get(start)
            assert answer.status_code == 200
            assert answer.url.path == "/inspect/search"
        page = client.get("/inspect/search", params={"q": "foxes"})
        assert "<mark" in page.text
        for path in ("/inspect/static/inspector.css", "/inspect/static/inspector.js"):
            assert path in page.text
            assert client.get(path).status_code == 200
        assert 'href="/inspect/passage?q=foxes' in page.text
        assert 'action="/inspect/search"' in page.text
        assert client.get("/inspect/collection").status_code == 200
        missing = client.get("/inspect/nothing")
        assert (missing.status_code, missing.headers["content-type"]) == (
            404, "text/html; charset=utf-8")  # fmt: skip


def test_another_hosts_name_is_refused_there_only(inspected: RunningService) -> None:
    headers = {"host": "evil.example"}
    assert httpx.get(f"{inspected.url}/inspect/search", headers=headers).status_code == 421
    assert httpx.get(f"{inspected.url}/health", headers=headers).status_code == 200


def test_the_api_goes_on_beside_it(inspected: RunningService) -> None:
    answer = httpx.post(f"{inspected.url}/search", json={"query": "foxes"})
    assert answer.json()["results"][0]["text"] == "Foxes jump over dogs."
    paths = httpx.get(f"{inspected.url}/openapi.json").json()["paths"]
    assert not [path for path in paths if path.startswith("/inspect")]


def test_it_is_not_there_unless_asked_for(full_service: RunningService) -> None:
    assert httpx.get(f"{full_service.url}/inspect").status_code == 404


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "name it with --collection"),
        ({"collection": "a", "qdrant_url": "http://q", "host": "0.0.0.0"}, "this machine alone"),
        ({"collection": "a", "qdrant_url": "http://q", "api_keys": ("k",)}, "no API key"),
        ({"collection": "a", "qdrant_url": "http://q", "workers": 2}, "one process"),
        ({"collection": "a", "qdrant_url": "http://q", "runner": "ray"}, "one process"),
    ],
)
def test_it_is_refused_where_it_would_be_open(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ServiceSettings(inspect=True, **settings)
