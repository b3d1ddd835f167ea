"""A thousand damaged documents, from the registry through the controller to an edge.

None may be half-applied: each is taken whole by everybody, or stays out everywhere, while the last
good one serves and a reason names the path of what does not fit.
"""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest
from msgspec.structs import replace

from edge.metrics import Metrics
from edge.snapshot import Snapshot, compile_snapshot
from pool.registry_watch import RegistryWatch
from pool.wire.control import Documents
from registry_sync import documents, endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import (
    BadDocument,
    EndpointSpec,
    EndpointState,
    Variant,
    read_spec,
    read_state,
)
from registry_sync.endpoint_schema import SCHEMA
from registry_sync.plain import parse_text
from registry_sync.rollout_terms import (
    ArmSeen,
    Guard,
    Rollout,
    RolloutState,
    Segment,
    Shadow,
    Step,
)
from registry_sync.rollouts import effective_weights
from tests.support.mutants import mutants
from tests.support.published import publish

SPEC = EndpointSpec(
    "m",
    (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0)),
    revision=3,
    rollout=Rollout(
        id="r1",
        steps=(Step(5, 60), Step(25, 60), Step(100, 60)),
        guard=Guard(slower_than_ms=50),
        shadow=Shadow(),
    ),
)
SEEN = {"stable": ArmSeen(900, 800, 9, 8), "canary": ArmSeen(50, 40, 1, 1)}
STATE = EndpointState(
    "m",
    3,
    {"stable": 75.0, "canary": 25.0},
    rollout=RolloutState(
        id="r1",
        step=2,
        segment=2,
        segments=(Segment(1, {"stable": 95.0, "canary": 5.0}, SEEN, {"errors": 0.3}),),
        evidence={"errors": 1},
    ),
)
# A thousand together at full size.
SPECS = [130, pytest.param(650, marks=pytest.mark.slow)]
STATES = [70, pytest.param(350, marks=pytest.mark.slow)]
PATH = re.compile(r"\$(?:[.\[].+)?: .+")  # a key may hold anything


class Node:
    """A registry with a controller's eyes on it, and an edge that is told what it sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "registry"
        store = DirectoryStore(self.folder)
        publish(store, "1", "2")
        (self.folder / endpoints.state_key("m")).parent.mkdir(parents=True)
        self.watch = RegistryWatch(store)
        self.metrics = Metrics(folder, "edge")
        self.edge = Snapshot()
        self.put(endpoints.spec_key("m"), documents.write(SPEC))
        self.put(endpoints.state_key("m"), documents.write(STATE))
        self.look()

    def put(self, key: str, data: bytes) -> None:
        """Write past every check, as somebody who edits the files does."""
        (self.folder / key).write_bytes(data)
        if key == endpoints.state_key("m"):
            self.put(endpoints.mark_key("m"), data)

    def look(self) -> None:
        self.watch.poll()
        seen = self.watch.snapshot
        told = Documents(
            epoch=1,
            seq=1,
            specs=dict(seen.spec_bytes),
            states=dict(seen.state_bytes),
            manifests={f"{m}/{v}": data for (m, v), data in seen.manifest_bytes.items()},
            keys=seen.key_bytes,
            rejected=dict(seen.rejected),
        )
        self.edge = compile_snapshot(told, self.edge, self.metrics)

    def check_agreement(self) -> None:
        """The edge goes by the very documents that the controller goes by, as they mean it."""
        seen = self.watch.snapshot
        spec, state = seen.specs["m"], seen.states["m"]
        assert self.edge.rejected == seen.rejected
        endpoint = self.edge.endpoints["m"]
        assert endpoint.spec == spec
        weights = effective_weights(spec, state)
        assert {arm.name for arm in endpoint.running} == {n for n, w in weights.items() if w > 0}
        assert [arm.version.ref[1] for arm in endpoint.arms] == [v.version for v in spec.variants]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def is_good(data: bytes, kind: str) -> bool:
    """Tell by the documents alone whether one fits."""
    try:
        if kind == "state":
            return read_state(data).endpoint == "m"
        spec = read_spec(data)
        is_published = all(v.model == "m" and v.version in ("1", "2") for v in spec.variants)
        return spec.endpoint == "m" and is_published
    except BadDocument:
        return False


@pytest.mark.parametrize("count", SPECS)
def test_a_damaged_spec_is_taken_whole_or_not_at_all(node: Node, count: int) -> None:
    key, good, out = endpoints.spec_key("m"), documents.write(SPEC), 0
    for mutant in mutants(good, count, seed=6):
        last, serving = node.watch.snapshot.spec_bytes["m"], node.edge.endpoints["m"]
        node.put(key, mutant)
        node.look()
        if is_good(mutant, "spec"):
            assert node.watch.snapshot.spec_bytes["m"] == mutant
            assert not node.watch.snapshot.rejected
        else:
            out += 1
            assert node.watch.snapshot.spec_bytes["m"] == last
            assert node.edge.endpoints["m"].spec == serving.spec
            assert node.edge.endpoints["m"].arms == serving.arms
            (why,) = node.edge.rejected.values()
            assert node.edge.rejected.keys() == {key}
            assert all(PATH.fullmatch(line) for line in why.split("\n")), why
        node.check_agreement()
    assert count / 2 < out < count * 0.95  # both happen
    node.put(key, good)
    node.look()
    assert not node.edge.rejected


@pytest.mark.parametrize("count", STATES)
def test_a_damaged_state_is_taken_whole_or_not_at_all(node: Node, count: int) -> None:
    key, good, out = endpoints.state_key("m"), documents.write(STATE), 0
    for mutant in mutants(good, count, seed=7):
        last = node.watch.snapshot.state_bytes["m"]
        node.put(key, mutant)
        node.look()
        if is_good(mutant, "state"):
            assert node.watch.snapshot.state_bytes["m"] == mutant
            assert not node.watch.snapshot.rejected
        else:
            out += 1
            assert node.watch.snapshot.state_bytes["m"] == last
            assert node.edge.rejected.keys() == {key}
            (why,) = node.edge.rejected.values()
            assert all(PATH.fullmatch(line) for line in why.split("\n")), why
        node.check_agreement()
    assert count / 4 < out < count * 0.95  # both happen
    node.put(key, good)
    node.look()
    assert not node.edge.rejected


@pytest.mark.parametrize("count", SPECS)
def test_what_a_writer_takes_is_valid_by_the_schema_and_is_read_by_everybody(count: int) -> None:
    schema = jsonschema_rs.Draft202012Validator(SCHEMA)
    plain, taken, refused = msgspec.json.encode(replace(SPEC, revision=0)), 0, 0
    for mutant in mutants(plain, count, seed=8):
        found = documents.problems(mutant)
        assert all(PATH.fullmatch(line) for line in found), found
        if found:
            refused += 1
            continue
        taken += 1
        spec = documents.parse_spec(mutant)
        assert read_spec(documents.write(spec)) == spec
        assert schema.is_valid(parse_text(mutant))  # as YAML, which has more ways to write a number
    assert min(taken, refused) > count / 20
