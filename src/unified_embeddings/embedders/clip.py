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
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from unified_embeddings import heads
from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache, Value, key_for
from unified_embeddings.embedders.bge_m3 import (
    BGE_M3_Embedder,
    EmbedderStats,
    TextEmbedder,
    validated,
)
from unified_embeddings.embedders.tokenization import start_of
from unified_embeddings.engines.base import Runtime
from unified_embeddings.engines.quiet import quiet_loading
from unified_embeddings.engines.torch import (
    DTYPES,
    host_weights,
    plan_torch,
)
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.images.fetch import fetch_image
from unified_embeddings.images.sources import ImageInput, Picture, is_image_node, read_picture
from unified_embeddings.models.checkpoint import Checkpoint, require_consent, resolve
from unified_embeddings.models.spec import CLIP, ModelSpec, image_spec_for
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import Embeddings, FloatArray, HeadName, ImageEmbeddings, Role

_SQUARES = 64
"""How many times as long as wide an image may be whatever `max_pixels` is."""


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
        self._model: _Model | None = None
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

    def _load(self) -> _Model:
        with self._load_lock:
            if self._closed:
                raise UnifiedEmbeddingsError("This embedder is closed; make a new one")
            if self._model is None:
                self._model = _Model(
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


class _Model:
    """One loaded checkpoint: network, image processor, tokenizer.

    Raises:
        ModelLoadError: If transformers cannot load it, or a tensor is missing from its files.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: Any, runtime: Runtime, max_length: int
    ) -> None:
        self._device = torch.device(runtime.device)
        self._dtype = DTYPES[runtime.precision]
        self._max_length = max_length
        self._is_siglip = config.model_type.startswith("siglip")
        options = {"local_files_only": True, **checkpoint.code_options}
        try:
            with quiet_loading():  # what it reports is checked here, and more strictly
                network, report = AutoModel.from_pretrained(
                    checkpoint.folder, dtype=self._dtype, output_loading_info=True, **options
                )
            # Pillow's, also where torchvision is installed: the two resize differently.
            self._processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                checkpoint.folder, backend="pil", **options
            )
            self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **options)
        except Exception as error:  # of whatever kind the libraries raise
            raise checkpoint.problem(f"transformers cannot load it: {error}") from error
        if missing := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise checkpoint.problem(
                f"{len(missing)} tensors are missing from its files or of another shape, the first "
                f"{missing[0]}"
            )
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise checkpoint.problem(f"{type(network).__name__} embeds no images beside texts")
        self.network: torch.nn.Module = network.to(self._device).eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()  # truncation is a setting of the Rust tokenizer
        try:
            self.dimension = self._probed()
        except Exception as error:
            raise checkpoint.problem(f"its parts do not fit together: {error}") from error

    def _probed(self) -> int:
        """The width of the vectors, after one text and two images have gone through.

        Raises:
            ValueError: If texts and images differ in width, images in size, or words in nothing.
        """
        if self.split("fox") == self.split("dog"):
            raise ValueError("its tokenizer knows no words")
        shapes = [Image.new("RGB", size) for size in ((48, 32), (32, 48))]
        images = self.images([self.prepare(image, 10**9, "a probe") for image in shapes])
        texts, _ = self.texts(["fox"])
        if images.shape[1] != texts.shape[1]:
            raise ValueError(f"images get {images.shape[1]} dimensions, texts {texts.shape[1]}")
        return int(texts.shape[1])

    def prepare(self, image: Image.Image, max_pixels: int, name: str) -> dict[str, torch.Tensor]:
        """What the network takes of one RGB image, each tensor (1, ...).

        CLIP scales the whole image before it crops: a small file of 1 x 60,000 pixels would become
        one of 224 x 13 million.

        Raises:
            InputError: If the image is so long and narrow that scaling its short side up to the
                model's size would take more than `max_pixels`.
        """
        edge = (getattr(self._processor, "size", None) or {}).get("shortest_edge")
        if edge:
            scaled = image.width * image.height * (edge / min(image.size)) ** 2
            if scaled > max(max_pixels, _SQUARES * edge**2):
                raise InputError(
                    f"{name} is too long and narrow ({image.width:,} x {image.height:,}): with its "
                    f"short side scaled to {edge}, as the model needs it, it would have "
                    f"{scaled:,.0f} pixels, of {max_pixels:,} allowed. Crop it"
                )
        return dict(self._processor(images=[image], return_tensors="pt"))

    def images(self, prepared: list[dict[str, torch.Tensor]]) -> FloatArray:
        """Vectors of prepared images, float32 (n, d)."""
        inputs = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        return self._run("get_image_features", inputs)

    def texts(self, texts: list[str]) -> tuple[FloatArray, int]:
        """Vectors of texts, float32 (n, d), and how many of them were cut."""
        with self._tokenizer_lock:
            starts = [start_of(text, self._max_length) for text in texts]
            lengths = [len(ids) for ids in self._tokenizer(starts, verbose=False)["input_ids"]]
            for i, text in enumerate(texts):
                if lengths[i] <= self._max_length and len(starts[i]) < len(text):
                    starts[i] = text
                    lengths[i] = len(self._tokenizer(text, verbose=False)["input_ids"])
            inputs = self._tokenizer(
                starts,
                padding="max_length" if self._is_siglip else True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
        if self._is_siglip:  # trained on texts padded to their full length, without a mask
            inputs.pop("attention_mask", None)
        truncated = sum(length > self._max_length for length in lengths)
        return self._run("get_text_features", inputs), truncated

    def split(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens."""
        with self._tokenizer_lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
        return ids

    def _run(self, method: str, inputs: Any) -> FloatArray:
        moved = {
            name: tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        with self._lock, torch.inference_mode():
            out = getattr(self.network, method)(**moved)
            vectors = getattr(out, "pooler_output", out)
            return heads.normalise(vectors.float().cpu().numpy())


class ClipTextEmbedder(TextEmbedder):
    """A ClipEmbedder's text half as an embedder of texts, for models that are good at both.

    Args:
        clip: Does the work; its images and these texts share one model in memory.
    """

    def __init__(self, clip: ClipEmbedder) -> None:
        self.clip = clip
        self.model_name = clip.model_name
        self.heads: tuple[HeadName, ...] = ("dense",)
        self.cache = clip.cache

    @property
    def options(self) -> dict[str, Any]:
        """See `TextEmbedder.options`."""
        return self.clip.options

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.clip.dimension

    @property
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included."""
        return self.clip.max_length

    @property
    def document_length(self) -> int:
        """Most tokens of a document's own: `max_length` less special tokens and prefix."""
        return self.max_length - 2 - len(self.tokenise(self.clip.spec.document_prefix))

    @property
    def fingerprint(self) -> str:
        """The ClipEmbedder's."""
        return self.clip.fingerprint

    @property
    def revision(self) -> str:
        """The ClipEmbedder's."""
        return self.clip.revision

    @property
    def parts(self) -> tuple[BGE_M3_Embedder, ...]:
        """None: its one model is the ClipEmbedder's."""
        return ()

    def tokenise(self, text: str) -> list[int]:
        """All token ids of a text; see `TextEmbedder.tokenise`. Loads the model."""
        return self.clip.tokenise(text)

    def stats(self) -> EmbedderStats:
        """The ClipEmbedder's counters of texts; tokens are not counted there."""
        stats = self.clip.stats()
        return EmbedderStats(
            texts=stats.texts,
            tokenised=0,
            truncated=stats.truncated,
            tokens=0,
            batches=stats.forwards,
            forwards=stats.forwards,
            cache=stats.cache,
        )

    def close(self) -> None:
        """Close the ClipEmbedder."""
        self.clip.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its ClipEmbedder."""
        return ClipTextEmbedder, (self.clip,)

    def _encode(
        self,
        texts: list[str],
        role: Role,
        wanted: tuple[HeadName, ...],  # noqa: ARG002 — it can only be dense
        show_progress: bool,  # noqa: ARG002 — TextEmbedder's; texts of this length are quick
    ) -> Embeddings:
        prefix = self.clip.spec.prefix(role)
        return Embeddings(dense=self.clip.encode_texts([prefix + text for text in texts]))
