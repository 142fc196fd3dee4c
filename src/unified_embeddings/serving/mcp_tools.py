"""What MCP clients can ask for: the tools, their arguments and their answers.

What lives here: each tool's description, the checks of what a model or a person sent, and answers
that are short enough to be read by a model. What does not: the protocol (`mcp`), opening
collections (`mcp_place`), and searching (`retrievers`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from unified_embeddings.errors import InputError
from unified_embeddings.serving import mcp_schemas as schemas
from unified_embeddings.serving.json_fields import (
    check_whole_number,
    json_type,
    read_flag,
    read_text,
    read_texts,
    refuse_unknown,
    require_object,
)
from unified_embeddings.serving.mcp_place import OpenPlace, Place
from unified_embeddings.serving.mcp_texts import cut_values, shorten
from unified_embeddings.types import Options

if TYPE_CHECKING:
    from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
    from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever

Arguments: TypeAlias = Mapping[str, object]
Answer: TypeAlias = dict[str, object]

_DEFAULT_COLLECTION = "documents"


@dataclass(frozen=True)
class Tool:
    """One thing that a client can ask for.

    Attributes:
        name: As clients call it.
        title: For people.
        description: For the model that decides whether to call it.
        schema: JSON schema of its arguments.
        is_read_only: Whether it changes nothing.
        needs_model: Whether it runs the model.
        call: Returns the answer, as values that JSON can hold.
    """

    name: str
    title: str
    description: str
    schema: Options
    is_read_only: bool
    needs_model: bool
    call: Callable[[Arguments], Answer]


def make_tools(place: Place, roots: Sequence[Path] = ()) -> tuple[Tool, ...]:
    """Return the tools of a place.

    Args:
        place: With the collections.
        roots: Folders whose files may be indexed. Without any, no tool changes anything.
    """
    reading = Reading(place)
    tools = [
        Tool(
            name="search",
            title="Search passages",
            description=schemas.SEARCH,
            schema=schemas.SEARCH_ARGUMENTS,
            is_read_only=True,
            needs_model=True,
            call=reading.search,
        ),
        Tool(
            name="explain",
            title="Explain a passage's score",
            description=schemas.EXPLAIN,
            schema=schemas.EXPLAIN_ARGUMENTS,
            is_read_only=True,
            needs_model=True,
            call=reading.explain,
        ),
        Tool(
            name="list_collections",
            title="List collections",
            description=schemas.LIST_COLLECTIONS,
            schema=schemas.LIST_ARGUMENTS,
            is_read_only=True,
            needs_model=False,
            call=reading.list_collections,
        ),
    ]
    if roots:
        folders = ", ".join(map(str, roots))
        tools.append(
            Tool(
                name="index_paths",
                title="Index files",
                description=f"{schemas.INDEX_PATHS} Folders that may be read: {folders}",
                schema=schemas.INDEX_ARGUMENTS,
                is_read_only=False,
                needs_model=True,
                call=Writing(place, roots).index_paths,
            )
        )
    return tuple(tools)


class Reading:
    """The tools that change nothing.

    Args:
        place: With the collections.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    def search(self, arguments: Arguments) -> Answer:
        """Return the passages that answer a question best.

        Raises:
            InputError: If an argument is not usable.
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        _check_names(arguments, schemas.SEARCH_ARGUMENTS, "search")
        question = _read_question(arguments)
        options = _read_options(arguments)
        top_k = _read_count(arguments, "top_k", default=5, most=schemas.MOST_PASSAGES)
        width = _read_width(arguments)
        with self._place.use() as opened:
            collection, retriever = self._make_retriever(opened, arguments, options, top_k)
            nodes = retriever.retrieve(question)
        from unified_embeddings.serving.searching import describe_passage, describe_relevance

        passages = [
            _fit(describe_passage(node) | describe_relevance(node), width) for node in nodes
        ]
        answer: Answer = {"collection": collection, "results": passages}
        if not passages:
            answer["note"] = "no passage found"
        return answer

    def explain(self, arguments: Arguments) -> Answer:
        """Return why a passage has its score for a question.

        Raises:
            InputError: If an argument is not usable, or the collection has no such passage.
            StoreError: If the collection does not exist, or Qdrant fails.
        """
        _check_names(arguments, schemas.EXPLAIN_ARGUMENTS, "explain")
        question = _read_question(arguments)
        if "id" not in arguments:
            raise InputError('id is missing; send the "id" of a passage that search gave')
        passage_id = read_text(arguments["id"], "id")
        options = _read_options(arguments)
        width = _read_width(arguments)
        with self._place.use() as opened:
            collection, retriever = self._make_retriever(opened, arguments, options, 1)
            explanation = retriever.explain(question, passage_id).to_dict()
        colbert = explanation["colbert"]
        if isinstance(colbert, dict):
            # Thousands of tokens for a long passage; those that matter are in the matches.
            del colbert["query_tokens"], colbert["passage_tokens"]
        explanation["query"] = shorten(question, schemas.LONGEST_VALUE)
        return {"collection": collection, **_fit(explanation, width)}

    def list_collections(self, arguments: Arguments) -> Answer:
        """Return which collections there are, and what each holds.

        Raises:
            InputError: If there are arguments.
            StoreError: If Qdrant fails.
        """
        _check_names(arguments, schemas.LIST_ARGUMENTS, "list_collections")
        with self._place.use() as opened:
            sizes = opened.measure()
        rows = [
            {
                "name": size.collection,
                "passages": size.points,
                "model": size.model,
                "bytes": size.bytes,
                "dense": size.dense,
                "sparse": list(size.sparse),
            }
            for size in sizes
        ]
        return {"collections": rows}

    def _make_retriever(
        self, opened: OpenPlace, arguments: Arguments, options: Options, top_k: int
    ) -> tuple[str, UnifiedHybridRetriever]:
        """Return the collection's name and what searches it.

        Raises:
            InputError: If the collection or a filter is not usable.
            StoreError: If the collection cannot be opened.
        """
        from unified_embeddings.serving.searching import to_filters

        conditions = _read_conditions(arguments)
        collection = opened.choose(_read_collection(arguments))
        filters = to_filters(conditions)
        store = opened.open_store(collection)
        for index, condition in enumerate(conditions):
            _check_key(store, str(condition["key"]), index)
        retriever = self._place.config.retriever(
            store, similarity_top_k=top_k, filters=filters, **options
        )
        return collection, retriever


class Writing:
    """The tool that changes a collection.

    Args:
        place: With the collections.
        roots: Folders whose files may be indexed.
    """

    def __init__(self, place: Place, roots: Sequence[Path]) -> None:
        self._place = place
        self._named_roots = list(roots)
        self._roots = [root.resolve() for root in roots]
        self._lock = threading.Lock()

    def index_paths(self, arguments: Arguments) -> Answer:
        """Bring a collection up to date with files and folders.

        Raises:
            InputError: If an argument is not usable, or a path is outside the folders that may be
                indexed.
            StoreError: If Qdrant fails.
        """
        from unified_embeddings.llama.indexing import index_paths

        _check_names(arguments, schemas.INDEX_ARGUMENTS, "index_paths")
        paths = [self._find(text) for text in read_texts(arguments, "paths")]
        if not paths:
            raise InputError("paths names no file; send at least one")
        name = _read_collection(arguments)
        with self._lock, self._place.use() as opened:
            if name is None and not opened.names():
                name = _DEFAULT_COLLECTION
            collection = opened.choose(name)
            report = index_paths(
                paths,
                opened.open_store(collection, create=True),
                self._place.config.embedder,
                exclude=[] if self._place.url else [self._place.path],
                within=self._roots,
            )
        return {"collection": collection, **cut_values(asdict(report))}

    def _find(self, text: str) -> Path:
        """Return the path that a client means; a relative one is below the first root that has it.

        Links are kept, as `index` keeps them, so that a file is known by one path.

        Raises:
            InputError: If it lies outside the roots, or is hidden within them.
        """
        folders = ", ".join(map(str, self._roots))
        try:
            candidates = [root / text for root in self._named_roots]
            existing = [path for path in candidates if path.exists()]
            path = (existing or candidates)[0]
            real = path.resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"paths: {text!r:.80} is not a usable path: {error}") from None
        for root in self._roots:
            if real.is_relative_to(root):
                if any(part.startswith(".") for part in real.relative_to(root).parts):
                    raise InputError(f"paths: {text!r:.200} is hidden, and is not indexed")
                return path
        raise InputError(
            f"paths: {text!r:.200} is outside the folders that may be indexed: {folders}"
        )


# --- arguments ----------------------------------------------------------------------------------


def _check_names(arguments: Arguments, schema: Options, tool: str) -> None:
    properties = schema["properties"]
    if not properties and arguments:
        raise InputError(f"{tool} takes no arguments")
    refuse_unknown(arguments, tuple(properties), tool)


def _read_question(arguments: Arguments) -> str:
    if "query" not in arguments:
        raise InputError("query is missing; send the question as a string")
    question = read_text(arguments["query"], "query")
    if not question.strip():
        raise InputError("query is blank; ask a question")
    return question


def _read_collection(arguments: Arguments) -> str | None:
    value = arguments.get("collection")
    return None if value is None else read_text(value, "collection")


def _read_count(arguments: Arguments, name: str, *, default: int, most: int) -> int:
    check_whole_number(arguments, name)
    value = arguments.get(name, default)
    assert isinstance(value, int)  # it was checked
    if value > most:
        raise InputError(f"{name} must be <= {most}, got {value}")
    return value


def _read_width(arguments: Arguments) -> int:
    return _read_count(
        arguments,
        "max_characters",
        default=schemas.DEFAULT_CHARACTERS,
        most=schemas.MOST_CHARACTERS,
    )


def _read_options(arguments: Arguments) -> Options:
    """Return the options of the retriever that were given."""
    options: Options = {}
    mode = arguments.get("mode")
    if mode is not None:
        if mode not in schemas.MODES:
            shown = f"{mode!r:.80}" if isinstance(mode, str) else json_type(mode)
            raise InputError(f"mode must be one of {', '.join(schemas.MODES)}, got {shown}")
        options["mode"] = mode
    if read_flag(arguments, "rerank", default=False):
        options["rerank"] = "colbert"
    return options


def _read_conditions(arguments: Arguments) -> list[Arguments]:
    value = arguments.get("filters")
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(
            f"filters must be a list of conditions, got {json_type(value)}; as in "
            '[{"key": "year", "operator": ">=", "value": 2020}]'
        )
    if len(value) > schemas.MOST_CONDITIONS:
        raise InputError(f"filters may hold {schemas.MOST_CONDITIONS} conditions, got {len(value)}")
    conditions: list[Arguments] = []
    for index, item in enumerate(value):
        name = f"filters[{index}]"
        condition = require_object(item, name)
        refuse_unknown(condition, ("key", "operator", "value"), name)
        if "key" not in condition:
            raise InputError(f"{name}.key is missing; name a metadata key")
        read_text(condition["key"], f"{name}.key")
        conditions.append(condition)
    return conditions


def _check_key(store: FingerprintedStore, key: str, index: int) -> None:
    """Refuse a key that no passage has: the filter would hold for none, and say nothing."""
    from unified_embeddings.llama.known_keys import describe_unknown_key, has_key

    if has_key(store, key):
        return
    problem = describe_unknown_key(store, key)
    if problem is not None:
        raise InputError(f"filters[{index}]: {problem}")


# --- answers ------------------------------------------------------------------------------------


def _fit(passage: Answer, width: int) -> Answer:
    """Return a passage with its text cut at a width, and a note if it was."""
    text = str(passage.pop("text"))
    fitted: Answer = {name: cut_values(value) for name, value in passage.items()}
    fitted["text"] = text[:width]
    if len(text) > width:
        fitted["note"] = (
            f"text is cut: the first {width:,} of {len(text):,} characters; max_characters gives "
            f"more, up to {schemas.MOST_CHARACTERS:,}"
        )
    return fitted
