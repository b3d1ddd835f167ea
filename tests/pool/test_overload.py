"""More calls than an engine can answer: who is refused, how soon, and what the others get.

In virtual time, on the real queue; the figures on real processes are in tests/e2e/test_overload.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from pool.engines.base import Tensors
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer, Failed, Outcome, Overdue
from tests.support import virtual_time
from tests.support.counting_engine import TestSession
from tests.support.tickets import Asked, VirtualRunner, X, Y, asked, echo

RUN_S = 0.02
SLO_S = 0.5


@dataclass
class Sent:
    """One call, when it was sent and when it ended."""

    asked: Asked
    at_s: float
    took_s: float = -1.0

    def settle(self, outcome: Outcome) -> None:
        self.took_s = asyncio.get_running_loop().time() - self.at_s
        self.asked.outcomes.append(outcome)

    @property
    def outcome(self) -> Outcome:
        return self.asked.outcome


@dataclass(frozen=True)
class Caller:
    """A tenant that sends at random moments, whether it is answered or not."""

    tenant: str
    per_s: float
    share: float = 1.0
    from_s: float = 0.0
    until_s: float = 60.0
    run_s: float = 0.0  # of each of its calls; 0: what the engine takes
    slo_s: float = SLO_S


@dataclass
class _Session(TestSession):
    """Remembers what was asked last."""

    asked_ms: int = 0

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        self.asked_ms = int(tensors["x"][0])
        return super().infer(tensors, outputs)


@dataclass
class Engine:
    """One queue in virtual time, and everything that was sent to it."""

    run_s: float = RUN_S
    jitter: float = 0.1
    rows_max: int = 1
    row_s: float = 0.0
    seed: int = 0
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    at_s: Mapping[float, Callable[[Engine], None]] = field(default_factory=dict)

    def take(self, callers: Sequence[Caller]) -> dict[str, list[Sent]]:
        """Let all send, until all have ended."""
        virtual_time.run(self._take(callers))
        return self.sent

    async def _take(self, callers: Sequence[Caller]) -> None:
        dice = random.Random(self.seed)
        loop = asyncio.get_running_loop()
        self.session = _Session(X, Y)
        runner = VirtualRunner(
            self.session,
            lambda rows: (self.asked_s() + self.row_s * rows) * dice.gauss(1.0, self.jitter),
        )
        self.queue = EngineQueue(
            runner.session, name="q", rows_max=self.rows_max, clock=loop.time, runner=runner
        )
        for at_s, change in self.at_s.items():
            loop.call_later(at_s, change, self)
        await asyncio.gather(*(self._send(caller) for caller in callers))
        await asyncio.sleep(5)
        assert self.queue.is_idle
        await self.queue.close()

    def asked_s(self) -> float:
        """Say how long the run takes that begins, which may be up to what is asked."""
        return self.session.asked_ms / 1e3 or self.run_s

    async def _send(self, caller: Caller) -> None:
        dice = random.Random(f"{self.seed} {caller.tenant}")
        loop = asyncio.get_running_loop()
        sent = self.sent.setdefault(caller.tenant, [])
        await asyncio.sleep(caller.from_s)
        while loop.time() < caller.until_s:
            now_s = loop.time()
            one = asked(
                round(1e3 * caller.run_s),
                arrived_s=now_s,
                slo_s=caller.slo_s,
                tenant=caller.tenant,
                share=caller.share,
            )
            call = Sent(one, now_s)
            one.ticket.on_settled = call.settle
            sent.append(call)
            self.queue.submit(one.ticket)
            await asyncio.sleep(dice.expovariate(caller.per_s))


def in_time(sent: Sequence[Sent]) -> list[float]:
    return sorted(
        one.took_s for one in sent if isinstance(one.outcome, Answer) and one.took_s <= SLO_S
    )


def answers_per_s(sent: Sequence[Sent], from_s: float, until_s: float) -> float:
    """Return how many answers a second came in time, in a part of the overload."""
    ends_s = [
        one.at_s + took_s
        for one in sent
        if 0 <= (took_s := one.took_s) <= SLO_S and isinstance(one.outcome, Answer)
    ]
    return sum(from_s <= end_s < until_s for end_s in ends_s) / (until_s - from_s)


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def refused(sent: Sequence[Sent]) -> list[Sent]:
    return [one for one in sent if isinstance(one.outcome, Failed | Overdue)]


@pytest.mark.parametrize("load", [2.0, 5.0])
@pytest.mark.parametrize("rows_max", [1, 8])
def test_overload_costs_no_answers_and_who_is_refused_hears_it_at_once(
    load: float, rows_max: int
) -> None:
    engine = Engine(rows_max=rows_max, row_s=0.0 if rows_max == 1 else 0.005)
    per_s = rows_max / (engine.run_s + engine.row_s * rows_max)
    sent = engine.take([Caller("", load * per_s, until_s=4)])[""]
    answered = [one.took_s for one in sent if isinstance(one.outcome, Answer)]
    rejects = [one.took_s for one in refused(sent)]
    goodput = answers_per_s(sent, 0.5, 4.0) / per_s
    print(
        f"\n{load} x, {rows_max} rows: {goodput:.3f} of capacity, answers "
        f"p50/p99 {quantile(answered, 0.5):.3f}/{quantile(answered, 0.99):.3f} s, rejects p50/p99 "
        f"{quantile(rejects, 0.5):.3f}/{quantile(rejects, 0.99):.3f} s"
    )
    assert goodput >= 0.95
    assert quantile(answered, 0.99) <= SLO_S
    assert quantile(rejects, 0.9) == 0.0
    assert engine.queue.counters.refused >= 0.9 * len(rejects)
    assert all(one.outcome.status == 503 for one in sent if isinstance(one.outcome, Failed))


def test_calls_are_answered_again_as_soon_as_the_overload_ends() -> None:
    callers = [Caller("flood", 250.0, until_s=3), Caller("after", 20.0, from_s=3.0, until_s=5)]
    sent = Engine().take([replace(caller, tenant="") for caller in callers])[""]
    after = [one for one in sent if one.at_s >= 3.0]
    assert len(after) > 20
    assert not [one.at_s for one in refused(after) if one.at_s > 3.5]
    assert max(in_time([one for one in after if one.at_s > 4.0])) < 0.2


def test_an_engine_that_turns_slow_under_load_answers_who_has_just_come() -> None:
    """What it was predicted to do it cannot do any more: the oldest would all be late."""

    def turn_slow(engine: Engine) -> None:
        engine.run_s = 3 * RUN_S

    engine = Engine()
    engine.at_s = {2.0: turn_slow}
    sent = engine.take([Caller("", 150.0, until_s=6)])[""]
    late = [one for one in sent if isinstance(one.outcome, Answer) and one.took_s > SLO_S]
    assert len(late) <= 3
    assert answers_per_s(sent, 2.5, 6.0) >= 0.9 / (3 * RUN_S)


def test_a_tenant_within_its_share_is_answered_as_if_it_were_alone() -> None:
    quiet, noisy = Caller("quiet", 15.0, until_s=12), Caller("noisy", 250.0, until_s=12)
    alone = Engine().take([quiet])["quiet"]
    both = Engine().take([quiet, noisy])
    took_s = {"alone": in_time(alone), "beside": in_time(both["quiet"])}
    p99 = {name: quantile(values, 0.99) for name, values in took_s.items()}
    print(f"\nquiet tenant's p99: {p99['alone']:.3f} s alone, {p99['beside']:.3f} s beside")
    assert not refused(both["quiet"])
    assert p99["beside"] <= 1.5 * p99["alone"]
    # And nothing is wasted on it.
    assert answers_per_s(both["quiet"] + both["noisy"], 0.5, 12.0) >= 0.95 / RUN_S


@pytest.mark.parametrize("floods_s", [[(5.0, 20.0)], [(5.0, 12.0), (22.0, 29.0)]])
def test_nine_tenths_of_a_share_are_as_good_as_alone_beside_floods_that_come_and_go(
    floods_s: list[tuple[float, float]],
) -> None:
    def during(sent: Sequence[Sent]) -> list[float]:
        return in_time([o for o in sent if any(since <= o.at_s < to for since, to in floods_s)])

    quiet = Caller("quiet", 22.5, until_s=floods_s[-1][1])
    noisy = [Caller("noisy", 250.0, from_s=since, until_s=to) for since, to in floods_s]
    alone = Engine().take([quiet])["quiet"]
    beside = Engine().take([quiet, *noisy])["quiet"]
    p99 = [quantile(during(sent), 0.99) for sent in (alone, beside)]
    print(f"\nquiet tenant's p99: {p99[0]:.3f} s alone, {p99[1]:.3f} s beside")
    assert not refused(beside)
    assert p99[1] <= 1.5 * p99[0]


def test_an_engine_that_stalls_costs_a_tenant_within_its_share_no_answers() -> None:
    def takes(run_s: float) -> Callable[[Engine], None]:
        return lambda engine: setattr(engine, "run_s", run_s)

    stalls = {at_s: takes(0.3) for at_s in (2.0, 4.0, 6.0)}
    engine = Engine(at_s=stalls | {at_s + 0.021: takes(RUN_S) for at_s in stalls})
    sent = engine.take([Caller("quiet", 15.0, until_s=8), Caller("noisy", 250.0, until_s=8)])
    assert not refused(sent["quiet"])
    assert max(one.took_s for one in sent["quiet"]) > 0.2


@pytest.mark.parametrize(("long_per_s", "part"), [(1.0, 0.95), (2.5, 0.95), (30.0, 0.95)])
def test_short_calls_are_not_refused_for_how_long_those_of_another_tenant_take(
    long_per_s: float, part: float
) -> None:
    """How long a call takes may be up to its input: the mean over all says little then."""
    quiet = Caller("quiet", 15.0, from_s=2.0, until_s=20, run_s=0.02)
    slow = Caller("slow", long_per_s, until_s=20, run_s=0.2, slo_s=3.0)
    sent = Engine(seed=1).take([quiet, slow])
    answered = len(in_time(sent["quiet"])) / len(sent["quiet"])
    print(f"\n{long_per_s}/s of 200 ms: {answered:.3f} of the short calls answered in time")
    assert answered >= part
    if long_per_s < 5:
        assert len(refused(sent["slow"])) <= 0.05 * len(sent["slow"])


def test_a_tenant_whose_calls_turn_short_is_answered_again() -> None:
    """However hopeless they looked, and however busy others keep the engine."""
    long = Caller("a", 3.0, until_s=4, run_s=0.6)
    short = Caller("a", 10.0, from_s=6.0, until_s=12, run_s=0.02)
    sent = Engine().take([long, short, Caller("b", 15.0, until_s=12)])["a"]
    after = [one for one in sent if one.at_s >= 6.0]
    assert len(in_time(after)) >= 0.9 * len(after)


def test_whose_fault_a_refusal_is() -> None:
    callers = [Caller("quiet", 15.0, from_s=2.0, until_s=4), Caller("noisy", 250.0, until_s=4)]
    both = Engine().take(callers)
    assert not refused(both["quiet"])  # although nobody knew it, and the queue was full
    for one in both["noisy"]:
        if isinstance(one.outcome, Failed) and not 2.0 <= one.at_s <= 2.1:
            assert one.outcome.status == (503 if one.at_s < 2.0 else 429), one.at_s


@pytest.mark.parametrize("share", [1.0, 3.0])
def test_tenants_that_all_want_more_get_it_by_their_shares(share: float) -> None:
    callers = [Caller("a", 100.0, share, until_s=6), Caller("b", 200.0, until_s=6)]
    both = Engine().take(callers)
    ratio = len(in_time(both["a"])) / len(in_time(both["b"]))
    assert ratio == pytest.approx(share, rel=0.1)


def test_a_queue_that_was_empty_takes_a_burst_as_long_as_it_can_answer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        runner = VirtualRunner(echo(), lambda _rows: RUN_S)
        queue = EngineQueue(runner.session, name="q", rows_max=1, clock=loop.time, runner=runner)

        async def burst(count: int, slo_s: float = 0.51) -> int:
            """Send at once; return how many are answered."""
            sent = [asked(1, arrived_s=loop.time(), slo_s=slo_s) for _ in range(count)]
            for one in sent:
                queue.submit(one.ticket)
            refused_s = [one for one in sent if one.outcomes]
            await asyncio.sleep(1.0)
            answered = sum(isinstance(one.outcome, Answer) for one in sent)
            assert answered + len(refused_s) == count
            return answered

        for _ in range(5):  # the engine's time is learned
            await burst(1)
        assert 20 <= await burst(100) <= 25
        assert 20 <= await burst(100) <= 25
        assert 2 <= await burst(10, slo_s=0.065) <= 3

    virtual_time.run(main())
