"""Passes as a GPU runs them, recorded by a stand-in: what is replayed equals the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unified_embeddings.engines.encoder import Encoder
from unified_embeddings.engines.gpu_passes import Forward, GpuPasses, Recorded
from unified_embeddings.models.architecture import position_ids
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import resolve
from unified_embeddings.models.weights import read_backbone

CPU = torch.device("cpu")


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    ends_too: torch.Tensor,
    longest: int,
    longest_too: int,
) -> torch.Tensor:
    """Attention as flash attention computes it: rows beyond the longest text are left as noise."""
    assert ends.dtype == torch.int32
    assert ends is ends_too
    assert longest == longest_too
    context = torch.full_like(query, float("nan"))
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        last = min(end, start + longest)
        scores = torch.einsum("qhd,khd->hqk", query[start:last], key[start:end])
        weights = torch.softmax(scores / query.shape[-1] ** 0.5, dim=-1)
        context[start:last] = torch.einsum("hqk,khd->qhd", weights, value[start:end])
    return context


class Recorder:
    """Stands in for CUDA graphs: a replay runs the pass again, into the same memory."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, forward: Forward, device: torch.device) -> Recorded:
        result = forward().clone()

        def replay() -> None:
            self.replays.append(len(result))
            result.copy_(forward())

        return replay, result


@pytest.fixture(scope="module")
def checkpoint(xlmr: Path) -> Checkpoint:
    return resolve(str(xlmr))


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> Encoder:
    return Encoder(read_backbone(checkpoint), torch.float32, CPU)


def batch_of(
    lengths: list[int], checkpoint: Checkpoint
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(sum(lengths))
    texts = [rng.integers(4, 60, length).astype(np.int32) for length in lengths]
    positions = np.concatenate([position_ids(ids, checkpoint) for ids in texts])
    return np.concatenate(texts), positions, lengths


def states_of(encoder: Encoder, batch: tuple[np.ndarray, np.ndarray, list[int]]) -> torch.Tensor:
    """The same batch by the encoder itself, whose attention is another function."""
    token_ids, positions, lengths = batch
    ids = torch.from_numpy(token_ids).long()
    return encoder(ids, torch.from_numpy(positions), encoder.divide(lengths))


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ([2], 16),
        ([16], 16),
        ([17], 32),
        ([3, 4], 32),  # a place for each 16 tokens
        ([5, 2, 9, 4, 7, 3, 6, 2], 128),
        ([16] * 32, 512),
        ([128, 90, 130], 512),
        ([500, 20], 1024),
        ([128] * 13, 2048),
        ([100] * 15, None),  # more padding than a larger pass is worth
        ([500] * 8, 4096),
        ([500] * 9, None),
        ([2] * 129, None),
        ([2] * 31 + [130], 512),
        ([2] * 32 + [130], None),  # long texts have fewer places
    ],
)
def test_a_recorded_pass_gives_what_the_encoder_gives(
    lengths: list[int], size: int | None, encoder: Encoder, checkpoint: Checkpoint
) -> None:
    recorder = Recorder()
    passes = GpuPasses(encoder, flash, CPU, checkpoint.pad_id, recorder)
    batch = batch_of(lengths, checkpoint)
    expected = states_of(encoder, batch)
    for _ in range(3):
        hidden = passes.run(*batch)
        torch.testing.assert_close(hidden.states, expected, atol=1e-5, rtol=0)
        assert hidden.starts.tolist() == [0, *np.cumsum(lengths)[:-1].tolist()]
    # The first pass of a shape is not recorded.
    assert recorder.replays == ([] if size is None else [size, size])


@pytest.mark.parametrize("can_record", [True, False])
def test_a_pass_has_the_same_shapes_whatever_came_before(
    encoder: Encoder, checkpoint: Checkpoint, can_record: bool
) -> None:
    """Kernels may round otherwise in other shapes: a first query would differ from a second."""
    shapes: list[tuple[int, int, int]] = []

    def noting(*arguments: Any) -> torch.Tensor:
        query, _, _, ends, _, longest, _ = arguments
        shapes.append((len(query), len(ends), longest))
        return flash(*arguments)

    record = Recorder() if can_record else failing(RuntimeError("not here"))
    passes = GpuPasses(encoder, noting, CPU, checkpoint.pad_id, record)
    for _ in range(3):
        passes.run(*batch_of([5, 2, 9], checkpoint))
    assert set(shapes) == {(64, 6, 64)}


def test_a_replay_forgets_the_pass_before(encoder: Encoder, checkpoint: Checkpoint) -> None:
    passes = GpuPasses(encoder, flash, CPU, checkpoint.pad_id, Recorder())
    for lengths in ([60, 60], [60, 60], [40, 3, 30], [65], [2, 3, 100]):
        batch = batch_of(lengths, checkpoint)
        states = passes.run(*batch).states
        torch.testing.assert_close(states, states_of(encoder, batch), atol=1e-5, rtol=0)


def failing(error: Exception) -> Callable[[Forward, torch.device], Recorded]:
    def record(forward: Forward, device: torch.device) -> Recorded:
        raise error

    return record


def test_where_nothing_can_be_recorded_one_warning_says_so(
    encoder: Encoder, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    record = failing(RuntimeError("operation not permitted when stream is capturing"))
    passes = GpuPasses(encoder, flash, CPU, checkpoint.pad_id, record)
    with caplog.at_level(logging.WARNING):
        for lengths in ([9], [9], [9], [40], [40]):
            batch = batch_of(lengths, checkpoint)
            states = passes.run(*batch).states
            torch.testing.assert_close(states, states_of(encoder, batch), atol=1e-5, rtol=0)
    (record_of_it,) = caplog.records
    assert "not permitted when stream is capturing" in record_of_it.getMessage()
