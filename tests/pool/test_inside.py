"""The bytes that may be inside a worker, and how tenants share them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pool.queueing.inside import Inside


def fill(inside: Inside, tenant: str, size_bytes: int) -> int:
    """Let a tenant send until it is refused; return how often it was not."""
    count = 0
    while not inside.refusal(tenant, size_bytes):
        inside.add(tenant, size_bytes)
        count += 1
    return count


def test_a_tenant_alone_gets_most_of_it_and_leaves_room_for_another() -> None:
    inside = Inside(1000)
    assert fill(inside, "noisy", 10) == 80
    assert inside.refusal("noisy", 10) == 503
    assert inside.refusal("quiet", 10) == 0
    assert fill(inside, "quiet", 10) >= 10
    assert inside.refusal("noisy", 10) == 429


def test_one_call_may_be_as_large_as_all() -> None:
    inside = Inside(1000)
    assert inside.refusal("a", 1000) == 0
    assert inside.refusal("a", 1001) == 503
    inside.add("a", 1000)
    assert inside.refusal("b", 1) == 503


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 300), st.integers(0, 20)),
        max_size=100,
    )
)
def test_the_bound_holds_and_nothing_is_left_when_all_have_gone(
    steps: list[tuple[bool, str, int, int]],
) -> None:
    inside = Inside(1000)
    there: list[tuple[str, int]] = []
    for comes, tenant, size_bytes, index in steps:
        if comes and not inside.refusal(tenant, size_bytes):
            inside.add(tenant, size_bytes)
            there.append((tenant, size_bytes))
        elif there and not comes:
            inside.remove(*there.pop(index % len(there)))
        assert inside.bytes == sum(size for _, size in there) <= 1000
    for one in there:
        inside.remove(*one)
    assert inside.bytes == 0
    assert not inside._of
