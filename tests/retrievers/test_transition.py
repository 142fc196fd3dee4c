"""Two retrievers and the questions between them: shares, shadow, fallback, counting."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.retrievers.background import BackgroundQueue, TimedCalls
from unified_embeddings.retrievers.shares import TenantQuery
from unified_embeddings.retrievers.transition import TransitionRetriever
from unified_embeddings.retrievers.transition_report import TransitionReport

QUESTIONS = [f"question {number}" for number in range(400)]


class Index(BaseRetriever):
    """An index that answers every question with the same ids."""

    def __init__(self, *ids: str, act: Callable[[str], object] | None = None) -> None:
        self.ids = ids
        self.asked: list[str] = []
        self._act = act
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked.append(query_bundle.query_str)
        if self._act is not None:
            self._act(query_bundle.query_str)
        return [
            NodeWithScore(node=TextNode(id_=node_id, text=node_id), score=1.0)
            for node_id in self.ids
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def failing(query: str) -> None:
    raise StoreError("new", "querying", f"no answer to {query}")


def ids_of(nodes: list[NodeWithScore]) -> list[str]:
    return [scored.node.node_id for scored in nodes]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that holds calls until it is set; set in the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


# --- shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "side"), [(0, "o"), (1, "n"), (0.0, "o"), (1.0, "n")])
def test_no_question_and_every_question_are_exact(share: float, side: str) -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"), share=share, shadow=False)
    assert {ids_of(retriever.retrieve(question))[0] for question in QUESTIONS} == {side}


def test_the_share_is_that_of_the_questions_and_grows_without_moving_anyone_back() -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"), share=0, shadow=False)
    new_sets = []
    for share in (0.1, 0.3, 0.7):
        retriever.share = share
        new = {q for q in QUESTIONS if ids_of(retriever.retrieve(q)) == ["n"]}
        # 400 draws: 4 standard deviations are at most 0.1.
        assert abs(len(new) / len(QUESTIONS) - share) < 0.1
        new_sets.append(new)
    assert new_sets[0] < new_sets[1] < new_sets[2]


def test_the_side_is_the_same_in_another_process() -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"), share=0.3, shadow=False)
    here = [ids_of(retriever.retrieve(question))[0] for question in QUESTIONS[:50]]
    # An independent reading of what the docstring says: the first 53 bits of BLAKE2b.
    code = (
        "import hashlib\n"
        "for n in range(50):\n"
        "    digest = hashlib.blake2b(f'question {n}'.encode(), digest_size=8).digest()\n"
        "    print('n' if int.from_bytes(digest, 'big') < 0.3 * 2**64 else 'o')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert here == done.stdout.split()


def test_a_tenant_sees_one_side_whatever_it_asks() -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"), share=0.5, shadow=False)
    sides = {}
    for tenant in map(str, range(20)):
        seen = {ids_of(retriever.retrieve(q, tenant=tenant))[0] for q in QUESTIONS[:20]}
        assert len(seen) == 1
        sides[tenant] = seen
        bundle = TenantQuery("another question", tenant=tenant)
        assert {ids_of(retriever.retrieve(bundle))[0]} == seen
        assert {ids_of(asyncio.run(retriever.aretrieve("one more", tenant=tenant)))[0]} == seen
    assert {"o"} in sides.values()
    assert {"n"} in sides.values()


def test_a_tenant_reaches_the_retriever_through_a_query_engine() -> None:
    from llama_index.core.llms import MockLLM

    retriever = TransitionRetriever(Index("o"), Index("n"), share=0.5, shadow=False)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    for tenant in map(str, range(8)):
        expected = ids_of(retriever.retrieve("q", tenant=tenant))
        assert ids_of(engine.query(TenantQuery("asked", tenant=tenant)).source_nodes) == expected


def test_the_share_may_be_a_function() -> None:
    shares = iter([0.0, 1.0, 1.0])
    retriever = TransitionRetriever(
        Index("o"), Index("n"), share=lambda: next(shares), shadow=False
    )
    assert ids_of(retriever.retrieve("q")) == ["o"]
    assert ids_of(retriever.retrieve("q")) == ["n"]
    assert retriever.report().share == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half", None, True])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"))
    with pytest.raises(InputError, match="from 0"):
        retriever.share = share
    assert retriever.share == 0.1


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="new must be a LlamaIndex retriever, not str"):
        TransitionRetriever(Index("o"), "new")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="timeout"):
        TransitionRetriever(Index("o"), Index("n"), timeout=0)
    with pytest.raises(InputError, match="one str or QueryBundle"):
        TransitionRetriever(Index("o"), Index("n")).retrieve(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tenant must be a str"):
        TransitionRetriever(Index("o"), Index("n")).retrieve("q", tenant=3)  # type: ignore[arg-type]


# --- shadow -----------------------------------------------------------------------------------


def test_both_sides_are_asked_and_compared_whoever_answers() -> None:
    old, new = Index("a", "b", "c"), Index("b", "a", "d")
    retriever = TransitionRetriever(old, new, share=0.5, depth=3)
    for question in QUESTIONS[:40]:
        retriever.retrieve(question)
        assert retriever.flush(timeout=30)
    report = retriever.report()
    assert sorted(old.asked) == sorted(new.asked) == sorted(QUESTIONS[:40])
    assert report.queries == report.compared == 40
    assert report.answered_by_old + report.answered_by_new == 40
    assert 0 < report.answered_by_new < 40
    assert report.mean_overlap == pytest.approx(2 / 3)
    expected = 0.1 * (0.9 + 2 / 3 * 0.81) + 2 / 3 * 0.9**3
    assert report.mean_rank_biased_overlap == pytest.approx(expected)
    assert report.same_first == 0
    assert report.old_latency is not None
    assert report.new_latency is not None
    assert report.old_latency.samples == report.new_latency.samples == 40
    assert 0 < report.old_latency.p50 <= report.old_latency.p95


def test_the_answer_does_not_wait_for_the_comparison(gate: threading.Event) -> None:
    new = Index("n", act=lambda _: gate.wait(60))
    retriever = TransitionRetriever(Index("o"), new, share=0, threads=1, waiting=2)
    for question in QUESTIONS[:8]:
        assert ids_of(retriever.retrieve(question)) == ["o"]
    assert not retriever.flush(timeout=0.05)
    report = retriever.report()
    # One runs or waits for its thread to take it, two wait at most.
    assert report.compared == 0
    assert 5 <= report.dropped <= 6
    gate.set()
    assert retriever.flush(timeout=30)
    assert retriever.report().compared == 8 - report.dropped
    assert retriever.report().queries == 8


def test_an_error_in_the_shadow_is_counted_and_does_not_reach_the_caller() -> None:
    retriever = TransitionRetriever(Index("o"), Index(act=failing), share=0)
    assert ids_of(retriever.retrieve("q")) == ["o"]
    assert retriever.flush(timeout=30)
    report = retriever.report()
    assert (report.failed, report.compared, report.fallbacks) == ({"new": 1}, 0, {})
    assert report.last_error is not None
    assert "no answer to q" in report.last_error
    assert report.mean_overlap is None


def test_without_shadow_one_side_is_asked() -> None:
    old, new = Index("o"), Index("n")
    retriever = TransitionRetriever(old, new, share=0.5, shadow=False)
    for question in QUESTIONS[:40]:
        retriever.retrieve(question)
    assert len(old.asked) + len(new.asked) == 40
    assert retriever.report().compared == 0


def test_the_examples_are_those_with_least_in_common() -> None:
    class Varying(Index):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            shared = int(query_bundle.query_str.split()[1])
            self.ids = tuple(map(str, range(shared))) + tuple(f"x{n}" for n in range(10 - shared))
            return super()._retrieve(query_bundle)

    retriever = TransitionRetriever(
        Index(*map(str, range(10))), Varying(), share=0, threads=1, examples=3
    )
    for number in (7, 2, 9, 0, 5, 2):
        retriever.retrieve(f"question {number} {'long ' * 100}")
        assert retriever.flush(timeout=30)
    worst = retriever.report().worst
    assert [example.overlap for example in worst] == [0.0, 0.2, 0.2]
    assert all(len(example.query) == 200 for example in worst)
    assert worst[0].new_ids == tuple(f"x{n}" for n in range(10))
    silent = TransitionRetriever(Index("o"), Index("n"), share=0, examples=0)
    silent.retrieve("a private question")
    assert silent.flush(timeout=30)
    assert silent.report().worst == ()


def test_the_report_survives_json() -> None:
    retriever = TransitionRetriever(Index("a", "b"), Index("b"), share=0.5)
    for question in QUESTIONS[:20]:
        retriever.retrieve(question)
    assert retriever.flush(timeout=30)
    report = retriever.report()
    assert TransitionReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    with pytest.raises(InputError, match="expected a report"):
        TransitionReport.from_dict({"depth": 1, "colour": "red"})


# --- fallback ---------------------------------------------------------------------------------


def test_an_error_of_the_new_side_falls_back_and_is_counted() -> None:
    retriever = TransitionRetriever(Index("o"), Index(act=failing), share=1)
    assert ids_of(retriever.retrieve("q")) == ["o"]
    assert ids_of(asyncio.run(retriever.aretrieve("q"))) == ["o"]
    report = retriever.report()
    assert (report.fallbacks, report.answered_by_old, report.answered_by_new) == (
        {"error": 2},
        2,
        0,
    )


def test_a_time_out_of_the_new_side_falls_back_and_is_counted(gate: threading.Event) -> None:
    new = Index("n", act=lambda _: gate.wait(60))
    retriever = TransitionRetriever(Index("o"), new, share=1, timeout=0.02)
    assert ids_of(retriever.retrieve("q")) == ["o"]

    async def ask() -> None:
        assert ids_of(await retriever.aretrieve("q")) == ["o"]
        gate.set()

    asyncio.run(ask())
    assert retriever.report().fallbacks == {"timeout": 2}


def test_calls_that_hang_do_not_pile_up(gate: threading.Event) -> None:
    calls = TimedCalls(at_once=2)
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            calls.run(lambda: gate.wait(60), seconds=0.01)
    retriever = TransitionRetriever(Index("o"), Index("n"), share=1)
    retriever._timed_calls = calls
    assert ids_of(retriever.retrieve("q")) == ["o"]
    assert retriever.report().fallbacks == {"busy": 1}
    assert threading.active_count() == before + 2
    gate.set()
    deadline = time.monotonic() + 30
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ids_of(retriever.retrieve("q")) == ["n"]


def test_an_error_of_the_old_side_is_raised() -> None:
    for share in (0, 1):
        retriever = TransitionRetriever(Index(act=failing), Index(act=failing), share=share)
        with pytest.raises(StoreError, match="no answer to q"):
            retriever.retrieve("q")
        with pytest.raises(StoreError, match="no answer to q"):
            asyncio.run(retriever.aretrieve("q"))
        report = retriever.report()
        assert (report.queries, report.answered_by_old, report.compared) == (2, 0, 0)


# --- coroutines, threads, events --------------------------------------------------------------


def test_asynchronous_questions_are_compared_in_their_loop() -> None:
    retriever = TransitionRetriever(Index("a", "b"), Index("a", "c"), share=0.5)

    async def ask() -> None:
        await asyncio.gather(*(retriever.aretrieve(question) for question in QUESTIONS[:40]))
        await retriever.aflush()

    asyncio.run(ask())
    report = retriever.report()
    assert (report.compared, report.dropped) == (40, 0)
    assert report.mean_overlap == pytest.approx(0.5)


def test_what_a_loop_leaves_behind_is_counted_as_dropped(gate: threading.Event) -> None:
    class Slow(Index):
        async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            await asyncio.sleep(60)
            return []

    retriever = TransitionRetriever(Index("o"), Slow(), share=0, waiting=2)

    async def ask() -> None:
        for question in QUESTIONS[:5]:
            await retriever.aretrieve(question)

    asyncio.run(ask())
    report = retriever.report()
    assert (report.queries, report.compared, report.dropped) == (5, 0, 5)


def test_threads_lose_no_count() -> None:
    retriever = TransitionRetriever(Index("a"), Index("a"), share=0.5, waiting=1000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(retriever.retrieve, QUESTIONS))
    assert retriever.flush(timeout=60)
    report = retriever.report()
    assert report.queries == report.compared == len(QUESTIONS)
    assert report.answered_by_old + report.answered_by_new == len(QUESTIONS)
    assert report.same_first == 1


def test_events_of_the_shadow_do_not_join_the_answered_request() -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    retriever = TransitionRetriever(
        Index("o"), Index("n"), share=0, callback_manager=CallbackManager([debug])
    )
    retriever.retrieve("q")
    assert retriever.flush(timeout=30)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


def test_a_deep_copy_counts_with_its_original() -> None:
    retriever = TransitionRetriever(Index("o"), Index("n"), share=0, shadow=False)
    copy.deepcopy(retriever).retrieve("q")
    assert retriever.report().queries == 1


def test_a_job_that_raises_does_not_stop_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: seen.append(arguments.exc_type))
    queue = BackgroundQueue(threads=1, waiting=4)
    assert queue.submit(lambda: 1 // 0)
    assert queue.flush(timeout=30)
    done = threading.Event()
    assert queue.submit(done.set)
    assert queue.flush(timeout=30)
    assert done.is_set()
    assert seen == [ZeroDivisionError]
