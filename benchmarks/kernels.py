"""Which kernels the libraries take on this machine, and what "auto" chooses: printed as JSON.

A program of its own, since it imports every library, and oneDNN tells what it does only if it is
asked to before it is loaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

from folders import without_folders

_VERBOSE = "ONEDNN_VERBOSE"
_ISA = re.compile(r"cpu,isa:([^\n]*)")
_PRODUCT = re.compile(r"exec,cpu,(?:matmul|inner_product),([^,]+),.*,(?:mb)?(\d+)(?:ic|x)\d+")
_LIBRARY = re.compile(r"MKL|Math Kernel|oneDNN|OpenMP|OpenBLAS|ACL")
_MAX_LINE = 200
_TRIED_ROWS = (16, 512)


def describe() -> dict[str, Any]:
    """Return what this machine's libraries do, found out in a new process.

    Raises:
        SystemExit: If the process fails.
    """
    ended = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, _VERBOSE: "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
        raise SystemExit(f"the kernels of this machine cannot be found out: {reason}")
    *told, last = ended.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(last)
    verbose = "\n".join(told)
    isa = _ISA.search(verbose)
    kernels = {f"{rows} rows": name for name, rows in _PRODUCT.findall(verbose)}
    found["torch"]["onednn_isa"] = isa.group(1) if isa else None
    found["torch"]["onednn_fp32_kernels"] = kernels
    return found


def main() -> None:
    """Compute a few products and print what was chosen; oneDNN's own lines come before."""
    from unified_embeddings.system.hardware import kernel_variables

    told = {
        "torch": _torch(),
        "onnxruntime": _onnxruntime(),
        "variables": list(kernel_variables()),
        "auto": _auto(),
    }
    print(json.dumps(told))


def _torch() -> dict[str, Any]:
    import torch

    from unified_embeddings.engines.products import OneDnnProduct, has_onednn

    lines = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    found: dict[str, Any] = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [line for line in lines if _LIBRARY.search(line) and len(line) < _MAX_LINE],
        "has_onednn_fp32": has_onednn(torch.float32),
        "has_onednn_bf16": has_onednn(torch.bfloat16),
    }
    if found["has_onednn_fp32"]:
        product = OneDnnProduct(torch.ones(64, 64), torch.ones(64))
        for rows in _TRIED_ROWS:
            product(torch.ones(rows, 64))
    return found


def _onnxruntime() -> dict[str, Any] | None:
    """Return None if it is not installed. It does not tell its kernels; see docs/kernels.md."""
    from unified_embeddings.system.hardware import cpu, no_telemetry

    try:
        with no_telemetry():
            import onnxruntime
    except ImportError:
        return None

    return {
        "build": onnxruntime.get_build_info(),
        "int8_weights": "signed" if cpu().has_int8_products else "unsigned",
    }


def _auto() -> dict[str, str]:
    """Return what "auto" takes for BGE-M3, whose files are not needed for that."""
    from unified_embeddings import BGE_M3_Embedder
    from unified_embeddings.engines.processors import processor_kind
    from unified_embeddings.system.hardware import cpu

    runtime = BGE_M3_Embedder(local_files_only=True).runtime
    kind = processor_kind(cpu())
    return {
        "processor": kind.name,
        "basis": kind.basis,
        "engine": runtime.engine,
        "precision": runtime.precision,
        "device": runtime.device,
        "reason": without_folders(runtime.reason),
    }


if __name__ == "__main__":
    main()
