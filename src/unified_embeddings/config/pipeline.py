"""One object that holds a pipeline's choices and makes its parts from them.

What lives here: UnifiedEmbeddingConfig, and the only place that reads environment variables
(`from_env`). What does not: the parts themselves.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.environment import _PREFIX, _VARIABLES, _quantization, _read
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import CLIP, image_spec_for, spec_for
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.hardware import threads_that_sleep
from unified_embeddings.validation import require_whole_number

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.embedders.clip import ClipEmbedder
    from unified_embeddings.llama.text import UnifiedSparseEmbedding
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
    from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever
    from unified_embeddings.system.memory import MemoryReport

Part = TypeVar("Part")

_OPENAI_CLIPS = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14",
    "ViT-L/14@336px",
)  # fmt: skip
"""What OpenAI's own package `clip` calls its models; LlamaIndex's ClipEmbedding takes these."""


class UnifiedEmbeddingConfig:
    """The choices of one pipeline; every part made from it shares one model in memory.

    Making one loads nothing and its choices cannot be changed afterwards.

    Args:
        model_choice: "bge-m3", "arctic", "bge-large-splade", ... (`models.MODELS` has them all), a
            hub id or folder in BGE-M3's layout, a TOML file with a spec, or a ModelSpec.
        image_model: "openai/clip-vit-base-patch32", any CLIP or SigLIP by hub id, folder or spec;
            a name of OpenAI's own ("ViT-B/32") takes LlamaIndex's ClipEmbedding, which needs
            their package; None for no images. With "jina-clip" as model_choice, that model
            embeds the images too.
        sparse_model: A choice that gives the sparse vectors in the text model's stead, for hybrid
            search with a dense-only model.
        allow_urls, max_pixels: As in ClipEmbedder: whether images may be given as http(s)
            addresses, and how large they may be.
        engine, precision, device, max_length, batch_tokens, cache, revision, local_files_only,
            trust_remote_code: As in BGE_M3_Embedder; precision, device, cache, local_files_only
            and trust_remote_code hold for the image model as well.

    Attributes:
        model_choice: As given, or the spec's short name.

    Raises:
        InputError: If an option is out of range, or a choice does not give what it is taken for.
    """

    model_choice: str

    def __init__(
        self,
        model_choice: str | os.PathLike[str] | ModelSpec = "bge-m3",
        image_model: str | os.PathLike[str] | ModelSpec | None = CLIP,
        *,
        sparse_model: str | os.PathLike[str] | ModelSpec | None = None,
        allow_urls: bool = False,
        max_pixels: int = 64_000_000,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        max_length: int = 8192,
        batch_tokens: int = 4096,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        options = {
            "image_model": image_model,
            "sparse_model": sparse_model,
            "allow_urls": allow_urls,
            "max_pixels": max_pixels,
            "engine": engine,
            "precision": precision,
            "device": device,
            "max_length": max_length,
            "batch_tokens": batch_tokens,
            "cache": cache,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        if model_choice in _OPENAI_CLIPS:
            raise InputError(f"{model_choice!r} is a model of images: give it as image_model")
        spec = spec_for(model_choice)
        if spec.images and sparse_model is not None:
            raise InputError(f"{spec.choice!r} takes no sparse_model beside it")
        if spec.images and engine != "auto":
            raise InputError(f"{spec.choice!r} runs on one engine; leave engine={engine!r} out")
        require_whole_number("max_length", max_length)
        require_whole_number("batch_tokens", batch_tokens)
        if image_model is not None and image_model not in _OPENAI_CLIPS:
            image_spec_for(image_model)
        shared: dict[str, Any] = {
            "precision": precision,
            "device": device,
            "cache": EmbeddingCache() if cache == "auto" else cache,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        own = isinstance(model_choice, ModelSpec)
        self.__dict__.update(
            model_choice=spec.choice if own else os.fspath(cast("str", model_choice)),
            _choice=model_choice,
            _options=options,
            _shared=shared,
            _spec=spec,
            _lock=threading.RLock(),
            _parts={},
        )
        if not spec.images:
            self.__dict__["_parts"]["embedder"] = make_embedder(
                model_choice,
                sparse_model=sparse_model,
                engine=engine,
                max_length=max_length,
                batch_tokens=batch_tokens,
                revision=revision,
                **shared,
            )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a config cannot be changed; make a new one with another {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a config cannot be changed; {name} stays")

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> UnifiedEmbeddingConfig:
        """Read the options from environment variables; what is not set keeps its default.

        UNIFIED_EMBEDDINGS_MODEL, _IMAGE_MODEL, _SPARSE_MODEL, _ENGINE, _PRECISION, _DEVICE,
        _MAX_LENGTH (tokens), _BATCH_TOKENS, _REVISION, _LOCAL_FILES_ONLY, _TRUST_REMOTE_CODE,
        _ALLOW_URLS (each 1/0, true/false, yes/no), _CACHE_BYTES (0 keeps nothing), _CACHE_PATH (a
        file for the disk tier). _IMAGE_MODEL=none leaves images out. QUANTIZATION=fp32, fp16 or
        int8 is the precision where _PRECISION is not set. int8 is for texts: images then take
        what the hardware suggests.

        Args:
            environ: Read this instead of `os.environ`.
            **overrides: Options that win over the environment; None counts as not given.

        Raises:
            InputError: If a variable does not read as its option's type; it is named.
        """
        environ = os.environ if environ is None else environ
        options: dict[str, Any] = {
            option: _read(environ, variable, reader)
            for variable, (option, reader) in _VARIABLES.items()
            if environ.get(_PREFIX + variable, "").strip()
        }
        if quantization := environ.get("QUANTIZATION", "").strip():
            options.setdefault("precision", _quantization(quantization))
        options.update((name, value) for name, value in overrides.items() if value is not None)
        bounds = {"max_bytes": options.pop("cache_bytes", None), "path": options.pop("path", None)}
        bounds = {name: value for name, value in bounds.items() if value is not None}
        if bounds and "cache" not in options:
            options["cache"] = EmbeddingCache(**bounds)
        return cls(**options)

    @property
    def embedder(self) -> TextEmbedder:
        """The one embedder of texts; loads with its first text."""
        return self._part("embedder", self._make_clip_text)

    @property
    def clip(self) -> ClipEmbedder:
        """The one embedder of images; loads with its first image.

        Raises:
            InputError: If the config has none: image_model is None, or a name of OpenAI's own,
                which LlamaIndex's ClipEmbedding runs.
        """
        return self._part("clip", self._make_clip)

    @property
    def text_model(self) -> BaseEmbedding:
        """The embedder as LlamaIndex's text embedding model; one per config.

        A HuggingFaceEmbedding where the model gives dense vectors alone, the image model where that
        is good at texts too, a UnifiedTextEmbedding else.
        """
        return self._part("text_model", self._make_text_model)

    @property
    def sparse_model(self) -> UnifiedSparseEmbedding:
        """The embedder as LlamaIndex's sparse embedding model.

        Raises:
            InputError: With its first text, if the model gives no sparse vectors.
        """
        from unified_embeddings.llama.text import UnifiedSparseEmbedding

        return UnifiedSparseEmbedding(self.embedder)

    @property
    def image_model(self) -> MultiModalEmbedding:
        """The image model as LlamaIndex's multi-modal embedding model; one per config.

        Raises:
            InputError: If image_model is None.
            UnifiedEmbeddingsError: If it is a name of OpenAI's own and their package is missing.
        """
        return self._part("image_model", self._make_image_model)

    def configure_settings(self) -> None:
        """Make LlamaIndex's global `Settings` use this config's models.

        `Settings.embed_model` is the text model. `Settings.image_embed_model`, which LlamaIndex
        itself does not read, is the image model for our own multi-modal classes; left alone where
        the config has none.

        Raises:
            UnifiedEmbeddingsError: If image_model is a name of OpenAI's own and their package is
                missing.
        """
        from llama_index.core import Settings

        Settings.embed_model = self.text_model
        if self.__dict__["_options"]["image_model"] is not None or self.__dict__["_spec"].images:
            Settings.image_embed_model = self.image_model  # type: ignore[attr-defined]

    def memory(self) -> MemoryReport:
        """What the models loaded so far take in memory, measured, against the documents' budget."""
        from unified_embeddings.system.memory import MemoryReport, measure, process_bytes

        parts = self.__dict__["_parts"]
        loaded: list[Any] = [*parts["embedder"].models] if "embedder" in parts else []
        loaded += [parts["clip"]] if "clip" in parts else []
        models = []
        for part in loaded:
            if stretches := list(part.weights()):
                runtime = part.runtime
                runs_on = f"{runtime.engine}, {runtime.precision}, {runtime.device}"
                models.append(measure(part.model_name, runs_on, stretches))
        return MemoryReport(tuple(models), process_bytes())

    def vector_store(
        self,
        collection: str,
        *,
        url: str | None = None,
        path: str | os.PathLike[str] | None = None,
        client: Any = None,
        aclient: Any = None,
        api_key: str | None = None,
        **collection_options: Any,
    ) -> QdrantVectorStore:
        """A QdrantVectorStore for this config's vectors; see `llama.vector_store`.

        Raises:
            InputError: If not exactly one of url, path and client is given.
            FingerprintMismatchError: If the collection holds another model's vectors.
            StoreError: If Qdrant cannot be reached or refuses.
        """
        from unified_embeddings.llama.vector_store import build_vector_store

        return build_vector_store(
            self.embedder,
            collection,
            url=url,
            path=path,
            client=client,
            aclient=aclient,
            api_key=api_key,
            **collection_options,
        )

    def image_store(self, collection: str, **options: Any) -> QdrantVectorStore:
        """A QdrantVectorStore for this config's vectors of images; options as `vector_store`.

        Take another collection than the texts': an image with a caption stands in both under one
        id.

        Raises:
            As `vector_store` and `clip`.
        """
        from unified_embeddings.embedders.clip_text import ClipTextEmbedder
        from unified_embeddings.llama.vector_store import build_vector_store

        return build_vector_store(ClipTextEmbedder(self.clip), collection, **options)

    def retriever(self, vector_store: QdrantVectorStore, **options: Any) -> UnifiedHybridRetriever:
        """A UnifiedHybridRetriever over the store; the options and errors are its own.

        Where the model gives no sparse vectors, `mode` is "dense" unless given.
        """
        from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

        if "sparse" not in self.embedder.heads:
            options.setdefault("mode", "dense")
        return UnifiedHybridRetriever(vector_store, self.embedder, **options)

    def multimodal_retriever(
        self, vector_store: QdrantVectorStore, image_store: QdrantVectorStore, **options: Any
    ) -> UnifiedMultiModalRetriever:
        """A UnifiedMultiModalRetriever over both stores; the options and errors are its own."""
        from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever

        return UnifiedMultiModalRetriever(
            vector_store, image_store, self.embedder, self.clip, **options
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its choices: a copy loads the model anew with its first text."""
        return partial(type(self), self.__dict__["_choice"], **self.__dict__["_options"]), ()

    # --- making the parts, each once ------------------------------------------------------------

    def _part(self, name: str, make: Callable[[], Part]) -> Part:
        with self.__dict__["_lock"]:
            parts: dict[str, Any] = self.__dict__["_parts"]
            if name not in parts:
                parts[name] = make()
            return cast("Part", parts[name])

    def _make_clip_text(self) -> TextEmbedder:
        from unified_embeddings.embedders.clip_text import ClipTextEmbedder

        return ClipTextEmbedder(self.clip)

    def _make_clip(self) -> ClipEmbedder:
        with threads_that_sleep():
            from unified_embeddings.embedders.clip import ClipEmbedder

        options = self.__dict__["_options"]
        limits = {name: options[name] for name in ("allow_urls", "max_pixels")}
        shared = {**limits, **self.__dict__["_shared"]}
        if shared["precision"] == "int8":  # which is for texts
            shared["precision"] = "auto"
        if self.__dict__["_spec"].images:
            return ClipEmbedder(self.__dict__["_choice"], revision=options["revision"], **shared)
        image_model = options["image_model"]
        if image_model is None:
            raise InputError("this config has image_model=None; name one to embed images")
        if image_model in _OPENAI_CLIPS:
            raise InputError(
                f"{image_model!r} is run by LlamaIndex's ClipEmbedding (config.image_model) alone; "
                f"for everything else name it as on the hub: image_model={CLIP!r}"
            )
        return ClipEmbedder(image_model, **shared)

    def _make_text_model(self) -> BaseEmbedding:
        from unified_embeddings.embedders.single_model import ModelEmbedder

        if self.__dict__["_spec"].images:
            return self.image_model
        embedder = self.embedder
        if isinstance(embedder, ModelEmbedder) and embedder.heads == ("dense",):
            from unified_embeddings.llama.huggingface import UnifiedHuggingFaceEmbedding

            return UnifiedHuggingFaceEmbedding(embedder)
        from unified_embeddings.llama.text import UnifiedTextEmbedding

        return UnifiedTextEmbedding(embedder)

    def _make_image_model(self) -> MultiModalEmbedding:
        image_model = self.__dict__["_options"]["image_model"]
        if image_model in _OPENAI_CLIPS and not self.__dict__["_spec"].images:
            return _openai_clip(image_model)
        from unified_embeddings.llama.images import UnifiedImageEmbedding

        return UnifiedImageEmbedding(self.clip)

    def __repr__(self) -> str:
        beside = self.__dict__["_options"]["sparse_model"]
        more = (
            ""
            if beside is None
            else f", sparse_model={os.fspath(getattr(beside, 'choice', beside))!r}"
        )
        return f"UnifiedEmbeddingConfig({self.model_choice!r}{more})"


def _openai_clip(name: str) -> MultiModalEmbedding:
    """LlamaIndex's own ClipEmbedding, which runs OpenAI's package."""
    if importlib.util.find_spec("clip") is None:
        raise UnifiedEmbeddingsError(
            f"Image model {name!r} is a name of OpenAI's package clip, which is not installed (pip "
            "install git+https://github.com/openai/CLIP.git). The same kind of model from the hub "
            f"needs no package: image_model={CLIP!r}"
        )
    from llama_index.embeddings.clip import ClipEmbedding

    return ClipEmbedding(model_name=name)
