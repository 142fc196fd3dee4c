"""What is compared: a model and a way to search with it, a live collection, or a finished run.

What lives here: the three kinds of system, and the notation in which a command names them. What
does not: running them (`cli.evaluated_systems`).

    mini-m3                              a model, searched as it is by default
    mini-m3:hybrid+colbert               the mode, and reranking
    mini-m3:hybrid,k=60,weights=1/0.3    the fusion: by reciprocal rank
    mini-m3,fusion=dbsf,weights=0.6/0.4  the fusion: by score; min_max and z are other ways
    path=qdrant_data,collection=docs,model=mini-m3,mode=dense
    url=http://localhost:6333,collection=docs,model=bge-m3
    run=bm25.run                         a TREC run
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, cast, get_args

from unified_embeddings.errors import InputError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.validation import require_list_weights, require_whole_number

Mode = Literal["hybrid", "dense", "sparse"]
FusionName = Literal["dbsf", "min_max", "z", "model"]
"""By score, or as the model fuses whatever was chosen for the collection."""
_FUSION_NAMES: tuple[str, ...] = get_args(FusionName)
_MODES: tuple[str, ...] = get_args(Mode)
_RERANK = "colbert"
_WAY = re.compile(r"(?P<mode>\w*)(?P<rerank>\+\w*)?")
"""What may follow a model's name after a colon."""
_SEARCH_KEYS = ("k", "weights", "candidates", "fusion")
_MODEL_KEYS = ("name", "sparse", *_SEARCH_KEYS)
_COLLECTION_KEYS = (
    *("name", "path", "url", "collection", "model", "sparse", "mode", "rerank", "field", "adopt"),
    *_SEARCH_KEYS,
)
_RUN_KEYS = ("name", "run")
_EXAMPLES = "a model such as mini-m3:hybrid, path=FOLDER,collection=NAME,model=MODEL, or run=FILE"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Search:
    """How a system searches; what is None is left to the model.

    Attributes:
        mode: By which vectors.
        rerank: Whether the candidates are reranked with ColBERT vectors.
        k: RRF's damping.
        weights: Weights of the dense and the sparse ranking, and of a keyword list.
        candidates: Depth of each ranking that is fused, or reranked.
        fusion: "dbsf", "min_max" and "z" fuse by score, with the weights 1 and 1 unless given.
            "model" takes the model's own fusion, whatever was chosen for a collection.
    """

    mode: Mode | None = None
    rerank: bool = False
    k: int | None = None
    weights: tuple[float, ...] | None = None
    candidates: int | None = None
    fusion: FusionName | None = None

    def options(self) -> dict[str, object]:
        """Return those of UnifiedHybridRetriever's options that are not left to the model."""
        options: dict[str, object] = {
            "mode": self.mode,
            "rerank": _RERANK if self.rerank else None,
            "rrf_k": self.k,
            "weights": self.weights,
            "candidates": self.candidates,
            "fusion": self.fusion,
        }
        if self.fusion is not None and self.fusion != "model":
            options["fusion"] = Fusion(
                weights=self.weights or (1.0, 1.0),
                source="given by the caller",
                method=self.fusion,
            )
            options["weights"] = None
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class ModelSystem:
    """A model that embeds the judged documents on the spot.

    Attributes:
        name: What the reports call it.
        model: A choice, hub id, folder or TOML file.
        sparse_model: Second model, for sparse vectors.
        search: How it searches.
    """

    name: str
    model: str
    sparse_model: str | None = None
    search: Search = field(default_factory=Search)


@dataclass(frozen=True)
class CollectionSystem:
    """A collection that exists, as its users search it.

    Attributes:
        name: What the reports call it.
        collection: The collection's name.
        path: Folder of the embedded store; None with `url`.
        url: Address of a Qdrant server; None with `path`.
        model: The model that made it; None takes the environment's, or the default.
        sparse_model: Second model, for sparse vectors.
        search: How it is searched.
        document_field: Field of the payload that names the judged document; None finds it.
        adopt: "trust" accepts a collection that does not record its model.
    """

    name: str
    collection: str
    path: Path | None = None
    url: str | None = None
    model: str | None = None
    sparse_model: str | None = None
    search: Search = field(default_factory=Search)
    document_field: str | None = None
    adopt: Literal["trust"] | None = None


@dataclass(frozen=True)
class RunSystem:
    """A run that another program made.

    Attributes:
        name: What the reports call it.
        file: A TREC run.
    """

    name: str
    file: Path


System: TypeAlias = ModelSystem | CollectionSystem | RunSystem


def parse_systems(texts: Iterable[str]) -> list[System]:
    """Return the systems that a command names, in the same order.

    Raises:
        InputError: If one cannot be read, there is none, or two have the same name.
    """
    systems = [parse_system(text) for text in texts]
    if not systems:
        raise InputError(f"name at least one system: {_EXAMPLES}")
    counts = Counter(system.name for system in systems)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise InputError(
            f"two systems are called {repeated[0]!r}; leave one out, or give it another name with "
            "',name=...'"
        )
    return systems


def parse_system(text: str) -> System:
    """Return the system that a text names; see this module for the notation.

    Raises:
        InputError: If it cannot be read. The message says what was expected.

    Example:
        >>> from unified_embeddings.evaluation.systems import parse_system
        >>> system = parse_system("mini-m3:hybrid+colbert,weights=1/0.3")
        >>> system.model, system.search.mode, system.search.rerank, system.search.weights
        ('mini-m3', 'hybrid', True, (1.0, 0.3))
    """
    first, *rest = [part.strip() for part in text.split(",")]
    if not first:
        raise InputError(f"system {text!r} names no model; expected {_EXAMPLES}")
    # A model's name may hold no "=", which begins the other two kinds.
    head = "" if "=" in first else first
    options = _read_options([*rest] if head else [first, *rest], text)
    if head:
        return _to_model_system(text, head, options)
    if "run" in options:
        _refuse_unknown(options, _RUN_KEYS, text)
        file = _require_value(options, "run", text)
        return RunSystem(name=options.get("name") or Path(file).stem, file=Path(file))
    return _to_collection_system(text, options)


def _to_model_system(text: str, head: str, options: Mapping[str, str]) -> ModelSystem:
    _refuse_unknown(options, _MODEL_KEYS, text)
    model, colon, way = head.rpartition(":")
    matched = _WAY.fullmatch(way)
    if not colon or matched is None:
        # Without a way to search; C:\models holds a colon of its own.
        model, matched = head, _WAY.fullmatch("")
    assert matched is not None
    if not model:
        raise InputError(f"system {text!r} names no model; expected {_EXAMPLES}")
    rerank = matched["rerank"]
    search = _read_search(
        options, text, mode=matched["mode"], rerank=None if rerank is None else rerank[1:]
    )
    return ModelSystem(
        name=options.get("name") or text.strip(),
        model=model,
        sparse_model=options.get("sparse"),
        search=search,
    )


def _to_collection_system(text: str, options: Mapping[str, str]) -> CollectionSystem:
    _refuse_unknown(options, _COLLECTION_KEYS, text)
    places = [key for key in ("path", "url") if key in options]
    if len(places) != 1:
        raise InputError(
            f"system {text!r} should name one place, path=FOLDER or url=ADDRESS; expected "
            f"{_EXAMPLES}"
        )
    place = _require_value(options, places[0], text)
    adopt = options.get("adopt")
    if adopt not in (None, "trust"):
        raise InputError(f"system {text!r}: adopt must be trust, not {adopt!r}")
    collection = _require_value(options, "collection", text)
    return CollectionSystem(
        name=options.get("name") or _name_collection(collection, options),
        collection=collection,
        path=Path(place) if places == ["path"] else None,
        url=place if places == ["url"] else None,
        model=options.get("model"),
        sparse_model=options.get("sparse"),
        search=_read_search(
            options, text, mode=options.get("mode", ""), rerank=options.get("rerank")
        ),
        document_field=options.get("field"),
        adopt=cast("Literal['trust'] | None", adopt),
    )


def _name_collection(collection: str, options: Mapping[str, str]) -> str:
    """Return a name in the notation of a model, with the collection in its place."""
    name = collection
    if "mode" in options or "rerank" in options:
        name += f":{options.get('mode', '')}"
    if "rerank" in options:
        name += f"+{options['rerank']}"
    given = [f",{key}={options[key]}" for key in _SEARCH_KEYS if key in options]
    return name + "".join(given)


def _read_search(options: Mapping[str, str], text: str, *, mode: str, rerank: str | None) -> Search:
    """Return how a system searches.

    Args:
        options: Its options by key.
        text: The whole notation, for messages.
        mode: A mode, or "" to leave it to the model.
        rerank: What follows the mode; None for nothing.
    """
    if mode and mode not in _MODES:
        raise InputError(f"system {text!r}: the mode must be {_join(_MODES)}, not {mode!r}")
    if rerank is not None and rerank != _RERANK:
        raise InputError(f"system {text!r}: only {_RERANK} can rerank, not {rerank!r}")
    if mode in ("dense", "sparse"):
        fused = sorted({"k", "weights", "fusion"} & options.keys())
        if fused:
            raise InputError(
                f"system {text!r}: {_join(fused)} is about fusing two rankings; the mode {mode} "
                "has one"
            )
    fusion = _read_fusion(options, text)
    return Search(
        mode=cast("Mode | None", mode or None),
        rerank=rerank is not None,
        k=_convert(options, "k", text, lambda value: _to_number("k", value, least=0)),
        weights=_convert(options, "weights", text, _to_weights),
        candidates=_convert(
            options, "candidates", text, lambda value: _to_number("candidates", value, least=1)
        ),
        fusion=fusion,
    )


def _read_fusion(options: Mapping[str, str], text: str) -> FusionName | None:
    """Return by what rankings are fused, if that is said; refuse options that contradict it."""
    name = options.get("fusion")
    if name is None:
        return None
    if name not in _FUSION_NAMES:
        raise InputError(
            f"system {text!r}: fusion must be {_join(_FUSION_NAMES)}, not {name!r}; k and weights "
            "alone fuse by reciprocal rank"
        )
    needless = {"k", "weights"} if name == "model" else {"k"}
    given = sorted(needless & options.keys())
    if given:
        raise InputError(f"system {text!r}: fusion={name} has no {_join(given)} to be given")
    return cast("FusionName", name)


def _read_options(parts: Iterable[str], text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(
                f"system {text!r}: expected KEY=VALUE between commas, got {part!r}. Names and "
                "paths can hold no comma"
            )
        if key in options:
            raise InputError(f"system {text!r} gives {key} twice")
        if not value:
            raise InputError(f"system {text!r} gives no value for {key!r}")
        options[key] = value
    return options


def _refuse_unknown(options: Mapping[str, str], known: Iterable[str], text: str) -> None:
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise InputError(
            f"system {text!r} has no option {unknown[0]!r}; known here: {', '.join(known)}"
        )


def _require_value(options: Mapping[str, str], key: str, text: str) -> str:
    if key not in options:
        raise InputError(f"system {text!r} lacks {key}=; expected {_EXAMPLES}")
    return options[key]


def _convert(
    options: Mapping[str, str], key: str, text: str, convert: Callable[[str], Value]
) -> Value | None:
    """Return an option's value, converted; None if it is not given."""
    if key not in options:
        return None
    try:
        return convert(options[key])
    except InputError as error:
        raise InputError(f"system {text!r}: {error}") from None


def _to_number(name: str, value: str, *, least: int) -> int:
    number: object = value
    if re.fullmatch(r"[0-9]{1,18}", value):
        number = int(value)
    return require_whole_number(name, number, least=least)


def _to_weights(value: str) -> tuple[float, ...]:
    try:
        numbers: object = [float(part) for part in value.split("/")]
    except ValueError:
        numbers = value
    if not isinstance(numbers, list) or len(numbers) not in (2, 3):
        raise InputError(
            f"weights should be DENSE/SPARSE, as in 1/0.3, or DENSE/SPARSE/BM25, not {value!r}"
        )
    return require_list_weights(numbers)


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
