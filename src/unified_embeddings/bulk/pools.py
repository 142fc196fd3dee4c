"""What computes a job's parts: child processes on this machine, or a Ray cluster.

What lives here: what the two have in common, and which of them a job takes. What does not: either
of them (`pool`, `ray_pool`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from unified_embeddings.bulk.completion import ModelPlan
from unified_embeddings.bulk.options import DEFAULT_SLICE_ROWS, embedder_options
from unified_embeddings.bulk.planning import PartTask
from unified_embeddings.bulk.pool import WorkerPool
from unified_embeddings.bulk.worker import Finished, MakeEmbedder, WorkerSettings


class Pool(Protocol):
    """What computes parts: child processes here, or a Ray cluster."""

    runtime: Mapping[str, str]
    deaths: int

    def compute(
        self, tasks: Iterable[PartTask], check: Callable[[], None] = ...
    ) -> Iterator[Finished]:
        """Compute parts, and yield them as they are published.

        `check` is called several times a second where work may stop; what it raises is raised.
        """
        ...

    def stop_after_parts_in_hand(self) -> Iterator[Finished]:
        """Finish what is under way, and yield it."""
        ...


def open_pool(plan: ModelPlan, folder: Path, make: MakeEmbedder) -> AbstractContextManager[Pool]:
    """Return what computes a model's parts.

    Args:
        plan: What is to be computed.
        folder: Where parts are published.
        make: Makes the embedder of each worker.

    Raises:
        MissingExtraError: If it is Ray, and that is not installed.
        InputError: If there is no cluster at the address that is given.
    """
    options = plan.options
    settings = _worker_settings(plan, folder, make)
    if options.runner == "ray":
        from unified_embeddings.bulk.ray_pool import RayPool

        return RayPool(
            settings,
            address=options.ray_address,
            gpus=sum(device.startswith("cuda") for device in options.devices[:1]),
            hang_seconds=options.hang_seconds,
        )
    return WorkerPool(settings, hang_seconds=options.hang_seconds)


def _worker_settings(plan: ModelPlan, folder: Path, make: MakeEmbedder) -> list[WorkerSettings]:
    options = plan.options
    settings = []
    for number in range(options.max_workers):
        device = options.devices[number % len(options.devices)]
        settings.append(
            WorkerSettings(
                make_embedder=make,
                options=embedder_options(plan.model, options, device),
                heads=plan.heads,
                role=options.role,
                dtype=options.dtype,
                folder=folder,
                slice_rows=options.batch_size or DEFAULT_SLICE_ROWS,
                processes=options.max_workers,
            )
        )
    return settings
