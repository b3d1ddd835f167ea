"""Two revisions of an endpoint, value by value."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from registry_sync.documents import Cache, EndpointSpec, Scale, Variant
from registry_sync.spec_diff import Change, differences

SPEC = EndpointSpec("m", (Variant("a", "m", "1", 90), Variant("b", "m", "2", 10)), revision=3)


def test_order_and_revision_mean_nothing() -> None:
    assert differences(SPEC, replace(SPEC, revision=4, variants=SPEC.variants[::-1])) == []


def test_each_value_has_its_path() -> None:
    after = replace(
        SPEC,
        variants=(Variant("a", "m", "1", 50), Variant("c", "m", "2", 50)),
        cache=Cache(),
        scale=Scale(replicas_max=9),
    )
    found = differences(SPEC, after)
    assert [change.path for change in found] == [
        "$.variants[a].weight",
        "$.variants[b]",
        "$.variants[c]",
        "$.cache",
        "$.scale.replicas_max",
    ]
    assert found[0] == Change("$.variants[a].weight", 90, 50)
    assert found[0].line() == "$.variants[a].weight: 90 -> 50"
    assert found[1].line().startswith("$.variants[b]: gone: {")
    assert found[2].line().startswith("$.variants[c]: new: {")
    assert found[3].line().startswith("$.cache: null -> {")


def test_json_leaves_out_what_is_not_there() -> None:
    gone, new = differences(SPEC, replace(SPEC, variants=(*SPEC.variants[:1], VARIANT_C)))
    assert msgspec.json.decode(msgspec.json.encode(gone)).keys() == {"path", "before"}
    assert msgspec.json.decode(msgspec.json.encode(new)).keys() == {"path", "after"}


VARIANT_C = Variant("c", "m", "2", 10)
