"""One model that is found and loaded on first use: what embedders of texts and of images share.

What lives here: a model's spec, files, options, counters, closing and pickling. What does not: how
a model is run.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.calls import CURRENT_CALL
from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.naming import model_name
from unified_embeddings.models.resolve import require_consent, resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import Options

if TYPE_CHECKING:
    from typing_extensions import Self


Embedder = TypeVar("Embedder")
_LOG = logging.getLogger(__name__)


class LocalModel(Protocol):
    """One model in this process's memory, whatever it embeds."""

    model_name: str

    @property
    def runtime(self) -> Runtime:
        """Return the engine, device and precision that it runs on."""
        ...

    @property
    def revision(self) -> str:
        """Return the commit of its files, or their digest."""
        ...

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each region of weights; none before it is loaded."""
        ...

    def close(self) -> None:
        """Release its memory."""
        ...


class Closeable(ABC):
    """Something that holds a model and is a context manager, which closes it."""

    _closed = False

    @abstractmethod
    def close(self) -> None:
        """Release the model's memory. The cache stays. Calls that need the model then fail."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise UnifiedEmbeddingsError("This embedder is closed; make a new one")


class Counters:
    """Named counters that several threads add to."""

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, **amounts: int) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] += amount
        call = CURRENT_CALL.get()
        if call is not None:
            call.tokens += amounts.get("tokens", 0)

    def snapshot(self) -> dict[str, int]:
        """Return all counters, read together."""
        with self._lock:
            return dict(self._counts)


class CutWarning:
    """A warning that texts are cut at a model's length, logged once however many are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_given = False

    def give(self, model_name: str, max_length: int) -> None:
        """Log the warning unless it was logged before."""
        with self._lock:
            if self._is_given:
                return
            self._is_given = True
        _LOG.warning(
            "%s takes %d tokens of a text; a longer one was cut, and its end is in no vector. "
            "Split texts first, for example with a UnifiedSentenceSplitter. Said once; "
            "stats().truncated counts them all.",
            model_name,
            max_length,
        )


class LazyModel(Closeable):
    """A model whose files are looked up, and whose weights are loaded, on first use.

    Args:
        model: What the caller named it by.
        spec: What is known of it.
        options: The keyword arguments it was made with, `cache` among them.

    Attributes:
        spec: What is known of it.
        model_name: The choice, hub id, folder or file it was made with.
        cache: Where its vectors are kept.

    Raises:
        InputError: If `cache` is not one.
    """

    spec: ModelSpec
    model_name: str
    cache: EmbeddingCache

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec,
        spec: ModelSpec,
        options: Options,
    ) -> None:
        self.spec = spec
        self._options = dict(options)
        self.cache = make_cache(options["cache"])
        if isinstance(model, ModelSpec):
            self.model_name = spec.choice
            self._options["spec"] = spec.to_dict()
        else:
            self.model_name = model_name(model)
        # Held while files are looked up and while weights are loaded, so that both happen once.
        self._load_lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._runtime: Runtime | None = None

    @property
    def options(self) -> Options:
        """Return the options but `model_name` and `cache`, as plain values that fit into JSON."""
        return {name: value for name, value in self._options.items() if name != "cache"}

    @property
    def checkpoint(self) -> Checkpoint:
        """Return the model's files, which are looked up at the first call.

        Raises:
            ModelLoadError: If they are not found, or the model needs consent that was not given.
        """
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
        """Return the engine, device and precision that it is, or will be, run on.

        Raises:
            InputError: If the hardware cannot do what the options ask for.
            MissingExtraError: If the engine's library is not installed.
        """
        with self._load_lock:
            if self._runtime is None:
                self._runtime = self._plan()
            return self._runtime

    @property
    def revision(self) -> str:
        """Return the commit of the model's files, or their digest."""
        return self.checkpoint.revision

    @abstractmethod
    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each region of weights; none before the model is loaded."""

    @abstractmethod
    def _plan(self) -> Runtime:
        """Decide what the model runs on, by the options and the hardware."""

    def close(self) -> None:
        """Release the model's memory. The cache stays. Calls that need the model then fail."""
        with self._load_lock:
            self._closed = True
            self._unload()

    @abstractmethod
    def _unload(self) -> None:
        """Drop what was loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the options: a copy loads the model again with its first input."""
        return make_again, (type(self), self.model_name, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"


def make_cache(cache: EmbeddingCache | Literal["auto"] | None) -> EmbeddingCache:
    """Return the cache that an option asks for.

    Args:
        cache: "auto" makes one of 256 MiB, None makes one that keeps nothing.

    Raises:
        InputError: If it is something else.
    """
    if cache is None:
        return EmbeddingCache(max_bytes=0)
    if isinstance(cache, EmbeddingCache):
        return cache
    if cache != "auto":
        raise InputError(
            f'cache must be an EmbeddingCache, None or "auto", not {type(cache).__name__}'
        )
    return EmbeddingCache()


def make_again(kind: Callable[..., Embedder], model_name: str, options: Options) -> Embedder:
    """Make an embedder from what its `model_name` and `options` say.

    Raises:
        InputError: If the options are not what the class takes.
    """
    arguments = dict(options)
    spec = arguments.pop("spec", None)
    model = model_name if spec is None else ModelSpec.from_dict(spec)
    return kind(model, **arguments)
