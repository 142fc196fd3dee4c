"""`unified-embeddings search`: ask a collection a question."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError
from unified_embeddings.validation import require_weights

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore
    from llama_index.core.vector_stores.types import MetadataFilters

_CONDITION = re.compile(r"^\s*([^=!<>\s][^=!<>]*)(!=|>=|<=|==?|>|<)(.*)$", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+(?P<fraction>\.\d*)?(?P<exponent>[eE][+-]?\d+)?")
_PASSAGE_WIDTH = 300


def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
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
            show_default="the model's own",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="DENSE,SPARSE",
            help="Weights of the two rankings, as in 1,0.3; 1,1 is plain RRF; auto is the "
            "model's own.",
        ),
    ] = "auto",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Condition on a passage's metadata: KEY=VALUE, or != > >= < <= in place of =. "
            "Repeatable; all conditions must hold. Quote a VALUE to compare a number as text.",
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Rerank the candidates with ColBERT.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Print the passages that best answer a question."""
    shared.require_text(query)
    metadata_filters = _parse_filters(filters or [])
    parsed_weights = _parse_weights(weights)
    config = shared.open_config(model, sparse_model)
    store = shared.open_store(config, collection, path, url, create=False)
    options: dict[str, object] = {
        "similarity_top_k": top_k,
        "filters": metadata_filters,
        "rerank": "colbert" if rerank else None,
        "weights": parsed_weights,
    }
    if mode is not None:
        options["mode"] = mode
    if candidates is not None:
        options["candidates"] = candidates
    nodes = config.retriever(store, **options).retrieve(query)
    if as_json:
        typer.echo(json.dumps([_to_json(node) for node in nodes], ensure_ascii=False))
        return
    for rank, node in enumerate(nodes, 1):
        _print_passage(rank, node)
    if not nodes:
        shared.out.print("no passage found")


def _to_json(node: NodeWithScore) -> dict[str, object]:
    """Return a found passage as values that JSON can hold."""
    return {
        "id": node.node.node_id,
        "score": node.score,
        "text": node.node.get_content(),
        "metadata": node.node.metadata,
    }


def _print_passage(rank: int, node: NodeWithScore) -> None:
    """Print a found passage: rank, score and file, then the text on a line of its own."""
    source = shared.printable(node.node.metadata.get("file_path", node.node.node_id))
    shared.out.print(f"{rank}. {node.score:.4f}  {source}", markup=False, soft_wrap=True)
    shared.print_line(f"   {shared.one_line(node.node.get_content(), _PASSAGE_WIDTH)}")


def _parse_weights(text: str) -> tuple[float, float] | Literal["auto"]:
    """Return the weights of the dense and the sparse ranking; "auto" is the model's own.

    Raises:
        InputError: If the text is not two numbers >= 0 with a comma in between, or both are 0.
    """
    if text.strip() == "auto":
        return "auto"
    numbers = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise InputError(f"--weights {text!r} should be DENSE,SPARSE: two numbers, as in 1,0.3")
    return require_weights([float(number) for number in numbers], of="dense and sparse")


def _parse_filters(conditions: list[str]) -> MetadataFilters | None:
    """Turn texts such as `year>=2020` into LlamaIndex's filters; all of them must hold.

    Raises:
        InputError: If a text is not a condition.
    """
    from llama_index.core.vector_stores.types import (
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )

    if not conditions:
        return None
    filters: list[MetadataFilter | MetadataFilters] = []
    for condition in conditions:
        match = _CONDITION.match(condition)
        if match is None:
            raise InputError(
                f"--filter {condition!r} should be KEY=VALUE (or != > >= < <=); quote it for the "
                "shell, as in --filter 'file_size>10'"
            )
        key, operator, value = match.groups()
        if operator == "=":
            operator = "=="
        filters.append(
            MetadataFilter(
                key=key.strip(),
                value=_parse_value(value.strip()),
                operator=FilterOperator(operator),
            )
        )
    return MetadataFilters(filters=filters)


def _parse_value(text: str) -> str | int | float:
    """Return a number if the text reads as one, otherwise the text without its quotes.

    Not float(): it would also read "nan", "inf" and "1_000" as numbers.
    """
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    if number["fraction"] or number["exponent"]:
        return float(text)
    return int(text)
