"""What a run consists of: the checkpoint, the texts, the engines and their processes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil

import unified_embeddings
from peers import PEERS, Peer
from report import Results, Row
from texts import Words
from unified_embeddings.system.hardware import cpu
from workers import UnavailableError, Worker

_MEMORY_FACTORS = {"fp32": 1.3, "bf16": 0.8, "int8": 0.5}
"""Memory that a model takes while embedding, as a multiple of its fp32 weights."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        rounds: Rounds of documents and queries.
        documents: Documents of mixed lengths per round, one of them the outlier.
        outlier: Tokens of the one document that is much longer than the others.
        equal: Documents of one length per round; 0 leaves them out.
        equal_tokens: Their length.
        paragraphs: Documents of mixed lengths without an outlier per round; 0 leaves them out.
        batch_sizes: Batch sizes among which each engine's best is searched.
        trial_documents: Maximum number of documents on which it is searched.
        document_seconds: Maximum expected time for one workload; slower settings are left out.
        queries: Queries of each length, over all rounds.
        query_tokens: Lengths of the queries.
        starts: New processes of each engine.
        warm_starts: Processes before those, which do not count: they fill the page cache.
        growth_texts: Numbers of texts.
        growth_tokens: Lengths of one text.
        many: Short texts over which memory is watched.
        many_seconds: Maximum time of that; an engine too slow for `many` texts stops there.
        point_seconds: Maximum expected time of one point of growth.
    """

    rounds: int = 5
    documents: int = 64
    outlier: int = 1400
    equal: int = 64
    equal_tokens: int = 128
    paragraphs: int = 256
    batch_sizes: tuple[int, ...] = (1, 4, 8, 16, 32)
    trial_documents: int = 64
    document_seconds: float = 600
    queries: int = 100
    query_tokens: tuple[int, ...] = (8, 16, 32, 128)
    starts: int = 5
    warm_starts: int = 1
    growth_texts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    growth_tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    many: int = 10_000
    many_seconds: float = 300
    point_seconds: float = 60


QUICK = Scale(
    rounds=2,
    documents=6,
    outlier=200,
    equal=4,
    equal_tokens=32,
    paragraphs=8,
    batch_sizes=(1, 4),
    trial_documents=4,
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
"""Little of everything, to see that it runs."""


@dataclass(frozen=True)
class Workload:
    """A kind of documents that all engines embed.

    Attributes:
        name: Its key in the results.
        title: What it is, for tables and plots.
        make_texts: Make the documents of one round.
    """

    name: str
    title: str
    make_texts: Callable[[], list[str]]


@dataclass
class Bench:
    """One run.

    Attributes:
        folder: The checkpoint.
        work: Folder for files made from it, kept from run to run.
        peers: The engines that are measured.
        scale: How much is measured.
        threads: Threads of every engine.
        timeout: Seconds that an engine has for one answer.
        slow: Whether to measure what is known to take minutes on this CPU.
        deadline: Value of `time.monotonic()` after which no further round of speed begins.
        rng: Source of all texts.
    """

    folder: Path
    work: Path
    peers: list[Peer]
    scale: Scale
    threads: int
    timeout: float
    slow: bool = False
    deadline: float = math.inf
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    _folders: dict[str, Path] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)

    @cached_property
    def config(self) -> Results:
        """The checkpoint's config.json."""
        config: Results = json.loads((self.folder / "config.json").read_text("utf-8"))
        return config

    @cached_property
    def words(self) -> Words:
        """The words of all texts."""
        positions, pad = self.config["max_position_embeddings"], self.config["pad_token_id"]
        return Words(self.folder, min(8192, positions - pad - 1))

    @property
    def workloads(self) -> list[Workload]:
        """The kinds of documents that are measured; the first is the one that bounds are for."""
        scale, words, rng = self.scale, self.words, self.rng
        workloads = [
            Workload(
                "mixed",
                f"{scale.documents} documents of mixed lengths, one outlier of "
                f"{min(scale.outlier, words.limit):,} tokens",
                lambda: words.mix(rng, scale.documents, scale.outlier),
            )
        ]
        if scale.equal:
            workloads.append(
                Workload(
                    "equal",
                    f"{scale.equal} documents of {scale.equal_tokens} tokens each",
                    lambda: [words.text(rng, scale.equal_tokens) for _ in range(scale.equal)],
                )
            )
        if scale.paragraphs:
            workloads.append(
                Workload(
                    "paragraphs",
                    f"{scale.paragraphs} paragraphs of mixed lengths, no outlier",
                    lambda: words.mix(rng, scale.paragraphs),
                )
            )
        return workloads

    @property
    def has_amx(self) -> bool:
        """Whether bf16 runs on matrix units here."""
        return "amx_bf16" in cpu().flags

    @property
    def flop_per_token(self) -> float:
        """Two operations for each weight that a token is multiplied with; without attention."""
        width, inner = self.config["hidden_size"], self.config["intermediate_size"]
        # Query, key, value and output; then the two products of the feed-forward network.
        layer = 4 * width * width + 2 * width * inner
        return float(2 * layer * self.config["num_hidden_layers"])

    def say(self, message: str) -> None:
        """Tell the user how far the run is."""
        print(f"  {message}", flush=True)

    def rows(self) -> dict[str, Row]:
        """Return a row for each engine, with the reason if it is known not to run here."""
        return {
            peer.name: {
                "label": peer.label,
                "library": peer.library,
                "precision": peer.precision,
                "note": peer.note,
                "reason": peer.missing(has_amx=self.has_amx, slow=self.slow),
            }
            for peer in self.peers
        }

    def folder_for(self, peer: Peer) -> Path:
        """Return the folder that an engine loads; made from the checkpoint the first time.

        Raises:
            UnavailableError: If making it fails, and again each later time.
        """
        if peer.make is None:
            return self.folder
        if peer.name in self._problems:
            raise UnavailableError(self._problems[peer.name])
        if peer.name not in self._folders:
            try:
                self._folders[peer.name] = self._make_folder(peer)
            except UnavailableError as error:
                self._problems[peer.name] = f"its files cannot be made: {error}"
                raise UnavailableError(self._problems[peer.name]) from error
        return self._folders[peer.name]

    def start(self, peer: Peer) -> Worker:
        """Start a process and load the engine's model in it.

        Raises:
            UnavailableError: If that fails, or there is too little memory.
        """
        folder = self.folder_for(peer)
        weights = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        needed = weights * _MEMORY_FACTORS[peer.precision]
        free = psutil.virtual_memory().available
        if needed > free:
            raise UnavailableError(
                f"it needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; measure "
                "fewer engines at once with --engines"
            )
        worker = Worker(peer.name, folder, self.timeout)
        try:
            worker.ask("load", query=self.words.text(self.rng, 16))
        except BaseException:
            worker.close()
            raise
        return worker

    @contextmanager
    def all_started(self, rows: dict[str, Row]) -> Iterator[dict[str, Worker]]:
        """Start all engines that run here; the rows of the others get their reasons.

        Yields:
            The processes by the engine's name.
        """
        with ExitStack() as stack:
            # All files are made before the first model is loaded, since making them takes the
            # memory of several models.
            for peer in self.peers:
                if not rows[peer.name]["reason"]:
                    with suppress(UnavailableError):  # raised again by start
                        self.folder_for(peer)
            workers: dict[str, Worker] = {}
            for peer in self.peers:
                row = rows[peer.name]
                if row["reason"]:
                    continue
                try:
                    workers[peer.name] = stack.enter_context(self.start(peer))
                except UnavailableError as error:
                    row["reason"] = str(error)
                self.say(f"{peer.label}: {row['reason'] or 'ready'}")
            yield workers

    def _make_folder(self, peer: Peer) -> Path:
        """Make an engine's files, unless the same code has made them from this checkpoint."""
        source = self.folder
        if peer.made_from:
            source = self.folder_for(PEERS[peer.made_from])
        stem = f"{self.folder.name}-{peer.name}"
        target = self.work / f"{stem}-{self._digest(peer)}"
        if target.exists():
            return target
        # What older code made, and what a killed process left behind.
        for outdated in (*self.work.glob(f"{stem}-*"), *self.work.glob(f".{stem}-*")):
            shutil.rmtree(outdated)
        self.work.mkdir(parents=True, exist_ok=True)
        self.say(f"{peer.label}: making its files")
        with Worker(peer.name, source, self.timeout * 3) as worker:
            worker.ask("prepare", target=str(target))
        return target

    def _digest(self, peer: Peer) -> str:
        """Return a digest of the checkpoint's place and of the code that makes files from it."""
        digest = hashlib.sha256(str(self.folder.resolve()).encode())
        if peer.is_ours:
            sources = sorted(Path(unified_embeddings.__file__).parent.rglob("*.py"))
        else:
            sources = [Path(__file__).with_name(f"{peer.made_by}.py")]
            digest.update(importlib.metadata.version(peer.library).encode())
        for source in sources:
            digest.update(source.read_bytes())
        return digest.hexdigest()[:12]
