"""Models the packed engine does not run, through sentence-transformers.

What lives here: dense models with cls or mean pooling of any architecture (mpnet, mixtures of
experts, LoRA tasks, extra dense layers, remote code) and SPLADE models, behind our protocol. The
tokenizer and the batches are the embedder's; only the modules' forward pass is used. Padded, so
slower than the default engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from unified_embeddings.engines.base import RawHeads, Runtime
from unified_embeddings.engines.quiet import quiet_loading
from unified_embeddings.engines.torch_device import DTYPES, host_weights, padded, plan_torch
from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.types import HeadName, IntArray, Role, SparseVector

_LOGIT_BYTES = 256 * 2**20
"""SPLADE's logits held at once: one a token and vocabulary entry, 500 MB for 4,096 tokens."""


class SentenceEngine:
    """A sentence-transformers model on one device; see `engines.Engine`.

    Remote code is run where the checkpoint's spec says the model needs it; the embedder has asked
    for consent before.

    Raises:
        ModelLoadError: If sentence-transformers cannot load it, a tensor is missing from its files,
            or its vectors have another width than its spec says.
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
        self._pad_id = int(checkpoint.config.get("pad_token_id") or 0)
        self._lock = threading.Lock()
        self._role: Role | None = None
        try:
            with quiet_loading():  # what it reports is checked here, and more strictly
                self._check_tensors()
                self._model = self._load().to(self._device).eval()
                self._load_adapters()
            # One text tells the width, and that the pieces fit together at all.
            probe = self._forward([np.array([self._pad_id, self._pad_id], dtype=np.int32)])
        except ModelLoadError:
            raise
        except Exception as error:  # of whatever kind the libraries, or remote code, raise
            raise checkpoint.problem(f"sentence-transformers cannot load it: {error}") from error
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
        """Read the hardware; see `engines.plan`."""
        return plan_torch("sentence", precision, device)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Where the weights lie; see `engines.Engine.weights`."""
        return host_weights(self._model)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],  # noqa: ARG002 — such a model has one
        role: Role = "document",
    ) -> RawHeads:
        """One forward pass over the padded batch; see `engines.Engine.run`.

        SPLADE's logits are wide: a large batch goes through in several passes.
        """
        with self._lock, torch.inference_mode():
            self._use_adapter(role)
            if not self._is_sparse:
                return RawHeads(pooled=self._forward(batch).float().cpu().numpy())
            return RawHeads(sparse=[vector for part in self._parts(batch) for vector in part])

    # --- loading --------------------------------------------------------------------------------

    def _load(self) -> torch.nn.Module:
        checkpoint, folder = self._checkpoint, str(self._checkpoint.folder)
        options = self._options
        if checkpoint.modules is not None:
            kind = SparseEncoder if self._is_sparse else SentenceTransformer
            return kind(
                folder,
                device="cpu",
                local_files_only=True,
                trust_remote_code=options["trust_remote_code"],
                model_kwargs=options | {"dtype": self._dtype},
                config_kwargs=options,
            )
        model_options = options | {"dtype": self._dtype}
        if self._is_sparse:
            masked = Transformer(
                folder,
                transformer_task="fill-mask",
                model_kwargs=model_options,
                config_kwargs=options,
            )
            return SparseEncoder(modules=[masked, SpladePooling("max")], device="cpu")
        backbone = Transformer(folder, model_kwargs=model_options, config_kwargs=options)
        width = backbone.get_embedding_dimension()
        return SentenceTransformer(
            modules=[backbone, Pooling(width, checkpoint.pooling)], device="cpu"
        )

    def _check_tensors(self) -> None:
        """Refuse files that lack a tensor, which transformers would fill with noise."""
        folder, kind = (
            self._checkpoint.folder,
            AutoModelForMaskedLM if self._is_sparse else AutoModel,
        )
        config = AutoConfig.from_pretrained(folder, **self._options)
        _, report = kind.from_pretrained(
            folder, config=config, device_map="meta", output_loading_info=True, **self._options
        )
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        missing += [str(key) for key in report["mismatched_keys"]]
        if missing:
            raise self._checkpoint.problem(
                f"{len(missing)} tensors are missing from its files or of another shape, the first "
                f"{missing[0]}"
            )

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES[self.runtime.precision]

    @property
    def _options(self) -> dict[str, Any]:
        return {"local_files_only": True, **self._checkpoint.code_options}

    def _load_adapters(self) -> None:
        """Load the LoRA weights of each role, under the role's name.

        Raises:
            ModelLoadError: If a tensor is missing from their files, or another stands there.
        """
        spec = self._checkpoint.spec
        for role in ("query", "document") if spec.adapters else ():
            if not (adapter := spec.adapter(role)):
                continue
            folder = str(self._checkpoint.folder / adapter)
            report = self._backbone.load_adapter(folder, adapter_name=role)
            wrong = [key for key in report.missing_keys if f".{role}." in key]
            wrong += [*report.unexpected_keys, *map(str, report.mismatched_keys)]
            if wrong:
                raise self._checkpoint.problem(
                    f"{len(wrong)} tensors of the adapter {adapter} are missing, unknown or of "
                    f"another shape, the first {min(wrong)}"
                )
            self._role = role

    def _use_adapter(self, role: Role) -> None:
        spec = self._checkpoint.spec
        wanted = role if spec.adapter(role) else None
        if not spec.adapters or wanted == self._role:
            return
        if wanted:
            self._backbone.enable_adapters()
            self._backbone.set_adapter(wanted)
        else:
            self._backbone.disable_adapters()
        self._role = wanted

    @property
    def _backbone(self) -> Any:
        return self._model[0].model  # type: ignore[index]

    # --- running --------------------------------------------------------------------------------

    def _forward(self, batch: Sequence[IntArray]) -> torch.Tensor:
        """Vectors of a padded batch, (n, width)."""
        features = padded(batch, self._pad_id, self._device)
        vectors: torch.Tensor = self._model(features)["sentence_embedding"]
        return vectors.to_dense() if vectors.is_sparse else vectors

    def _parts(self, batch: Sequence[IntArray]) -> Iterator[list[SparseVector]]:
        vocabulary = int(self._checkpoint.config.get("vocab_size", 2**15))
        longest = max(map(len, batch))
        count = max(1, _LOGIT_BYTES // (4 * vocabulary * longest))
        for start in range(0, len(batch), count):
            rows = self._forward(batch[start : start + count]).float().cpu().numpy()
            yield [_nonzero(row) for row in rows]


def _nonzero(row: np.ndarray[Any, np.dtype[np.float32]]) -> SparseVector:
    (ids,) = np.nonzero(row > 0)
    return SparseVector(ids.astype(np.int32), row[ids])
