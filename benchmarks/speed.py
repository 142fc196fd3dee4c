"""Speed: documents and single queries, all engines in one run, in turn.

One process per engine stays alive; the others sleep while one works. In each round all engines get
the same new texts, so that whatever else the machine does affects all alike.

Engines that pad make every text of a batch as long as the longest, so their speed depends on the
batch size and on the mix of lengths. Each of them is therefore measured at its default batch size
and at its best, on documents of mixed and of equal lengths.

What lives here: measuring. What does not: tables and plots (`speed_report`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import exactness
from context import Bench, Workload
from other_work import OtherWork
from peers import PEERS, REFERENCE
from report import Results, Row, percentile, spread
from workers import GEMM, Answer, UnavailableError, Worker

TITLE = "Speed"
SETTINGS = ("default", "best")
"""The batch sizes that an engine is measured at: its library's own, and the fastest one."""
_PRODUCTS = 10
_GIVE_UP = 0.8
"""Larger batches are not tried once a size has less than this share of the best rate."""


def measure(bench: Bench) -> Results:
    """Search the batch sizes, then measure all rounds."""
    scale = bench.scale
    rows = bench.rows()
    limit = {precision: _limit_row(bench, precision) for precision in ("fp32", "bf16")}
    with (
        Worker(GEMM, bench.folder, bench.timeout) as gemm,
        bench.all_started(rows) as workers,
    ):
        engines = _Engines(rows, workers)
        exact = exactness.measure(bench, rows, workers)
        documents = [_Documents(bench, engines, workload) for workload in bench.workloads]
        queries = [_Queries(bench, engines, tokens) for tokens in scale.query_tokens]
        for samples in documents:
            samples.find_batch_sizes()
        others: list[float] = []
        for turn in range(scale.rounds):
            if turn and time.monotonic() > bench.deadline:
                bench.say(f"the time is over after {turn} of {scale.rounds} rounds")
                break
            load = OtherWork()
            _measure_limit(gemm, limit)
            for samples in documents:
                samples.measure_round(turn)
            for questions in queries:
                questions.measure_round(turn)
            others.append(load.share())
            bench.say(f"round {turn + 1} of {scale.rounds} done")
    _finish_limit(bench, limit)
    for samples in documents:
        samples.fill_rows(limit)
    for questions in queries:
        questions.fill_rows()
    return {
        "documents": {samples.workload.name: samples.facts() for samples in documents},
        "trial": {"documents": scale.trial_documents, "batch_sizes": list(scale.batch_sizes)},
        "queries": {
            "number": scale.queries * len(others) // scale.rounds,
            "tokens": list(scale.query_tokens),
        },
        "flop_per_token": bench.flop_per_token,
        "limit": limit,
        "exactness": exact,
        "other_work": spread(others),
        "rows": rows,
    }


@dataclass
class _Engines:
    """The engines of a run. One that fails is asked no more, and its row says why.

    Attributes:
        rows: The row of each engine.
        workers: The process of each engine that was started.
    """

    rows: dict[str, Row]
    workers: dict[str, Worker]

    def running(self, turn: int = 0) -> list[str]:
        """Return the names of the engines that still run; each round begins with another one."""
        names = [name for name in self.workers if not self.rows[name]["reason"]]
        if not names:
            return []
        first = turn % len(names)
        return names[first:] + names[:first]

    def ask(self, name: str, command: str, **arguments: object) -> Answer | None:
        """Return an engine's answer; None if it failed, now or before."""
        if self.rows[name]["reason"]:
            return None
        try:
            return self.workers[name].ask(command, **arguments)
        except UnavailableError as error:
            self.rows[name]["reason"] = str(error)
            return None


@dataclass
class _Runs:
    """What one engine reached on one workload.

    Attributes:
        trials: Tokens/s of each batch size that was tried before the rounds. The size is None for
            an engine that has no such setting.
        sizes: The batch size of each setting.
        rates: Tokens/s of each round at each setting.
        cpu: Milliseconds of processor time per token, likewise.
    """

    trials: dict[int | None, float]
    sizes: dict[str, int | None]
    rates: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def medians(self) -> dict[str, float]:
        """Return the median rate of each setting that was measured."""
        return {name: spread(rates)["median"] for name, rates in self.rates.items() if rates}

    def keep_better(self) -> None:
        """Let the default be the best too, if the rounds show that the trial was misled."""
        medians = self.medians()
        if len(medians) == len(SETTINGS) and medians["default"] > medians["best"]:
            self.sizes["best"] = self.sizes["default"]
            self.rates["best"] = self.rates["default"]
            self.cpu["best"] = self.cpu["default"]


class _Documents:
    """The documents of one workload, embedded by all engines.

    Args:
        bench: The run.
        engines: Its engines.
        workload: Where the documents come from.
    """

    def __init__(self, bench: Bench, engines: _Engines, workload: Workload) -> None:
        self.workload = workload
        self._bench = bench
        self._engines = engines
        self._runs: dict[str, _Runs] = {}
        self._tokens: list[int] = []

    def find_batch_sizes(self) -> None:
        """Choose each engine's best batch size, by one measurement of each; also a warm-up."""
        texts = self.workload.make_texts()[: self._bench.scale.trial_documents]
        for name in self._engines.running():
            trials = self._try_batch_sizes(name, texts)
            if not trials:
                continue
            default = PEERS[name].batch_size
            best = max(trials, key=lambda size: trials[size])
            self._runs[name] = _Runs(
                trials=trials,
                sizes={"default": default, "best": best},
                rates={setting: [] for setting in SETTINGS},
                cpu={setting: [] for setting in SETTINGS},
            )
            if default is not None:
                label = self._engines.rows[name]["label"]
                self._bench.say(f"{self.workload.title}: {label}: best batch size {best}")

    def measure_round(self, turn: int) -> None:
        """Let all engines embed the same new documents at both settings."""
        texts = self.workload.make_texts()
        tokens = sum(map(self._bench.words.count, texts))
        self._tokens.append(tokens)
        for name in self._engines.running(turn):
            if name not in self._runs:
                continue
            runs = self._runs[name]
            measured: dict[int | None, tuple[float, float]] = {}
            for setting, size in runs.sizes.items():
                if self._would_take_too_long(runs, size):
                    continue
                if size not in measured:
                    answer = self._engines.ask(name, "documents", texts=texts, batch_size=size)
                    if answer is None:
                        break
                    milliseconds = 1000 * answer["cpu_seconds"] / tokens
                    measured[size] = tokens / answer["seconds"], milliseconds
                rate, cpu = measured[size]
                runs.rates[setting].append(rate)
                runs.cpu[setting].append(cpu)

    def facts(self) -> Results:
        """Return what the documents were."""
        return {"title": self.workload.title, "tokens": self._tokens}

    def fill_rows(self, limit: dict[str, Row]) -> None:
        """Add to each engine's row what it reached at each setting."""
        for runs in self._runs.values():
            runs.keep_better()
        reference_rates: dict[str, list[float]] = {}
        if REFERENCE in self._runs:
            reference_rates = self._runs[REFERENCE].rates
        for name, runs in self._runs.items():
            row = self._engines.rows[name]
            top = limit.get(row["precision"], {}).get("tokens_per_second")
            results: Results = {"trials": list(runs.trials.items())}
            for setting, size in runs.sizes.items():
                rates = runs.rates[setting]
                results[setting] = {"batch_size": size}
                if rates:
                    median = spread(rates)["median"]
                    results[setting] |= {
                        "tokens_per_second": spread(rates),
                        "rounds": rates,
                        "cpu_ms_per_token": spread(runs.cpu[setting]),
                        "share_of_limit": median / top if top else None,
                        "times_reference": _median_ratio(rates, reference_rates.get(setting, [])),
                    }
                elif self._would_take_too_long(runs, size):
                    seconds = self._bench.scale.document_seconds
                    results[setting]["reason"] = f"it would take over {seconds:g} s"
            row.setdefault("documents", {})[self.workload.name] = results

    def _try_batch_sizes(self, name: str, texts: list[str]) -> dict[int | None, float]:
        """Return tokens/s at the default batch size, then at others, from small to large.

        What a batch is padded by only grows with its size, so the search ends where the rate falls.
        It is empty if the engine failed.
        """
        tokens = sum(map(self._bench.words.count, texts))
        default = PEERS[name].batch_size
        sizes: list[int | None] = [default]
        if default is not None:
            sizes += sorted(set(self._bench.scale.batch_sizes) - {default})
        rates: dict[int | None, float] = {}
        best = 0.0
        for size in sizes:
            answer = self._engines.ask(name, "documents", texts=texts, batch_size=size)
            if answer is None:
                return {}
            rates[size] = tokens / answer["seconds"]
            if size == default:
                continue
            best = max(best, rates[size])
            # One batch holds all texts: a larger one would be the same.
            if rates[size] < _GIVE_UP * best or (size is not None and size >= len(texts)):
                break
        return rates

    def _would_take_too_long(self, runs: _Runs, size: int | None) -> bool:
        """Tell whether a round at this batch size is too long, by the rate of the trial."""
        return self._tokens[-1] / runs.trials[size] > self._bench.scale.document_seconds


class _Queries:
    """Queries of one length, asked one at a time.

    Args:
        bench: The run.
        engines: Its engines.
        tokens: Length of each query.
    """

    def __init__(self, bench: Bench, engines: _Engines, tokens: int) -> None:
        self._bench = bench
        self._engines = engines
        self._tokens = tokens
        self._milliseconds: dict[str, list[float]] = {name: [] for name in engines.rows}
        self._cpu: dict[str, list[float]] = {name: [] for name in engines.rows}
        self._round_medians: dict[str, list[float]] = {name: [] for name in engines.rows}

    def measure_round(self, turn: int) -> None:
        """Ask all engines the same new queries: this round's share of all of them."""
        scale = self._bench.scale
        first = scale.queries * turn // scale.rounds
        end = scale.queries * (turn + 1) // scale.rounds
        words, rng = self._bench.words, self._bench.rng
        texts = [words.text(rng, self._tokens) for _ in range(first, end)]
        for name in self._engines.running(turn):
            answer = self._engines.ask(name, "queries", texts=texts)
            if answer is not None:
                self._milliseconds[name] += [1000 * seconds for seconds in answer["seconds"]]
                cpu = [1000 * seconds for seconds in answer["cpu_seconds"]]
                self._cpu[name] += cpu
                self._round_medians[name].append(spread(cpu)["median"])

    def fill_rows(self) -> None:
        """Add to each engine's row how long it took."""
        reference = self._milliseconds.get(REFERENCE, [])
        for name, samples in self._milliseconds.items():
            if not samples:
                continue
            row = self._engines.rows[name]
            row.setdefault("queries", {})[str(self._tokens)] = {
                "p50_ms": percentile(samples, 50),
                "p99_ms": percentile(samples, 99),
                "cpu_ms": {
                    **spread(self._round_medians[name]),
                    "median": spread(self._cpu[name])["median"],
                },
                "number": len(samples),
                "times_reference": _median_ratio(reference, samples),
            }


def _limit_row(bench: Bench, precision: str) -> Row:
    reason = None
    if precision == "bf16" and not bench.has_amx and not bench.slow:
        reason = "this CPU has no amx_bf16; --slow measures it"
    return {"gflops": [], "reason": reason}


def _measure_limit(gemm: Worker, limit: dict[str, Row]) -> None:
    """Measure the matrix products of the machine, in each precision that it can run."""
    for precision, row in limit.items():
        if row["reason"]:
            continue
        try:
            answer = gemm.ask("gemm", precision=precision, repeats=_PRODUCTS)
        except UnavailableError as error:
            row["reason"] = str(error)
        else:
            row["gflops"].append(answer["flops"] / 1e9)


def _finish_limit(bench: Bench, limit: dict[str, Row]) -> None:
    """Turn the rates of the products into the tokens/s that they allow."""
    for row in limit.values():
        if row["gflops"]:
            row["gflops"] = spread(row["gflops"])
            row["tokens_per_second"] = row["gflops"]["median"] * 1e9 / bench.flop_per_token


def _median_ratio(numerators: list[float], denominators: list[float]) -> float | None:
    """Divide what was measured on the same texts pair by pair and return the median.

    One list may be shorter: its engine failed midway.
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=False)]
    return spread(ratios)["median"] if ratios else None
