"""Search products by what is written about them and by what their pictures show.

    python examples/product-search/app.py "a red circle"
    python examples/product-search/app.py "something to drink tea from"
    python examples/product-search/app.py --picture photo.png

Each product is one node with a text and a picture. The text goes into one collection, the picture
into another, under the same id, so that a product that both find comes first.
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
    UnifiedMultiModalRetriever,
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

    def ask(self, question: str, picture: Path | None, number: int) -> list[NodeWithScore]:
        """Return the products that fit a question, a picture or both best.

        Args:
            question: What is looked for, in words; may be empty with a picture.
            picture: A picture of something alike.
            number: How many products to return.
        """
        path = str(picture) if picture else None
        return self._retriever(number).retrieve(QueryBundle(question, image_path=path))

    def _retriever(self, number: int) -> UnifiedMultiModalRetriever:
        # A shop's few words about a product say little of its looks: what is seen counts twice.
        # With a small k the first places count most.
        return self._config.multimodal_retriever(
            self._texts, self._images, similarity_top_k=number, weights=(1.0, 2.0), rrf_k=2
        )

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
        found = search.ask(arguments.question, arguments.picture, arguments.number)
    except UnifiedEmbeddingsError as error:
        raise SystemExit(f"error: {error}") from None
    for rank, hit in enumerate(found, 1):
        facts = hit.node.metadata
        print(f"{rank}. {facts['name']}, {facts['price']:.2f}")
        print(f"   {hit.node.get_content()}")


if __name__ == "__main__":
    main()
