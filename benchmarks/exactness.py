"""Exactness: each engine's dense vectors against ours in fp32, on the same texts.

A fast engine that computes something else is no peer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from context import Bench
from peers import PEERS
from report import Results, Row, number, paragraphs, table
from speed_bounds import EXACT
from unified_embeddings.heads import normalise
from unified_embeddings.types import FloatArray
from workers import UnavailableError, Worker

_REFERENCES = ("ours-onnx-fp32", "ours-torch-fp32")
"""The engines that the others are compared with; the first that runs."""
_LENGTHS = (8, 16, 32, 64, 128)
_TEXTS_OF_EACH = 4
_DIGITS = 5


def measure(bench: Bench, rows: dict[str, Row], workers: Mapping[str, Worker]) -> Results:
    """Add to each engine's row how close its vectors are to ours in fp32.

    Returns:
        What they are compared with.
    """
    words, rng = bench.words, bench.rng
    texts = [words.text(rng, length) for length in _LENGTHS for _ in range(_TEXTS_OF_EACH)]
    vectors: dict[str, FloatArray] = {}
    for name, worker in workers.items():
        try:
            answer = worker.ask("dense", texts=texts, batch_size=PEERS[name].batch_size)
        except UnavailableError as error:
            rows[name]["reason"] = str(error)
        else:
            vectors[name] = np.asarray(answer["dense"], np.float32)
    reference = next((name for name in _REFERENCES if name in vectors), None)
    results: Results = {"texts": len(texts), "reference": None}
    if reference is not None:
        results["reference"] = rows[reference]["label"]
        results["between_texts"] = _between(vectors[reference])
        for name, found in vectors.items():
            rows[name]["exactness"] = compare(vectors[reference], found)
    return results


def compare(expected: FloatArray, found: FloatArray) -> Row:
    """Return the smallest and the mean cosine between the rows, as they are and centred.

    Random weights give all texts similar vectors, so that even an engine that ignores its input
    would be close. Centred means: less the mean of the expected rows, which all texts share.

    Args:
        expected: Vectors of the reference, (n, d).
        found: Vectors of another engine for the same texts, (n, d).

    Raises:
        ValueError: If the shapes differ.
    """
    if expected.shape != found.shape:
        raise ValueError(f"expected vectors {expected.shape}, got {found.shape}")
    centre = normalise(expected).mean(axis=0)
    cosines = (normalise(expected) * normalise(found)).sum(axis=1)
    centred = (normalise(normalise(expected) - centre) * normalise(normalise(found) - centre)).sum(
        axis=1
    )
    return {
        "min": float(cosines.min()),
        "mean": float(cosines.mean()),
        "min_centred": float(centred.min()),
    }


def tables(results: Results, rows: dict[str, Row]) -> str:
    """Return the cosines of all engines; empty for results from before they were measured."""
    if "exactness" not in results:
        return ""
    facts = results["exactness"]
    if facts["reference"] is None:
        return "Vectors were not compared: neither of our engines in fp32 ran."
    low, high = (number(cosine, 3) for cosine in facts["between_texts"])
    lines = []
    for row in rows.values():
        if "exactness" in row:
            cosines = [row["exactness"][key] for key in ("min", "mean", "min_centred")]
            lines.append((row["label"], *(number(cosine, _DIGITS) for cosine in cosines)))
    return paragraphs(
        f"Exactness: cosine of dense vectors with those of {facts['reference']}, over "
        f"{facts['texts']} texts, at the default batch size. Vectors of different texts have "
        f"cosines of {low} to {high} with each other. Centred: less the mean vector of all texts. "
        f"The bounds count no peer whose smallest cosine is below {EXACT:g}.",
        table(("engine", "smallest cosine", "mean", "smallest, centred"), lines),
    )


def _between(vectors: FloatArray) -> tuple[float, float]:
    """Return the smallest and the largest cosine between different texts."""
    rows = normalise(vectors)
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    return float(cosines.min()), float(cosines.max())
