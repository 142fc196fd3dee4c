"""`unified-embeddings search`: ask a collection a question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import existing, pictures, shared
from unified_embeddings.errors import InputError
from unified_embeddings.system.collector import paused_collector
from unified_embeddings.types import Options
from unified_embeddings.validation import require_list_weights

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from unified_embeddings.retrievers.explanation import Explanation

_NAMING = ("file_path", "title", "topic")
"""Metadata that a passage is called by, the best first; its id where it has none."""
_PASSAGE_WIDTH = 300


@paused_collector()
def search(
    query: Annotated[str | None, typer.Argument(help="The question.")] = None,
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    model_url: shared.ModelUrl = None,
    mode: Annotated[
        Literal["hybrid", "dense", "sparse"] | None,
        typer.Option(help="Vectors to search by.", show_default="all that the model gives"),
    ] = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", min=1, help="Number of passages to return.")
    ] = 5,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passages of each ranking that are fused, or reranked.",
            show_default="the collection's or the model's own",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="DENSE,SPARSE",
            help="Weights of the rankings, as in 1,0.3, or 1,0.3,0.5 with a keyword list; 1,1 is "
            "plain RRF; auto is what `tune` chose for the collection, or else the model's own.",
        ),
    ] = "auto",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Condition on a passage's metadata: KEY=VALUE, or != > >= < <= in place of =. "
            "Repeatable; all conditions must hold. A VALUE in quotes is a text, never a number.",
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Rerank the candidates with ColBERT.")
    ] = False,
    score: Annotated[
        Literal["rrf", "relevance"],
        typer.Option(
            help="What a passage's score is: what it was ranked by, or how likely it is relevant."
        ),
    ] = "rrf",
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each passage has its score.")
    ] = False,
    passage: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Explain this passage, found or not, in place of an answer."
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Search the pictures beside the collection instead.")
    ] = False,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Find pictures like this one."),
    ] = None,
    image_model: pictures.ImageModel = None,
    image_collection: pictures.ImageCollection = None,
    adopt: shared.Adopt = None,
    text_key: existing.TextKey = None,
    metadata_key: existing.MetadataKey = None,
    as_json: shared.AsJson = False,
) -> None:
    """Print the passages that best answer a question, or the pictures that fit it."""
    from unified_embeddings.llama.conditions import check_conditions, parse_conditions, to_filters

    if images or image is not None:
        if explain or rerank or passage is not None:
            raise InputError(
                "--explain, --passage and --rerank are for texts; pictures are searched without"
            )
        pictures.search_pictures(
            query,
            image,
            pictures.image_collection_of(collection, image_collection),
            path,
            url,
            pictures.chosen_image_model(image_model),
            top_k=top_k,
            filters=filters or [],
            as_json=as_json,
        )
        return
    if query is None:
        raise typer.BadParameter("ask a question, or give --image", param_hint="QUERY")
    shared.require_text(query)
    conditions = parse_conditions(filters or [])
    parsed_weights = _parse_weights(weights)
    config = shared.open_config(model, sparse_model, model_url)
    store = shared.open_store(
        config,
        collection,
        path,
        url,
        create=False,
        adopt=adopt,
        text_key=text_key,
        metadata_key=metadata_key,
    )
    check_conditions(conditions, store, note=shared.print_note)
    options: Options = {
        "similarity_top_k": top_k,
        "filters": to_filters(conditions),
        "rerank": "colbert" if rerank else None,
        "weights": parsed_weights,
        "score": score,
    }
    if mode is not None:
        options["mode"] = mode
    if candidates is not None:
        options["candidates"] = candidates
    retriever = config.retriever(store, **options)
    if passage is not None:
        _print_one(retriever.explain(query, passage), as_json=as_json)
        return
    nodes = retriever.retrieve(query)
    explanations = [retriever.explain(query, node) for node in nodes] if explain else []
    if as_json:
        rows = [_to_json(node) for node in nodes]
        if score == "relevance":
            for row, node in zip(rows, nodes, strict=True):
                row["weak"] = _is_weak(node)
        for row, explanation in zip(rows, explanations, strict=False):
            row["explanation"] = explanation.to_dict()
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for rank, node in enumerate(nodes, 1):
        _print_passage(rank, node)
        for explanation in explanations[rank - 1 : rank]:
            _print_explanation(explanation)
    if score == "relevance" and any(_is_weak(node) for node in nodes):
        shared.out.print("weak: these are hardly better than any other passages")
    if not nodes:
        shared.out.print("no passage found")


def _is_weak(node: NodeWithScore) -> bool:
    """Tell whether a passage belongs to an answer that is known to be no better than chance."""
    from unified_embeddings.llama.payloads import RETRIEVAL_KEY

    return node.node.metadata[RETRIEVAL_KEY].get("weak") is True


def _to_json(node: NodeWithScore) -> dict[str, object]:
    """Return a found passage as values that JSON can hold."""
    from unified_embeddings.llama.payloads import own_metadata

    return {
        "id": node.node.node_id,
        "score": node.score,
        "text": node.node.get_content(),
        "metadata": own_metadata(node.node),
    }


def _print_passage(rank: int, node: NodeWithScore) -> None:
    """Print a found passage: rank, score and file, then the text on a line of its own."""
    named = [node.node.metadata[key] for key in _NAMING if key in node.node.metadata]
    source = shared.printable(str(named[0] if named else node.node.node_id))
    shared.out.print(f"{rank}. {node.score:.4f}  {source}", markup=False, soft_wrap=True)
    shared.print_line(f"   {shared.one_line(node.node.get_content(), _PASSAGE_WIDTH)}")


def _print_one(explanation: Explanation, *, as_json: bool) -> None:
    """Print the explanation of one passage, with its text."""
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), ensure_ascii=False))
        return
    shared.print_line(shared.one_line(explanation.text, _PASSAGE_WIDTH))
    _print_explanation(explanation)


def _print_explanation(explanation: Explanation) -> None:
    from unified_embeddings.cli.explained import explanation_lines

    for line in explanation_lines(explanation):
        shared.print_line(line)


def _parse_weights(text: str) -> tuple[float, ...] | Literal["auto"]:
    """Return the weights of the lists; "auto" is the model's or the collection's own.

    Raises:
        InputError: If the text is not two or three numbers >= 0 with commas in between, or all
            are 0.
    """
    if text.strip() == "auto":
        return "auto"
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--weights {text!r} should be DENSE,SPARSE: two numbers, as in 1,0.3, or three with "
            "the keyword list's, as in 1,0.3,0.5"
        ) from None
    return require_list_weights(numbers)
