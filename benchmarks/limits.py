"""How close the engines come to their matrix products alone.

    export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000    as the engine `torch` has it by default
    python benchmarks/limits.py                           a full-size BGE-M3 with random weights
    python benchmarks/limits.py --model FOLDER            a checkpoint of your own
    python benchmarks/limits.py --precisions int8 --rounds 9

Compared are `onnx` in fp32 and in int8, and `torch` in fp32. The limit of a workload is the time
that its multiplications take at the speed of the fastest library at hand: ONNX Runtime, and in fp32
oneDNN with the weights in its own layout and torch's plain product as well. Timed are the
products with the layers' weights, over all of the workload's tokens in blocks of up to 512 rows. In
fp32, attention's own products are added as if they ran at the same speed. Everything else comes on
top: normalisation, softmax, activation, heads and, in int8, attention and rounding. Times are CPU
time (user and system). Engines and libraries take turns in each round, and short work is repeated
within its turn, as queries follow each other: a turn gives its least time. Shown are medians of the
rounds, and the median and the range of each round's ratio.

The weights of half the layers are multiplied again and again. They are many times what a cache
holds, as in the model.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import full_size
from report import table
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.engines.base import Engine
from unified_embeddings.engines.onnx_session import session_options
from unified_embeddings.engines.products import OneDnnProduct
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import resolve
from unified_embeddings.system.hardware import cpu, thread_count
from unified_embeddings.types import FloatArray

Example: TypeAlias = dict[int, Any]
"""Number of columns → what is multiplied, (rows, columns): floats, or bytes in int8."""
Multiply: TypeAlias = Callable[[Example], None]
"""Multiplies by the weights of some layers."""
_LAYERS = 12
"""Layers whose weights are multiplied; 600 MB in fp32 for BGE-M3. Of 200 MB, a cache of 32 MB kept
enough to make the products of a query 12% faster than they can be in the model."""
_BLOCK_ROWS = 512
"""Rows that are multiplied at once, at most."""
_TURN_SECONDS = 0.5
"""CPU seconds of a turn, at least."""
_UNTIL_THREADS_SLEEP = 0.001
"""Seconds that idle threads need to fall asleep, unless they spin for long."""
_HEADS = frozenset({"dense", "sparse"})


class _Work(NamedTuple):
    """A workload.

    Attributes:
        texts: Token ids of its texts.
        examples: The same number of rows in blocks, to be multiplied by weights.
        layer_share: The model's layers, as a multiple of those whose weights are multiplied.
        attention: Multiplications in attention, as a share of those with weights.
    """

    texts: list[NDArray[np.int32]]
    examples: list[Example]
    layer_share: float
    attention: float


def main() -> None:
    """Measure all workloads and print a table."""
    options = _parse()
    folder = options.model or full_size.make(options.work / "unified-embeddings-full-size")
    checkpoint = resolve(folder, local_files_only=True)
    rng = np.random.default_rng(0)
    mixed = sorted(rng.integers(8, 400, 16).tolist(), reverse=True)
    workloads = {"query of 16 tokens": [16], "query of 128 tokens": [128], "mixed documents": mixed}
    rows: list[list[str]] = []
    for precision in options.precisions:
        is_int8 = precision == "int8"
        onnx = _load(folder, "onnx", precision)
        engines: dict[str, Engine] = {"onnx": onnx}
        if precision == "fp32" and not checkpoint.is_exported:
            engines["torch"] = _load(folder, "torch", "fp32")
        libraries = _libraries(checkpoint, is_int8=is_int8)
        for name, lengths in workloads.items():
            work = _make_work(checkpoint, lengths, is_int8=is_int8)
            seconds = _measure(work, engines, libraries, options.rounds)
            for engine in engines:
                cells = _cells(seconds, engine, libraries, work.attention)
                rows.append([f"{engine} {precision}", name, *cells])
                print("  ".join(rows[-1]), flush=True)
    print(f"\n{cpu().name}, {thread_count()} threads; CPU milliseconds\n")
    print(table(["engine", "work", "engine", "limit", "by", "engine / limit", "of rounds"], rows))


def _load(folder: Path, engine: str, precision: str) -> Engine:
    """Return a loaded engine; `onnx` exports the model into the user's cache folder, once."""
    embedder = BGE_M3_Embedder(folder, engine=engine, precision=precision, device="cpu")
    return embedder._load()[1]


def _make_work(checkpoint: Checkpoint, lengths: list[int], *, is_int8: bool) -> _Work:
    """Return a workload of texts of these lengths."""
    rng = np.random.default_rng(1)
    vocabulary = checkpoint.integer("vocab_size")
    texts = [rng.integers(5, vocabulary, length, dtype=np.int32) for length in lengths]
    width, wide = _columns(checkpoint)
    examples = []
    for block in np.array_split(np.arange(sum(lengths)), -(-sum(lengths) // _BLOCK_ROWS)):
        example: Example = {
            columns: rng.standard_normal((len(block), columns), dtype=np.float32)
            for columns in (width, wide)
        }
        if is_int8:
            example = {columns: _to_bytes(x) for columns, x in example.items()}
        examples.append(example)
    # Multiplications of a layer: with its weights for each token, and in attention for each pair
    # of a text's tokens, once for the scores and once for the context.
    with_weights = sum(lengths) * (4 * width * width + 2 * width * wide)
    in_attention = 2 * width * sum(length * length for length in lengths)
    return _Work(
        texts=texts,
        examples=examples,
        layer_share=checkpoint.integer("num_hidden_layers") / _LAYERS,
        attention=0.0 if is_int8 else in_attention / with_weights,
    )


def _measure(
    work: _Work, engines: Mapping[str, Engine], libraries: Mapping[str, Multiply], rounds: int
) -> dict[str, list[float]]:
    """Return each engine's and each library's CPU seconds in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in [*engines, *libraries]}
    for _ in range(rounds):
        for name, engine in engines.items():
            seconds[name].append(_least_seconds(engine.run, work.texts, _HEADS))
        for library, multiply in libraries.items():
            products = _least_seconds(_multiply_all, multiply, work.examples)
            seconds[library].append(work.layer_share * products)
    return seconds


def _multiply_all(multiply: Multiply, examples: Iterable[Example]) -> None:
    for example in examples:
        multiply(example)


def _cells(
    seconds: Mapping[str, list[float]], engine: str, libraries: Iterable[str], attention: float
) -> list[str]:
    fastest = min(libraries, key=lambda library: statistics.median(seconds[library]))
    limits = [(1 + attention) * products for products in seconds[fastest]]
    ratios = [ours / limit for ours, limit in zip(seconds[engine], limits, strict=True)]
    times = [f"{1000 * statistics.median(t):.0f}" for t in (seconds[engine], limits)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return [*times, fastest, f"{statistics.median(ratios):.2f}", spread]


def _columns(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the width of the states, and that of the activation's result."""
    return checkpoint.hidden_size, checkpoint.integer("intermediate_size")


def _libraries(checkpoint: Checkpoint, *, is_int8: bool) -> dict[str, Multiply]:
    """Return each library's products with the weights of some layers."""
    width, wide = _columns(checkpoint)
    rng = np.random.default_rng(2)
    # Queries, keys, values and attention's output; the wide product; the narrow one.
    shapes = [(width, width)] * 4 + [(width, wide), (wide, width)]
    weights = [
        rng.standard_normal(shape, dtype=np.float32) for _ in range(_LAYERS) for shape in shapes
    ]
    products = {"ONNX Runtime": _onnx_products(weights, is_int8=is_int8)}
    if not is_int8:
        products["oneDNN"] = _onednn_products(weights)
        products["PyTorch"] = _torch_products(weights)
    return products


def _torch_products(weights: Sequence[FloatArray]) -> Multiply:
    turned = [torch.from_numpy(np.ascontiguousarray(weight.T)) for weight in weights]
    torch.set_num_threads(thread_count())

    def multiply(example: Example) -> None:
        inputs = {columns: torch.from_numpy(x) for columns, x in example.items()}
        with torch.inference_mode():
            for weight in turned:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    return multiply


def _onednn_products(weights: Sequence[FloatArray]) -> Multiply:
    products = []
    for weight in weights:
        turned = torch.from_numpy(np.ascontiguousarray(weight.T))
        products.append((len(weight), OneDnnProduct(turned, torch.zeros(len(turned)))))

    def multiply(example: Example) -> None:
        inputs = {columns: torch.from_numpy(x) for columns, x in example.items()}
        with torch.inference_mode():
            for columns, product in products:
                product(inputs[columns])

    return multiply


def _onnx_products(weights: Sequence[FloatArray], *, is_int8: bool) -> Multiply:
    """Return ONNX Runtime's products: of floats, or of unsigned and signed bytes."""
    nodes, outputs = [], []
    constants = [
        numpy_helper.from_array(np.array(1, dtype=np.float32), "unit"),
        numpy_helper.from_array(np.array(128, dtype=np.uint8), "zero"),
    ]
    for number, weight in enumerate(weights):
        inputs, operator, domain = [f"x{len(weight)}", f"w{number}"], "MatMul", ""
        stored = weight
        if is_int8:
            stored = np.clip(weight * 30, -127, 127).astype(np.int8)
            scales = np.ones(weight.shape[1], dtype=np.float32)
            constants.append(numpy_helper.from_array(scales, f"s{number}"))
            inputs += ["unit", f"s{number}", "zero"]
            operator, domain = "MatMulIntegerToFloat", "com.microsoft"
        constants.append(numpy_helper.from_array(stored, f"w{number}"))
        nodes.append(helper.make_node(operator, inputs, [f"y{number}"], domain=domain))
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None))
    kind = TensorProto.UINT8 if is_int8 else TensorProto.FLOAT
    columns = sorted({len(weight) for weight in weights})
    sources = [helper.make_tensor_value_info(f"x{n}", kind, ["rows", n]) for n in columns]
    graph = helper.make_graph(nodes, "products", sources, outputs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options())

    def multiply(example: Example) -> None:
        session.run(None, {f"x{columns}": x for columns, x in example.items()})

    return multiply


def _to_bytes(x: FloatArray) -> NDArray[np.uint8]:
    return np.clip(x * 30 + 128, 0, 255).astype(np.uint8)


def _least_seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return the least CPU time of some work that is repeated until a turn is over."""
    least = total = _seconds(work, *arguments)
    while total < _TURN_SECONDS:
        seconds = _seconds(work, *arguments)
        total += seconds
        least = min(least, seconds)
    return least


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return the CPU time of some work in this process, user and system."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work(*arguments)
    # Linux adds a running thread's time to its process's only every few milliseconds, and when the
    # thread sleeps.
    time.sleep(_UNTIL_THREADS_SLEEP)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "int8"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args()


if __name__ == "__main__":
    main()
