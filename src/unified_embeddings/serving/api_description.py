"""The service's description in OpenAPI.

What lives here: what all routes have in common and FastAPI does not know, since the guard stands
outside of it: the key, and the headers of every answer. What does not: fields and statuses
(`routes`, `schemas`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from unified_embeddings.types import Options

_PROBES = ("/health", "/ready")
"""What needs no key."""
_NEVER_SENT = "#/components/schemas/HTTPValidationError"
"""FastAPI's own error, which no contract has."""
_HEADERS = {
    "x-request-id": "The request's own x-request-id if it is harmless, else a new one.",
    "x-model-fingerprint": "Of the texts' model, once it is loaded.",
    "x-total-time": "Milliseconds from the request's first byte to the answer's.",
    "x-compute-tokens": "Tokens that ran through the model.",
    "x-tokenization-time": "Milliseconds of counting the tokens.",
    "x-queue-time": "Milliseconds until the first text entered a forward pass.",
    "x-inference-time": "Milliseconds of the passes that the texts were in.",
    "x-truncated-texts": "Texts that were cut at the model's length; absent if none was.",
    "retry-after": "Seconds after which to try again.",
    "www-authenticate": "The scheme of the key: Bearer.",
}
_EVERYWHERE = ("x-request-id", "x-model-fingerprint", "x-total-time")
_OF_STATUS = {"401": ("www-authenticate",), "429": ("retry-after",), "503": ("retry-after",)}
_OF_WORK = (
    "x-compute-tokens",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
    "x-truncated-texts",
)
_WITHOUT_WORK = ("/tokenize", "/embed_image")


class DescribedApp(FastAPI):
    """An application whose description holds what the guard does.

    Attributes:
        needs_key: Whether requests must bring an API key.
    """

    needs_key = False

    def openapi(self) -> Options:
        """Return the description, made once."""
        if not self.openapi_schema:
            document = super().openapi()
            for path, operation, is_post in _operations(document):
                _remove_foreign_errors(operation)
                if is_post:
                    _allow_several_bodies(operation)
                _add_headers(operation, has_work=is_post and path not in _WITHOUT_WORK)
                if path not in _PROBES:
                    operation["security"] = self._security()
            components = document["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            components["headers"] = {
                name: {"description": meaning, "schema": {"type": "string"}}
                for name, meaning in _HEADERS.items()
            }
            components["securitySchemes"] = {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the service's API keys, where it was started with some.",
                }
            }
            self.openapi_schema = document
        return self.openapi_schema

    def _security(self) -> list[dict[str, list[str]]]:
        with_key: dict[str, list[str]] = {"key": []}
        return [with_key] if self.needs_key else [{}, with_key]


def _operations(document: Options) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield each operation with its path, and whether it is a POST."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, operation, method == "post"


def _remove_foreign_errors(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in list(responses):
        content = responses[status].get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        if schema.get("$ref") == _NEVER_SENT:
            del responses[status]


def _allow_several_bodies(operation: dict[str, Any]) -> None:
    """Say `anyOf` where pydantic says `oneOf`: a body with the fields of two contracts is fine."""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")


def _add_headers(operation: dict[str, Any], *, has_work: bool) -> None:
    for status, response in operation["responses"].items():
        names = [*_EVERYWHERE, *_OF_STATUS.get(status, ())]
        if has_work and status == "200":
            names += _OF_WORK
        response["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
