"""The default engine: PyTorch, packed.

What lives here: loading the backbone and the two heads, and one forward pass over a packed batch.

Packed means without padding: the token ids of all texts stand in one row [1, T], positions restart
with each text, and attention runs text by text, so that a batch costs what its tokens cost and a
text's vectors do not depend on its batch-mates.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch.nn.functional import embedding, scaled_dot_product_attention
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from unified_embeddings.checkpoints import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.engines import PACKED, RawHeads, Runtime, position_ids, unpackable
from unified_embeddings.errors import InputError
from unified_embeddings.hardware import cpu
from unified_embeddings.memory import give_back
from unified_embeddings.types import FloatArray, HeadName, IntArray, Role

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ATTENTION = "unified_embeddings_packed"
_QUERY_ROWS = 1024
"""Rows of attention scores computed at once: a text of 8,192 tokens would need 4 GiB of them."""


class TorchEngine:
    """A backbone with BGE-M3's heads on one device; see `engines.Engine`.

    Args:
        checkpoint: Where the files lie.
        runtime: What `plan` gave.

    Raises:
        ModelLoadError: If a file is truncated, a tensor or head is missing or of a wrong shape, or
            the model is one that cannot be packed (`engines.unpackable`).
    """

    padded = False

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.runtime = runtime
        self._checkpoint = checkpoint
        self._device = torch.device(runtime.device)
        self._pooling = checkpoint.pooling
        if problem := unpackable(checkpoint):
            raise checkpoint.problem(f"the engine 'torch' cannot run it: {problem}")
        if checkpoint.dimension != checkpoint.hidden_size:
            raise checkpoint.problem(
                f"its vectors have {checkpoint.hidden_size} dimensions, but its spec says "
                f"{checkpoint.dimension}"
            )
        dtype = DTYPES[runtime.precision]
        model: torch.nn.Module = load_backbone(
            checkpoint, dtype, attention=_ATTENTION, map_table=self._device.type == "cpu"
        )
        self._model = model.to(self._device)
        self._sparse = self._colbert = None
        if "sparse" in checkpoint.spec.heads:
            self._sparse = load_head(checkpoint, SPARSE_HEAD, rows=1).to(self._device)
        if "colbert" in checkpoint.spec.heads:
            self._colbert = load_head(checkpoint, COLBERT_HEAD).to(self._device)
        # One pass at a time: a second would only compete for the same cores and memory.
        self._lock = threading.Lock()

    @staticmethod
    def plan(
        precision: str,
        device: str,
        checkpoint: Callable[[], Checkpoint],  # noqa: ARG004 — the hardware decides
    ) -> Runtime:
        """Read the hardware; see `engines.plan`."""
        return plan_torch("torch", precision, device)

    def run(
        self,
        batch: Sequence[IntArray],
        heads: frozenset[HeadName],
        role: Role = "document",  # noqa: ARG002 — one set of weights for both
    ) -> RawHeads:
        """One forward pass over the packed batch; see `engines.Engine.run`."""
        with self._lock, torch.inference_mode():
            return self._run(batch, heads)

    def weights(self) -> Iterator[tuple[int, int]]:
        """Where the weights lie; see `engines.Engine.weights`."""
        return host_weights(self._model, self._sparse, self._colbert)

    def _run(self, batch: Sequence[IntArray], heads: frozenset[HeadName]) -> RawHeads:
        lengths = [len(ids) for ids in batch]
        ids = torch.from_numpy(np.concatenate(batch).astype(np.int64))[None].to(self._device)
        positions = np.concatenate([position_ids(text, self._checkpoint) for text in batch])
        hidden = (
            self._model(
                input_ids=ids,
                position_ids=torch.from_numpy(positions)[None].to(self._device),
                token_type_ids=torch.zeros_like(ids),
                text_lengths=lengths,
            )
            .last_hidden_state[0]
            .float()
        )  # (T, d); heads run in fp32 whatever the backbone's dtype
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        pooled = token_weights = token_vectors = None
        if "dense" in heads:
            pooled = self._pool(hidden, lengths, starts)
        if "sparse" in heads and self._sparse is not None:
            weights = torch.relu(self._sparse(hidden)).squeeze(-1).cpu().numpy()
            token_weights = np.split(weights, starts[1:])
        if "colbert" in heads and self._colbert is not None:
            vectors = self._colbert(hidden).cpu().numpy()
            token_vectors = [text[1:] for text in np.split(vectors, starts[1:])]
        return RawHeads(pooled, token_weights, token_vectors)

    def _pool(
        self, hidden: torch.Tensor, lengths: list[int], starts: np.ndarray[Any, Any]
    ) -> FloatArray:
        if self._pooling == "cls":
            return hidden[torch.from_numpy(starts).to(hidden.device)].cpu().numpy()
        means = [part.mean(dim=0) for part in torch.split(hidden, lengths)]
        return torch.stack(means).cpu().numpy()


def plan_torch(engine: str, precision: str, device: str) -> Runtime:
    """Device and precision for an engine on torch.

    bf16 pays on a CPU only with AMX; without it it can be 100 times slower than fp32. fp16 on a CPU
    is 6 to 9 times slower and rounds: refused. On a GPU fp16 is what BGE-M3 is published in and
    keeps three bits more than bf16.

    Raises:
        InputError: If the device does not exist, or fp16 is asked for on a CPU.
    """
    if precision not in ("auto", *DTYPES):
        more = "; int8 runs on the engine 'onnx', from a file exported in it"
        raise InputError(
            f"precision must be auto, {', '.join(DTYPES)}, not {precision!r}"
            f"{more if precision == 'int8' else ''}"
        )
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    kind = _device_type(device)
    if kind == "cpu":
        if precision == "fp16":
            raise InputError(
                "precision fp16 does not run well on a CPU (6 to 9 times slower than fp32, and "
                "rounded); use auto, fp32 or bf16"
            )
        if precision == "auto":
            if cpu().has_amx_bf16:
                return Runtime(engine, device, "bf16", "the CPU has amx_bf16 matrix units")
            return Runtime(
                engine, device, "fp32", "the CPU has no amx_bf16, without which bf16 is slower"
            )
    elif precision == "auto":
        return Runtime(engine, device, "fp16", f"{kind} computes in half precision")
    return Runtime(engine, device, precision, "as asked")


def _device_type(device: str) -> str:
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is not one torch knows: {error}") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r} is asked for, but torch sees no CUDA GPU; use 'cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device!r} is asked for, of {torch.cuda.device_count()} GPUs")
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {device!r} is asked for, but this machine has none; use 'cpu'")
    return str(parsed.type)


def padded(batch: Sequence[IntArray], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids of n texts as `input_ids` and `attention_mask`, int64 (n, longest text)."""
    lengths = [len(ids) for ids in batch]
    ids = np.full((len(batch), max(lengths)), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(batch):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


def host_weights(*modules: torch.nn.Module | None) -> Iterator[tuple[int, int]]:
    """Address and bytes of the modules' parameters and buffers on the CPU, shared ones once.

    A part of a larger tensor keeps all of that in memory, and counts as all of it.
    """
    seen = set()
    for module in modules:
        for tensor in itertools.chain(module.parameters(), module.buffers()) if module else ():
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage.data_ptr(), storage.nbytes()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep what the libraries show and report while they load a model off the terminal."""
    logs = [
        logging.getLogger(f"transformers.{name}")
        for name in ("modeling_utils", "integrations.peft")
    ]
    library = logging.getLogger("sentence_transformers")
    level = library.level
    had_bar = is_progress_bar_enabled()
    for log in logs:
        log.addFilter(_nothing)
    library.setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(level)
        for log in logs:
            log.removeFilter(_nothing)
        if had_bar:
            enable_progress_bar()  # type: ignore[no-untyped-call]


def _nothing(_: logging.LogRecord) -> bool:
    return False


def packed_attention(
    module: torch.nn.Module,  # noqa: ARG001 — the interface passes it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 — the interface passes it
    *,
    text_lengths: Sequence[int],
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each text of a packed row, in the form transformers' interface asks for.

    Neighbouring texts of one length are computed together; the queries of a long text in chunks.

    Args:
        module: The calling layer, unused.
        query: (1, heads, T, head_dim).
        key: As query.
        value: As query.
        attention_mask: Always None here: there is nothing to mask.
        text_lengths: Tokens of each text, in order; they sum to T.
        scaling: Factor on the scores; 1/sqrt(head_dim) if None.

    Returns:
        (1, T, heads, head_dim), and None for the weights.
    """
    out = torch.empty_like(query)
    at = 0
    for length, group in itertools.groupby(text_lengths):
        count = len(list(group))
        span = slice(at, at + count * length)
        at = span.stop
        q, k, v, o = (
            torch.unflatten(tensor[0, :, span], 1, (count, length)).transpose(0, 1)
            for tensor in (query, key, value, out)
        )  # (count, heads, length, head_dim) each, o a view into out
        for start in range(0, length, _QUERY_ROWS):
            rows = slice(start, start + _QUERY_ROWS)
            o[:, :, rows] = scaled_dot_product_attention(q[:, :, rows], k, v, scale=scaling)
    return out.transpose(1, 2), None


AttentionInterface.register(_ATTENTION, packed_attention)
AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)


def load_backbone(
    checkpoint: Checkpoint, dtype: torch.dtype, *, attention: str, map_table: bool = False
) -> PreTrainedModel:
    """The encoder without its pooler, on the CPU, weights from the files and nowhere else.

    Args:
        checkpoint: Where the files lie.
        dtype: Of the weights; those of a file in it already are mapped, others converted.
        attention: A name in transformers' attention interface.
        map_table: Whether to leave the token table in its file, in the file's dtype, as it is 45%
            of BGE-M3 and a query touches ten of its rows. For a model that stays on the CPU.

    Raises:
        ModelLoadError: See `TorchEngine`.
    """
    if checkpoint.model_type not in PACKED:
        raise checkpoint.problem(
            f"architecture {checkpoint.model_type!r} is not one this engine runs "
            f"({', '.join(PACKED)})"
        )
    _ = checkpoint.hidden_size  # says of a setting that is no number what transformers would not
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation=attention, add_pooling_layer=False
            )
    except Exception as error:  # from assertions to divisions by zero, as the value may be
        raise checkpoint.problem(f"config.json describes no usable model: {error!r}") from error
    expected = {name: tensor.shape for name, tensor in model.named_parameters()}
    state = {}
    table = f"{_TABLE}.weight"
    for name, tensor, is_mapped in _tensors(checkpoint, model.base_model_prefix):
        if name in expected:
            keep = is_mapped and map_table and name == table
            state[name] = tensor if keep else _converted(tensor, dtype, is_mapped=is_mapped)
        elif name.startswith("encoder."):
            raise checkpoint.problem(
                f"tensor {name} has no place in the model that config.json describes; the two "
                "belong to different models"
            )
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise checkpoint.problem(
            f"{len(missing)} of {len(expected)} tensors are missing from "
            f"{', '.join(path.name for path in checkpoint.weight_files)}, the first {missing[0]}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise checkpoint.problem(
                f"tensor {name} has shape {tuple(tensor.shape)}, but config.json asks for "
                f"{tuple(expected[name])}"
            )
    model.load_state_dict(state, strict=False, assign=True)
    if state[table].dtype != dtype:
        model.set_input_embeddings(_MappedTable(state[table], dtype))
    for name, buffer in list(model.named_buffers()):
        if not buffer.is_meta:
            continue
        owner, _, attribute = name.rpartition(".")
        rebuilt = _BUFFERS[attribute](buffer.shape)
        model.get_submodule(owner).register_buffer(attribute, rebuilt, persistent=False)
    model.train(False)
    model.requires_grad_(False)
    return model


_TABLE = "embeddings.word_embeddings"
"""Where the architectures above keep their token table."""


class _MappedTable(torch.nn.Module):
    """A token table mapped from its file: rows are converted as they are looked up."""

    def __init__(self, table: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.table: torch.Tensor
        self.register_buffer("table", table, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the ids, in the model's dtype."""
        return embedding(ids, self.table).to(self._dtype)


def _converted(tensor: torch.Tensor, dtype: torch.dtype, *, is_mapped: bool) -> torch.Tensor:
    """The tensor in a dtype; if that is a copy, the file's pages are given back at once."""
    converted = tensor.to(dtype)
    if converted is not tensor and is_mapped:
        give_back(tensor.data_ptr(), tensor.nbytes)
    return converted


_BUFFERS = {
    "position_ids": lambda shape: torch.arange(shape[-1]).expand(shape),
    "token_type_ids": lambda shape: torch.zeros(shape, dtype=torch.long),
}
"""What the architectures above keep beside their weights, in no checkpoint."""


def _tensors(checkpoint: Checkpoint, prefix: str) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Everything in the weight files: today's name, tensor, and whether the file is mapped."""
    for path in checkpoint.weight_files:
        try:
            state = _read(path)
        except _UNREADABLE as error:
            raise checkpoint.problem(
                f"{path.name} is truncated or no weight file ({error}); fetch it again"
            ) from error
        for name, tensor in state.items():
            name = name.removeprefix(f"{prefix}.")
            if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):  # BERT's first checkpoints
                name = name.replace("gamma", "weight").replace("beta", "bias")
            yield name, tensor, _is_mapped(path)


def _is_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


_UNREADABLE = (
    safetensors.SafetensorError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped from it where its form allows."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mapped(path))
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict of tensors, got {type(content).__name__}")
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def load_head(checkpoint: Checkpoint, name: str, *, rows: int | None = None) -> torch.nn.Linear:
    """Read a head file, {"weight": (rows, hidden_size), "bias": (rows,)}, in fp32.

    Args:
        checkpoint: Where the file lies.
        name: The file's name.
        rows: Outputs the head must have; any number if None.

    Raises:
        ModelLoadError: If the file is unreadable or a shape is another.
    """
    path = checkpoint.require(name)
    try:
        state = _read(path)
    except _UNREADABLE as error:
        raise checkpoint.problem(f"{name} is truncated or no head file ({error})") from error
    found = {part: tuple(tensor.shape) for part, tensor in state.items()}
    rows = rows or (found.get("weight") or (1,))[0]
    wanted = {"weight": (rows, checkpoint.hidden_size), "bias": (rows,)}
    if found != wanted:
        raise checkpoint.problem(f"{name} should hold {wanted}, but holds {found}")
    head = torch.nn.Linear(checkpoint.hidden_size, rows, device="meta")
    head.load_state_dict({part: t.float() for part, t in state.items()}, assign=True)
    return head.requires_grad_(False)
