"""CLIP: images and texts into one space, without torchvision.

What lives here: the way of images and texts through cache, preprocessing and model. What does not:
the model itself (`clip_model`), reading images of all kinds (`images`), LlamaIndex (`llama`).
"""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache
from unified_embeddings.cache.keys import Key, key_for
from unified_embeddings.embedders.clip_model import (
    ClipModel,
    PreparedImage,
    read_architecture,
    weights_of,
)
from unified_embeddings.embedders.lazy import Counters, CutWarning, LazyModel
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.torch_device import plan_torch
from unified_embeddings.errors import InputError
from unified_embeddings.images.decoding import Picture
from unified_embeddings.images.fetch import fetch_image
from unified_embeddings.images.sources import ImageInput, is_image_node, read_picture
from unified_embeddings.models.catalogue import CLIP, MINI_CLIP, image_spec_for
from unified_embeddings.models.mini_clip import MINI_CLIP_NOTE
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import FloatArray, ImageEmbeddings
from unified_embeddings.validation import check_is_list, require_texts, require_whole_number

_LOG = logging.getLogger(__name__)

_CLIP_LENGTH = 77
"""Tokens of a text where a model's files name no limit: CLIP's own."""


@dataclass(frozen=True)
class ClipStats:
    """What a ClipEmbedder has done since it was made.

    Attributes:
        images: Images asked for.
        texts: Texts asked for.
        truncated: Texts, not in the cache, that were longer than the model takes, and cut.
        forwards: Forward passes of either half.
        cache: The cache's counters.

    Example:
        >>> from unified_embeddings import ClipEmbedder
        >>> stats = ClipEmbedder().stats()    # loads nothing
        >>> stats.images, stats.texts
        (0, 0)
    """

    images: int
    texts: int
    truncated: int
    forwards: int
    cache: CacheStats


class ClipEmbedder(LazyModel):
    """A CLIP or SigLIP model: images and the texts that describe them get vectors that compare.

    Making one is cheap: files are looked up when something about the model is asked, weights are
    loaded with the first image or text that is not in the cache. All methods are thread-safe. A
    text that looks like an address or a path is a text: nothing is ever fetched for it.

    Args:
        model_name: "clip", "jina-clip", "mini-clip" (drawn shapes only, no download), a hub id, a
            folder, a TOML file, or a ModelSpec.
        precision: "auto" reads the hardware; "fp32", "bf16", "fp16".
        device: "auto" takes a GPU where there is one; otherwise a device in torch's notation.
        batch_size: Images or texts in one forward pass.
        max_pixels: The most pixels an image may have, width times height. It bounds what a small
            file that unpacks to a huge image can cost.
        allow_urls: Whether an image may be given as an http(s) address: fetched within limits of
            size, time and type, and never from a private network (see `images.fetch`).
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing. One cache may serve
            an embedder of texts too.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: Whether a model whose spec says so may run code from its repository,
            pinned to a commit.

    Raises:
        InputError: If an option is out of range, or the choice embeds no images. What is wrong with
            the model or the hardware is raised by the first call that needs to know.

    Example:
        >>> from unified_embeddings import ClipEmbedder
        >>> clip = ClipEmbedder("openai/clip-vit-base-patch32", batch_size=8)    # loads nothing
        >>> photos = clip.encode_images(["fox.png", "sea.png"])    # doctest: +SKIP
        >>> words = clip.encode_texts(["a fox in the snow"])    # doctest: +SKIP
        >>> photos.dense @ words[0]    # doctest: +SKIP
        array([0.31, 0.17], dtype=float32)
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec = CLIP,
        *,
        precision: str = "auto",
        device: str = "auto",
        batch_size: int = 32,
        max_pixels: int = 64_000_000,
        allow_urls: bool = False,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self._batch_size = require_whole_number("batch_size", batch_size)
        self._max_pixels = require_whole_number("max_pixels", max_pixels)
        self._allow_urls = allow_urls
        options = {
            "precision": precision,
            "device": device,
            "batch_size": self._batch_size,
            "max_pixels": self._max_pixels,
            "allow_urls": allow_urls,
            "cache": cache,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        super().__init__(model_name, image_spec_for(model_name), options)
        self._counters = Counters("images", "texts", "truncated", "forwards")
        self._cut_warning = CutWarning()
        self._config: Any = None
        self._model: ClipModel | None = None

    # --- what it is -----------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """Return the width of the vectors of images and texts."""
        if self.spec.dimension is not None:
            return self.spec.dimension
        config = self._architecture
        width = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
        return int(width)

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text, special tokens included: 77 for CLIP."""
        limit = getattr(self._architecture.text_config, "max_position_embeddings", None)
        limits = [length for length in (limit, self.spec.max_length) if length]
        return int(min(limits, default=_CLIP_LENGTH))

    @property
    def fingerprint(self) -> str:
        """Return what two embedders must share for their vectors to compare, as 32 hex digits."""
        return key_for("clip fingerprint 2", self.checkpoint.digest).hex()

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprint that versions gave it whose digests were samples of the files."""
        return (key_for("clip fingerprint 1", self.checkpoint.sampled_digest).hex(),)

    def stats(self) -> ClipStats:
        """Return the counters since the embedder was made."""
        return ClipStats(**self._counters.snapshot(), cache=self.cache.stats())

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each region of weights; none before the model is loaded."""
        return weights_of(self._model)

    # --- what it does ---------------------------------------------------------------------------

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        skip_bad: bool = False,
        show_progress: bool = False,
    ) -> ImageEmbeddings:
        """Embed images.

        Args:
            images: n images, each a path, bytes, BytesIO, PIL image, base64 string or data: URI,
                LlamaIndex ImageNode or ImageDocument, or, where `allow_urls`, an http(s) address.
                Rotation by EXIF is applied. Transparency is flattened onto white. Only the first
                frame of an animation is used.
            skip_bad: Leave out images that cannot be read, and list what was wrong with them,
                instead of raising at the first.
            show_progress: Draw a progress bar on standard error.

        Returns:
            The vectors, which images they belong to, and the errors of the others.

        Raises:
            InputError: If an image cannot be read and `skip_bad` is False; its index is named.
                Vectors computed before it are in the cache.
            ModelLoadError: If the model cannot be loaded.
        """
        if isinstance(images, os.PathLike | io.BytesIO) or is_image_node(images):
            raise InputError(
                f"expected a list of images, got {type(images).__name__}; put one image into a list"
            )
        check_is_list(images, "images")
        if show_progress:
            images = list(images)
        total = len(images) if isinstance(images, list) else 0
        rows: dict[int, FloatArray] = {}
        errors: dict[int, InputError] = {}
        numbered = enumerate(images)
        with progress_bar("Embedding", total, shown=show_progress) as advance:
            # A batch at a time, so that a generator's images need not all be held.
            while window := dict(itertools.islice(numbered, self._batch_size)):
                self._counters.add(images=len(window))
                self._encode_window(window, rows, errors, skip_bad=skip_bad)
                advance(len(window))
        indices = tuple(sorted(rows))
        return ImageEmbeddings(
            dense=self._stack([rows[index] for index in indices]),
            indices=indices,
            errors=tuple(errors[index] for index in sorted(errors)),
        )

    def encode_texts(self, texts: Iterable[str]) -> FloatArray:
        """Embed texts to search images with.

        Args:
            texts: n texts. One longer than `max_length` tokens is cut, and counted in `stats()`.

        Returns:
            float32 (n, dimension), rows of unit length.

        Raises:
            InputError: If an item is not a str or holds lone surrogates; its index is named.
            ModelLoadError: If the model cannot be loaded.
        """
        items = require_texts(texts)
        self._counters.add(texts=len(items))
        keys = {text: self._key("text", text) for text in items}
        with self.cache.claim(keys[text] for text in items) as claim:
            for missing_keys in claim.rounds():
                model = self._load()
                missing_texts = [text for text, key in keys.items() if key in missing_keys]
                for start in range(0, len(missing_texts), self._batch_size):
                    batch = missing_texts[start : start + self._batch_size]
                    vectors, truncated = model.embed_texts(batch)
                    self._counters.add(truncated=truncated, forwards=1)
                    if truncated:
                        self._cut_warning.give(self.model_name, self.max_length)
                    for text, vector in zip(batch, vectors, strict=True):
                        claim.put(keys[text], vector)
        return self._stack([cast("FloatArray", claim[keys[text]]) for text in items])

    def tokenise(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens. Loads the model.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """
        (valid_text,) = require_texts([text])
        return self._load().split(valid_text)

    # --- an image's way -------------------------------------------------------------------------

    def _encode_window(
        self,
        window: dict[int, ImageInput],
        rows: dict[int, FloatArray],
        errors: dict[int, InputError],
        *,
        skip_bad: bool,
    ) -> None:
        """Embed one batch of images; what cannot be read goes into `errors`, or is raised."""
        pictures = self._read_pictures(window, errors)
        if errors and not skip_bad:
            raise errors[min(errors)]
        keys = {index: self._key("image", picture.key) for index, picture in pictures.items()}
        with self.cache.claim(keys.values()) as claim:
            for missing_keys in claim.rounds():
                model = self._load()
                missing = {index: key for index, key in keys.items() if key in missing_keys}
                prepared = self._prepare(model, pictures, missing, errors)
                for key in missing_keys - prepared.keys():
                    claim.release(key)
                if errors and not skip_bad:
                    raise errors[min(errors)]
                if prepared:
                    vectors = model.embed_images(list(prepared.values()))
                    self._counters.add(forwards=1)
                    for key, vector in zip(prepared, vectors, strict=True):
                        claim.put(key, vector)
        for index, key in keys.items():
            if index not in errors:
                rows[index] = cast("FloatArray", claim[key])

    def _read_pictures(
        self, window: dict[int, ImageInput], errors: dict[int, InputError]
    ) -> dict[int, Picture]:
        """Find the encoded bytes of each image; what cannot be found goes into `errors`."""
        pictures: dict[int, Picture] = {}
        fetch = fetch_image if self._allow_urls else None
        for index, image in window.items():
            try:
                pictures[index] = read_picture(image, fetch=fetch, max_pixels=self._max_pixels)
            except InputError as error:
                errors[index] = InputError(str(error), index=index)
        return pictures

    def _prepare(
        self,
        model: ClipModel,
        pictures: dict[int, Picture],
        missing: dict[int, Key],
        errors: dict[int, InputError],
    ) -> dict[Key, PreparedImage]:
        """Decode and scale pictures for the model; what cannot be decoded goes into `errors`.

        Returns:
            What the model takes, by key: each distinct picture once.
        """
        prepared: dict[Key, PreparedImage] = {}
        for index, key in missing.items():
            if key in prepared:
                continue
            # A bad picture that was given twice is decoded twice: each error names its own file.
            picture = pictures[index]
            try:
                image = picture.decode(self._max_pixels)
                prepared[key] = model.prepare(image, self._max_pixels, picture.name)
            except InputError as error:
                errors[index] = InputError(str(error), index=index)
        return prepared

    def _key(self, kind: Literal["text", "image"], content: str | bytes) -> Key:
        return key_for(f"clip {kind} 1", self.checkpoint.digest, self.runtime.precision, content)

    def _stack(self, rows: list[FloatArray]) -> FloatArray:
        return np.stack(rows) if rows else np.zeros((0, self.dimension), dtype=np.float32)

    # --- loading --------------------------------------------------------------------------------

    @property
    def _architecture(self) -> Any:
        """The model's configuration, as transformers reads it."""
        with self._load_lock:
            if self._config is None:
                self._config = read_architecture(self.checkpoint)
            return self._config

    def _plan(self) -> Runtime:
        return plan_torch("clip", self._options["precision"], self._options["device"])

    def _load(self) -> ClipModel:
        with self._load_lock:
            self._require_open()
            if self._model is None:
                model = ClipModel(
                    self.checkpoint, self._architecture, self.runtime, self.max_length
                )
                if model.dimension != self.dimension:
                    raise self.checkpoint.problem(
                        f"its vectors have {model.dimension} dimensions, but its spec or "
                        f"config.json says {self.dimension}"
                    )
                self._model = model
                if self.spec.model_id == MINI_CLIP:
                    _LOG.warning("%s.", MINI_CLIP_NOTE)
            return self._model

    def _unload(self) -> None:
        self._model = None
