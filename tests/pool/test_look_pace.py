"""When a controller looks, where a queue tells it of changes."""

from __future__ import annotations

import pytest

from pool.look_pace import HEARD_S_MAX, SLOW_S, Pace
from pool.registry_watch import RegistryWatch
from pool.wish_watch import WishWatch
from registry_sync import keys
from registry_sync.documents import Keys, write
from registry_sync.open import open_store
from tests.support.faulty_s3 import faulty_s3
from tests.support.published import publish
from tests.support.seaweed import S3Server

USUAL = Pace(heard_s=1000.0, looked_s=1000.0)
ROUND_S, RECEIVE_S = 10.0, 20.0  # the usual pace on S3; what a receive waits


def test_first_round_looks() -> None:
    assert Pace().is_due(0.0)


def test_queue_that_answers_makes_looks_rare() -> None:
    assert not USUAL.is_due(1000.0 + HEARD_S_MAX)
    assert USUAL.heard(1000.0 + SLOW_S, is_event=False).is_due(1000.0 + SLOW_S)


def test_queue_that_is_silent_or_fails_brings_the_usual_pace_back() -> None:
    assert USUAL.is_due(1000.1 + HEARD_S_MAX)
    assert USUAL.deaf().is_due(1000.0)


def test_change_that_nobody_told_brings_the_usual_pace_until_the_next_event() -> None:
    missed = USUAL.missed()
    assert missed.is_due(1000.0)
    assert missed.heard(1001.0, is_event=False).is_due(1001.0)
    assert not missed.heard(1001.0, is_event=True).is_due(1001.0)


def test_look_that_the_registry_did_not_answer_is_made_again() -> None:
    assert USUAL.looked(1001.0, has_answered=False).is_due(1002.0)
    assert not USUAL.looked(1001.0, has_answered=True).is_due(1002.0)


def test_only_a_change_since_a_look_should_have_been_told() -> None:
    assert USUAL.could_tell(1010.0)
    for pace in (Pace(), Pace(heard_s=1000.0), USUAL.deaf(), USUAL.missed()):
        assert not pace.could_tell(1010.0)


def _looks(hour_s: float, *, is_heard: bool) -> int:
    pace, count = Pace(), 0
    for index in range(int(hour_s / ROUND_S)):
        now_s = index * ROUND_S
        if is_heard and now_s % RECEIVE_S == 0:
            pace = pace.heard(now_s, is_event=False)
        if pace.is_due(now_s):
            count += 1
            pace = pace.looked(now_s, has_answered=True)
    return count


def test_calls_of_an_idle_hour(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 looks of 3 calls instead of 360 looks of 2 and 60 lists of wishes; 180 receives."""
    assert _looks(3600.0, is_heard=True) == 12
    assert _looks(3600.0, is_heard=False) == 360
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_url)
        publish(store, "1")
        store.put_new(keys.KEYS_KEY, write(Keys(())))
        watch = RegistryWatch(store, None, WishWatch(store, 0.0))
        watch.poll()
        proxy.requests.clear()
        watch.poll()
        assert len(proxy.requests) == 3
        store.close()
    assert 12 * 3 + 3600 / RECEIVE_S == 216
