"""Models that the packed engine does not run, through sentence-transformers.

What lives here: dense models of any architecture with cls or mean pooling (mpnet, mixtures of
experts, LoRA tasks, extra dense layers, remote code), and SPLADE models. What does not: tokenising
and batching, which are the embedder's; only the modules' forward pass is used. Batches are padded,
so it is slower than the default engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.quiet import quiet_loading
from unified_embeddings.engines.torch_device import DTYPES, host_weights, pad_batch, plan_torch
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.weights import check_finite
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role, SparseVector

_LOGIT_BYTES = 256 * 2**20
"""SPLADE's logits held at once: one per token and vocabulary entry, 500 MB for 4,096 tokens."""
_USUAL_VOCABULARY = 2**15
"""Vocabulary size assumed for a SPLADE model whose configuration names none."""


class SentenceEngine:
    """A sentence-transformers model on one device; see `Engine`.

    Remote code is run if the checkpoint's spec says that the model needs it. The embedder has asked
    for consent before.

    Args:
        checkpoint: The model's files.
        runtime: The result of `plan`.

    Raises:
        ModelLoadError: If sentence-transformers cannot load the model, a tensor is missing from its
            files, or its vectors have another width than its spec says.
    """

    padded = True

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        if len(checkpoint.spec.heads) != 1:
            raise checkpoint.problem(
                "the engine 'sentence' runs models that give dense or sparse vectors, not "
                f"{', '.join(checkpoint.spec.heads)} together"
            )
        self.runtime = runtime
        self._checkpoint = checkpoint
        self._device = torch.device(runtime.device)
        self._is_sparse = checkpoint.pooling == "splade"
        self._pad_id = checkpoint.pad_id
        # One pass at a time; it also guards the adapter in use.
        self._lock = threading.Lock()
        self._active_adapter: Role | None = None
        with checkpoint.explain("sentence-transformers cannot load it"):
            with quiet_loading():  # what it reports is checked here, and more strictly
                self._check_tensors()
                self._model = self._load_model().to(self._device).eval()
                self._load_adapters()
            for name, parameter in self._model.named_parameters():
                check_finite(checkpoint, name, parameter)
            # One text shows the width, and that the parts fit together at all.
            probe = self._forward([np.array([self._pad_id, self._pad_id], dtype=np.int32)])
        width = probe.shape[-1]
        if not self._is_sparse and width != checkpoint.dimension:
            raise checkpoint.problem(
                f"its vectors have {width} dimensions, but its spec, or else config.json, says "
                f"{checkpoint.dimension}; put dimension={width} into its spec"
            )

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Decide by the hardware; see `registry.plan`."""
        return plan_torch("sentence", precision, device)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield the regions of weights in this process's memory; see `Engine.weights`."""
        return host_weights(self._model)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],  # noqa: ARG002 — such a model has one
        role: Role = "document",
    ) -> RawHeads:
        """Run one forward pass over the padded batch; see `Engine.run`.

        SPLADE's logits are wide, so a large batch goes through in several passes.
        """
        with self._lock, torch.inference_mode():
            self._use_adapter(role)
            if self._is_sparse:
                return RawHeads(sparse=self._compute_sparse(batch))
            return RawHeads(pooled=self._forward(batch).float().cpu().numpy())

    # --- loading --------------------------------------------------------------------------------

    def _load_model(self) -> torch.nn.Sequential:
        """Load the modules in `modules.json`, or else a backbone with the spec's pooling."""
        folder = str(self._checkpoint.folder)
        config_options = self._options
        model_options = config_options | {"dtype": DTYPES[self.runtime.precision]}
        if self._checkpoint.modules is not None:
            model_class = SparseEncoder if self._is_sparse else SentenceTransformer
            return model_class(
                folder,
                device="cpu",
                local_files_only=True,
                trust_remote_code=self._checkpoint.spec.remote_code,
                model_kwargs=model_options,
                config_kwargs=config_options,
            )
        if self._is_sparse:
            backbone = Transformer(
                folder,
                transformer_task="fill-mask",
                model_kwargs=model_options,
                config_kwargs=config_options,
            )
            return SparseEncoder(modules=[backbone, SpladePooling("max")], device="cpu")
        backbone = Transformer(folder, model_kwargs=model_options, config_kwargs=config_options)
        pooling = Pooling(backbone.get_embedding_dimension(), self._checkpoint.pooling)
        return SentenceTransformer(modules=[backbone, pooling], device="cpu")

    def _check_tensors(self) -> None:
        """Refuse files that lack a tensor, which transformers would fill with random numbers."""
        folder, options = self._checkpoint.folder, self._options
        config = AutoConfig.from_pretrained(folder, **options)
        model_class = AutoModelForMaskedLM if self._is_sparse else AutoModel
        # On "meta" no weights are allocated: only their names and shapes are compared.
        _, report = model_class.from_pretrained(
            folder, config=config, device_map="meta", output_loading_info=True, **options
        )
        wrong_names = []
        for name in sorted(report["missing_keys"]):
            if not name.startswith("pooler."):  # BERT's own pooler, which is not used
                wrong_names.append(name)
        wrong_names += [str(name) for name in report["mismatched_keys"]]
        if wrong_names:
            raise self._checkpoint.problem(
                f"{len(wrong_names)} tensors are missing from its files or have the wrong shape, "
                f"the first {wrong_names[0]}"
            )

    @property
    def _options(self) -> dict[str, bool | str]:
        return {"local_files_only": True, **self._checkpoint.code_options}

    def _load_adapters(self) -> None:
        """Load the LoRA weights of each role, under the role's name.

        Raises:
            ModelLoadError: If a tensor of them is missing, unknown or of the wrong shape.
        """
        roles: tuple[Role, ...] = ("query", "document")
        for role in roles:
            adapter = self._checkpoint.spec.adapter(role)
            if not adapter:
                continue
            folder = str(self._checkpoint.folder / adapter)
            report = self._backbone.load_adapter(folder, adapter_name=role)
            # The keys of adapters that were loaded before are reported as missing, too.
            wrong_names = [name for name in report.missing_keys if f".{role}." in name]
            wrong_names += report.unexpected_keys
            wrong_names += [str(name) for name in report.mismatched_keys]
            if wrong_names:
                raise self._checkpoint.problem(
                    f"{len(wrong_names)} tensors of the adapter {adapter} are missing, unknown or "
                    f"of the wrong shape, the first {min(wrong_names)}"
                )
            self._active_adapter = role

    def _use_adapter(self, role: Role) -> None:
        """Switch to the adapter of a role, or to none if the role has none."""
        spec = self._checkpoint.spec
        adapter = role if spec.adapter(role) else None
        if not spec.adapters or adapter == self._active_adapter:
            return
        if adapter is None:
            self._backbone.disable_adapters()
        else:
            self._backbone.enable_adapters()
            self._backbone.set_adapter(adapter)
        self._active_adapter = adapter

    @property
    def _backbone(self) -> PreTrainedModel:
        return cast("PreTrainedModel", self._model[0].model)

    # --- running --------------------------------------------------------------------------------

    def _forward(self, batch: Sequence[IntArray]) -> torch.Tensor:
        """Return the vectors of a padded batch, (n, width)."""
        features = pad_batch(batch, self._pad_id, self._device)
        vectors: torch.Tensor = self._model(features)["sentence_embedding"]
        return vectors.to_dense() if vectors.is_sparse else vectors

    def _compute_sparse(self, batch: Sequence[IntArray]) -> list[SparseVector]:
        """Run a batch in parts whose logits fit into `_LOGIT_BYTES`."""
        vocabulary = self._checkpoint.integer("vocab_size", default=_USUAL_VOCABULARY)
        longest = max(len(token_ids) for token_ids in batch)
        texts_at_once = max(1, _LOGIT_BYTES // (4 * vocabulary * longest))
        vectors = []
        for start in range(0, len(batch), texts_at_once):
            rows = self._forward(batch[start : start + texts_at_once]).float().cpu().numpy()
            vectors += [_sparse_vector(row) for row in rows]
        return vectors


def _sparse_vector(row: FloatArray) -> SparseVector:
    """Return the positive weights of one text, whose row has one for each vocabulary id."""
    (ids,) = np.nonzero(row > 0)
    return SparseVector(ids.astype(np.int32), row[ids])
