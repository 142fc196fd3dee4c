"""CLIP: images and texts into one space, without torchvision.

What lives here: loading a CLIP or SigLIP checkpoint, and the way of images and texts through cache,
preprocessing and model. What does not: reading images of all kinds (`pictures`), fetching them
(`fetch`), LlamaIndex (`llama`).
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, cast

import numpy as np
from transformers import AutoConfig

from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache
from unified_embeddings.cache.keys import Value, key_for
from unified_embeddings.embedders.base import validated
from unified_embeddings.embedders.clip_model import ClipModel
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.torch_device import host_weights, plan_torch
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.images.decoding import Picture
from unified_embeddings.images.fetch import fetch_image
from unified_embeddings.images.sources import ImageInput, is_image_node, read_picture
from unified_embeddings.models.catalogue import CLIP, image_spec_for
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import require_consent, resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import FloatArray, ImageEmbeddings


@dataclass(frozen=True)
class ClipStats:
    """What a ClipEmbedder has done since it was made.

    Attributes:
        images: Images asked for.
        texts: Texts asked for.
        truncated: Texts, not in the cache, that were longer than the model takes, and cut.
        forwards: Forward passes of either half.
        cache: The cache's counters.
    """

    images: int
    texts: int
    truncated: int
    forwards: int
    cache: CacheStats


class ClipEmbedder:
    """A CLIP or SigLIP model: images and the texts that describe them get vectors that compare.

    Making one is cheap: files are looked up when something about the model is asked, weights are
    loaded with the first image or text that is not in the cache. All methods are thread-safe. A
    text that looks like an address or a path is a text: nothing is ever fetched for it.

    Args:
        model_name: "clip", "jina-clip", a hub id, a folder, a TOML file, or a ModelSpec.
        precision: "auto" reads the hardware; "fp32", "bf16", "fp16".
        device: "auto" takes a GPU where there is one; else as torch writes it.
        batch_size: Images or texts in one forward pass.
        max_pixels: Most pixels an image may have, width times height: what a small file that
            unpacks to a huge image could cost.
        allow_urls: Whether an image may be given as an http(s) address: fetched within limits of
            size, time and type, and never from a private network (see `fetch`).
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing; may be shared with an
            embedder of texts.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: Whether a model whose spec says so may run code from its repository,
            pinned to a commit.

    Raises:
        InputError: If an option is out of range, or the choice embeds no images. What is wrong with
            the model or the hardware is raised by the first call that needs to know.
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
        for name, value in (("batch_size", batch_size), ("max_pixels", max_pixels)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} must be a whole number above 0, got {value!r}")
        self.spec = image_spec_for(model_name)
        own = isinstance(model_name, ModelSpec)
        self.model_name = self.spec.choice if own else os.fspath(cast("str", model_name))
        self._options: dict[str, Any] = {
            "precision": precision,
            "device": device,
            "batch_size": batch_size,
            "max_pixels": max_pixels,
            "allow_urls": allow_urls,
            "cache": cache,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        if own:
            self._options["spec"] = self.spec.to_dict()
        if cache is None:
            cache = EmbeddingCache(max_bytes=0)
        self.cache: EmbeddingCache = EmbeddingCache() if cache == "auto" else cache
        self._load_lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._config: Any = None
        self._runtime: Runtime | None = None
        self._model: ClipModel | None = None
        self._closed = False
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(("images", "texts", "truncated", "forwards"), 0)

    # --- what it is -----------------------------------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        """The options it was made with but `model_name` and `cache`: plain values, fit for JSON."""
        return {name: value for name, value in self._options.items() if name != "cache"}

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's files; looked up at the first call."""
        with self._load_lock:
            if self._checkpoint is None:
                revision = self._options["revision"]
                require_consent(self.spec, revision, given=self._options["trust_remote_code"])
                self._checkpoint = resolve(
                    self.spec,
                    revision=revision,
                    local_files_only=self._options["local_files_only"],
                )
            return self._checkpoint

    @property
    def runtime(self) -> Runtime:
        """Device and precision that images are, or will be, run on."""
        with self._load_lock:
            if self._runtime is None:
                self._runtime = plan_torch(
                    "clip", self._options["precision"], self._options["device"]
                )
            return self._runtime

    @property
    def dimension(self) -> int:
        """Width of the vectors of images and texts."""
        if self.spec.dimension is not None:
            return self.spec.dimension
        config = self._architecture
        width = getattr(config, "projection_dim", None) or config.vision_config.hidden_size
        return int(width)

    @property
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included: 77 for CLIP."""
        limit = getattr(self._architecture.text_config, "max_position_embeddings", None)
        return int(min(filter(None, [limit, self.spec.max_length]), default=77))

    @property
    def fingerprint(self) -> str:
        """What two embedders must share for their vectors to compare, as 32 hex digits."""
        return key_for("clip fingerprint 1", self.checkpoint.digest).hex()

    @property
    def revision(self) -> str:
        """The commit of the model's files, or their digest."""
        return self.checkpoint.revision

    def stats(self) -> ClipStats:
        """Counters since the embedder was made."""
        with self._count_lock:
            return ClipStats(**self._counts, cache=self.cache.stats())

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
                Rotation by EXIF is applied, transparency laid on white, of an animation the first
                frame taken.
            skip_bad: Leave out images that cannot be read and list what was wrong with them,
                instead of raising at the first.
            show_progress: Draw a progress bar on standard error.

        Returns:
            The vectors, which images they belong to, and the errors of the others.

        Raises:
            InputError: If an image cannot be read and `skip_bad` is False; its index is named. What
                was embedded before it is in the cache.
            ModelLoadError: If the model cannot be loaded.
        """
        one = isinstance(images, str | bytes | bytearray | os.PathLike | io.BytesIO | Mapping)
        if one or is_image_node(images) or not isinstance(images, Iterable):
            raise InputError(
                f"expected a list of images, got {type(images).__name__}; put one image into a list"
            )
        if show_progress:
            images = list(images)
        total = len(images) if isinstance(images, list) else 0
        rows: dict[int, FloatArray] = {}
        errors: dict[int, InputError] = {}
        numbered = enumerate(images)
        with progress_bar("Embedding", total, shown=show_progress) as advance:
            # A batch at a time, so that a generator's images need not all be held.
            while window := dict(itertools.islice(numbered, self._options["batch_size"])):
                self._count(images=len(window))
                self._encode_window(window, rows, errors, skip_bad=skip_bad)
                advance(len(window))
        kept = sorted(rows)
        dense = np.stack([rows[i] for i in kept]) if kept else self._no_rows()
        return ImageEmbeddings(dense, tuple(kept), tuple(errors[i] for i in sorted(errors)))

    def encode_texts(self, texts: Iterable[str]) -> FloatArray:
        """Embed texts to search images with.

        Args:
            texts: n texts; one longer than `max_length` tokens is cut, and counted in `stats()`.

        Returns:
            float32 (n, dimension), rows of unit length.

        Raises:
            InputError: If an item is not a str or holds lone surrogates; its index is named.
            ModelLoadError: If the model cannot be loaded.
        """
        items = validated(texts)
        self._count(texts=len(items))
        keys = [self._key("text", text) for text in items]

        def compute(positions: list[int]) -> Iterator[tuple[int, Value]]:
            model = self._load()
            size = int(self._options["batch_size"])
            for start in range(0, len(positions), size):
                part = positions[start : start + size]
                vectors, truncated = model.texts([items[i] for i in part])
                self._count(truncated=truncated, forwards=1)
                yield from zip(part, vectors, strict=True)

        rows = cast("list[FloatArray]", self.cache.get_or_compute(keys, compute))
        return np.stack(rows) if rows else self._no_rows()

    def tokenise(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """
        (valid,) = validated([text])
        return self._load().split(valid)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each stretch of weights; none before the model is loaded."""
        model = self._model
        return iter(()) if model is None else host_weights(model.network)

    def close(self) -> None:
        """Let go of the model's memory; the cache stays. Calls that need the model then fail."""
        with self._load_lock:
            self._closed = True
            self._model = None

    def __enter__(self) -> ClipEmbedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options: a copy loads the model anew with its first image."""
        return make_clip, (self.model_name, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

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
        pictures: dict[int, Picture] = {}
        prepared: dict[bytes, Any] = {}
        fetch = fetch_image if self._options["allow_urls"] else None
        max_pixels = self._options["max_pixels"]
        for i, image in window.items():
            try:
                pictures[i] = read_picture(image, fetch=fetch, max_pixels=max_pixels)
            except InputError as error:
                errors[i] = InputError(str(error), index=i)
        while True:
            bad = [errors[i] for i in sorted(window) if i in errors]
            if bad and not skip_bad:
                raise bad[0]
            good = [i for i in pictures if i not in errors]
            try:
                vectors = self._vectors([pictures[i] for i in good], prepared)
            except _BadPicturesError as found:
                for at, problem in found.problems.items():
                    errors[good[at]] = InputError(str(problem), index=good[at])
                continue
            rows |= dict(zip(good, vectors, strict=True))
            return

    def _vectors(self, pictures: list[Picture], prepared: dict[bytes, Any]) -> list[FloatArray]:
        """The pictures' vectors, from the cache or in one forward pass.

        Args:
            pictures: n of them.
            prepared: What was made ready for the model before, by the picture's key; added to.

        Raises:
            _BadPicturesError: If some cannot be decoded; before any forward pass.
        """

        def compute(positions: list[int]) -> Iterator[tuple[int, Value]]:
            model = self._load()
            problems: dict[int, InputError] = {}
            for i in positions:
                picture = pictures[i]
                if picture.key in prepared:
                    continue
                try:
                    image = picture.decode(self._options["max_pixels"])
                    prepared[picture.key] = model.prepare(
                        image, self._options["max_pixels"], picture.name
                    )
                except InputError as error:
                    problems[i] = error
            if problems:
                raise _BadPicturesError(problems)
            vectors = model.images([prepared[pictures[i].key] for i in positions])
            self._count(forwards=1)
            yield from zip(positions, vectors, strict=True)

        keys = [self._key("image", picture.key) for picture in pictures]
        return cast("list[FloatArray]", self.cache.get_or_compute(keys, compute))

    def _key(self, kind: str, content: str | bytes) -> bytes:
        return key_for(f"clip {kind} 1", self.checkpoint.digest, self.runtime.precision, content)

    def _no_rows(self) -> FloatArray:
        return np.zeros((0, self.dimension), dtype=np.float32)

    @property
    def _architecture(self) -> Any:
        with self._load_lock:
            if self._config is None:
                checkpoint = self.checkpoint
                try:
                    self._config = AutoConfig.from_pretrained(
                        checkpoint.folder, local_files_only=True, **checkpoint.code_options
                    )
                    _ = self._config.vision_config, self._config.text_config
                except Exception as error:  # of whatever kind the libraries raise
                    raise checkpoint.problem(
                        f"config.json describes no model of images and texts: {error}"
                    ) from error
            return self._config

    def _load(self) -> ClipModel:
        with self._load_lock:
            if self._closed:
                raise UnifiedEmbeddingsError("This embedder is closed; make a new one")
            if self._model is None:
                self._model = ClipModel(
                    self.checkpoint, self._architecture, self.runtime, self.max_length
                )
                if self._model.dimension != self.dimension:
                    raise self.checkpoint.problem(
                        f"its vectors have {self._model.dimension} dimensions, but its spec or "
                        f"config.json says {self.dimension}"
                    )
            return self._model

    def _count(self, **counts: int) -> None:
        with self._count_lock:
            for name, count in counts.items():
                self._counts[name] += count


def make_clip(model_name: str, options: dict[str, Any]) -> ClipEmbedder:
    """A ClipEmbedder from what its `model_name` and `options` say.

    Raises:
        InputError: As ClipEmbedder.
    """
    options = dict(options)
    spec = options.pop("spec", None)
    return ClipEmbedder(ModelSpec.from_dict(spec) if spec else model_name, **options)


class _BadPicturesError(Exception):
    """Some pictures of a batch cannot be decoded: position → what is wrong."""

    def __init__(self, problems: dict[int, InputError]) -> None:
        self.problems = problems
        super().__init__(str(problems))
