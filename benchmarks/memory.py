"""Memory of the two default models, BGE-M3 and CLIP ViT-B/32: full size, random weights, bf16.

    python benchmarks/memory.py [--precision bf16] [--models FOLDER]

A new process loads both through the default config, embeds one text and one image, and measures:
the weights of each model and how many of them are resident, the resident and peak memory of the
process, and the number of copies of the text model's token table in memory. The program prints a
line for each, and fails if the process takes more than 1.8 GB in bf16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import full_size

_LIMIT = 1.8e9
_CHILD = """\
import gc, json, resource, sys
from llama_index.core import Settings
from PIL import Image
import unified_embeddings
config = unified_embeddings.UnifiedEmbeddingConfig(
    sys.argv[1], image_model=sys.argv[2], precision=sys.argv[3], device="cpu"
)
config.configure_settings()
Settings.embed_model.get_text_embedding("A fox jumps over a dog.")
config.embedder.encode_query("Where is the fox?", colbert=True)
Settings.image_embed_model.get_image_embedding(Image.new("RGB", (640, 480), "red"))
report = config.memory()
import torch
tables = {
    tensor.untyped_storage().data_ptr()
    for tensor in gc.get_objects()
    if isinstance(tensor, torch.Tensor) and tensor.shape == (250_002, 1024)
}
print(json.dumps({
    "models": [[one.model, one.runs_on, one.weights, one.resident] for one in report.models],
    "process": report.process,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "token tables": len(tables),
}))
"""


def main() -> None:
    """Make the checkpoints, measure in a new process, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument(
        "--models", type=Path, default=Path(tempfile.gettempdir()) / "unified-embeddings-full-size"
    )
    options = parser.parse_args()
    text = full_size.make(options.models)
    clip = full_size.make_clip(options.models.with_name(options.models.name + "-clip"))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(text), str(clip), options.precision],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer = json.loads(done.stdout)
    process, tables = answer["process"], answer["token tables"]
    for name, runs_on, weights, resident in answer["models"]:
        print(f"{Path(name).name} ({runs_on}): {_gb(weights)} weights, {_gb(resident)} resident")
    print(f"process: {_gb(process)} resident, {_gb(answer['peak'])} peak")
    print(f"copies of BGE-M3's token table: {tables}")
    print(f"share of 3.6 GB (two models, as planned): {process / 3.6e9:.0%}")
    print(f"share of 4.2 GB (the three models before): {process / 4.2e9:.0%}")
    if tables != 1 or (options.precision == "bf16" and process > _LIMIT):
        sys.exit(f"expected one table and at most {_gb(_LIMIT)} in bf16")


def _gb(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"


if __name__ == "__main__":
    main()
