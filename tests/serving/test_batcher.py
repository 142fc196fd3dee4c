"""Texts of many requests in passes: who shares one, who waits, who is told what went wrong."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from gated import PATIENCE, GatedEmbedder
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, OverloadedError
from unified_embeddings.serving import batcher as batcher_module
from unified_embeddings.serving.batcher import (
    Batcher,
    DeadlineError,
    EngineStalledError,
    ShutdownError,
)
from unified_embeddings.serving.turns import Batched, Request, Turns
from unified_embeddings.types import HeadName, Role, Text

DENSE: tuple[HeadName, ...] = ("dense",)
ORACLE = FakeEmbedder(16, cache=None)


def make_batcher(
    engine: FakeEmbedder, *, batch_tokens: int = 100, max_waiting_tokens: int = 1_000_000
) -> Batcher:
    def encode(texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...]) -> Any:
        return engine.encode(texts, role=role, heads=heads)

    return Batcher(encode, batch_tokens=batch_tokens, max_waiting_tokens=max_waiting_tokens)


@pytest.fixture
def engine() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture
async def batcher(engine: GatedEmbedder) -> AsyncIterator[Batcher]:
    """A batcher of 100 tokens a pass; nothing of a test may be left in its queue."""
    async with make_batcher(engine) as made:
        yield made
        engine.set_free()
        await until_idle(made)
        assert made.waiting_tokens == 0
        assert made.waiting_requests == 0
        assert not made.retry_after() > 1


async def until_idle(batcher: Batcher) -> None:
    async def wait() -> None:
        while not batcher.is_idle or batcher.is_working:
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE)


def ask(
    batcher: Batcher,
    texts: Sequence[str],
    *,
    cost: int = 10,
    role: Role = "query",
    heads: tuple[HeadName, ...] = DENSE,
    timeout: float = PATIENCE,
) -> asyncio.Task[Batched]:
    """Submit texts of `cost` tokens each."""
    submitted = batcher.submit(
        list(texts), [cost] * len(texts), role=role, heads=heads, timeout=timeout
    )
    return asyncio.create_task(submitted)


async def settle() -> None:
    """Let each task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def check(batched: Batched, texts: Sequence[str]) -> None:
    """Assert that these are the texts' own vectors, in their order."""
    assert batched.embeddings.dense is not None
    np.testing.assert_array_equal(
        batched.embeddings.dense, ORACLE.encode_documents(list(texts)).dense
    )


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


# --- which texts share a pass -------------------------------------------------------------------


async def test_an_idle_engine_starts_at_once_and_while_it_works_requests_gather(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    assert await engine.entered() == ["fox"]
    others = [ask(batcher, [text]) for text in ("dog", "cat", "sea")]
    await settle()
    assert batcher.waiting_requests == 3
    assert batcher.waiting_tokens == 30
    engine.let_go()
    assert await engine.entered() == ["dog", "cat", "sea"]
    engine.let_go()
    check(await first, ["fox"])
    for text, task in zip(("dog", "cat", "sea"), others, strict=True):
        check(await task, [text])


async def test_a_pass_holds_at_most_its_tokens_and_a_longer_text_passes_alone(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    tasks = [ask(batcher, [f"short {i}"], cost=30) for i in range(4)]
    tasks.append(ask(batcher, ["endless"], cost=500))
    tasks.append(ask(batcher, ["last"], cost=30))
    await settle()
    engine.let_go(4)
    await asyncio.gather(first, *tasks)
    costs = {"fox": 10, "endless": 500}
    assert ["endless"] in engine.calls
    assert all(
        sum(costs.get(str(text), 30) for text in call) <= 100 or call == ["endless"]
        for call in engine.calls
    )
    assert len(engine.calls) == 4  # fox; three short ones; endless; short and last


async def test_a_query_beside_a_request_of_2000_texts_waits_for_the_present_pass_alone(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    many = names("text", 2000)
    large = ask(batcher, many)
    await engine.entered()
    for number in range(5):
        query = ask(batcher, [f"query {number}"])
        await settle()
        engine.let_go()
        texts = await engine.entered()
        assert f"query {number}" in texts
        assert len(texts) == 10  # and the pass is full nevertheless
        engine.let_go()
        check(await query, [f"query {number}"])
        await engine.entered()
    engine.set_free()
    check(await large, many)


async def test_long_texts_are_computed_beside_an_endless_stream_of_short_ones(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    backlog = [ask(batcher, [f"short {i}"]) for i in range(20)]
    long = ask(batcher, names("long", 3), cost=90)
    await settle()
    for number in range(12):
        engine.let_go()
        await engine.entered()
        backlog += [ask(batcher, [f"more {number} {i}"]) for i in range(10)]
        await settle()
        if long.done():
            break
    assert long.done()
    engine.set_free()
    await asyncio.gather(first, *backlog)


async def test_short_texts_fill_what_a_long_one_leaves(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    tasks = [
        ask(batcher, ["half"], cost=60),
        ask(batcher, ["other half"], cost=60),
        ask(batcher, ["short"], cost=30),
    ]
    await settle()
    engine.let_go()
    assert await engine.entered() == ["half", "short"]
    engine.let_go()
    assert await engine.entered() == ["other half"]
    engine.let_go()
    await asyncio.gather(first, *tasks)


async def test_a_request_alone_fills_its_passes_also_with_texts_longer_than_a_share(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    engine.set_free()
    texts = names("chunk", 12)
    check(await ask(batcher, texts, cost=25), texts)
    assert [len(call) for call in engine.calls] == [4, 4, 4]


async def test_kinds_take_turns_and_never_share_a_pass(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    documents = ask(batcher, names("document", 50), role="document")
    queries = ask(batcher, names("query", 50))
    sparse = ask(batcher, ["word"], heads=("dense", "sparse"))
    await settle()
    engine.set_free()
    await asyncio.gather(first, documents, queries, sparse)
    kinds = [str(call[0]).split()[0] for call in engine.calls]
    assert kinds[1:6] == ["document", "query", "word", "document", "query"]
    assert all(len({str(text).split()[0] for text in call}) == 1 for call in engine.calls)


# --- requests that go ---------------------------------------------------------------------------


async def test_the_texts_of_a_cancelled_request_are_not_computed(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    gone = ask(batcher, names("gone", 100))
    stays = ask(batcher, ["dog"])
    await settle()
    gone.cancel()
    await settle()
    assert batcher.waiting_tokens == 10
    engine.set_free()
    check(await stays, ["dog"])
    check(await first, ["fox"])
    assert gone.cancelled()
    assert engine.calls == [["fox"], ["dog"]]


async def test_a_deadline_withdraws_the_request(batcher: Batcher, engine: GatedEmbedder) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    late = ask(batcher, names("late", 5), timeout=0.01)
    with pytest.raises(DeadlineError, match=r"0\.01 s"):
        await late
    assert batcher.waiting_tokens == 0
    engine.set_free()
    check(await first, ["fox"])
    assert engine.calls == [["fox"]]


async def test_the_message_tells_the_whole_deadline_however_much_of_it_was_spent(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    with pytest.raises(DeadlineError, match=r"within 30 s"):
        await batcher.submit(["late"], [10], role="query", heads=DENSE, timeout=30.0, spent=29.999)
    engine.set_free()
    check(await first, ["fox"])


async def test_a_deadline_in_the_middle_of_a_pass_leaves_the_others_alone(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    first = ask(batcher, ["fox"])
    await engine.entered()
    late = ask(batcher, names("late", 30), timeout=0.2)
    stays = ask(batcher, ["dog"])
    await settle()
    engine.let_go()
    assert "dog" in await engine.entered()
    with pytest.raises(DeadlineError):
        await late
    engine.set_free()
    check(await stays, ["dog"])
    check(await first, ["fox"])
    assert len(engine.calls) == 2


async def test_the_engines_own_timeout_error_is_no_deadline(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    def time_out(texts: Sequence[Text]) -> None:
        raise TimeoutError("of a socket")

    engine.before = time_out
    engine.set_free()
    with pytest.raises(TimeoutError, match="of a socket"):
        await ask(batcher, ["fox"])


# --- the queue's bound --------------------------------------------------------------------------


async def test_a_full_queue_refuses_at_once_but_takes_one_large_request() -> None:
    engine = GatedEmbedder()
    async with make_batcher(engine, max_waiting_tokens=100) as batcher:
        first = ask(batcher, ["fox"])
        await engine.entered()
        large = ask(batcher, names("large", 50))
        await settle()
        assert batcher.waiting_tokens == 500
        refused = ask(batcher, ["dog"])
        await settle()
        assert isinstance(refused.exception(), OverloadedError)
        assert "500 tokens are waiting, and the limit is 100" in str(refused.exception())
        assert batcher.retry_after() >= 1
        engine.set_free()
        check(await large, names("large", 50))
        check(await ask(batcher, ["dog"]), ["dog"])
        check(await first, ["fox"])


async def test_tokens_that_are_expected_count_as_waiting() -> None:
    engine = GatedEmbedder()
    async with make_batcher(engine, max_waiting_tokens=100) as batcher:
        with batcher.expect(100), pytest.raises(OverloadedError):
            batcher.require_room()
        batcher.require_room()


async def test_retry_after_tells_how_long_the_queue_takes() -> None:
    batcher = make_batcher(FakeEmbedder(16), max_waiting_tokens=1000)
    batcher._seconds_per_token = 0.01
    with batcher.expect(1000):
        assert batcher.retry_after() == 10
    assert batcher.retry_after() == 1


# --- texts and engines that fail ----------------------------------------------------------------


def fail_on(word: str, error: BaseException) -> Any:
    def before(texts: Sequence[Text]) -> None:
        if any(word in str(text).split() for text in texts):
            raise error

    return before


async def test_a_bad_text_is_isolated_and_the_others_are_answered(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    def refuse(texts: Sequence[Text]) -> None:
        for index, text in enumerate(texts):
            if text == "bad":
                raise InputError("is bad", index=index)

    engine.before = refuse
    first = ask(batcher, ["fox"])
    await engine.entered()
    good = [ask(batcher, [f"good {i}", f"also good {i}"]) for i in range(3)]
    bad = ask(batcher, ["fine", "well", "bad", "left out"])
    await settle()
    engine.set_free()
    with pytest.raises(InputError) as caught:
        await bad
    assert caught.value.index == 2
    assert str(caught.value) == "item 2: is bad"
    for number, task in enumerate(good):
        check(await task, [f"good {number}", f"also good {number}"])
    check(await first, ["fox"])
    assert batcher.fruitless_passes == 0


async def test_the_rest_of_a_failed_request_is_not_computed(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    engine.before = fail_on("bad", ValueError("no"))
    engine.set_free()
    texts = ["bad", *names("text", 500)]
    with pytest.raises(ValueError, match="no"):
        await ask(batcher, texts)
    check(await ask(batcher, ["fox"]), ["fox"])
    assert batcher.passes == 2
    assert batcher.waiting_tokens == 0


async def test_many_bad_texts_of_one_request_harm_no_other(
    batcher: Batcher, engine: GatedEmbedder
) -> None:
    engine.before = fail_on("bad", ValueError("no"))
    first = ask(batcher, ["fox"])
    await engine.entered()
    bad = ask(batcher, ["bad bad"] * 6, cost=1)
    good = [ask(batcher, [f"good {i}"]) for i in range(8)]
    await settle()
    engine.set_free()
    with pytest.raises(ValueError, match="no"):
        await bad
    for number, task in enumerate(good):
        check(await task, [f"good {number}"])
    check(await first, ["fox"])


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), MemoryError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
async def test_an_engine_that_fails_on_everything_answers_all_and_recovers(
    batcher: Batcher, engine: GatedEmbedder, error: BaseException
) -> None:
    def fail(texts: Sequence[Text]) -> None:
        raise error

    engine.before = fail
    first = ask(batcher, ["fox"])
    await engine.entered()
    others = [ask(batcher, names(f"text {i}", 40)) for i in range(30)]
    await settle()
    engine.set_free()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    for result in results:
        assert isinstance(result, Exception)
        assert type(error).__name__ in repr(result)  # The one raised, or one that names it.
    assert batcher.fruitless_passes >= 1
    assert batcher.waiting_tokens == 0
    assert len(engine.calls) < 400  # An engine that fails on all is not asked for each text.
    engine.before = lambda texts: None
    check(await ask(batcher, ["dog"]), ["dog"])


async def test_an_engine_with_too_few_vectors_is_an_error_and_no_swap() -> None:
    class Short(FakeEmbedder):
        def encode(self, texts: Sequence[Text], **options: Any) -> Any:
            return super().encode(texts, **options)[: len(texts) - 1]

    async with make_batcher(Short(16)) as batcher:
        with pytest.raises(RuntimeError, match="0 vectors for 1 texts"):
            await ask(batcher, ["fox", "dog"])


async def test_an_engine_that_leaves_out_a_head_is_an_error() -> None:
    class Bare(FakeEmbedder):
        def encode(self, texts: Sequence[Text], *, role: Role, heads: Any) -> Any:
            return super().encode(texts, role=role, heads=("sparse",))

    async with make_batcher(Bare(16)) as batcher:
        with pytest.raises(ValueError, match=r"expected \('dense',\) vectors, got Embeddings"):
            await asyncio.wait_for(ask(batcher, ["fox"]), PATIENCE)


# --- an engine that hangs -----------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count an engine as hanging after a twentieth of a second."""
    monkeypatch.setattr(batcher_module, "_STALL_FLOOR", 0.05)
    monkeypatch.setattr(batcher_module, "_STALL_FACTOR", 0)
    monkeypatch.setattr(batcher_module, "_WATCH_INTERVAL", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_a_hanging_engine_fails_its_waiters_and_works_again_when_it_returns() -> None:
    engine = GatedEmbedder()
    async with make_batcher(engine) as batcher:
        for text in ("loads", "is measured"):
            engine.let_go()
            check(await ask(batcher, [text]), [text])
            await engine.entered()
        in_pass = ask(batcher, ["fox"])
        await engine.entered()
        queued = [ask(batcher, names(f"queued {i}", 30)) for i in range(20)]
        for task in (in_pass, *queued):
            with pytest.raises(EngineStalledError):
                await task
        assert batcher.is_stalled
        assert batcher.waiting_tokens == 0
        with pytest.raises(EngineStalledError):
            await ask(batcher, ["dog"])
        engine.let_go()
        await until_idle(batcher)
        assert not batcher.is_stalled
        engine.set_free()
        check(await ask(batcher, ["cat"]), ["cat"])
        assert engine.calls[2:] == [["fox"], ["cat"]]


@pytest.mark.usefixtures("impatient")
async def test_loading_and_the_first_measured_pass_may_take_any_time() -> None:
    engine = GatedEmbedder()
    async with make_batcher(engine) as batcher:
        for text in ("loads", "is measured"):
            task = ask(batcher, [text])
            await engine.entered()
            await asyncio.sleep(0.1)  # longer than the limit of this test
            assert not batcher.is_stalled
            engine.let_go()
            check(await task, [text])


async def test_the_limit_follows_the_slowest_pass_and_one_hang_does_not_hide_the_next() -> None:
    batcher = make_batcher(FakeEmbedder(16))
    assert batcher._predict_limit(8192) == float("inf")
    batcher.passes = 2
    batcher._note_time(16, 0.16, was_stalled=False)  # 10 ms a token
    assert batcher._predict_limit(1) == 4
    assert batcher._predict_limit(8192) == pytest.approx(20 * 81.92)
    batcher._note_time(16, 0.0001, was_stalled=False)  # from the cache
    assert batcher._predict_limit(8192) == pytest.approx(20 * 81.92)
    batcher._note_time(16, 3600, was_stalled=True)
    assert batcher._predict_limit(8192) == pytest.approx(2 * 20 * 81.92)


# --- the end ------------------------------------------------------------------------------------


async def test_the_end_answers_all_who_wait_also_those_in_a_pass() -> None:
    engine = GatedEmbedder()
    batcher = make_batcher(engine)
    async with batcher:
        in_pass = ask(batcher, ["fox"])
        await engine.entered()
        queued = ask(batcher, names("dog", 30))
        await settle()
    for task in (in_pass, queued):
        with pytest.raises(ShutdownError):
            await task
    with pytest.raises(ShutdownError):
        await ask(batcher, ["late"])
    assert batcher.is_idle
    assert batcher.is_working  # the hanging pass; the process must not wait for its thread
    engine.set_free()


async def test_a_batcher_can_be_entered_again() -> None:
    batcher = make_batcher(FakeEmbedder(16))
    for _ in range(2):
        async with batcher:
            check(await ask(batcher, ["fox"]), ["fox"])


# --- load ---------------------------------------------------------------------------------------


async def test_no_answer_is_lost_or_swapped_under_random_load(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """2,000 requests of all sizes and kinds; some are cancelled, some bad, some late."""
    dice = random.Random(5)
    engine = GatedEmbedder()
    engine.before = fail_on("bad", ValueError("no"))
    engine.set_free()
    heads_choice: list[tuple[HeadName, ...]] = [DENSE, ("dense", "sparse")]
    outcomes: dict[str, int] = {}

    async def run(number: int, batcher: Batcher) -> None:
        texts = [f"text {number} {i} {dice.random()}" for i in range(dice.choice([1, 1, 1, 3, 30]))]
        is_bad = dice.random() < 0.05
        if is_bad:
            texts[dice.randrange(len(texts))] = "bad"
        task = ask(
            batcher,
            texts,
            cost=dice.choice([3, 10, 60, 300]),
            role=dice.choice(["query", "document"]),
            heads=dice.choice(heads_choice),
            timeout=0.001 if dice.random() < 0.05 else PATIENCE,
        )
        if dice.random() < 0.1:
            await asyncio.sleep(dice.random() / 100)
            task.cancel()
        try:
            check(await task, texts)
            outcome = "answered"
        except asyncio.CancelledError:
            outcome = "cancelled"
        except ValueError as error:
            outcome = f"bad: {is_bad}, {error}"
        except (DeadlineError, OverloadedError) as error:
            outcome = type(error).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    async with make_batcher(engine, max_waiting_tokens=600_000) as batcher:
        tasks = []
        for number in range(2000):
            tasks.append(asyncio.create_task(run(number, batcher)))
            if number % 20 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        await until_idle(batcher)
        assert batcher.waiting_tokens == 0
        assert batcher.waiting_requests == 0
    assert sum(outcomes.values()) == 2000
    assert outcomes["answered"] > 500
    assert {name for name in outcomes if name.startswith("bad")} == {"bad: True, no"}
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


COSTS = st.lists(st.integers(1, 300), min_size=1, max_size=12)


def make_request(kind: int, costs: list[int]) -> Request:
    loop = asyncio.get_running_loop()
    heads = DENSE if kind else ("dense", "sparse")
    return Request(
        texts=[""] * len(costs),
        tokens=costs,
        kind=("query", heads),
        future=loop.create_future(),
    )


@given(st.lists(st.tuples(st.integers(0, 1), COSTS, st.booleans()), max_size=15))
@hypothesis_settings(max_examples=200)
def test_turns_take_each_text_once_in_order_within_the_budget(
    drawn: list[tuple[int, list[int], bool]],
) -> None:
    async def run() -> None:
        turns = Turns()
        requests = [make_request(kind, costs) for kind, costs, _ in drawn]
        for request in requests:
            turns.add(request)
        assert turns.tokens == sum(sum(costs) for _, costs, _ in drawn)
        for request, (_, _, is_withdrawn) in zip(requests, drawn, strict=True):
            if is_withdrawn:
                turns.withdraw(request)
                turns.withdraw(request)
        taken: dict[Request, list[int]] = {}
        while places := turns.take(100):
            assert len({place.request.kind for place in places}) == 1
            total = sum(place.tokens for place in places)
            assert total <= 100 or len(places) == 1
            for place in places:
                taken.setdefault(place.request, []).append(place.index)
        for request, (_, costs, is_withdrawn) in zip(requests, drawn, strict=True):
            expected = [] if is_withdrawn else list(range(len(costs)))
            assert taken.get(request, []) == expected
        assert (turns.tokens, turns.requests, turns.waiting()) == (0, 0, [])

    asyncio.run(run())


async def test_a_hundred_thousand_waiting_requests_are_no_burden() -> None:
    """Were a step linear in those who wait, this would take minutes."""
    turns = Turns()
    requests = [make_request(number % 2, [3]) for number in range(100_000)]
    for request in requests:
        turns.add(request)
    for request in requests[::3]:
        turns.withdraw(request)
    count = 0
    while places := turns.take(30):
        count += len(places)
    assert count == 66_666
    assert turns.tokens == 0
