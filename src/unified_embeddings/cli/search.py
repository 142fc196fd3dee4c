"""`unified-embeddings search`: a question to a collection."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unified_embeddings.cli import shared
from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    from llama_index.core.vector_stores.types import MetadataFilters

_CONDITION = re.compile(r"^\s*([^=!<>\s][^=!<>]*)(!=|>=|<=|==?|>|<)(.*)$", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d+(?P<fraction>\.\d*)?(?P<exponent>[eE][+-]?\d+)?")


def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    collection: shared.Collection = shared.DEFAULT_COLLECTION,
    path: shared.StorePath = shared.DEFAULT_PATH,
    url: shared.StoreUrl = None,
    model: shared.Model = None,
    sparse_model: shared.SparseModel = None,
    mode: Annotated[
        Literal["hybrid", "dense", "sparse"] | None,
        typer.Option(help="Which vectors to search by. [default: all the model gives]"),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Passages to return.")] = 5,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="KEY=VALUE, also != > >= < <=; on a passage's metadata. May be given repeatedly, "
            "all must hold. Quote a VALUE to keep a number a text.",
        ),
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Rerank the candidates with ColBERT.")
    ] = False,
    as_json: shared.AsJson = False,
) -> None:
    """Print the passages that answer a question best."""
    shared.require_text(query)
    conditions = _filters(filters or [])
    config = shared.open_config(model, sparse_model)
    store = shared.open_store(config, collection, path, url, create=False)
    retriever = config.retriever(
        store,
        similarity_top_k=top_k,
        **({} if mode is None else {"mode": mode}),
        filters=conditions,
        rerank="colbert" if rerank else None,
    )
    nodes = retriever.retrieve(query)
    if as_json:
        rows = [
            {
                "id": scored.node.node_id,
                "score": scored.score,
                "text": scored.node.get_content(),
                "metadata": scored.node.metadata,
            }
            for scored in nodes
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False))
        return
    for rank, scored in enumerate(nodes, 1):
        where = shared.printable(scored.node.metadata.get("file_path", scored.node.node_id))
        shared.out.print(f"{rank}. {scored.score:.4f}  {where}", markup=False, soft_wrap=True)
        text = shared.one_line(scored.node.get_content(), 300)
        shared.out.print(f"   {text}", markup=False, highlight=False, soft_wrap=True)
    if not nodes:
        shared.out.print("no passage found")


def _filters(conditions: list[str]) -> MetadataFilters | None:
    """`KEY=VALUE` texts as LlamaIndex's filters, all of which must hold."""
    from llama_index.core.vector_stores.types import (
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )

    parsed = []
    for condition in conditions:
        match = _CONDITION.match(condition)
        if match is None:
            raise InputError(
                f"--filter {condition!r} should be KEY=VALUE (or != > >= < <=); quote it against "
                "the shell, as in --filter 'file_size>10'"
            )
        key, operator, value = match.groups()
        parsed.append(
            MetadataFilter(
                key=key.strip(),
                value=_scalar(value.strip()),
                operator=FilterOperator("==" if operator == "=" else operator),
            )
        )
    return MetadataFilters(filters=list(parsed)) if parsed else None


def _scalar(text: str) -> str | int | float:
    """A number if it reads as one, else the text without surrounding quotes."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    return float(text) if number["fraction"] or number["exponent"] else int(text)
