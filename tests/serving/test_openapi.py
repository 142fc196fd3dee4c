"""The description in OpenAPI is valid, and the service keeps to it whatever it is sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from running_service import RunningService
from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.serving.app import make_app

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import CHECKS  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "20"))
"""Generated requests of each kind and route; a run by hand takes hundreds."""
MANY_EXAMPLES = 50
TOO_STRICT = (
    # 1.0 is a whole number to JSON Schema and not to us; token ids end with the vocabulary, and
    # what is too long depends on the model.
    "positive_data_acceptance",
)


@pytest.fixture(scope="module")
def document(full_service: RunningService) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(full_service.url + "/openapi.json").json()
    return described


@pytest.fixture(scope="module")
def api(full_service: RunningService) -> Any:
    return schemathesis.openapi.from_url(full_service.url + "/openapi.json")


def described_operations() -> list[tuple[str, str]]:
    paths = make_app(UnifiedEmbeddingConfig("mini-m3")).openapi()["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


@pytest.mark.parametrize(("path", "method"), described_operations())
def test_the_service_keeps_to_its_description(api: Any, path: str, method: str) -> None:
    """Generated requests, good and bad ones, are answered as described, never with a 5xx."""
    operation = api[path][method]
    too_strict = [CHECKS.get_one(name) for name in TOO_STRICT]
    kinds = [GenerationMode.POSITIVE]
    if method == "post":
        kinds.append(GenerationMode.NEGATIVE)
    for kind in kinds:

        @given(case=operation.as_strategy(generation_mode=kind))
        @settings(
            max_examples=EXAMPLES,
            derandomize=EXAMPLES < MANY_EXAMPLES,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        def ask(case: Any) -> None:
            case.call_and_validate(excluded_checks=too_strict)

        ask()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def examples_of(operation: dict[str, Any]) -> list[Any]:
    content = operation["requestBody"]["content"]["application/json"]
    named = [example["value"] for example in content.get("examples", {}).values()]
    return named or content["schema"]["examples"]


def test_the_description_is_valid(document: dict[str, Any]) -> None:
    from fastapi.openapi.models import OpenAPI

    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")
    _require_targets(document, document)
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def _require_targets(part: Any, document: dict[str, Any]) -> None:
    """Every reference leads somewhere."""
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str):
            target: Any = document
            for name in reference.removeprefix("#/").split("/"):
                target = target[name]
        for value in part.values():
            _require_targets(value, document)
    elif isinstance(part, list):
        for value in part:
            _require_targets(value, document)


def test_each_route_is_described_with_an_example_that_is_answered(
    document: dict[str, Any], full_service: RunningService
) -> None:
    answered = 0
    for path, method, operation in operations(document):
        assert operation["description"]
        if method != "post":
            continue
        for example in examples_of(operation):
            # The examples name the default model.
            body = {**example, "model": "mini-m3"} if "model" in example else example
            answer = httpx.post(full_service.url + path, json=body)
            assert answer.status_code == 200, (path, answer.text)
            answered += 1
    assert answered >= 16


def test_no_error_of_fastapis_own_is_described(document: dict[str, Any]) -> None:
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]["$ref"]
                assert schema.endswith(("Error", "/State")), (path, status)


def test_keys_and_headers_are_described(
    document: dict[str, Any], guarded_service: RunningService
) -> None:
    bearer = {"type": "http", "scheme": "bearer"}
    key = {"authorization": "Bearer first-key"}
    guarded = httpx.get(guarded_service.url + "/openapi.json", headers=key).json()
    for described, security in ((document, [{}, {"key": []}]), (guarded, [{"key": []}])):
        scheme = described["components"]["securitySchemes"]["key"]
        assert bearer.items() <= scheme.items()
        for path, _, operation in operations(described):
            is_probe = path in ("/health", "/ready")
            assert operation.get("security") == (None if is_probe else security)
            for status, response in operation["responses"].items():
                assert {"x-request-id", "x-total-time"} <= set(response["headers"])
                assert ("retry-after" in response["headers"]) == (status in ("429", "503"))
