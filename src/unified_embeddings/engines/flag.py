"""FlagEmbedding's own model as an engine: the reference the others are held to.

What lives here: BGE-M3's published forward pass and heads behind our protocol. Only its model class
is used, not its `encode`, which forwards the first batch twice, takes any RuntimeError for want of
memory, and is not thread-safe; nor its loading, which goes on with random heads where a head file
is missing. Padded, so slower than the default engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.torch_device import DTYPES, host_weights, padded, plan_torch
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.models.checkpoint import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.models.weights import load_head, read_backbone
from unified_embeddings.types import HEAD_NAMES, HeadName, IntArray, Role

try:
    from FlagEmbedding.finetune.embedder.encoder_only.m3 import (
        EncoderOnlyEmbedderM3ModelForInference,
    )
except ImportError as error:
    raise UnifiedEmbeddingsError(
        f"The engine 'flag' needs FlagEmbedding, which cannot be imported: {error}. Install it as "
        "constraints.txt has it, or use engine='torch'"
    ) from error


class FlagEngine:
    """FlagEmbedding's BGE-M3 model on one device; see `engines.Engine`.

    Raises:
        ModelLoadError: If a file is truncated, or a tensor or head missing or of a wrong shape.
    """

    padded = True

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        if checkpoint.spec.heads != HEAD_NAMES:
            raise checkpoint.problem("the engine 'flag' runs models with all three heads only")
        self.runtime = runtime
        self._device = torch.device(runtime.device)
        dtype = DTYPES[runtime.precision]
        backbone = _load_backbone(checkpoint, dtype)
        self._model = (
            EncoderOnlyEmbedderM3ModelForInference(
                {
                    "model": backbone,
                    "sparse_linear": load_head(checkpoint, SPARSE_HEAD, rows=1).to(dtype),
                    "colbert_linear": load_head(checkpoint, COLBERT_HEAD).to(dtype),
                },
                sentence_pooling_method=checkpoint.pooling,
            )
            .to(self._device)
            .eval()
        )
        self._pad_id = int(backbone.config.pad_token_id or 0)
        self._lock = threading.Lock()

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Read the hardware; see `engines.plan`."""
        return plan_torch("flag", precision, device)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Where the weights lie; see `engines.Engine.weights`."""
        return host_weights(self._model)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """One forward pass over the padded batch; see `engines.Engine.run`."""
        lengths = [len(ids) for ids in batch]
        with self._lock, torch.inference_mode():
            out = self._model(
                padded(batch, self._pad_id, self._device),
                return_dense="dense" in heads,
                return_sparse="sparse" in heads,
                return_colbert_vecs="colbert" in heads,
            )
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in out.items()}
        weights, vectors = arrays.get("sparse_vecs"), arrays.get("colbert_vecs")
        return RawHeads(
            arrays.get("dense_vecs"),
            None if weights is None else [w[:n, 0] for w, n in zip(weights, lengths, strict=True)],
            None
            if vectors is None
            else [v[: n - 1] for v, n in zip(vectors, lengths, strict=True)],
        )


def _load_backbone(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder as transformers has it, without its pooler, in the checkpoint's own weights.

    Raises:
        ModelLoadError: See `FlagEngine`.
    """
    tensors = read_backbone(checkpoint).tensors
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, add_pooling_layer=False
            )
    except Exception as error:  # from assertions to divisions by zero, as the value may be
        raise checkpoint.problem(f"config.json describes no usable model: {error!r}") from error
    state = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            rebuilt = _BUFFERS[attribute](buffer.shape)
            model.get_submodule(owner).register_buffer(attribute, rebuilt, persistent=False)
    return model.requires_grad_(False)


_BUFFERS = {
    "position_ids": lambda shape: torch.arange(shape[-1]).expand(shape),
    "token_type_ids": lambda shape: torch.zeros(shape, dtype=torch.long),
}
"""What the architectures above keep beside their weights, in no checkpoint."""
