"""One object that holds a pipeline's choices and makes its parts from them.

What lives here: UnifiedEmbeddingConfig, and the only place that reads environment variables
(`from_env`). What does not: the parts themselves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from unified_embeddings.cache import EmbeddingCache
from unified_embeddings.embedder import BGE_M3_Embedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.llama.text import UnifiedSparseEmbedding, UnifiedTextEmbedding
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

_PREFIX = "UNIFIED_EMBEDDINGS_"


class UnifiedEmbeddingConfig:
    """The choices of one pipeline; every part made from it shares one model in memory.

    Making one loads nothing and its choices cannot be changed afterwards.

    Args:
        model_choice: "bge-m3", "mini-m3", a hub id or a folder in BGE-M3's layout.
        image_model: The CLIP model's name; this version does not serve images yet.
        engine, precision, device, max_length, batch_tokens, cache, revision, local_files_only: As
            in BGE_M3_Embedder.

    Attributes:
        model_choice: As given.
        embedder: The one embedder; loads with its first text.

    Raises:
        InputError: If an option is out of range.
        ModelLoadError: If the choice is one that this version does not serve.
    """

    model_choice: str
    embedder: BGE_M3_Embedder

    def __init__(
        self,
        model_choice: str | os.PathLike[str] = "bge-m3",
        image_model: str = "openai/clip-vit-base-patch32",
        *,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        max_length: int = 8192,
        batch_tokens: int = 4096,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        embedder = BGE_M3_Embedder(
            model_choice,
            engine=engine,
            precision=precision,
            device=device,
            max_length=max_length,
            batch_tokens=batch_tokens,
            cache=cache,
            revision=revision,
            local_files_only=local_files_only,
        )
        self.__dict__.update(
            model_choice=os.fspath(model_choice),
            embedder=embedder,
            _image_model=image_model,
            _options={"image_model": image_model, "cache": cache, **embedder.options},
            _lock=threading.Lock(),
            _text_model=None,
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

        UNIFIED_EMBEDDINGS_MODEL, _IMAGE_MODEL, _ENGINE, _PRECISION, _DEVICE, _MAX_LENGTH (tokens),
        _BATCH_TOKENS, _REVISION, _LOCAL_FILES_ONLY (1/0, true/false, yes/no), _CACHE_BYTES (0 keeps
        nothing), _CACHE_PATH (a file for the disk tier).

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
        options.update((name, value) for name, value in overrides.items() if value is not None)
        bounds = {"max_bytes": options.pop("cache_bytes", None), "path": options.pop("path", None)}
        bounds = {name: value for name, value in bounds.items() if value is not None}
        if bounds and "cache" not in options:
            options["cache"] = EmbeddingCache(**bounds)
        return cls(**options)

    @property
    def text_model(self) -> UnifiedTextEmbedding:
        """The embedder as LlamaIndex's text embedding model; one per config."""
        from unified_embeddings.llama.text import UnifiedTextEmbedding

        with self.__dict__["_lock"]:
            if self.__dict__["_text_model"] is None:
                self.__dict__["_text_model"] = UnifiedTextEmbedding(self.embedder)
            model: UnifiedTextEmbedding = self.__dict__["_text_model"]
            return model

    @property
    def sparse_model(self) -> UnifiedSparseEmbedding:
        """The embedder as LlamaIndex's sparse embedding model."""
        from unified_embeddings.llama.text import UnifiedSparseEmbedding

        return UnifiedSparseEmbedding(self.embedder)

    @property
    def image_model(self) -> NoReturn:
        """The image model; not in this version.

        Raises:
            UnifiedEmbeddingsError: Always.
        """
        raise UnifiedEmbeddingsError(
            f"Image model {self.__dict__['_image_model']!r}: this version embeds text only. Images "
            "are planned for the next one; until then leave image_model unused"
        )

    def configure_settings(self) -> None:
        """Make LlamaIndex's global `Settings` use this config's text model.

        `Settings.image_embed_model` is left alone, since this version serves no images.
        """
        from llama_index.core import Settings

        Settings.embed_model = self.text_model

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

    def retriever(self, vector_store: QdrantVectorStore, **options: Any) -> UnifiedHybridRetriever:
        """A UnifiedHybridRetriever over the store; the options and errors are its own."""
        from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

        return UnifiedHybridRetriever(vector_store, self.embedder, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its choices: a copy loads the model anew with its first text."""
        return partial(type(self), self.model_choice, **self.__dict__["_options"]), ()

    def __repr__(self) -> str:
        return f"UnifiedEmbeddingConfig({self.model_choice!r})"


def _flag(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in known:
        raise ValueError("expected 1, 0, true, false, yes or no")
    return known[text.lower()]


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MODEL": ("model_choice", str),
    "IMAGE_MODEL": ("image_model", str),
    "ENGINE": ("engine", str),
    "PRECISION": ("precision", str),
    "DEVICE": ("device", str),
    "MAX_LENGTH": ("max_length", int),
    "BATCH_TOKENS": ("batch_tokens", int),
    "REVISION": ("revision", str),
    "LOCAL_FILES_ONLY": ("local_files_only", _flag),
    "CACHE_BYTES": ("cache_bytes", int),
    "CACHE_PATH": ("path", str),
}


def _read(environ: Mapping[str, str], variable: str, reader: Callable[[str], Any]) -> Any:
    text = environ[_PREFIX + variable].strip()
    try:
        return reader(text)
    except ValueError as error:
        raise InputError(f"{_PREFIX}{variable}={text!r} is not usable: {error}") from None
