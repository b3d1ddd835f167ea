"""Copies of calls for a candidate: in nobody's way, bounded, compared and counted once."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import weakref
from collections.abc import Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest

from pool import shadow
from pool.engines.base import Array, Tensors
from pool.queueing.ticket import Answer
from pool.shadow import ARENA_BYTES_MAX, KEPT_BYTES_MAX, KEPT_MAX, KEPT_S_MAX, input_digest
from pool.wire import data
from pool.wire.control import ShadowCount
from pool.wire.data import ShadowOf, Tensor
from tests.support import virtual_time
from tests.support.shadow_bench import (
    BASELINE,
    CANDIDATE,
    MARK,
    Bench,
    VersionSession,
    X,
    Y,
    fails_on,
    load,
)


def add_up(count: ShadowCount) -> bool:
    """Tell whether every copy that was offered has had one end."""
    return count.offered == count.dropped + count.failed + count.compared


async def rest(bench: Bench, seconds: float = 5.0) -> ShadowCount:
    """Let everything come to its end; nothing is kept then."""
    await asyncio.sleep(seconds)
    assert bench.shadows.bytes == 0
    return bench.count


def answered(outputs: Tensors) -> Answer:
    """Return what a baseline has answered."""
    return Answer(outputs, 0.0, 0.005, 1)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run in virtual time."""
    return virtual_time.run(main)


def test_a_copy_is_compared_and_its_caller_is_long_gone() -> None:
    async def main() -> None:
        bench = Bench()
        caller = bench.call()
        count = await rest(bench)
        assert caller.took_s == pytest.approx(0.005)
        assert len(caller.outcomes) == 1
        ((from_s, _),) = bench.copies()
        assert from_s > caller.took_s
        assert (count.rollout, count.baseline, count.candidate) == ("e/r", "m/1", "m/2")
        assert (count.offered, count.compared, count.rows, count.top1_off) == (1, 1, 1, 0)
        assert (count.errors[0], count.error_max, count.worst) == (1, 0.0, ())

    run(main())


def test_what_differs_is_counted_and_named_by_its_inputs() -> None:
    async def main() -> None:
        bench = Bench(change=lambda tensors: {"y": tensors["y"][:, ::-1] * 2})
        bench.call([1.0, 2.0, 3.0, 4.0])
        bench.call([1.0, 1.0, 1.0, 1.0])
        count = await rest(bench)
        assert (count.compared, count.rows, count.top1_off) == (2, 2, 1)
        assert count.error_max == pytest.approx(7 / 4)  # 2·4 where 1 was, in parts of 4
        assert count.error_sum == pytest.approx(7 / 4 + 1)
        top1, values = count.worst
        assert (top1.request_id, top1.kind, values.kind) == ("r1", "top1", "values")
        assert "is at 0, not at 3" in top1.detail
        raw = np.array([[1, 2, 3, 4]], np.float32).tobytes()
        assert top1.inputs == hashlib.sha256(b'["x","FP32",[1,4]]\n' + raw).hexdigest()

    run(main())


def test_inputs_are_named_whatever_their_order() -> None:
    one, other = Tensor("a", "UINT8", (1,), b"1"), Tensor("b", "UINT8", (1,), b"2")
    assert input_digest([one, other]) == input_digest([other, one])
    assert input_digest([one]) != input_digest([Tensor("a", "INT8", (1,), b"1")])
    assert input_digest([one]) != input_digest([Tensor("a", "UINT8", (1, 1), b"1")])


def test_a_candidate_that_fails_fails_nobody() -> None:
    async def main() -> None:
        bench = Bench(change=fails_on(666.0))
        callers = []
        for value in (1.0, 666.0, 2.0):
            callers.append(bench.call([value, 0, 0, 0]))
            await asyncio.sleep(1)
        count = await rest(bench)
        assert all(isinstance(one.outcomes[0], Answer) for one in callers)
        assert (count.failed, count.compared) == (1, 2)
        assert "666.0 is more than this model can bear" in count.last_failure
        (example,) = count.worst
        assert (example.request_id, example.kind) == ("r2", "failed")

    run(main())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"y": np.zeros((1, 5), np.float32)}, 'output "y" has shape [1, 5], not [1, 4]'),
        ({"y": [1, 2]}, "it cannot be compared: "),
        ({"y": np.array([["a"] * 4])}, "it cannot be compared: "),
    ],
)
def test_an_answer_of_another_kind_is_unlike(answer: Tensors, why: str) -> None:
    async def main() -> None:
        bench = Bench(rows_max=1, change=lambda _: answer)
        bench.call()
        count = await rest(bench)
        assert (count.compared, count.unlike, sum(count.errors)) == (1, 1, 0)
        assert count.worst[0].kind == "unlike"
        assert count.worst[0].detail.startswith(why)

    run(main())


@pytest.mark.parametrize("seed", range(2))
def test_a_copy_begins_only_after_a_pause_as_long_as_itself(seed: int) -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)
        await load(bench, calls=400, calls_per_s=100, seed=seed, slo_s=1e6, is_shadowed=True)
        copies = bench.copies()
        assert 20 < len(copies) < 400
        inside = [(one.arrived_s, one.arrived_s + one.took_s) for one in bench.callers]
        for from_s, to_s in copies:
            pause_s = to_s - from_s
            for arrived_s, answered_s in inside:
                assert answered_s <= from_s or arrived_s >= from_s
                # `arrived` within the pause: it has come and gone since the last look.
                assert not from_s - pause_s + 1e-6 < arrived_s < from_s - 1e-9
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(copies))
        assert add_up(bench.count)

    run(main())


def test_calls_that_come_and_go_within_the_pause_keep_a_slow_copy_away() -> None:
    async def main() -> None:
        bench = Bench(candidate_s=0.05)
        bench.call()
        await asyncio.sleep(1)
        assert len(bench.copies()) == 1  # so it is known how long one takes
        bench.call()
        for _ in range(20):  # each is gone long before the next
            await asyncio.sleep(0.03)
            bench.call(marks=())
        assert len(bench.copies()) == 1
        await asyncio.sleep(0.2)
        assert len(bench.copies()) == 2

    run(main())


def test_calls_of_anybody_keep_copies_away() -> None:
    async def main() -> None:
        bench = Bench()
        bench.call()
        for _ in range(200):  # for two seconds the candidate has callers of its own
            bench.call(marks=(), to=CANDIDATE)
            await asyncio.sleep(0.01)
        assert len(bench.device.runs) == 201
        assert (bench.count.dropped, bench.count.compared) == (1, 0)
        assert bench.shadows.bytes == 0

    run(main())


def test_a_busy_worker_keeps_little_and_drops_the_rest() -> None:
    async def main() -> None:
        bench = Bench(rows_max=1)
        for _ in range(10 * KEPT_MAX):
            bench.call()
        await asyncio.sleep(0.005 * 9 * KEPT_MAX)
        count = bench.count
        assert bench.copies() == []
        assert count.offered - count.dropped <= KEPT_MAX
        assert add_up(await rest(bench))

    run(main())


def test_a_copy_that_has_waited_too_long_is_dropped() -> None:
    async def main() -> None:
        bench = Bench(duration_s=lambda rows: KEPT_S_MAX)
        bench.call()
        await asyncio.sleep(KEPT_S_MAX / 2)
        bench.call(marks=())
        count = await rest(bench)
        assert (count.dropped, count.compared) == (1, 0)

    run(main())


def test_kept_bytes_are_bounded_and_given_back() -> None:
    async def main() -> None:
        bench = Bench()
        loaded = bench.replicas[BASELINE].loaded
        assert loaded is not None
        kept: list[weakref.ref[Array]] = []
        bench.call(marks=())  # the worker is busy
        for number in range(9):
            array = np.zeros((1, 1 << 18), np.float32)  # 1 MiB, and an answer as large
            kept.append(weakref.ref(array))
            tensors = [Tensor("x", "FP32", array.shape, array.data.cast("B"))]
            call = data.Call(number, "r", *BASELINE, "d", 0, 0, (), shadow=(MARK,))
            bench.shadows.offer(call, tensors, answered({"y": array.copy()}), loaded)
            assert bench.shadows.bytes <= KEPT_BYTES_MAX
            del array, tensors
        assert (bench.count.offered, bench.count.dropped) == (9, 2)  # a byte each is counted too
        assert sum(one() is not None for one in kept) == 7
        count = await rest(bench)
        assert (count.dropped, count.failed + count.compared) == (2, 7)
        assert [one() for one in kept] == [None] * 9

    run(main())


def test_few_places_of_an_arena_are_held_but_one_of_any_size_is() -> None:
    async def main() -> None:
        for size, held in ((ARENA_BYTES_MAX // 2, 2), (ARENA_BYTES_MAX + 4, 1), (4, 5)):
            bench = Bench()
            loaded = bench.replicas[BASELINE].loaded
            assert loaded is not None
            bench.call(marks=())  # the worker is busy
            for number in range(5):
                tensors = [Tensor("x", "FP32", (1, size // 4), bytes(size))]
                call = data.Call(
                    *(number, "r", *BASELINE, "d", 0, 0, ()), arena_at=64, shadow=(MARK,)
                )
                outputs = {"y": np.zeros((1, 4), np.float32)}
                bench.shadows.offer(call, tensors, answered(outputs), loaded)
            assert bench.count.offered - bench.count.dropped == held
            await rest(bench)
            bench.shadows.offer(call, tensors, answered(outputs), loaded)
            assert bench.shadows.bytes > size  # there is room again
            await rest(bench)

    run(main())


def test_an_answer_cut_from_a_batch_does_not_keep_the_batch() -> None:
    async def main() -> None:
        bench = Bench()
        loaded = bench.replicas[BASELINE].loaded
        assert loaded is not None
        batch = np.zeros((1 << 10, 4), np.float32)
        known = weakref.ref(batch)
        call = data.Call(1, "r", *BASELINE, "d", 0, 0, (), shadow=(MARK,))
        tensors = [Tensor("x", "FP32", (1, 4), bytes(16))]
        outputs = {"y": batch[:1], "undeclared": batch}
        bench.shadows.offer(call, tensors, answered(outputs), loaded)
        del batch, outputs
        assert known() is None
        assert bench.shadows.bytes == 33
        assert (await rest(bench)).compared == 1

    run(main())


def test_the_budget_is_kept() -> None:
    async def main() -> None:
        bench = Bench()
        mark = msgspec.structs.replace(MARK, calls_per_s_max=2.0)
        for _ in range(400):
            bench.call(marks=(mark,))
            await asyncio.sleep(0.05)
        count = await rest(bench)
        assert 38 <= count.compared <= 42  # 20 s, and one second's worth at the beginning
        assert add_up(count)

    run(main())


@pytest.mark.parametrize("state", ["cold", "loading", "draining", "failed"])
def test_a_candidate_that_is_not_warm_is_not_woken(state: str) -> None:
    async def main() -> None:
        bench = Bench()
        bench.replicas[CANDIDATE].state = state
        bench.call()
        stranger = ShadowOf("e/r", "m", "3", 10.0)
        count = await rest(bench)
        assert (count.offered, count.dropped, count.absent) == (1, 1, 1)
        bench.call(marks=(stranger,))
        await asyncio.sleep(1)
        bench.shadows.tell_again()
        report = bench.shadows.report()
        assert report is not None
        assert [one.absent for one in report.counts] == [1, 1]
        assert bench.copies() == []

    run(main())


def test_a_candidate_that_leaves_meanwhile_drops_its_copies() -> None:
    async def main() -> None:
        bench = Bench()
        bench.call()
        await asyncio.sleep(0.0055)
        assert bench.shadows.bytes
        bench.replicas[CANDIDATE].queue = None
        assert (await rest(bench)).dropped == 1

    run(main())


def test_a_queue_that_closes_gives_its_copy_back() -> None:
    async def main() -> None:
        bench = Bench()
        queue = bench.replicas[CANDIDATE].queue
        assert queue is not None
        bench.call()
        await queue.close()
        assert (await rest(bench)).dropped == 1

    run(main())


def test_nothing_begins_after_the_end() -> None:
    async def main() -> None:
        bench = Bench()
        for _ in range(3):
            bench.call()
        await asyncio.sleep(0.0075)
        bench.shadows.close()
        bench.call()
        count = await rest(bench)
        assert (count.offered, count.dropped, bench.copies()) == (4, 4, [])

    run(main())


def test_a_copy_under_way_at_the_end_is_still_counted() -> None:
    async def main() -> None:
        bench = Bench()
        bench.call()
        while not bench.copies():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        bench.shadows.close()
        assert (await rest(bench)).compared == 1

    run(main())


def test_only_news_is_told_and_all_of_it_to_a_new_controller() -> None:
    async def main() -> None:
        bench = Bench()
        shadows = bench.shadows
        shadows.tell_again()
        assert shadows.report() is None
        bench.call()
        await asyncio.sleep(1)
        first = shadows.report()
        assert first is not None
        assert shadows.report() is None
        shadows.tell_again()
        assert shadows.report() == first

    run(main())


def test_pairs_without_end_are_bounded() -> None:
    async def main() -> None:
        bench = Bench()
        for number in range(3 * shadow.COUNTS_MAX):
            bench.call(marks=(ShadowOf(f"e{number}/r", *CANDIDATE, 5.0),))
        await asyncio.sleep(10)
        report = bench.shadows.report()
        assert report is not None
        assert len(report.counts) == shadow.COUNTS_MAX
        assert bench.shadows.bytes == 0

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_every_copy_has_one_end_in_any_life(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        bench = Bench(rows_max=dice.choice([1, 8]), change=fails_on(666.0))
        replica = bench.replicas[CANDIDATE]
        queue = replica.queue
        rate = dice.choice([20, 100, 400])
        for number in range(300):
            value = dice.choice([1.0, 666.0])
            to = CANDIDATE if dice.random() < 0.1 else BASELINE
            marks = (MARK,) if to == BASELINE else ()
            bench.call([value, number, 0, 0], marks=marks, to=to)
            if dice.random() < 0.02:
                replica.state = dice.choice(["warm", "draining"])
            if dice.random() < 0.7:
                await asyncio.sleep(dice.expovariate(rate))
        if dice.random() < 0.5:
            bench.shadows.close()
        elif dice.random() < 0.5:
            assert queue is not None
            await queue.close()
        count = await rest(bench, 60.0)
        assert add_up(count)
        assert count.rows + count.unlike == count.compared == sum(count.errors) + count.unlike
        for caller in bench.callers:
            assert len(caller.outcomes) == 1

    run(main())


def test_models_that_answer_in_pieces_are_not_copied() -> None:
    async def main() -> None:
        bench = Bench()
        replica = bench.replicas[CANDIDATE]
        assert replica.loaded is not None
        session = VersionSession(X, Y, streams=True)
        replica.loaded = msgspec.structs.replace(replica.loaded, session=session)
        bench.call()
        assert (await rest(bench)).dropped == 1

    run(main())
