"""Python that does what a page shows.

What lives here: writing it. Texts that came in are written as literals, never as code.
"""

from __future__ import annotations

from unified_embeddings.errors import hide_passwords
from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.parameters import Question, SearchOptions
from unified_embeddings.inspector.searching import choose_mode


def write_search(opened: OpenedCollection, question: Question) -> str:
    """Return the code of a search."""
    return "\n".join(
        [
            *_write_imports(question.options),
            "",
            *write_store(opened),
            *_write_retriever(opened, question.options),
            f"for scored in retriever.retrieve({question.text!r}):",
            '    print(f"{scored.score:.4f}", scored.node.node_id, scored.node.get_content()[:80])',
        ]
    )


def write_passage(opened: OpenedCollection, question: Question, point_id: str) -> str:
    """Return the code of an explanation; without a question, of reading the passage."""
    if not question.text:
        return "\n".join(
            [
                *_write_imports(),
                "",
                *write_store(opened),
                f"(node,) = store.get_nodes([{point_id!r}])",
                "print(node.metadata, node.get_content())",
            ]
        )
    return "\n".join(
        [
            *_write_imports(question.options),
            "",
            *write_store(opened),
            *_write_retriever(opened, question.options),
            f"why = retriever.explain({question.text!r}, {point_id!r})",
            "print(why.ranks, why.score)",
            "for word in why.sparse.tokens if why.sparse else ():",
            '    print(f"{word.contribution:.4f}", word.text)',
        ]
    )


def write_collection(opened: OpenedCollection) -> str:
    """Return the code of a collection's figures."""
    return "\n".join(
        [
            *_write_imports(),
            "from unified_embeddings.stores.measuring import measure_collection, sample_vectors",
            "",
            *write_store(opened),
            f"print(measure_collection(store.client, {opened.name!r}))",
            f"sample = sample_vectors(store.client, {opened.name!r}, store.dense_vector_name, "
            "size=1000)",
            "print(sample.shape)",
        ]
    )


def write_comparison(
    first: tuple[OpenedCollection, SearchOptions],
    second: tuple[OpenedCollection, SearchOptions],
    text: str,
) -> str:
    """Return the code of a question that is asked of two retrievers."""
    lines = [*_write_imports(first[1], second[1]), ""]
    for opened, options in (first, second):
        lines += [*write_store(opened), *_write_retriever(opened, options)]
        lines += [
            f"for scored in retriever.retrieve({text!r}):",
            '    print(f"{scored.score:.4f}", scored.node.node_id)',
            "",
        ]
    return "\n".join(lines[:-1])


def write_store(opened: OpenedCollection) -> list[str]:
    """Return the lines that open a collection."""
    given = ", ".join(f"{name}={value!r}" for name, value in opened.model.items())
    lines = [f"config = UnifiedEmbeddingConfig({given})"]
    place = opened.place
    if place.url is not None:
        lines.append(
            f"store = config.vector_store({opened.name!r}, url={hide_passwords(place.url)!r})"
        )
    elif place.path is not None:
        lines += [
            "# One process at a time opens a folder: end the inspector first.",
            f"store = config.vector_store({opened.name!r}, path={str(place.path)!r})",
        ]
    else:
        lines.append(f"store = config.vector_store({opened.name!r}, client=client)  # your client")
    return lines


def _write_imports(*all_options: SearchOptions) -> list[str]:
    lines = ["from unified_embeddings import UnifiedEmbeddingConfig"]
    if any(options.conditions for options in all_options):
        lines.append("from unified_embeddings.llama.conditions import parse_conditions, to_filters")
    return lines


def _write_retriever(opened: OpenedCollection, options: SearchOptions) -> list[str]:
    arguments = [f"similarity_top_k={options.top_k}", f"mode={choose_mode(opened, options)!r}"]
    if options.candidates is not None:
        arguments.append(f"candidates={options.candidates}")
    if options.weights is not None:
        arguments.append(f"weights={options.weights!r}")
    if options.rerank:
        arguments.append("rerank='colbert'")
    if options.conditions:
        arguments.append(f"filters=to_filters(parse_conditions({list(options.conditions)!r}))")
    return [
        "retriever = config.retriever(",
        "    store,",
        *(f"    {one}," for one in arguments),
        ")",
    ]
