"""What "auto" takes on which processor, and what that rests on.

What lives here: one table, keyed by the processor's instruction sets. What does not: what else
decides (a GPU, the model's size, room for an export: `choice`), and reading the flags
(`system.hardware`).

Rows are tried from the top, and the first that fits counts. "measured" means that this project's
engines were timed on such a processor, full size, both in one run (ADR 15, 35 and 40, and for AMX
docs/kernels.md). "expected" means that it follows from the libraries' sources or from other
people's figures (docs/kernels.md); `benchmarks/run.py` on such a machine would replace it.

bf16 is taken where a CPU has matrix units for it, and nowhere else: elsewhere a new version would
change what an existing collection's next vectors are. int8 is never taken by itself, since it
changes the vectors a little. The table says what it gives where it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unified_embeddings.system.hardware import Cpu

Basis = Literal["measured", "expected"]


@dataclass(frozen=True)
class Processor:
    """A kind of processor, and what "auto" takes on it.

    Attributes:
        name: The kind, in words.
        has: Flags that it must have.
        engine: The engine for a model of BGE-M3's size: "torch" or "onnx".
        precision: The precision: "fp32" or "bf16".
        basis: Whether the engine and the precision were measured there.
        reason: Why this engine, in words for the user.
        precision_reason: Why this precision.
        int8: What int8 is expected to give there, if it is asked for.
        int8_basis: Whether that was measured.

    Example:
        >>> processor = processor_kind(Cpu("a laptop", 4, ("sse2", "avx2")))
        >>> processor.engine, processor.precision, processor.basis
        ('onnx', 'fp32', 'measured')
    """

    name: str
    has: frozenset[str]
    engine: str
    precision: str
    basis: Basis
    reason: str
    precision_reason: str
    int8: str
    int8_basis: Basis

    def fits(self, processor: Cpu) -> bool:
        """Tell whether a processor is of this kind."""
        return self.has <= set(processor.flags)


_NO_AMX = "the CPU has no amx_bf16, without which bf16 is slower"
_UNKNOWN_BF16 = "bf16 was not tried on this kind of processor"

PROCESSORS = (
    Processor(
        name="x86 with AMX",
        has=frozenset({"amx_bf16"}),
        engine="torch",
        precision="bf16",
        basis="measured",
        reason=(
            "in bf16 this engine ran documents at 2,897 tokens/s on 16 cores, in fp32 at 1,428; "
            "'onnx' at 1,129 in fp32 and at 1,625 in int8"
        ),
        precision_reason="the CPU has amx_bf16 matrix units",
        int8=(
            "1.1 to 1.5 times as fast as fp32 for documents, half as fast as bf16; a query takes "
            "more time than in bf16 and less CPU time"
        ),
        int8_basis="measured",
    ),
    Processor(
        name="x86 with AVX-512 VNNI and bf16",
        has=frozenset({"avx512f", "avx512_vnni", "avx512_bf16"}),
        engine="torch",
        precision="fp32",
        basis="measured",
        reason=(
            "it took 0 to 31% less CPU time than 'onnx' in fp32, from queries of 16 tokens to "
            "documents, at BGE-M3's size"
        ),
        precision_reason=(
            "the CPU has no amx_bf16; with avx512_bf16 alone bf16 is faster too, but rounds, so "
            "that it is taken only if asked for"
        ),
        int8="2.5 to 3 times as fast as fp32",
        int8_basis="measured",
    ),
    Processor(
        name="x86 with AVX-512 VNNI",
        has=frozenset({"avx512f", "avx512_vnni"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="its fp32 kernels are those of the row above, where it was measured",
        precision_reason=_NO_AMX,
        int8="2.5 to 3 times as fast as fp32: the kernels are those of the row above",
        int8_basis="expected",
    ),
    Processor(
        name="x86 with AVX-512, no VNNI",
        has=frozenset({"avx512f"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="its fp32 kernels are those of AVX-512 VNNI and bf16, where it was measured",
        precision_reason=_NO_AMX,
        int8="exact kernels for unsigned weights, at about half the speed of those with VNNI",
        int8_basis="expected",
    ),
    Processor(
        name="x86 with AVX-VNNI, no AVX-512",
        has=frozenset({"avx2", "avx_vnni"}),
        engine="onnx",
        precision="fp32",
        basis="expected",
        reason="its fp32 kernels are those of AVX2, where it was measured",
        precision_reason=_NO_AMX,
        int8="256 bits wide products in one instruction: about half of AVX-512 VNNI's rate",
        int8_basis="expected",
    ),
    Processor(
        name="x86 with AVX2",
        has=frozenset({"avx2"}),
        engine="onnx",
        precision="fp32",
        basis="measured",
        reason="documents 188 tokens/s against torch's 143, one query 112 ms against 189",
        precision_reason=_NO_AMX,
        int8="exact kernels for unsigned weights, about twice as fast as fp32",
        int8_basis="expected",
    ),
    Processor(
        name="x86 without AVX2",
        has=frozenset({"sse2"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="the default: engines were not compared on this kind of processor",
        precision_reason=_NO_AMX,
        int8="refused: no kernels for it",
        int8_basis="measured",
    ),
    Processor(
        name="ARM with i8mm and SVE",
        has=frozenset({"asimd", "i8mm", "sve"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="the default: engines were not compared on this kind of processor",
        precision_reason=_UNKNOWN_BF16,
        int8="i8mm kernels, 8 products of pairs in one instruction: well above fp32",
        int8_basis="expected",
    ),
    Processor(
        name="ARM with i8mm",
        has=frozenset({"asimd", "i8mm"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="the default: engines were not compared on this kind of processor",
        precision_reason=_UNKNOWN_BF16,
        int8="i8mm kernels: well above fp32",
        int8_basis="expected",
    ),
    Processor(
        name="ARM with dot products",
        has=frozenset({"asimd", "asimddp"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="the default: engines were not compared on this kind of processor",
        precision_reason=_UNKNOWN_BF16,
        int8="udot kernels: above fp32, half of i8mm's rate",
        int8_basis="expected",
    ),
    Processor(
        name="ARM without dot products",
        has=frozenset({"asimd"}),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason="the default: engines were not compared on this kind of processor",
        precision_reason=_UNKNOWN_BF16,
        int8="widening multiplications: about as fast as fp32, for a quarter of its memory",
        int8_basis="expected",
    ),
    Processor(
        name="unknown",
        has=frozenset(),
        engine="torch",
        precision="fp32",
        basis="expected",
        reason=(
            "the default: engines were not compared on this kind of processor, or the system does "
            "not tell its instruction sets"
        ),
        precision_reason=_UNKNOWN_BF16,
        int8="runs if the processor has AVX2 or ARM's asimd",
        int8_basis="expected",
    ),
)
"""Kinds of processors, the most capable first; the last fits every processor."""


def processor_kind(processor: Cpu) -> Processor:
    """Return the first kind in the table that a processor is of."""
    return next(kind for kind in PROCESSORS if kind.fits(processor))
