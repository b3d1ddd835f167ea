"""What fits a document, who is strict about it, and how a misfit is named."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_sync import documents
from registry_sync.documents import (
    Assign,
    AxisRange,
    BadDocument,
    Batch,
    Cache,
    EndpointSpec,
    EndpointState,
    EngineWish,
    File,
    GateLimits,
    Hedge,
    KeyRecord,
    Keys,
    Manifest,
    OldSecret,
    Quota,
    Scale,
    TensorSpec,
    Variant,
    artifact_digest,
    check_manifest,
    check_spec,
    parse_spec,
    problems,
    write,
)

DIGEST = "ab" * 32
STABLE = Variant("stable", "magika", "1", 90.0)
CANARY = Variant("canary", "magika", "2", 10.0)
WISH = EngineWish("tensorrt", "fp16", {"x:1": AxisRange(1, 128, 256)})
SPEC = EndpointSpec("magika", (STABLE, CANARY), cache=Cache(), revision=3, engine=WISH)
MANIFEST = Manifest(
    model="magika",
    version="1",
    created="2026-11-21T10:00:00+00:00",
    format="onnx",
    files=(File("model.onnx", DIGEST, 7), File("data/w.bin", DIGEST, 9)),
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    outputs=(TensorSpec("y", "BYTES", ()),),
    rows_max=32,
    deterministic=True,
    labels={"git": "abc"},
    golden=DIGEST,
    precision="fp16",
    engine=WISH,
    gate=GateLimits(0.01, 0.99),
)
STATE = EndpointState(
    *("magika", 3, {"stable": 90.0, "canary": 10.0}),
    step=2,
    cache_epoch=5,
    cache_epochs={"2": 1},
    reason="ok",
)
OLD_SECRET = OldSecret("01" * 16, DIGEST, 10.0)
QUOTA = Quota(requests_per_s=2.5, rows_per_s=5.0, burst_s=3.0, concurrent=4)
KEYS = Keys(
    (KeyRecord(*("ab12", "00" * 16, DIGEST, "acme", ("infer:magika",), QUOTA, 9.0, (OLD_SECRET,))),)
)
DOCUMENTS: list[tuple[msgspec.Struct, Callable[[bytes], msgspec.Struct]]] = [
    (SPEC, documents.read_spec),
    (MANIFEST, documents.read_manifest),
    (STATE, documents.read_state),
    (KEYS, documents.read_keys),
]
each_document = pytest.mark.parametrize(
    ("document", "read"), DOCUMENTS, ids=["spec", "manifest", "state", "keys"]
)


def plain_spec(**changes: Any) -> dict[str, Any]:
    variant = {"name": "stable", "model": "magika", "version": "1", "weight": 100}
    return {"endpoint": "magika", "variants": [variant], **changes}


def lint(**changes: Any) -> list[str]:
    return problems(json.dumps(plain_spec(**changes)))


def arms(*weights: Any) -> list[dict[str, Any]]:
    return [
        {"name": f"v{index}", "model": "m", "version": "1", "weight": weight}
        for index, weight in enumerate(weights)
    ]


# --- readers ---


@each_document
def test_document_is_read_as_it_was_written(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct]
) -> None:
    assert read(write(document)) == document


def with_strange_fields(plain: Any) -> Any:
    """Add a field that no release knows to every mapping that is a Struct of ours."""
    if isinstance(plain, dict):
        grown = {key: with_strange_fields(value) for key, value in plain.items()}
        is_free_form = set(plain) in ({"stable", "canary"}, {"2"}, {"git"}, {"rows"}, {"x:1"})
        return grown if is_free_form else {**grown, "next_release": {"deep": [1, None]}}
    return [with_strange_fields(item) for item in plain] if isinstance(plain, list) else plain


@each_document
def test_reader_passes_over_the_fields_of_a_next_release(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct]
) -> None:
    newer = with_strange_fields(json.loads(write(document)))
    assert newer["next_release"]
    assert read(json.dumps(newer).encode()) == document


@each_document
def test_reader_refuses_a_higher_schema(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct]
) -> None:
    newer = {**json.loads(write(document)), "schema": 2}
    with pytest.raises(BadDocument, match=r"^\$\.schema: 2 is newer than 1"):
        read(json.dumps(newer).encode())


@each_document
def test_reader_refuses_an_unknown_word_in_requires(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct]
) -> None:
    newer = {**json.loads(write(document)), "requires": ["teleport"]}
    with pytest.raises(BadDocument, match=r'^\$\.requires\[0\]: "teleport" is not known'):
        read(json.dumps(newer).encode())


def test_a_newer_document_is_called_new_and_not_wrong() -> None:
    newer = plain_spec(schema=2, variants="by magic")
    with pytest.raises(BadDocument) as caught:
        documents.read_spec(json.dumps(newer).encode())
    assert caught.value.problems == [
        "$.schema: 2 is newer than 1, the one read here; upgrade Tidepool"
    ]


@each_document
def test_reader_names_each_missing_field(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct]
) -> None:
    plain = json.loads(write(document))
    required = {
        field.name: field.encode_name
        for field in msgspec.structs.fields(type(document))
        if field.required
    }
    for name in required:
        with pytest.raises(BadDocument, match=rf"^\$\.{name}: missing; expected "):
            read(json.dumps({key: plain[key] for key in plain if key != name}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1e999"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument, match=r"^\$: "):
        documents.read_spec(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["auto", "key", "1", "m", DIGEST, "infer:*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def paths_of(plain: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children: list[tuple[Any, Any]] = []
    if isinstance(plain, dict | list):
        children = list(plain.items() if isinstance(plain, dict) else enumerate(plain))
    return [at, *(path for key, value in children for path in paths_of(value, (*at, key)))]


def with_value(plain: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(plain) if isinstance(plain, dict) else list(plain)
    copy[path[0]] = with_value(copy[path[0]], path[1:], value)
    return copy


@each_document
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused_as_a_bad_document(
    document: msgspec.Struct, read: Callable[[bytes], msgspec.Struct], data: st.DataObject
) -> None:
    plain = json.loads(write(document))
    mutant = with_value(plain, data.draw(st.sampled_from(paths_of(plain))), data.draw(JSON))
    try:
        got = read(json.dumps(mutant).encode())
    except BadDocument:
        return
    # What was read fits its own types, and can be written and read again.
    assert read(write(got)) == got


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60))
def test_any_text_is_parsed_or_refused_as_a_bad_document(data: bytes | str) -> None:
    assert problems(data)


# --- specs ---

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
versions = st.integers(1, 10**12).map(str)


@st.composite
def specs(draw: st.DrawFn) -> EndpointSpec:
    arm_names = draw(st.lists(names, min_size=1, max_size=16, unique=True))
    parts = [draw(st.integers(0, 1000)) for _ in arm_names]
    parts[0] += 1
    weights = [100 * part / sum(parts) for part in parts]
    least = draw(st.integers(0, 5))
    return EndpointSpec(
        endpoint=draw(names),
        variants=tuple(
            Variant(name, draw(names), draw(versions), weight)
            for name, weight in zip(arm_names, weights, strict=True)
        ),
        revision=draw(st.integers(0, 10**9)),
        assign=Assign(
            by=tuple(draw(st.lists(st.sampled_from(["key", "header:x-user-id"]), max_size=3))),
            salt=draw(st.text(max_size=20)),
            header_may_pick=draw(st.booleans()),
        ),
        cache=draw(st.none() | st.builds(Cache, st.floats(0.1, 1e9), st.booleans())),
        batch=Batch(draw(st.integers(1, 4096))),
        hedge=draw(st.none() | st.builds(Hedge, st.floats(0.001, 0.05))),
        deadline_ms=draw(st.integers(1, 3_600_000)),
        scale=Scale(least, least + 1, draw(st.floats(0.1, 1e9)) if draw(st.booleans()) else "auto"),
    )


@settings(max_examples=100, deadline=None)
@given(spec=specs())
def test_every_spec_that_fits_survives_writing_reading_and_parsing(spec: EndpointSpec) -> None:
    check_spec(spec)
    assert documents.read_spec(write(spec)) == parse_spec(write(spec)) == spec


def test_missing_fields_take_the_documented_defaults() -> None:
    spec = parse_spec(json.dumps(plain_spec()))
    assert msgspec.to_builtins(spec) | {"variants": ()} == {
        "endpoint": "magika",
        "variants": (),
        "schema": 1,
        "revision": 0,
        "assign": {
            "by": (),
            "salt": "magika",
            "header_may_pick": False,
            "exposure": "hashed",
        },
        "cache": None,
        "batch": {"rows_max": 32},
        "deadline_ms": 10_000,
        "scale": {
            "replicas_min": 0,
            "replicas_max": 4,
            "idle_s": "auto",
            "dedicated": False,
            "warm": "",
            "cold_start_cost_s": 3600.0,
            "replica_hours_per_day_max": None,
            "forecast": "act",
            "fallback": "none",
        },
        "engine": {"name": "auto", "precision": None, "axes": {}, "ahead_of_time": False},
        "rollout": None,
        "hedge": None,
        "requires": (),
    }


def test_empty_hedge_field_turns_it_on_for_one_call_in_twenty() -> None:
    assert parse_spec(json.dumps(plain_spec(hedge={}))).hedge == Hedge(0.05)


@pytest.mark.parametrize("share_max", [0, 0.051, 1, "p95", None])
def test_more_than_one_call_in_twenty_is_never_hedged(share_max: object) -> None:
    with pytest.raises(BadDocument, match=r"hedge\.share_max"):
        parse_spec(json.dumps(plain_spec(hedge={"share_max": share_max})))


def test_empty_cache_field_turns_caching_on() -> None:
    assert parse_spec(json.dumps(plain_spec(cache={}))).cache == Cache(3600.0, False)


def test_spec_of_the_manual_is_read_from_yaml() -> None:
    spec = parse_spec("""
        endpoint: magika                       # equals the NAME of the command
        variants:
          - {name: stable, model: magika, version: "1", weight: 90}
          - {name: canary, model: magika, version: "2", weight: 10}
        assign: {by: ["header:x-user-id", key], salt: magika, header_may_pick: false}
        cache: {ttl_s: 3600, disk: false}
        batch: {rows_max: 32}
        deadline_ms: 10000
        scale: {replicas_min: 0, replicas_max: 4, idle_s: auto, dedicated: false}
    """)
    assert spec.variants == (STABLE, CANARY)
    assert spec.assign.by == ("header:x-user-id", "key")


def test_writer_refuses_unknown_fields_by_their_paths() -> None:
    assert lint(cahce={}, scale={"zzz": 1}) == [
        "$.scale.zzz: unknown field; allowed are replicas_min, replicas_max, "
        "idle_s, dedicated, warm, cold_start_cost_s, replica_hours_per_day_max, forecast, "
        "fallback",
        "$.cahce: unknown field; did you mean cache?",
    ]


def test_all_problems_are_reported_at_once() -> None:
    found = lint(
        endpoint="Magika",
        variants=[*arms("x", -1), {"name": "v0", "model": "m", "version": "1", "weight": 1}, 7],
        deadline_ms=0,
        assign={"by": ["cookie"], "header_may_pick": 1},
    )
    assert [problem.split(":")[0] for problem in found] == [
        "$.endpoint",
        "$.variants[0].weight",
        "$.variants[1].weight",
        "$.variants[3]",
        "$.variants[0].name",
        "$.variants[2].name",
        "$.assign.by[0]",
        "$.assign.header_may_pick",
        "$.deadline_ms",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"variants": arms("x")}, '$.variants[0].weight: expected a number, got "x"'),
        ({"variants": arms(90)}, "$.variants: weights add up to 90, not 100"),
        ({"variants": arms(50, 50.1)}, "$.variants: weights add up to 100.1, not 100"),
        ({"variants": arms(100.0001)}, "$.variants: weights add up to 100.0001, not 100"),
        (
            {"variants": arms(110, -10)},
            "$.variants[1].weight: -10 is out of range; allowed are 0 and more",
        ),
        ({"variants": arms(True)}, "$.variants[0].weight: expected a number, got true"),
        ({"variants": []}, "$.variants: 0 items; allowed are 1 to 16"),
        ({"variants": {}}, "$.variants: expected a list, got a mapping"),
        ({"deadline_ms": 0}, "$.deadline_ms: 0 is out of range; allowed are 1 to 3600000"),
        (
            {"deadline_ms": 3_600_001},
            "$.deadline_ms: 3600001 is out of range; allowed are 1 to 3600000",
        ),
        ({"deadline_ms": 5.0}, "$.deadline_ms: expected an integer, got 5.0"),
        ({"deadline_ms": True}, "$.deadline_ms: expected an integer, got true"),
        ({"deadline_ms": None}, "$.deadline_ms: expected an integer, got null"),
        ({"cache": {"ttl_s": 0}}, "$.cache.ttl_s: 0 is out of range; allowed is more than 0"),
        ({"cache": 5}, "$.cache: expected a mapping or null, got 5"),
        ({"batch": {"rows_max": 0}}, "$.batch.rows_max: 0 is out of range; allowed are 1 to 4096"),
        (
            {"batch": {"rows_max": 4097}},
            "$.batch.rows_max: 4097 is out of range; allowed are 1 to 4096",
        ),
        ({"scale": {"idle_s": "x"}}, '$.scale.idle_s: expected a number or "auto", got "x"'),
        ({"scale": {"idle_s": 0}}, "$.scale.idle_s: 0 is out of range; allowed is more than 0"),
        (
            {"scale": {"replicas_min": 5}},
            "$.scale.replicas_min: 5 is more than replicas_max, which is 4",
        ),
        (
            {"scale": {"warm": "Mon-Fri 8-18 UTC"}},
            '$.scale.warm: "8-18" are no hours; write them as 08:00-18:00',
        ),
        (
            {"scale": {"cold_start_cost_s": -1}},
            "$.scale.cold_start_cost_s: -1 is out of range; allowed is more than 0",
        ),
        (
            {"scale": {"replicas_min": 2, "replica_hours_per_day_max": 47.5}},
            "$.scale.replica_hours_per_day_max: 47.5 is less than the 48 that replicas_min 2 takes",
        ),
        (
            {"scale": {"forecast": "on"}},
            '$.scale.forecast: expected "act" or "observe" or "off", got "on"',
        ),
        (
            {"assign": {"by": ["header:X-User"]}},
            '$.assign.by[0]: "header:X-User" is no unit: use key or header:<name in lower case>',
        ),
        ({"assign": {"salt": "\ud800"}}, "$.assign.salt: a lone surrogate is no text"),
        ({"revision": -1}, "$.revision: -1 is out of range; allowed are 0 to 9007199254740991"),
        ({"schema": 0}, "$.schema: 0 is out of range; allowed are 1 to 1"),
        ({"deadline_ms": 10**30}, "$.deadline_ms: a huge integer is out of range; allowed are 1"),
    ],
)
def test_misfit_is_named_with_what_was_found_and_what_is_allowed(
    changes: dict[str, Any], problem: str
) -> None:
    assert [found[: len(problem)] for found in lint(**changes)] == [problem]


def test_seventeen_variants_are_too_many() -> None:
    weights = [100 / 17] * 17
    assert lint(variants=arms(*weights)) == ["$.variants: 17 items; allowed are 1 to 16"]
    assert lint(variants=arms(*[6.25] * 16)) == []


def test_weights_may_be_off_by_rounding_only() -> None:
    assert lint(variants=arms(33.3333333, 33.3333333, 33.3333334)) == []
    assert lint(variants=arms(0, 100)) == []


def test_bounds_of_replicas_may_be_equal() -> None:
    assert lint(scale={"replicas_min": 4}) == []


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(weight: float) -> None:
    spec = EndpointSpec("m", (Variant("v0", "m", "1", weight), Variant("v1", "m", "1", 100.0)))
    assert [problem.split(": ")[0] for problem in problems(spec)] == ["$.variants[0].weight"]


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "-a", "a" * 65, "a\n", "é", 1, None])
@pytest.mark.parametrize("field", ["name", "model"])
def test_names_are_checked_before_they_can_touch_a_path(field: str, name: Any) -> None:
    found = lint(variants=[{**arms(100)[0], field: name}])
    assert [problem.split(": ")[0] for problem in found] == [f"$.variants[0].{field}"]


# --- the text of a spec ---


def yaml_with_version(version: str) -> str:
    return f"endpoint: m\nvariants: [{{name: a, model: m, version: {version}, weight: 100}}]"


@pytest.mark.parametrize("version", ["1", "'1'", '"1"'])
def test_version_may_be_an_integer_in_yaml(version: str) -> None:
    assert parse_spec(yaml_with_version(version)).variants[0].version == "1"


@pytest.mark.parametrize(
    "version", ["0", "-1", "1.0", "1.", "true", "010", "0x1", "1_0", "1:30", "9" * 99]
)
def test_version_that_is_no_decimal_number_is_refused(version: str) -> None:
    assert [found.split(": ")[0] for found in problems(yaml_with_version(version))] == [
        "$.variants[0].version"
    ]


@pytest.mark.parametrize("word", ["no", "on", "y", "off", "12e5x"])
def test_yaml_words_that_only_look_like_booleans_are_names(word: str) -> None:
    spec = parse_spec(yaml_with_version("1").replace("name: a", f"name: {word}"))
    assert spec.variants[0].name == word


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\na: 2", "$: line 2, column 1: the key 'a' is there twice"),
        ("{a: 1, a: 2}", "$: line 1, column 8: the key 'a' is there twice"),
        ('{"a": 1, "a": 2}', "$: the key 'a' is there twice"),
        ('{"a": {"b": 1, "b": 2}}', "$: the key 'b' is there twice"),
        ('{"a": NaN}', "$: NaN is not JSON"),
        ("a: &x 1", "$: line 1, column 4: anchors and aliases are not allowed: 'x'"),
        ("a: *x", "$: line 1, column 4: anchors and aliases are not allowed: 'x'"),
        ("&x a: 1", "$: line 1, column 1: anchors and aliases are not allowed: 'x'"),
        ("a: !!python/object:os.system x", "$: line 1, column 4: tags are not allowed"),
        ("a: !!binary x", "$: line 1, column 4: tags are not allowed"),
        ("? [1]\n: 2", "$: line 1, column 3: a key must be a text"),
        ("[" * 50, "$: line 1, column 33: nested deeper than 32 levels"),
        ("a: [", "$: line 1, column 5: expected the node content"),
        ("a: 1\n---\nb: 2", "$: line 2, column 1: but found another document"),
        (b"\xff\xfe", "$: not UTF-8"),
        ("a: \x00", "$: not YAML"),
        ("x" * 300_000, "$: 300000 characters; at most 262144 are read"),
        ("", "$: expected a mapping, got null"),
        ("- 1", "$: expected a mapping, got a list"),
    ],
)
def test_text_that_surprises_is_refused(text: str | bytes, problem: str) -> None:
    assert [found[: len(problem)] for found in problems(text)] == [problem]


def test_merge_keys_are_fields_like_any_other() -> None:
    found = problems(yaml_with_version("1") + "\n<<: {deadline_ms: 5}")
    assert [problem.split(": ")[0] for problem in found] == ['$["<<"]']


def test_number_of_reported_problems_is_bounded() -> None:
    strange = {f"x{n}": n for n in range(1000)}
    assert len(lint(**strange)) == 10
    assert len(lint(variants=[{**arm, **strange} for arm in arms(*[6.25] * 16)])) == 50


# --- manifests and keys ---


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"files": ()}, "$.files: 0 items; allowed are 1 to 10000"),
        ({"files": (File("../x", DIGEST, 1),)}, '$.files[0].path: path "../x" is not one inside'),
        ({"files": (File("/x", DIGEST, 1),)}, '$.files[0].path: path "/x" is not one inside'),
        ({"files": (File("a\\b", DIGEST, 1),)}, "$.files[0].path: path"),
        ({"files": (File("a\x00", DIGEST, 1),)}, "$.files[0].path: path"),
        ({"files": (File("a//b", DIGEST, 1),)}, "$.files[0].path: path"),
        ({"files": (File("a", "AB" * 32, 1),)}, "$.files[0].sha256: digest"),
        ({"files": (File("a", DIGEST, -1),)}, "$.files[0].bytes: -1 is out of range"),
        ({"rows_max": 0}, "$.rows_max: 0 is out of range; allowed are 1 to 4096"),
        ({"version": "v1"}, '$.version: version "v1" is not one'),
        ({"format": "../x"}, "$.format: format"),
        ({"labels": {"a": 1}}, "$.labels.a: expected a text, got 1"),
        ({"golden": "x"}, "$.golden: digest"),
        ({"inputs": (TensorSpec("x", "FLOAT", ()),)}, '$.inputs[0].datatype: datatype "FLOAT" is'),
        ({"inputs": (TensorSpec("x", "FP32", (-2,)),)}, "$.inputs[0].shape[0]: -2 is out of range"),
        ({"inputs": (TensorSpec("x", "FP32", (1,) * 17),)}, "$.inputs[0].shape: 17 items"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadDocument) as caught:
        check_manifest(msgspec.structs.replace(MANIFEST, **changes))
    assert [found[: len(problem)] for found in caught.value.problems] == [problem]


def test_path_may_not_be_there_twice_nor_be_file_and_folder_at_once() -> None:
    files = tuple(File(path, DIGEST, 1) for path in ("a", "a", "b/c/d", "b/c"))
    with pytest.raises(BadDocument) as caught:
        check_manifest(msgspec.structs.replace(MANIFEST, files=files))
    assert caught.value.problems == [
        '$.files[0].path: "a" is there 2 times',
        '$.files[1].path: "a" is there 2 times',
        '$.files[2].path: "b/c" is a file and a folder at once',
    ]


def test_tensors_of_one_name_are_refused() -> None:
    twice = (TensorSpec("x", "FP32", ()), TensorSpec("x", "INT8", ()))
    with pytest.raises(BadDocument, match=r'\$\.outputs\[0\]\.name: "x" is there 2 times'):
        check_manifest(msgspec.structs.replace(MANIFEST, outputs=twice))


def test_keys_of_one_id_are_refused() -> None:
    with pytest.raises(BadDocument, match=r'\$\.keys\[0\]\.id: "ab12" is there 2 times'):
        documents.check_keys(Keys(KEYS.keys * 2))


@pytest.mark.parametrize("scope", ["", "root", "infer", "infer:", "infer:A", "admin:*", "infer:**"])
def test_scope_that_is_none_is_refused(scope: str) -> None:
    record = msgspec.structs.replace(KEYS.keys[0], scopes=(scope,))
    with pytest.raises(BadDocument, match=r"^\$\.keys\[0\]\.scopes\[0\]: "):
        documents.check_keys(Keys((record,)))


def test_artifact_digest_depends_on_files_and_format_only() -> None:
    change = msgspec.structs.replace
    same = change(
        MANIFEST, model="other", version="9", labels={}, files=tuple(reversed(MANIFEST.files))
    )
    renamed = change(MANIFEST, files=(File("other.onnx", DIGEST, 7), MANIFEST.files[1]))
    edited = change(MANIFEST, files=(File("model.onnx", "cd" * 32, 7), MANIFEST.files[1]))
    digests = [
        artifact_digest(m) for m in (renamed, edited, change(MANIFEST, format="torch-export"))
    ]
    assert artifact_digest(same) == MANIFEST.digest
    assert len({MANIFEST.digest, *digests}) == 4


def test_artifact_digest_is_the_same_in_every_release() -> None:
    # Caches and engines are filed under it: another value would throw them all away.
    assert MANIFEST.digest == "a18965184529683fa03cc8751b5f787cd902e84554cd2b377fd2ec7e5d3276d1"


def test_every_type_of_document_is_known_once_the_module_is_imported() -> None:
    """Two threads that are the first to `convert` to a type crash the process (msgspec 0.22)."""
    program = """
import sys

from registry_sync import documents

looks = []

def note(frame, event, _):
    name = frame.f_code.co_name, frame.f_back and frame.f_back.f_globals.get("__name__")
    if event == "call" and name[0] == "get_class_annotations" and name[1] != "msgspec.inspect":
        looks.append(frame.f_locals["obj"].__name__)

class Other(documents.Manifest):
    pass

sys.setprofile(note)
for kind in (
    documents.EndpointSpec,
    documents.EndpointState,
    documents.Keys,
    documents.Manifest,
    documents.Signature,
    Other,
):
    try:
        documents.msgspec.convert({}, kind)
    except documents.msgspec.ValidationError:
        pass
sys.setprofile(None)
print(looks)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "['Other']", found.stderr
