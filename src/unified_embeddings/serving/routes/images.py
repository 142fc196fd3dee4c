"""Vectors of images, and of the texts that describe them (CLIP)."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from pydantic import ConfigDict, Field, WithJsonSchema, model_validator
from starlette.datastructures import State

from unified_embeddings.errors import InputError, OverloadedError
from unified_embeddings.serving.engine_thread import EngineThread
from unified_embeddings.serving.envelopes import Problem, RequestError
from unified_embeddings.serving.schemas import (
    AnyText,
    Encoding,
    ListOf,
    Strict,
    StrictRoute,
    encode_vector,
    error_responses,
    service_of,
    write_json,
)
from unified_embeddings.serving.service import EmbeddingService, TooLongError
from unified_embeddings.types import FloatArray

router = APIRouter(route_class=StrictRoute, tags=["Images"])

_MOST_WAITING = 16
"""Requests at work or waiting for the images' model, which has a queue of its own."""
_MOST_IMAGES = 64
"""Images of one request: an encoded image of a few kilobytes can hold 64 million pixels."""
_TEXT_SCHEMA = {"type": "string"}
_TEXTS_SCHEMA = {"type": "array", "items": _TEXT_SCHEMA}
# Without null, which none of the three may be if the others are absent.


class ImageRequest(Strict):
    """Images in base64 or as data: URIs, or texts to find images with; one of the three."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("image", "images", "texts")]}
    )

    image: Annotated[AnyText | None, WithJsonSchema(_TEXT_SCHEMA)] = None
    images: Annotated[ListOf[AnyText] | None, WithJsonSchema(_TEXTS_SCHEMA)] = None
    texts: Annotated[ListOf[AnyText] | None, WithJsonSchema(_TEXTS_SCHEMA)] = None
    encoding: Encoding = "float"

    @model_validator(mode="after")
    def _require_one(self) -> ImageRequest:
        if sum(part is not None for part in (self.image, self.images, self.texts)) != 1:
            raise ValueError("send one of image, images and texts")
        return self


class ImageAnswer(Strict):
    """The vectors: "embedding" for one image, "embeddings" for lists."""

    embedding: list[float] | str | None = None
    embeddings: list[list[float] | str] | None = None
    model: str
    fingerprint: str = Field(description="Of the images' model, which is not the texts' model.")


_EXAMPLE = {
    "image": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhV"
    "AAAAAElFTkSuQmCC"
}


@router.post("/embed_image", response_model=ImageAnswer, responses=error_responses("tei", 404))
async def embed_image(
    request: Request, body: Annotated[ImageRequest, Body(examples=[_EXAMPLE])]
) -> Response:
    """Embed images, sent in base64 or as data: URIs, or texts to find images with.

    Addresses and paths are refused: the service fetches and opens nothing.
    """
    service = service_of(request)
    if not service.settings.images:
        message = "images are not served here; start the service with --images"
        raise RequestError(Problem(404, message, tei_kind="NotFound"))
    service.require_ready()
    given = body.images or body.texts or [body.image or ""]
    if len(given) > _MOST_IMAGES:
        raise TooLongError(
            f"{len(given)} images or texts; the limit of a request is {_MOST_IMAGES}"
        )
    dense = await service.in_time(_embed(request.app.state, service, body))
    clip = service.config.clip
    vectors = [encode_vector(vector, body.encoding) for vector in dense]
    content: dict[str, object] = {"model": clip.model_name, "fingerprint": clip.fingerprint}
    if body.image is not None:
        content["embedding"] = vectors[0]
    else:
        content["embeddings"] = vectors
    return write_json(content)


async def _embed(state: State, service: EmbeddingService, body: ImageRequest) -> FloatArray:
    """Run the model of images in a thread of its own, one request at a time.

    Raises:
        OverloadedError: If too many requests wait.
    """
    clip = service.config.clip
    thread: EngineThread = state.image_thread
    if thread.unfinished >= _MOST_WAITING:
        raise OverloadedError(
            f"{_MOST_WAITING} requests with images are at work or waiting; try again later"
        )
    if body.texts is not None:
        texts = body.texts
        return await thread.run(lambda: clip.encode_texts(texts))
    images = [body.image] if body.image is not None else body.images
    pictures = await asyncio.to_thread(decode_images, images or [])
    embedded = await thread.run(lambda: clip.encode_images(pictures))
    return embedded.dense


def decode_images(images: Sequence[str]) -> list[bytes]:
    """Return the bytes of images that are given in base64 or as data: URIs.

    Raises:
        InputError: If one is neither, such as an address or a path; its index is named.
    """
    pictures = []
    for index, image in enumerate(images):
        encoded = image
        if image.startswith("data:"):
            _, comma, encoded = image.partition(";base64,")
            if not comma:
                raise InputError("a data: URI must be in base64", index=index)
        try:
            pictures.append(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise InputError(
                "is not base64; send the image's bytes in base64, not an address or a path",
                index=index,
            ) from None
    return pictures
