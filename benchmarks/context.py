"""What a run is made of: the checkpoint, the texts, the engines and their processes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

import lite
import unified_embeddings
from peers import PEERS, Peer
from texts import Words
from unified_embeddings.system.hardware import cpu
from workers import UnavailableError, Worker

_BYTES = {"fp32": 1.3, "bf16": 0.8, "int8": 0.5}
"""Memory a model takes, in sizes of its fp32 weights: them, and what embedding needs besides."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: Of documents and queries.
        documents: Texts a round.
        outlier: Tokens of the one that is far longer than the others.
        queries: Of each length, over all rounds.
        query_tokens: Their lengths.
        starts: New processes of each engine.
        warm_starts: Those before that do not count: they fill the page cache.
        growth_texts: Numbers of texts.
        growth_tokens: Lengths of a text.
        many: Short texts over which memory is watched.
        many_seconds: Longest watch; an engine too slow for `many` stops there.
        point_seconds: Longest a point of growth may be expected to take.
    """

    rounds: int = 5
    documents: int = 64
    outlier: int = 1400
    queries: int = 100
    query_tokens: tuple[int, ...] = (8, 16, 32, 128)
    starts: int = 5
    warm_starts: int = 1
    growth_texts: tuple[int, ...] = tuple(2**i for i in range(9))
    growth_tokens: tuple[int, ...] = tuple(2**i for i in range(4, 14))
    many: int = 10_000
    many_seconds: float = 300
    point_seconds: float = 60


QUICK = Scale(
    rounds=2,
    documents=6,
    outlier=200,
    queries=4,
    query_tokens=(8, 16),
    starts=1,
    warm_starts=0,
    growth_texts=(1, 2, 4),
    growth_tokens=(16, 32, 64),
    many=200,
    many_seconds=5,
    point_seconds=5,
)


@dataclass
class Bench:
    """One run.

    Attributes:
        folder: The checkpoint.
        work: Where files made from it are kept.
        peers: Who is measured.
        scale: How much.
        threads: Of every engine.
        timeout: Seconds an engine has for one answer.
        slow: Whether to measure what this CPU is known to take minutes for.
    """

    folder: Path
    work: Path
    peers: list[Peer]
    scale: Scale
    threads: int
    timeout: float
    slow: bool = False
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    _prepared: dict[str, Path | str] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        return found

    @cached_property
    def words(self) -> Words:
        """Where texts come from."""
        positions, pad = self.config["max_position_embeddings"], self.config["pad_token_id"]
        return Words(self.folder, min(8192, positions - pad - 1))

    @property
    def has_amx(self) -> bool:
        """Whether bf16 runs on matrix units here."""
        return "amx_bf16" in cpu().flags

    @property
    def flop_per_token(self) -> float:
        """Two for each weight that every token is multiplied with; attention is left out."""
        wide, inner = self.config["hidden_size"], self.config["intermediate_size"]
        layer = 4 * wide * wide + 2 * wide * inner  # query, key, value, output; the two of the FFN
        return float(2 * layer * self.config["num_hidden_layers"])

    def say(self, what: str) -> None:
        """Tell the user how far it is."""
        print(f"  {what}", flush=True)

    @property
    def loaded_peers(self) -> list[Peer]:
        """Of peers that differ in nothing but their batch size, only the first."""
        return list({peer.process: peer for peer in reversed(self.peers)}.values())[::-1]

    def rows(self, peers: list[Peer] | None = None) -> dict[str, dict[str, Any]]:
        """A row for each engine, with the reason where it is known not to run here."""
        chosen = self.peers if peers is None else peers
        return {
            peer.name: {
                "label": peer.label,
                "library": peer.library,
                "precision": peer.precision,
                "note": peer.note,
                "reason": peer.missing(has_amx=self.has_amx, slow=self.slow),
            }
            for peer in chosen
        }

    def folder_for(self, peer: Peer) -> Path:
        """What an engine loads its model from; made from the checkpoint the first time.

        Raises:
            UnavailableError: If that fails; also each later time.
        """
        if peer.make is None:
            return self.folder
        if peer.name not in self._prepared:
            try:
                self._prepared[peer.name] = self._make(peer)
            except UnavailableError as error:
                self._prepared[peer.name] = f"its files cannot be made: {error}"
        found = self._prepared[peer.name]
        if isinstance(found, str):
            raise UnavailableError(found)
        return found

    def start(self, peer: Peer) -> Worker:
        """A process with the engine's model loaded.

        Raises:
            UnavailableError: If it cannot be, or memory would not do.
        """
        folder = self.folder_for(peer)
        size = sum(one.stat().st_size for one in self.folder.glob("*.safetensors"))
        needed, free = size * _BYTES[peer.precision], psutil.virtual_memory().available
        if needed > free:
            raise UnavailableError(
                f"it needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; measure "
                "fewer engines at once with --engines"
            )
        worker = Worker(peer.process, folder, self.timeout)
        try:
            worker.ask("load", query=self.words.text(self.rng, 16))
        except BaseException:
            worker.close()
            raise
        return worker

    @contextmanager
    def all_started(self, rows: dict[str, dict[str, Any]]) -> Iterator[dict[str, Worker]]:
        """The processes of all engines that run here; the others' rows get their reasons."""
        with ExitStack() as stack:
            for peer in self.peers:  # first, since making them takes several models' memory
                if not rows[peer.name]["reason"]:
                    with suppress(UnavailableError):  # told when it is to be started
                        self.folder_for(peer)
            by_process: dict[str, Worker] = {}
            started: dict[str, Worker] = {}
            for peer in self.peers:
                if rows[peer.name]["reason"]:
                    continue
                try:
                    if peer.process not in by_process:
                        by_process[peer.process] = stack.enter_context(self.start(peer))
                    started[peer.name] = by_process[peer.process]
                except UnavailableError as error:
                    rows[peer.name]["reason"] = str(error)
                self.say(f"{peer.label}: {rows[peer.name]['reason'] or 'ready'}")
            yield started

    def _make(self, peer: Peer) -> Path:
        """Make an engine's files, unless the same code made them from this checkpoint before."""
        source = self.folder_for(PEERS[peer.made_from]) if peer.made_from else self.folder
        stem = f"{self.folder.name}-{peer.name}"
        target = self.work / f"{stem}-{self._state(peer)}"
        if not target.exists():
            # Of older code, or of a process that was killed at it.
            for old in (*self.work.glob(f"{stem}-*"), *self.work.glob(f".{stem}-*")):
                shutil.rmtree(old)
            self.work.mkdir(parents=True, exist_ok=True)
            self.say(f"{peer.label}: making its files")
            with Worker(peer.process, source, self.timeout * 3) as worker:
                worker.ask("prepare", peer=peer.name, target=str(target))
        return target

    def _state(self, peer: Peer) -> str:
        """A digest of the checkpoint's place and of the code that makes files from it."""
        code = hashlib.sha256(str(self.folder.resolve()).encode())
        makers = [Path(lite.__file__)]
        if peer.ours:
            makers = sorted(Path(unified_embeddings.__file__).parent.rglob("*.py"))
        for source in makers:
            code.update(source.read_bytes())
        return code.hexdigest()[:12]
