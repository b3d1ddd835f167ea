"""How a worker answers orders to build; what it builds, `test_building` shows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pool.build_work import BuildWork, Reports, Target, report_of
from pool.engines import choice
from pool.engines.choice import Option
from pool.plan_shelf import PlanShelf
from pool.wanted import wanted_of
from pool.wire.control import Build, BuildReport
from tests.support.artifacts import manifest_of
from tests.support.plan_engine import ELSEWHERE, OptimizedEngine

TARGET: Target = ("m", "1", "optimized", ELSEWHERE)


def option() -> Option:
    engine = OptimizedEngine()
    manifest = manifest_of({"model.onnx": b"1"})
    spec = choice.spec_of(manifest, Path(), wanted_of(manifest), ELSEWHERE)
    return choice.option_for([engine], {engine.name: engine.probe()}, spec, "")


def test_refusal_holds_beside_what_was_built_until_the_plan_is_loaded() -> None:
    said: list[BuildReport] = []
    reports = Reports(said.append)
    reports.say(report_of(option(), "refused", "the gate: 0.3 is more than 0.01"))
    reports.say(report_of(option(), "built"))
    for _ in range(2):  # to every controller that is dialled
        said.clear()
        reports.again()
        assert [one.state for one in said] == ["built", "refused"]
    assert "0.3" in said[-1].reason
    said.clear()
    reports.forget(option().key)
    reports.again()
    assert [one.state for one in said] == ["unwanted", "built"]


async def test_order_for_another_key_is_answered_and_nothing_is_built() -> None:
    said: list[BuildReport] = []

    async def option_of(target: Target) -> Option:
        return option()

    reports = Reports(said.append)
    work = BuildWork(cast(PlanShelf, None), option_of, reports, cast(Any, None))
    work.take(Build(1, *TARGET, "ab" * 32))
    async with asyncio.timeout(10):
        while work.is_under_way(TARGET):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [(one.key, one.state) for one in said] == [
        ("ab" * 32, "building"),
        ("ab" * 32, "other"),
    ]
    said.clear()
    reports.again()
    assert not said  # it holds for no other controller


def work_with(said: list[BuildReport], **shelf: Any) -> BuildWork:
    async def option_of(target: Target) -> Option:
        return option()

    fake = cast(PlanShelf, SimpleNamespace(**shelf))
    return BuildWork(fake, option_of, Reports(said.append), cast(Any, None))


async def test_question_that_comes_after_a_failure_begins_nothing_under_any_name() -> None:
    said: list[BuildReport] = []
    work = work_with(said, secrets=None)  # it can build nothing
    any_engine: Target = ("m", "1", "", ELSEWHERE)
    work.take(Build(1, *any_engine))
    async with asyncio.timeout(10):
        while work.is_under_way(any_engine):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    key = option().key
    assert (said[-1].key, said[-1].state) == (key, "failed")
    for target, ordered in ((any_engine, ""), (any_engine, key), (TARGET, key)):
        said.clear()
        work.take(Build(1, *target, ordered))
        assert [(one.key, one.state) for one in said] == [(key, "failed")]
        assert said[0].retry_ms > 0
        assert not work.is_under_way(target)


async def test_question_under_another_name_begins_no_second_build() -> None:
    said: list[BuildReport] = []
    looked: list[str] = []

    async def is_in_registry(option: Option) -> bool:
        looked.append(option.key)
        await asyncio.Event().wait()
        return False

    secrets = SimpleNamespace(current=None)
    work = work_with(said, secrets=secrets, is_in_registry=is_in_registry)
    work.take(Build(1, "m", "1", "", ELSEWHERE))  # a wish, whose key nobody knows yet
    async with asyncio.timeout(10):
        while not looked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    said.clear()
    work.take(Build(1, *TARGET, option().key))  # by a controller that knows what we said of it
    assert [(one.key, one.state) for one in said] == [(option().key, "building")]
    assert not work.is_under_way(TARGET)
    await work.close()


def test_controller_that_begins_after_a_plan_was_built_hears_of_it() -> None:
    said: list[BuildReport] = []
    reports = Reports(said.append)
    built = report_of(option(), "built")
    reports.say(report_of(option(), "building"))
    reports.say(built)
    reports.forget(built.key)  # it serves: nobody here wants it any more
    said.clear()
    reports.again()
    assert said == [built]
