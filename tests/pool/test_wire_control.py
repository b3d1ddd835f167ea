"""The control wire: what is sent is what arrives, and nothing else is ever taken for a message."""

from __future__ import annotations

import random
import struct
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.wire import control
from pool.wire.control import (
    Ack,
    Answer,
    ArmEvidence,
    Ask,
    Build,
    BuildReport,
    Command,
    Counters,
    Documents,
    EngineRoute,
    EngineState,
    Evidence,
    Heartbeat,
    NodeReport,
    Place,
    Places,
    PlanReady,
    Poison,
    Quarantine,
    Quarantined,
    QuotaAck,
    QuotaDemand,
    QuotaParts,
    QuotaShares,
    RegisterEdge,
    RegisterNode,
    RegisterWorker,
    Resolve,
    Resolved,
    Routes,
    ShadowCount,
    ShadowExample,
    ShadowReport,
    UnitSeen,
    VariantCount,
    Welcome,
    Wishes,
    WorkerRoute,
)
from pool.wire.frames import Buffer, FrameReader, WireError
from tests.support import wire
from tests.support.wire import EXT, SUITE, Peak, assert_like, feed, is_refused, join, strategy_like

ENGINE = EngineState(
    "digits",
    "3",
    "onnxruntime",
    "warm",
    1 << 30,
    2,
    1.5,
    "fine",
    4,
    1,
    9,
    30,
    7,
    "ab12",
    12,
    40,
    1500.5,
    80_000,
    {"fetch": 70_000},
    True,
)
ARM_EVIDENCE = ArmEvidence(
    *("digits", "r1", 2, "canary", 95, 90, 80, 10, 70, 9, 1, 4, 2),
    *((UnitSeen(5, 9, 7, 0), UnitSeen(2**52 - 1, 4, 0, 2)), 2**52),
    *((3, 4), 70, 12.5, 40.25, 80, -79.5, 79.1, {"3": 80}),
)
ARM_EVIDENCE_ARRAY = [
    *("digits", "r1", 2, "canary", 95, 90, 80, 10, 70, 9, 1, 4, 2),
    *([[5, 9, 7, 0], [2**52 - 1, 4, 0, 2]], 2**52),
    *([3, 4], 70, 12.5, 40.25, 80, -79.5, 79.1, {"3": 80}),
]
SHADOW_COUNT = ShadowCount(
    *("r1", "digits/1", "digits/2", 9, 1, 2, 6, 1, 50, 3, 0.5, 0.25, (4, 1)),
    *((ShadowExample("id-1", "ab12", 0.25, "y", "values"),), "it raised", 1, 4_200),
)
SHADOW_COUNT_ARRAY = [
    *("r1", "digits/1", "digits/2", 9, 1, 2, 6, 1, 50, 3, 0.5, 0.25, [4, 1]),
    *([["id-1", "ab12", 0.25, "y", "values"]], "it raised", 1, 4_200),
]
ENGINE_ARRAY = [
    "digits",
    "3",
    "onnxruntime",
    "warm",
    1 << 30,
    2,
    1.5,
    "fine",
    4,
    1,
    9,
    30,
    7,
    "ab12",
    12,
    40,
    1500.5,
    80_000,
    {"fetch": 70_000},
    True,
]
COUNT = VariantCount("digits", 7, "main", "3", 100, 1, 40, 2, (0, 98, 4), 5)
COUNT_ARRAY = ["digits", 7, "main", "3", 100, 1, 40, 2, [0, 98, 4], 5]
WORKER = WorkerRoute("worker-0", "a1b2", "unix:/run/worker-0.sock", 1200, "cold", True)
WORKER_ARRAY = ["worker-0", "a1b2", "unix:/run/worker-0.sock", 1200, "cold", True]
ROUTE = EngineRoute("digits", "3", ("worker-0",), ("worker-1", "worker-0"), "warm", "fine", 80)
ROUTE_ARRAY = ["digits", "3", ["worker-0"], ["worker-1", "worker-0"], "warm", "fine", 80]
PLACE = Place("worker-0", "unix:/run/worker-0.sock", "cuda:0", "up", 4711)
PLACE_ARRAY = ["worker-0", "unix:/run/worker-0.sock", "cuda:0", "up", 4711]
PARTS = QuotaParts("ab12", 0.25, 0.5, 1.0)
QUARANTINED = Quarantined(b"fp", "digits", "3", 60_000)
QUARANTINED_ARRAY = [b"fp", "digits", "3", 60_000]
PARTS_ARRAY = ["ab12", 0.25, 0.5, 1.0]

# Each message, its positional array, and how many fields behind the kind it must have.
EXAMPLES: list[tuple[control.Message, list[Any], int]] = [
    (
        RegisterWorker(
            1,
            "worker-0",
            "a1b2",
            4711,
            "tcp://10.0.0.1:9000",
            "cuda:0",
            (ENGINE,),
            "sm_90",
            ("tensorrt/sm_90", "tensorrt_rtx/sm_86"),
            {"spawn": 9_000},
            True,
            1 << 33,
            True,
        ),
        [
            *[1, 1, "worker-0", "a1b2", 4711, "tcp://10.0.0.1:9000", "cuda:0", [ENGINE_ARRAY]],
            *["sm_90", ["tensorrt/sm_90", "tensorrt_rtx/sm_86"], {"spawn": 9_000}, True, 1 << 33],
            True,
        ],
        6,
    ),
    (Heartbeat(1200, 3, (ENGINE, ENGINE), True, 4), [2, 1200, 3, [ENGINE_ARRAY] * 2, True, 4], 2),
    (
        Counters(
            "c3d4", (COUNT,), 3, {"digits/3": 2}, {"w1": "silent"}, {"digits/3": 9}, {"digits/3": 7}
        ),
        [
            4,
            "c3d4",
            [COUNT_ARRAY],
            3,
            {"digits/3": 2},
            {"w1": "silent"},
            {"digits/3": 9},
            {"digits/3": 7},
        ],
        1,
    ),
    (
        RegisterEdge(1, "edge-0", "c3d4", 4712, (PARTS,), (QUARANTINED,), True),
        [3, 1, "edge-0", "c3d4", 4712, [PARTS_ARRAY], [QUARANTINED_ARRAY], True],
        4,
    ),
    (Ack(5, 9), [5, 5, 9], 2),
    (Resolve("digits", "3"), [6, "digits", "3"], 2),
    (Ask("warm", "digits", 3), [7, "warm", "digits", 3], 1),
    (Welcome(1, 5), [10, 1, 5], 2),
    (
        Documents(5, 9, {"e": b"{}"}, {"e": b"[]"}, {"m/3": b"{}"}, b"keys", {"e": "not JSON"}),
        [11, 5, 9, {"e": b"{}"}, {"e": b"[]"}, {"m/3": b"{}"}, b"keys", {"e": "not JSON"}],
        6,
    ),
    (
        Routes(5, 9, (WORKER,), (ROUTE,), False, 4, 2),
        [12, 5, 9, [WORKER_ARRAY], [ROUTE_ARRAY], False, 4, 2],
        4,
    ),
    (Command(5, "unload", "digits", "3", True), [13, 5, "unload", "digits", "3", True], 4),
    (Resolved("digits", "3", True, "found"), [14, "digits", "3", True, "found"], 3),
    (Answer(True, "fine", b"{}", 3), [15, True, "fine", b"{}", 3], 2),
    (QuotaDemand((PARTS,)), [8, [PARTS_ARRAY]], 0),
    (QuotaAck(5, 9), [9, 5, 9], 2),
    (QuotaShares(5, 9, (PARTS, PARTS)), [16, 5, 9, [PARTS_ARRAY] * 2], 2),
    (Wishes(5, {"digits/3": b"{}"}), [17, 5, {"digits/3": b"{}"}], 2),
    (
        Build(5, "digits", "3", "tensorrt_rtx", "sm_86", "ab" * 32, True),
        [18, 5, "digits", "3", "tensorrt_rtx", "sm_86", "ab" * 32, True],
        5,
    ),
    (
        BuildReport("ab12", "digits", "3", "tensorrt", "sm_90", "failed", "no memory", 1000),
        [19, "ab12", "digits", "3", "tensorrt", "sm_90", "failed", "no memory", 1000],
        6,
    ),
    (
        PlanReady(5, "ab12", "digits", "3", "tensorrt", "sm_90"),
        [20, 5, "ab12", "digits", "3", "tensorrt", "sm_90"],
        6,
    ),
    (
        RegisterNode(1, "node", "a1b2", 4710, (PLACE,), 1, 2, 2.5, 240.0),
        [21, 1, "node", "a1b2", 4710, [PLACE_ARRAY], 1, 2, 2.5, 240.0],
        4,
    ),
    (NodeReport((PLACE, PLACE), {"a": 1}, "no"), [22, [PLACE_ARRAY] * 2, {"a": 1}, "no"], 0),
    (Places(5, 9, ("worker-0",), ("worker-1",)), [23, 5, 9, ["worker-0"], ["worker-1"]], 3),
    (Evidence("inc-1", (ARM_EVIDENCE,)), [24, "inc-1", [ARM_EVIDENCE_ARRAY]], 1),
    (ShadowReport((SHADOW_COUNT,)), [25, [SHADOW_COUNT_ARRAY]], 0),
    (Poison((QUARANTINED,)), [26, [QUARANTINED_ARRAY]], 1),
    (Quarantine(5, (QUARANTINED,) * 2), [27, 5, [QUARANTINED_ARRAY] * 2], 2),
]
BY_KIND = {type(message): message for message, _, _ in EXAMPLES}
BY_NAME = {type(message).__name__: array for message, array, _ in EXAMPLES}
each = pytest.mark.parametrize(
    ("message", "array", "required"), EXAMPLES, ids=[type(m).__name__ for m, _, _ in EXAMPLES]
)


def body_of(message: control.Message) -> bytes:
    return join(control.encode(message))[8:]


def take(stream: bytes) -> list[control.Message]:
    """Read a whole stream as a process of the fleet would."""
    found: list[control.Message] = []

    def on_frame(header: bytes, body: Buffer) -> None:
        found.append(control.decode(body))

    feed(FrameReader(on_frame, 1 << 20, 16 << 20), stream)
    return found


def test_every_message_has_an_example() -> None:
    assert set(get_args(control.Message)) == set(BY_KIND)


FIELDS = {
    RegisterWorker: "wire id incarnation pid address device engines device_class builds "
    "phases is_for_call memory_bytes_max is_fallback",
    Heartbeat: "wait_us calls engines draining plans_refused",
    Counters: "incarnation counts in_flight waiting away unserved unserved_age_s",
    RegisterEdge: "wire id incarnation pid parts quarantined quarantines",
    Ack: "epoch seq",
    Resolve: "model version",
    Ask: "what argument id",
    Welcome: "wire epoch",
    Documents: "epoch seq specs states manifests keys rejected",
    Routes: "epoch seq workers engines ready edges far",
    Command: "epoch op model version is_elsewhere",
    Resolved: "model version found detail",
    Answer: "ok detail data id",
    EngineState: "model version engine state bytes calls idle_s detail loads "
    "waiting runs rows run_us plan arrived arrived_rows rows_per_s wake_us phases passes",
    VariantCount: "endpoint revision variant version requests errors hits failed seconds "
    "model_failed",
    QuotaDemand: "demands",
    QuotaAck: "epoch seq",
    QuotaShares: "epoch seq parts",
    Wishes: "epoch wishes",
    Build: "epoch model version engine device_class key is_over",
    BuildReport: "key model version engine device_class state reason retry_ms",
    PlanReady: "epoch key model version engine device_class",
    QuotaParts: "key requests rows concurrent",
    WorkerRoute: "id incarnation address wait_us state is_fallback",
    EngineRoute: "model version warm wake_at state detail wake_ms",
    Place: "worker address device state pid",
    RegisterNode: "wire id incarnation pid places up_min parked rest_s start_s",
    NodeReport: "places counts trouble",
    Places: "epoch seq up silent",
    UnitSeen: "hash calls errors slow",
    ArmEvidence: "endpoint rollout segment variant requests assigned calls lone_calls units errors "
    "lone_errors slow lone_slow told units_below seconds log_calls log_sum log_squares scores "
    "score_sum score_squares classes",
    Evidence: "incarnation arms",
    ShadowExample: "request_id inputs relative_error detail kind",
    ShadowCount: "rollout baseline candidate offered dropped failed compared unlike rows top1_off "
    "error_sum error_max errors worst last_failure absent device_us",
    ShadowReport: "counts",
    Quarantined: "fingerprint model version left_ms",
    Poison: "quarantined",
    Quarantine: "epoch quarantined",
}


def test_fields_keep_their_places() -> None:
    assert {kind: " ".join(kind.__struct_fields__) for kind in FIELDS} == FIELDS


@each
def test_body_is_the_documented_array(
    message: control.Message, array: list[Any], required: int
) -> None:
    assert msgpack.unpackb(body_of(message)) == array


@each
def test_array_packed_by_another_library_is_taken(
    message: control.Message, array: list[Any], required: int
) -> None:
    got = control.decode(msgpack.packb(array))
    assert got == message
    assert_like(got, message)


@each
def test_message_arrives_through_a_stream(
    message: control.Message, array: list[Any], required: int
) -> None:
    assert take(join(control.encode(message)) * 3) == [message] * 3


@given(st.one_of([strategy_like(message) for message in BY_KIND.values()]))
@settings(max_examples=400, deadline=None)
def test_round_trip_of_any_message(message: control.Message) -> None:
    (got,) = take(join(control.encode(message)))
    assert got == message
    assert_like(got, BY_KIND[type(message)])


@pytest.mark.parametrize("size", range(65500, 65550))
def test_message_of_any_length_around_the_coalescing_bound_arrives(size: int) -> None:
    message = Answer(True, "", bytes(size))
    assert take(join(control.encode(message))) == [message]


def test_documents_longer_than_a_header_may_be_arrive() -> None:
    message = Documents(1, 1, {"e": bytes(3 << 20)}, {}, {}, b"")
    assert take(join(control.encode(message))) == [message]


@each
def test_every_truncation_is_refused(
    message: control.Message, array: list[Any], required: int
) -> None:
    body = body_of(message)
    assert all(is_refused(control.decode, body[:end]) for end in range(len(body)))


@each
def test_anything_behind_the_message_is_refused(
    message: control.Message, array: list[Any], required: int
) -> None:
    assert all(is_refused(control.decode, body_of(message) + bytes([byte])) for byte in range(256))


@each
@pytest.mark.parametrize(
    "appended", [None, 1, -1.5, "x", b"x", [[], {"a": [1]}], {"x": 1}, True, [0] * 1000]
)
def test_appended_fields_are_ignored(
    message: control.Message, array: list[Any], required: int, appended: Any
) -> None:
    assert control.decode(msgpack.packb([*array, appended])) == message
    assert control.decode(msgpack.packb([*array, appended, appended])) == message


@pytest.mark.parametrize(
    ("name", "path"), [("Heartbeat", (3, 0)), ("Counters", (2, 0)), ("Routes", (3, 0))]
)
def test_field_appended_to_an_inner_array_is_ignored(name: str, path: tuple[int, ...]) -> None:
    array = BY_NAME[name]
    appended = wire.replaced(array, path, [*wire.value_at(array, path), "appended"])
    assert control.decode(msgpack.packb(appended)) == control.decode(msgpack.packb(array))


@each
def test_missing_fields_with_a_default_are_filled(
    message: control.Message, array: list[Any], required: int
) -> None:
    names = message.__struct_fields__
    least = type(message)(*[getattr(message, name) for name in names[:required]])
    for count in range(required, len(names)):
        got = control.decode(msgpack.packb(array[: 1 + count]))
        for index, name in enumerate(names):
            assert getattr(got, name) == getattr(message if index < count else least, name)


@each
def test_missing_fields_without_a_default_are_refused(
    message: control.Message, array: list[Any], required: int
) -> None:
    short = [msgpack.packb(array[: 1 + count]) for count in range(-1, required)]
    assert all(is_refused(control.decode, body) for body in short)


@pytest.mark.parametrize(
    ("name", "path", "required"),
    [
        ("Heartbeat", (3, 0), 4),
        ("Counters", (2, 0), 7),
        ("Routes", (3, 0), 3),
        ("Routes", (4, 0), 4),
    ],
)
def test_inner_arrays_need_exactly_their_required_fields(
    name: str, path: tuple[int, ...], required: int
) -> None:
    inner = wire.value_at(BY_NAME[name], path)
    refused = [
        is_refused(control.decode, msgpack.packb(wire.replaced(BY_NAME[name], path, inner[:count])))
        for count in range(len(inner) + 1)
    ]
    assert refused == [count < required for count in range(len(inner) + 1)]


def test_defaults_are_those_of_the_first_version() -> None:
    assert control.decode(msgpack.packb([2, 1, 2])) == Heartbeat(1, 2, (), False)
    assert control.decode(msgpack.packb([12, 1, 2, [], []])) == Routes(1, 2, (), (), True)
    engine = msgpack.packb([2, 1, 2, [["m", "3", "e", "warm"]]])
    assert control.decode(engine) == Heartbeat(
        1, 2, (EngineState("m", "3", "e", "warm", 0, 0, 0.0, "", 0),)
    )
    route = msgpack.packb([12, 1, 2, [], [["m", "3", [], []]]])
    assert control.decode(route) == Routes(1, 2, (), (EngineRoute("m", "3", (), (), "asleep", ""),))


def _is_in_a_unit(path: tuple[Any, ...]) -> bool:
    return path[2:3] == (ArmEvidence.__struct_fields__.index("told"),) and len(path) == 4


def _is_longer(value: Any) -> bool:
    return isinstance(value, list) and len(value) > len(UnitSeen.__struct_fields__)


@each
def test_every_wrong_value_in_every_field_is_refused(
    message: control.Message, array: list[Any], required: int
) -> None:
    taken = [
        (path, value)
        for path, value, packed in wire.refusals(array)
        if not is_refused(control.decode, packed)
        # Why a document is rejected may be told at any length.
        and not (isinstance(message, Documents) and path == (7, "e") and type(value) is str)
        # A unit is all numbers, so that more of them are appended fields.
        and not (isinstance(message, Evidence) and _is_in_a_unit(path) and _is_longer(value))
    ]
    assert taken == []


@pytest.mark.parametrize("name", ["Resolve", "Command", "RegisterEdge", "RegisterWorker"])
def test_name_beyond_its_bound_is_refused(name: str) -> None:
    array = BY_NAME[name]
    places = [path for path in wire.paths(array) if type(wire.value_at(array, path)) is str]
    texts = [path for path in places if path != (7, 0, 7)]  # an engine's detail is a text
    assert all(
        is_refused(control.decode, msgpack.packb(wire.replaced(array, path, "x" * 513)))
        for path in texts
    )
    assert not any(
        is_refused(control.decode, msgpack.packb(wire.replaced(array, path, "x" * 512)))
        for path in texts
    )


@pytest.mark.parametrize("many", [1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize(
    ("name", "path"), [("Routes", (3,)), ("Routes", (4,)), ("Counters", (2,)), ("Heartbeat", (3,))]
)
def test_number_of_anything_in_one_message_is_bounded(
    name: str, path: tuple[int, ...], many: int
) -> None:
    inner = wire.value_at(BY_NAME[name], path)[:1]
    packed = msgpack.packb(wire.replaced(BY_NAME[name], path, inner * many))
    assert is_refused(control.decode, packed) is (many > 1 << 16)


def test_number_of_documents_is_bounded() -> None:
    many = {str(number): b"" for number in range((1 << 16) + 1)}
    for index in (3, 4, 5):
        packed = msgpack.packb(wire.replaced(BY_NAME["Documents"], (index,), many))
        assert is_refused(control.decode, packed)


def test_a_whole_number_of_seconds_is_a_number() -> None:
    packed = msgpack.packb(wire.replaced(BY_NAME["Heartbeat"], (3, 0, 6), 3))
    got = control.decode(packed)
    assert isinstance(got, Heartbeat)
    assert type(got.engines[0].idle_s) is float


@pytest.mark.parametrize("kind", [0, 17, 18, 99, -1, 2**64 - 1, 1.0, True, None, "1", b"1", [1]])
def test_unknown_kind_is_refused(kind: Any) -> None:
    assert is_refused(control.decode, msgpack.packb([kind, 1, 2, 3, 4, 5, 6, 7]))


@pytest.mark.parametrize("value", [None, 1, "x", b"x", {}, {1: 5}, {"type": 5}, [], EXT, 1.5])
def test_what_is_no_array_is_refused(value: Any) -> None:
    assert is_refused(control.decode, msgpack.packb(value))


def test_a_data_message_is_no_control_message() -> None:
    frame = msgpack.packb([3, 7, 200, "", [], 0, 0, 0, 0, 0])
    assert is_refused(control.decode, frame)


def test_bit_flips_raise_nothing_but_wire_errors_and_leave_every_type_right() -> None:
    rng = random.Random(8)
    streams = [join(control.encode(message)) for message, _, _ in EXAMPLES]
    streams.append(b"".join(streams))
    decoded = refused = 0
    for turn in range(20_000):
        try:
            found = take(wire.flipped(streams[turn % len(streams)], rng))
        except WireError:
            refused += 1
            continue
        for message in found:
            decoded += 1
            assert_like(message, BY_KIND[type(message)])
    assert decoded > 1000
    assert refused > 1000


@pytest.mark.parametrize(
    "body",
    [
        b"\x80" * (8 << 20),
        b"\xdd" + struct.pack("!I", 8 << 20) + b"\x80" * (8 << 20),
        b"\x95\x0c\x01\x01\xdd\xff\xff\xff\xff\x90",
        b"\x95\x0c\x01\x01\xdd\x00\xff\xff\xff\x90",
        b"\x95\x0c\x01\x01\xdd" + struct.pack("!I", 8 << 20) + b"\x80" * (8 << 20),
        b"\x95\x0c\x01\x01\x90\xdd" + struct.pack("!I", 2 << 20) + b"\x94\xa0\xa0\x90\x90" * 2**21,
        b"\x97\x0b\x01\x01\xdf\xff\xff\xff\xff\xa0\xc4\x00",
        b"\x97\x0b\x01\x01\x80\x80\x80\xc6\xff\xff\xff\xff",
        b"\x96\x0c\x01\x01\x90\x90\xc3" + b"\x80" * (8 << 20),
        b"\x93\x05\x01" + b"\x91" * 100_000 + b"\xc0",
        b"\x94\x05\x01\x01" + b"\x91" * 100_000 + b"\xc0",
        b"\x91" * 100_000,
    ],
    ids=range(12),
)
def test_hostile_body_is_refused_in_little_memory(body: bytes) -> None:
    with Peak() as peak:
        refused = is_refused(control.decode, body)
    assert refused
    assert peak.bytes < 1 << 20


if SUITE.exists():

    def test_encodings_of_the_msgpack_suite_raise_nothing_but_wire_errors() -> None:
        for encoding in wire.suite_encodings():
            for body in wire.as_headers(encoding):
                if not is_refused(control.decode, body):
                    message = control.decode(body)
                    assert_like(message, BY_KIND[type(message)])
