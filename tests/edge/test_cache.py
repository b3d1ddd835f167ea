"""What the answer cache keeps, what it forgets, and what an answer's key depends on."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.body import InferRequest, Signature, parse_infer
from edge.cache import ENTRY_BYTES, AnswerCache, cache_key
from edge.tensors import Tensor
from registry_sync.documents import TensorSpec

DAY_S = 86400.0
PINNED = "ce390ec84be6451eb2eebbcd732c3911f1866955844211c0b34eb88826041a79"


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def cache_of(entries: int) -> AnswerCache[int]:
    """A cache with room for so many entries of the least cost."""
    return AnswerCache(entries * ENTRY_BYTES)


def fill(cache: AnswerCache[int], numbers: range, now_s: float = 0.0) -> None:
    for number in numbers:
        cache.put(key_of(number), number, 0, now_s, DAY_S)


# --- the cache -----------------------------------------------------------------------------------


def test_answer_is_found_again() -> None:
    cache = cache_of(100)
    assert cache.put(b"k", 7, 10, 0.0, 60.0)
    assert cache.get(b"k", 59.9) == 7
    assert cache.find(b"k", 30.0) == (7, 60.0)


def test_answer_expires_on_the_dot() -> None:
    cache = cache_of(100)
    cache.put(b"k", 7, 10, 100.0, 60.0)
    assert cache.get(b"k", 159.999) == 7
    assert cache.get(b"k", 160.0) is None
    assert len(cache) == 0
    assert cache.held_bytes == 0


def test_hit_does_not_prolong_an_answer() -> None:
    cache = cache_of(100)
    cache.put(b"k", 7, 10, 0.0, 60.0)
    cache.get(b"k", 59.0)
    assert cache.get(b"k", 60.0) is None


def test_replaced_answer_is_the_new_one_and_weighs_once() -> None:
    cache = cache_of(100)
    cache.put(b"k", 7, 100, 0.0, 60.0)
    cache.put(b"k", 8, 50, 10.0, 60.0)
    assert cache.find(b"k", 65.0) == (8, 70.0)
    assert cache.held_bytes == 50 + ENTRY_BYTES
    assert len(cache) == 1


@pytest.mark.parametrize("ttl_s", [0.0, -1.0])
def test_answer_without_time_is_not_stored(ttl_s: float) -> None:
    cache = cache_of(100)
    assert not cache.put(b"k", 7, 10, 0.0, ttl_s)
    assert cache.get(b"k", 0.0) is None


def test_answer_above_an_eighth_of_the_capacity_is_not_stored() -> None:
    cache: AnswerCache[int] = AnswerCache(80_000)
    assert cache.put(b"a", 1, 10_000 - ENTRY_BYTES, 0.0, 60.0)
    assert not cache.put(b"b", 2, 10_001 - ENTRY_BYTES, 0.0, 60.0)
    assert cache.counters.too_large == 1


def test_refused_answer_still_ends_the_old_one() -> None:
    cache: AnswerCache[int] = AnswerCache(80_000)
    cache.put(b"a", 1, 100, 0.0, 60.0)
    cache.put(b"a", 2, 70_000, 0.0, 60.0)
    assert cache.get(b"a", 0.0) is None


def test_cache_of_no_bytes_stores_nothing() -> None:
    cache: AnswerCache[int] = AnswerCache(0)
    assert not cache.put(b"k", 7, 0, 0.0, 60.0)


def test_one_hit_wonders_do_not_displace_what_is_asked_for() -> None:
    cache = cache_of(100)
    fill(cache, range(50))
    for _ in range(3):
        assert all(cache.get(key_of(number), 0.0) == number for number in range(50))
    fill(cache, range(1000, 3000))
    assert all(cache.get(key_of(number), 0.0) == number for number in range(50))


def test_a_single_hit_is_not_enough_to_stay() -> None:
    cache = cache_of(100)
    fill(cache, range(100))
    for _ in range(2):
        cache.get(key_of(1), 0.0)
    cache.get(key_of(0), 0.0)
    fill(cache, range(1000, 1100))
    assert cache.get(key_of(0), 0.0) is None
    assert cache.get(key_of(1), 0.0) == 1


def test_new_answers_have_a_tenth_of_the_room_to_themselves() -> None:
    cache = cache_of(100)
    fill(cache, range(100))
    for _ in range(2):
        for number in range(100):
            cache.get(key_of(number), 0.0)
    fill(cache, range(1000, 1008))
    assert all(cache.get(key_of(number), 0.0) == number for number in range(1000, 1008))


def test_key_that_comes_back_soon_goes_to_the_main_queue() -> None:
    cache = cache_of(100)
    fill(cache, range(101))  # the first one has just left, unasked
    assert cache.get(key_of(0), 0.0) is None
    fill(cache, range(0, 1))
    fill(cache, range(1000, 1100))
    assert cache.get(key_of(0), 0.0) == 0


def test_answers_unasked_for_long_leave_the_main_queue_too() -> None:
    cache = cache_of(100)
    fill(cache, range(50))
    for _ in range(3):
        for number in range(50):
            cache.get(key_of(number), 0.0)
    for start in range(1000, 9000, 80):
        fill(cache, range(start, start + 80))
        for _ in range(3):
            for number in range(start, start + 80):
                cache.get(key_of(number), 0.0)
    assert sum(cache.get(key_of(number), 0.0) is not None for number in range(50)) == 0


def test_expired_answers_make_room_first() -> None:
    cache = cache_of(10)
    for number in range(10):
        cache.put(key_of(number), number, 0, 0.0, 1.0)
    fill(cache, range(100, 110), now_s=2.0)
    assert cache.counters.evicted == 0
    assert cache.counters.expired == 10


def test_purge_forgets_everything() -> None:
    cache = cache_of(100)
    fill(cache, range(30))
    assert cache.purge() == 30
    assert (len(cache), cache.held_bytes) == (0, 0)
    assert cache.get(key_of(3), 0.0) is None
    fill(cache, range(200))
    assert len(cache) == 100


def test_counters_count() -> None:
    cache = cache_of(10)
    fill(cache, range(11))
    cache.get(key_of(10), 0.0)
    cache.get(key_of(0), 0.0)
    cache.get(key_of(10), DAY_S)
    counted = cache.counters
    assert (counted.stored, counted.hits, counted.misses) == (11, 1, 2)
    assert (counted.evicted, counted.expired, counted.too_large) == (1, 1, 0)
    assert repr(cache) == "<AnswerCache 9 answers, 4608 of 5120 bytes, 1 hits, 2 misses>"


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3000), st.integers(0, 3), st.booleans()),
        max_size=200,
    )
)
@settings(max_examples=200, deadline=None)
def test_cache_never_lies_and_never_weighs_too_much(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    cache: AnswerCache[tuple[int, int]] = AnswerCache(20_000)
    truth: dict[bytes, tuple[tuple[int, int], float]] = {}
    for now_s, (number, size, ttl_s, is_put) in enumerate(steps):
        key = key_of(number)
        if is_put:
            stored = cache.put(key, (number, now_s), size, float(now_s), ttl_s * 4.0)
            truth.pop(key, None)
            if stored:
                truth[key] = ((number, now_s), now_s + ttl_s * 4.0)
        else:
            found = cache.find(key, float(now_s))
            assert found is None or (found == truth[key] and now_s < found[1])
        weight = sum(e.cost_bytes for q in (cache._small, cache._main) for e in q.values())
        assert cache.held_bytes == weight <= cache.bytes_max
        assert len(cache._ghosts) <= 64 + len(cache)


def zipf(seed: int, count: int, keys: int, skew: float, one_hit_share: float) -> Iterator[int]:
    rng = random.Random(seed)
    cumulative = list(accumulate((rank + 1) ** -skew for rank in range(keys)))
    drawn = rng.choices(range(keys), cum_weights=cumulative, k=count)
    for position, key in enumerate(drawn):
        yield keys + position if rng.random() < one_hit_share else key


def lru_hit_ratio(trace: list[int], entries: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            kept[key] = None
            if len(kept) > entries:
                kept.popitem(last=False)
    return hits / len(trace)


def hit_ratio(trace: list[int], entries: int) -> float:
    cache = cache_of(entries)
    for number in trace:
        key = key_of(number)
        if cache.get(key, 0.0) is None:
            cache.put(key, number, 0, 0.0, DAY_S)
    return cache.counters.hits / len(trace)


@pytest.mark.parametrize(
    ("skew", "one_hit_share", "entries", "gain"),
    [(0.8, 0.0, 200, 1.35), (0.8, 0.2, 200, 1.45), (1.0, 0.2, 200, 1.12), (1.0, 0.2, 2000, 1.05)],
)
def test_more_hits_than_lru(skew: float, one_hit_share: float, entries: int, gain: float) -> None:
    trace = list(zipf(1, 100_000, 20_000, skew, one_hit_share))
    assert hit_ratio(trace, entries) > gain * lru_hit_ratio(trace, entries)


# --- the key -------------------------------------------------------------------------------------


def request(**changes: Any) -> InferRequest:
    fields: dict[str, Any] = {
        "id": None,
        "inputs": [Tensor("x", "FP32", (1, 2), b"12345678")],
        "rows": 1,
        **changes,
    }
    return InferRequest(**fields)


def key(
    *,
    tenant: str = "t",
    digest: str = "d" * 64,
    precision: str = "fp32",
    purged: str = "",
    **changes: Any,
) -> bytes:
    return cache_key(tenant, digest, precision, purged, request(**changes))


def test_key_is_the_same_on_every_day() -> None:
    assert key().hex() == PINNED


def test_key_does_not_depend_on_how_the_request_was_written() -> None:
    same = request(
        id="abc",
        binary=frozenset({"y"}),
        timeout_us=5,
        priority=3,
        inputs=[Tensor("x", "FP32", (1, 2), memoryview(b"..12345678")[2:])],
    )
    assert cache_key("t", "d" * 64, "fp32", "", same) == key()


def test_order_of_outputs_and_parameters_does_not_matter() -> None:
    assert key(outputs=("y", "z")) == key(outputs=("z", "y"))
    assert key(parameters={"a": 1, "b": 2}) == key(parameters={"b": 2, "a": 1})


X, Z = (Tensor("x", "FP32", (1, 2), b"12345678"), Tensor("z", "FP32", (1, 2), b"12345678"))
BIG = b"\x00" * 20_000


@pytest.mark.rule("F24")
def test_everything_that_an_answer_depends_on_changes_its_key() -> None:
    keys = [
        key(),
        key(tenant="u"),
        key(tenant=""),
        key(digest="e" * 64),
        key(precision="fp16"),
        key(purged="e 1 1 0"),
        key(tenant="td", digest="d" * 63),
        key(tenant="td" + "d" * 63, digest=""),
        key(outputs=("y",)),
        key(outputs=("y", "z")),
        key(outputs=("yz",)),
        key(parameters={"a": 1}),
        key(parameters={"a": 1.5}),
        key(parameters={"a": True}),
        key(parameters={"a": "1"}),
        key(parameters={"a": False}),
        key(parameters={"a": 0}),
        key(parameters={"a": "", "b": ""}),
        key(inputs=[Tensor("y", "FP32", (1, 2), b"12345678")]),
        key(inputs=[Tensor("x", "INT32", (1, 2), b"12345678")]),
        key(inputs=[Tensor("x", "FP32", (2, 1), b"12345678")]),
        key(inputs=[Tensor("x", "FP32", (2,), b"12345678")]),
        key(inputs=[Tensor("x", "FP32", (1, 2), b"12345679")]),
        key(inputs=[X, Z]),
        key(inputs=[Z, X]),
        key(inputs=[Tensor("x", "BYTES", (1,), b"1234"), Tensor("z", "BYTES", (1,), b"5678")]),
        key(inputs=[Tensor("x", "BYTES", (1,), b"12345"), Tensor("z", "BYTES", (1,), b"678")]),
        key(inputs=[Tensor("x", "UINT8", (20_000,), BIG)]),
        key(inputs=[Tensor("x", "UINT8", (20_000,), BIG[:-1] + b"\x01")]),
        key(inputs=[]),
    ]
    assert len(set(keys)) == len(keys)


def test_json_and_binary_bodies_share_their_answer() -> None:
    signature = Signature.of(
        "m", [TensorSpec("x", "INT32", (-1, 2))], [TensorSpec("y", "INT32", (-1, 2))], 8
    )
    head = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT32",'
    text = parse_infer(head + b'"data":[[1,2]]}]}', None, signature)
    front = head + b'"parameters":{"binary_data_size":8}}]}'
    body = front + b"\x01\x00\x00\x00\x02\x00\x00\x00"
    binary = parse_infer(body, str(len(front)), signature)
    assert cache_key("t", "d", "p", 0, text) == cache_key("t", "d", "p", 0, binary)


# --- stale answers -------------------------------------------------------------------------------


def test_stale_answer_is_found_only_as_one() -> None:
    cache = cache_of(100)
    cache.put(b"k", 7, 10, 0.0, 60.0, stale_s=30.0)
    assert cache.find_stale(b"k", 59.9) is None
    assert cache.find(b"k", 60.0) is None
    assert cache.find_stale(b"k", 60.0) == (7, 60.0)
    assert cache.find_stale(b"k", 89.9) == (7, 60.0)
    assert cache.find_stale(b"k", 90.0) is None
    assert cache.find(b"k", 90.0) is None
    assert len(cache) == 0


def test_answer_may_be_stale_from_the_start() -> None:
    cache = cache_of(100)
    assert cache.put(b"k", 7, 10, 100.0, -5.0, stale_s=30.0)
    assert cache.find(b"k", 100.0) is None
    assert cache.find_stale(b"k", 100.0) == (7, 95.0)
    assert not cache.put(b"k", 7, 10, 100.0, -30.0, stale_s=30.0)


def test_answer_is_fresh_no_longer_than_who_asks_takes_it_for() -> None:
    cache: AnswerCache[str] = AnswerCache(1 << 20)
    cache.put(b"k", "v", 1, now_s=100.0, ttl_s=3600.0)
    assert cache.find(b"k", 103.0, 2.0) is None
    assert cache.find(b"k", 101.0, 2.0) == ("v", 102.0)
    assert cache.find(b"k", 103.0, 7200.0) == ("v", 3700.0)
