"""One object that holds a pipeline's choices and makes its parts from them.

What lives here: UnifiedEmbeddingConfig. What does not: checking the choices (`options`), reading
them from the environment (`environment`), the parts themselves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.config.environment import read_options
from unified_embeddings.config.options import ModelChoice, PipelineOptions
from unified_embeddings.config.parts import (
    make_clip,
    make_image_model,
    make_openai_clip,
    make_text_model,
)
from unified_embeddings.config.text_embedder import make_text_embedder
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.lazy import LocalModel, make_cache
from unified_embeddings.embedders.remote_options import RUNPOD_URL
from unified_embeddings.errors import hide_passwords
from unified_embeddings.llama.stock_arguments import (
    MULTI_MODAL_DEFAULTS,
    RETRIEVER_ADVICE,
    RETRIEVER_DEFAULTS,
    STORE_ADVICE,
    STORE_DEFAULTS,
    MultiModalOptions,
    PlacedStoreOptions,
    RetrieverOptions,
    refuse_unknown,
)
from unified_embeddings.models.catalogue import CLIP
from unified_embeddings.models.spec import ModelSpec

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from typing_extensions import Unpack

    from unified_embeddings.embedders.clip import ClipEmbedder
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.llama.text import UnifiedSparseEmbedding
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
    from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever
    from unified_embeddings.system.memory import MemoryReport


class UnifiedEmbeddingConfig:
    """The choices of one pipeline; every part made from it shares one model in memory.

    Making one loads nothing. Its choices cannot be changed afterwards.

    Args:
        model_choice: "bge-m3" (the default), "arctic", "bge-large-splade", ...
            (`models.catalogue.MODELS` lists all), a hub id or folder in BGE-M3's layout, a TOML
            file with a spec, or a ModelSpec. With `url` the default is what the service has, and
            another choice is compared with that.
        image_model: "openai/clip-vit-base-patch32", any CLIP or SigLIP by hub id, folder or spec;
            "mini-clip" needs no download, and knows drawn shapes only;
            a name of OpenAI's own ("ViT-B/32") takes LlamaIndex's ClipEmbedding, which needs
            their package; None for no images. With "jina-clip" as model_choice, that model
            embeds the images too.
        sparse_model: A choice that gives the sparse vectors in the text model's stead, for hybrid
            search with a dense-only model; "bm25" ("bm25:german", ...) counts words.
        keywords: "bm25" ("bm25:german", ...) gives new collections a keyword list, a third one
            beside the model's own dense and sparse vectors. A collection keeps its list: a store
            or a retriever opened without `keywords` searches it and writes to it too.
        allow_urls: Whether images may be given as http(s) addresses; see ClipEmbedder.
        max_pixels: The most pixels of an image; see ClipEmbedder.
        engine: The text model's engine; see BGE_M3_Embedder.
        precision: Of both models; see BGE_M3_Embedder. int8 is for texts only.
        device: Of both models; see BGE_M3_Embedder.
        max_length: The most tokens of a text; see BGE_M3_Embedder.
        batch_tokens: The most tokens of a forward pass; see BGE_M3_Embedder.
        cache: Shared by both models; see BGE_M3_Embedder.
        revision: The text model's branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: See BGE_M3_Embedder.
        url: The address of a service (`unified-embeddings serve`) that has the text model; there is
            none in this process then. Options of a local text model are refused. Images stay here.
        api_key: The service's key; see RemoteEmbedder.
        query_backend: "runpod" embeds queries by an endpoint of RunPod, and documents as the other
            options say; "local" embeds both alike.
        runpod_api_key: RunPod's key.
        runpod_query_endpoint_id: The endpoint's id.
        runpod_url: The address of RunPod's API.

    Raises:
        InputError: If an option is out of range, or a choice does not give what it is taken for.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> config = UnifiedEmbeddingConfig("mini-m3")    # "bge-m3" is the default
        >>> config.embedder.dimension
        384
        >>> store = config.vector_store("notes", client=QdrantClient(":memory:"))
        >>> retriever = config.retriever(store, similarity_top_k=5)
        >>> retriever.retrieve("Is there anything yet?")
        []
    """

    def __init__(
        self,
        model_choice: ModelChoice | None = None,
        image_model: ModelChoice | None = CLIP,
        *,
        sparse_model: ModelChoice | None = None,
        keywords: str | None = None,
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
        url: str | None = None,
        api_key: str | None = None,
        query_backend: str = "local",
        runpod_api_key: str | None = None,
        runpod_query_endpoint_id: str | None = None,
        runpod_url: str = RUNPOD_URL,
    ) -> None:
        self._options = PipelineOptions(
            model_choice=model_choice,
            image_model=image_model,
            sparse_model=sparse_model,
            keywords=keywords,
            allow_urls=allow_urls,
            max_pixels=max_pixels,
            engine=engine,
            precision=precision,
            device=device,
            max_length=max_length,
            batch_tokens=batch_tokens,
            cache=cache,
            revision=revision,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            url=url,
            api_key=api_key,
            query_backend=query_backend,
            runpod_api_key=runpod_api_key,
            runpod_query_endpoint_id=runpod_query_endpoint_id,
            runpod_url=runpod_url,
        )
        self._prepare()

    def _prepare(self) -> None:
        self._cache = make_cache(self._options.cache)
        # Each part is made once, under the lock, however many threads ask for it.
        self._lock = threading.RLock()
        self._embedder: TextEmbedder | None = None
        self._clip: ClipEmbedder | None = None
        self._text_model: BaseEmbedding | None = None
        self._image_model: MultiModalEmbedding | None = None
        if not self._options.takes_images:
            # At once, so that an option that does not fit is refused here.
            self._embedder = make_text_embedder(self._options, self._cache)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise AttributeError(f"a config cannot be changed; make a new one with another {name}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a config cannot be changed; {name} stays")

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, **overrides: Any
    ) -> UnifiedEmbeddingConfig:
        """Read the options from environment variables; what is not set keeps its default.

        UNIFIED_EMBEDDINGS_MODEL, _IMAGE_MODEL, _SPARSE_MODEL, _KEYWORDS, _ENGINE, _PRECISION,
        _DEVICE, _MAX_LENGTH (tokens), _BATCH_TOKENS, _REVISION, _LOCAL_FILES_ONLY,
        _TRUST_REMOTE_CODE, _ALLOW_URLS (each 1/0, true/false, yes/no), _CACHE_BYTES (0 keeps
        nothing), _CACHE_PATH (a file for the disk tier). _IMAGE_MODEL=none leaves images out.
        QUANTIZATION=fp32, fp16 or int8 is the precision where _PRECISION is not set. int8 is for
        texts: images then take what the hardware suggests.

        UNIFIED_EMBEDDINGS_URL is the service that has the text model, UNIFIED_EMBEDDINGS_API_KEY
        its key. BACKEND_EMBED_QUERY=runpod embeds queries by the endpoint
        RUNPOD_QUERY_ENDPOINT_ID with RUNPOD_API_KEY, at RUNPOD_ENDPOINT_BASE_URL if that is set.

        Args:
            environ: Read this instead of `os.environ`.
            **overrides: Options that win over the environment; None counts as not given.

        Raises:
            InputError: If a variable does not read as its option's type; it is named.
        """
        return cls(**read_options(os.environ if environ is None else environ, overrides))

    # --- the parts ------------------------------------------------------------------------------

    @property
    def model_choice(self) -> str:
        """Return the choice as it was given, or the spec's short name; else what a service has."""
        if self._options.url is not None and self._options.model_choice is None:
            return self.embedder.model_name
        return self._options.choice_name

    @property
    def url(self) -> str | None:
        """Return the address of the service that has the text model, if there is one."""
        return self._options.url

    @property
    def embedder(self) -> TextEmbedder:
        """Return the one embedder of texts; it loads with its first text."""
        with self._lock:
            if self._embedder is None:
                from unified_embeddings.embedders.clip_text import ClipTextEmbedder

                self._embedder = ClipTextEmbedder(self.clip)
            return self._embedder

    @property
    def clip(self) -> ClipEmbedder:
        """Return the one embedder of images; it loads with its first image.

        Raises:
            InputError: If the config has none: image_model is None, or a name of OpenAI's own,
                which LlamaIndex's ClipEmbedding runs.
        """
        with self._lock:
            if self._clip is None:
                self._clip = make_clip(self._options, self._cache)
            return self._clip

    @property
    def text_model(self) -> BaseEmbedding:
        """Return the embedder as LlamaIndex's text embedding model; one per config.

        A HuggingFaceEmbedding where the model gives dense vectors alone, the image model where that
        is good at texts too, otherwise a UnifiedTextEmbedding.
        """
        with self._lock:
            if self._text_model is None:
                if self._options.takes_images:
                    self._text_model = self.image_model
                else:
                    self._text_model = make_text_model(self.embedder)
            return self._text_model

    @property
    def sparse_model(self) -> UnifiedSparseEmbedding:
        """Return the embedder as LlamaIndex's sparse embedding model.

        Raises:
            InputError: With its first text, if the model gives no sparse vectors.
        """
        from unified_embeddings.llama.text import UnifiedSparseEmbedding

        return UnifiedSparseEmbedding(self.embedder)

    @property
    def image_model(self) -> MultiModalEmbedding:
        """Return the image model as LlamaIndex's multi-modal embedding model; one per config.

        Raises:
            InputError: If image_model is None.
            UnifiedEmbeddingsError: If it is a name of OpenAI's own and their package is missing.
        """
        with self._lock:
            if self._image_model is None:
                if self._options.is_openai_clip and not self._options.takes_images:
                    self._image_model = make_openai_clip(str(self._options.image_model))
                else:
                    self._image_model = make_image_model(self.clip)
            return self._image_model

    def configure_settings(self, *, node_parser: bool = True) -> None:
        """Make LlamaIndex's global `Settings` use this config's models.

        `Settings.embed_model` is the text model. `Settings.image_embed_model`, which LlamaIndex
        itself does not read, is the image model for our own multi-modal classes; left alone where
        the config has none. `Settings.node_parser` splits documents into chunks of at most 512 of
        the model's own tokens, or what the model takes if that is less: LlamaIndex's default of
        1,024 tokens of another model would be cut by models that take fewer.

        Args:
            node_parser: Whether `Settings.node_parser`, with `chunk_size` and `chunk_overlap`, is
                set. False leaves it as it is.

        Raises:
            UnifiedEmbeddingsError: If image_model is a name of OpenAI's own and their package is
                missing.
        """
        from llama_index.core import Settings

        from unified_embeddings.llama.splitter import set_node_parser

        Settings.embed_model = self.text_model
        if node_parser:
            set_node_parser(self.embedder)
        if self._options.image_model is not None or self._options.takes_images:
            Settings.image_embed_model = self.image_model  # type: ignore[attr-defined]

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return the models that were asked for so far, of texts and of images."""
        models: list[LocalModel] = []
        if self._embedder is not None:
            models += self._embedder.models
        if self._clip is not None and self._clip not in models:
            models.append(self._clip)
        return tuple(models)

    def memory(self) -> MemoryReport:
        """Measure what the models loaded so far take in memory, against the planned budget."""
        from unified_embeddings.embedders.footprint import measure_models
        from unified_embeddings.system.memory import MemoryReport, process_bytes

        return MemoryReport(measure_models(self.models), process_bytes())

    # --- stores and retrievers ------------------------------------------------------------------

    @refuse_unknown(STORE_ADVICE, PlacedStoreOptions, STORE_DEFAULTS)
    def vector_store(
        self, collection: str, **options: Unpack[PlacedStoreOptions]
    ) -> FingerprintedStore:
        """Open a QdrantVectorStore for this config's vectors.

        Args:
            collection: The collection's name; it is created if it does not exist.
            **options: Exactly one of url, path and client, and more; see `llama.vector_store`.

        Raises:
            InputError: If not exactly one of url, path and client is given, or an option does not
                exist; the message says what replaces an option of LlamaIndex's own store.
            FingerprintMismatchError: If the collection holds another model's vectors.
            StoreError: If Qdrant cannot be reached or refuses, or the collection does not record
                its model and `adopt` is not given.
        """
        from unified_embeddings.llama.vector_store import build_vector_store

        if options.get("keywords") is None:
            options["keywords"] = self._options.keywords
        return build_vector_store(self.embedder, collection, **options)

    @refuse_unknown(STORE_ADVICE, PlacedStoreOptions, STORE_DEFAULTS)
    def image_store(
        self, collection: str, **options: Unpack[PlacedStoreOptions]
    ) -> FingerprintedStore:
        """Open a QdrantVectorStore for this config's vectors of images.

        Take another collection than the texts': an image with a caption is in both under one id.

        Args:
            collection: The collection's name.
            **options: Those of `vector_store`.

        Raises:
            InputError, FingerprintMismatchError, StoreError: Like `vector_store` and `clip`.
        """
        from unified_embeddings.embedders.clip_text import ClipTextEmbedder
        from unified_embeddings.llama.vector_store import build_vector_store

        return build_vector_store(ClipTextEmbedder(self.clip), collection, **options)

    @refuse_unknown(RETRIEVER_ADVICE, RetrieverOptions, RETRIEVER_DEFAULTS)
    def retriever(
        self, vector_store: QdrantVectorStore, **options: Unpack[RetrieverOptions]
    ) -> UnifiedHybridRetriever:
        """Make a UnifiedHybridRetriever over the store; the options and errors are its own.

        Without a `mode` it is "hybrid", or "dense" where the model gives no sparse vectors.
        """
        from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

        if options.get("mode") is None:
            options["mode"] = "hybrid" if "sparse" in self.embedder.heads else "dense"
        return UnifiedHybridRetriever(
            vector_store,
            self.embedder,
            **options,  # type: ignore[arg-type]  # the mode is no longer None
        )

    @refuse_unknown(RETRIEVER_ADVICE, MultiModalOptions, MULTI_MODAL_DEFAULTS)
    def multimodal_retriever(
        self,
        vector_store: QdrantVectorStore,
        image_store: QdrantVectorStore,
        **options: Unpack[MultiModalOptions],
    ) -> UnifiedMultiModalRetriever:
        """Make a UnifiedMultiModalRetriever over both stores; options and errors are its own."""
        from unified_embeddings.retrievers.multimodal import UnifiedMultiModalRetriever

        return UnifiedMultiModalRetriever(
            vector_store, image_store, self.embedder, self.clip, **options
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the choices: a copy loads the model again with its first text."""
        choices = {
            field.name: getattr(self._options, field.name) for field in fields(PipelineOptions)
        }
        return partial(type(self), **choices), ()

    def __repr__(self) -> str:
        second = self._options.sparse_model
        if self._options.url is not None:
            return f"UnifiedEmbeddingConfig(url={hide_passwords(self._options.url)!r})"
        if second is None:
            return f"UnifiedEmbeddingConfig({self.model_choice!r})"
        name = second.choice if isinstance(second, ModelSpec) else os.fspath(second)
        return f"UnifiedEmbeddingConfig({self.model_choice!r}, sparse_model={name!r})"
