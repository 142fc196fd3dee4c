"""FlagEmbedding's own model as an engine: the reference that the other engines are held to.

What lives here: BGE-M3's published forward pass and heads. Only FlagEmbedding's model class is
used. Its `encode` is not: it forwards the first batch twice, takes any RuntimeError for a lack of
memory, and is not thread-safe. Nor is its loading, which continues with random heads if a head file
is missing. Batches are padded, so it is slower than the default engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.torch_device import DTYPES, host_weights, pad_batch, plan_torch
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import COLBERT_HEAD, SPARSE_HEAD
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.types import HEAD_NAMES, HeadName, IntArray, Role

try:
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
        EncoderOnlyEmbedderM3ModelForInference,
    )
except ImportError as error:
    raise UnifiedEmbeddingsError(
        f"The engine 'flag' needs FlagEmbedding, which cannot be imported: {error}. Install the "
        "version in constraints.txt, or use engine='torch'"
    ) from error


class FlagEngine:
    """FlagEmbedding's BGE-M3 model on one device; see `Engine`.

    Args:
        checkpoint: The model's files.
        runtime: The result of `plan`.

    Raises:
        ModelLoadError: If a file is truncated, or a tensor or head is missing or of the wrong
            shape.
    """

    padded = True

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        if checkpoint.spec.heads != HEAD_NAMES:
            raise checkpoint.problem("the engine 'flag' runs models with all three heads only")
        self.runtime = runtime
        self._device = torch.device(runtime.device)
        dtype = DTYPES[runtime.precision]
        parts = {
            "model": _load_backbone(checkpoint, dtype),
            "sparse_linear": load_head(checkpoint, SPARSE_HEAD, rows=1).to(dtype),
            "colbert_linear": load_head(checkpoint, COLBERT_HEAD).to(dtype),
        }
        model = EncoderOnlyEmbedderM3ModelForInference(
            parts, sentence_pooling_method=checkpoint.pooling
        )
        self._model = model.to(self._device).eval()
        self._pad_id = checkpoint.pad_id
        # One pass at a time: a second would only compete for the same cores and memory.
        self._lock = threading.Lock()

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Decide by the hardware; see `registry.plan`."""
        return plan_torch("flag", precision, device)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the regions of weights in this process's memory; see `Engine.weights`."""
        return host_weights(self._model)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """Run one forward pass over the padded batch; see `Engine.run`."""
        with self._lock, torch.inference_mode():
            outputs = self._model(
                pad_batch(batch, self._pad_id, self._device),
                return_dense="dense" in heads,
                return_sparse="sparse" in heads,
                return_colbert_vecs="colbert" in heads,
            )
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in outputs.items()}
        lengths = [len(token_ids) for token_ids in batch]
        token_weights = token_vectors = None
        # Padding is cut off again; FlagEmbedding has dropped the leading token of ColBERT's rows.
        if "sparse_vecs" in arrays:
            rows = arrays["sparse_vecs"]
            token_weights = [row[:n, 0] for row, n in zip(rows, lengths, strict=True)]
        if "colbert_vecs" in arrays:
            rows = arrays["colbert_vecs"]
            token_vectors = [row[: n - 1] for row, n in zip(rows, lengths, strict=True)]
        return RawHeads(
            pooled=arrays.get("dense_vecs"),
            token_weights=token_weights,
            token_vectors=token_vectors,
        )


def _load_backbone(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Return transformers' encoder, without its pooler, with the checkpoint's own weights.

    Raises:
        ModelLoadError: See `FlagEngine`.
    """
    tensors = read_backbone(checkpoint).tensors
    with checkpoint.explain("config.json describes no usable model"):
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        # On "meta" the model allocates no weights of its own before it gets the checkpoint's.
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, add_pooling_layer=False
            )
    state = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    _rebuild_buffers(model)
    return model.requires_grad_(False)


def _rebuild_buffers(model: PreTrainedModel) -> None:
    """Fill the buffers that were left on "meta", since no checkpoint has them."""
    for name, buffer in list(model.named_buffers()):
        if not buffer.is_meta:
            continue
        owner, _, attribute = name.rpartition(".")
        if attribute == "position_ids":
            values = torch.arange(buffer.shape[-1]).expand(buffer.shape)
        elif attribute == "token_type_ids":
            values = torch.zeros(buffer.shape, dtype=torch.long)
        else:
            raise NotImplementedError(f"the buffer {name} of {type(model).__name__}")
        model.get_submodule(owner).register_buffer(attribute, values, persistent=False)
