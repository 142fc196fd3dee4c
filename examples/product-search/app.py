"""Search products by what is written about them and by what their pictures show.

    python examples/product-search/app.py "a red circle"
    python examples/product-search/app.py "something to drink tea from"
    python examples/product-search/app.py --picture photo.png

Each product is one node with a text and a picture. The text goes into one collection, the picture
into another, under the same id. A question in words is asked of both.
"""

from __future__ import annotations

import argparse
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from llama_index.core import StorageContext
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle
from pictures import Motif, draw

from unified_embeddings import (
    UnifiedEmbeddingConfig,
    UnifiedEmbeddingsError,
    UnifiedMultiModalIndex,
)

CATALOGUE = Path(__file__).with_name("catalogue.json")


class Product(TypedDict):
    """An entry of the catalogue."""

    id: str
    name: str
    price: float
    text: str
    picture: Motif


class ProductSearch:
    """The catalogue in a store, and the search over it.

    Args:
        folder: Where pictures and store are kept.
        text_model: Reads what is written.
        image_model: Looks at pictures. mini-clip knows drawn shapes; take clip for photographs.
    """

    def __init__(self, folder: Path, text_model: str, image_model: str) -> None:
        self._folder = folder
        self._config = UnifiedEmbeddingConfig(text_model, image_model=image_model)
        store = folder / "store"
        self._texts = self._config.vector_store("products", path=store)
        self._images = self._config.image_store("product-pictures", path=store)

    def index(self, products: Sequence[Product]) -> None:
        """Store products; one that is stored already is replaced."""
        index = UnifiedMultiModalIndex(
            storage_context=StorageContext.from_defaults(vector_store=self._texts),
            image_vector_store=self._images,
            embed_model=self._config.text_model,
            image_embed_model=self._config.image_model,
            nodes=[],
        )
        index.insert_nodes([self._to_node(product) for product in products])

    def by_text(self, question: str, number: int) -> list[NodeWithScore]:
        """Return the products whose texts answer a question best."""
        return self._config.retriever(self._texts, similarity_top_k=number).retrieve(question)

    def by_picture(self, question: str, picture: Path | None, number: int) -> list[NodeWithScore]:
        """Return the products whose pictures fit a question, or another picture, best."""
        path = str(picture) if picture else None
        # The weights are those of texts and pictures: (1, 1) would fuse both into one answer.
        retriever = self._config.multimodal_retriever(
            self._texts, self._images, similarity_top_k=number, weights=(0.0, 1.0)
        )
        return retriever.retrieve(QueryBundle(question, image_path=path))

    def _to_node(self, product: Product) -> ImageNode:
        picture = self._folder / "pictures" / f"{product['id']}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(product["picture"]).save(picture)
        facts = {"name": product["name"], "price": product["price"]}
        return ImageNode(
            id_=str(uuid.uuid5(uuid.NAMESPACE_URL, product["id"])),
            text=f"{product['name']}. {product['text']}",
            image_path=str(picture),
            metadata=facts,
            excluded_embed_metadata_keys=[*facts],
        )


def main() -> None:
    """Index the catalogue and answer one question."""
    parser = argparse.ArgumentParser(description="Search products by words or by a picture.")
    parser.add_argument("question", nargs="?", default="", help="what is looked for")
    parser.add_argument("--picture", type=Path, help="a picture of something alike")
    parser.add_argument("--folder", type=Path, default=Path("product-search-data"))
    parser.add_argument("--number", type=int, default=3, help="products to show")
    parser.add_argument("--model", default="mini-m3", help="of texts")
    parser.add_argument("--image-model", default="mini-clip", help="of pictures")
    arguments = parser.parse_args()
    if not arguments.question.strip() and arguments.picture is None:
        parser.error("ask a question, or give a --picture")
    products = cast("list[Product]", json.loads(CATALOGUE.read_text("utf-8")))
    try:
        search = ProductSearch(arguments.folder, arguments.model, arguments.image_model)
        search.index(products)
        if arguments.question.strip():
            found = search.by_text(arguments.question, arguments.number)
            print_products("by what is written", found)
        found = search.by_picture(arguments.question, arguments.picture, arguments.number)
        print_products("by what the pictures show", found)
    except UnifiedEmbeddingsError as error:
        raise SystemExit(f"error: {error}") from None


def print_products(title: str, hits: Sequence[NodeWithScore]) -> None:
    """Print products, best first."""
    print(title)
    for rank, hit in enumerate(hits, 1):
        facts = hit.node.metadata
        print(f"  {rank}. {facts['name']}, {facts['price']:.2f}: {hit.node.get_content()}")


if __name__ == "__main__":
    main()
