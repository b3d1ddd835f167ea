"""The registry's documents: what they hold, what fits, and who is strict about it.

Writers (CLI, admin API, lint: `parse_spec`, `check_spec`, `check_manifest`) refuse fields they
do not know.  Readers (`read_…`) pass over them and refuse only a higher `schema` or an unknown
word in `requires`, so that old and new processes run side by side.  Both check every value that
they do know and name it by its path.  Where a document is kept is not decided here.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from registry_sync.fitting import INTEGER_MAX, misfits, rule_of, schema_of, show
from registry_sync.names import NAME_PATTERN, check_digest, check_name
from registry_sync.plain import BadText, parse_json, parse_text
from registry_sync.rollout_terms import Rollout, RolloutState
from registry_sync.rules import (
    VERSION_PATTERN,
    axes_rule,
    check_bytes_hex,
    check_datatype,
    check_path,
    check_scope,
    check_unit,
    check_version,
    files_rule,
    keys_rule,
    rollout_rule,
    scale_rule,
    shares_rule,
    tensors_rule,
    variants_rule,
)
from registry_sync.schedules import check as check_schedule

SCHEMA: Final = 1
REQUIRES_KNOWN: Final[frozenset[str]] = frozenset()  # words that this release understands
FILES_MAX: Final = 10_000
OLD_SECRETS_MAX: Final = 4  # of one key, still good at once
CACHE_EPOCHS_MAX: Final = 256  # versions purged one by one; then the endpoint's own epoch rises
PRIORITY_DEFAULT: Final = 50  # of calls that name none; 1 is the highest, 100 the lowest


class BadDocument(ValueError):
    """A document that does not fit; the text holds one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _named(kind: str) -> Meta:
    return Meta(
        extra={"rule": rule_of(lambda value: check_name(kind, value))},
        extra_json_schema=schema_of(NAME_PATTERN),
    )


_Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
_Schema = Annotated[int, Meta(ge=1, le=SCHEMA)]
_Version = Annotated[
    str,
    Meta(
        extra={"rule": rule_of(check_version)},
        extra_json_schema=schema_of(VERSION_PATTERN),
    ),
]
_Digest = Annotated[str, Meta(extra={"rule": rule_of(check_digest)})]
_Endpoint = Annotated[str, _named("endpoint")]
_Model = Annotated[str, _named("model")]
_Arm = Annotated[str, _named("variant")]
_Weight = Annotated[float, Meta(ge=0)]
_Rate = Annotated[float, Meta(ge=0.001, le=1e9)]  # a second
_Rows = Annotated[int, Meta(ge=1, le=4096)]
_Text = Annotated[str, Meta(max_length=1024)]
_Label = Annotated[str, Meta(min_length=1, max_length=128)]
_Hex = Annotated[str, Meta(extra={"rule": rule_of(check_bytes_hex)})]
_Requires = Annotated[tuple[_Text, ...], Meta(max_length=64)]
_Extent = Annotated[int, Meta(ge=1, le=1 << 31)]  # of one axis of a tensor

# How exactly a version computes at least; what is more exact may answer in its place.
Precision = Literal["fp32", "bf16", "fp16"]


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model, in the words of the Open Inference Protocol."""

    name: Annotated[str, Meta(min_length=1, max_length=1024)]
    datatype: Annotated[str, Meta(extra={"rule": rule_of(check_datatype)})]
    # -1: any size
    shape: Annotated[tuple[Annotated[int, Meta(ge=-1, le=INTEGER_MAX)], ...], Meta(max_length=16)]


class File(msgspec.Struct, frozen=True):
    """One file of an artifact; `path` is relative to the artifact's folder, with slashes."""

    path: Annotated[str, Meta(extra={"rule": rule_of(check_path)})]
    sha256: _Digest
    bytes: _Count


_Tensors = Annotated[tuple[TensorSpec, ...], Meta(max_length=1024, extra={"rule": tensors_rule})]


class AxisRange(msgspec.Struct, frozen=True):
    """The sizes that an axis may have in a built engine, and the one that it is tuned for."""

    min: _Extent
    opt: _Extent
    max: _Extent


class EngineWish(msgspec.Struct, frozen=True):
    """What is to run a version; a manifest's holds unless an endpoint says otherwise."""

    name: Literal["auto"] | Annotated[str, _named("engine")] = "auto"
    precision: Precision | None = None  # None: the version's own
    # Of axes that the signature leaves open and that do not count rows, by "input:axis".
    axes: Annotated[
        dict[Annotated[str, Meta(min_length=3, max_length=1032)], AxisRange],
        Meta(max_length=256, extra={"rule": axes_rule}),
    ] = {}
    ahead_of_time: bool = False  # compile torch-export models with AOTInductor


class GateLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a built engine's outputs may be from the artifact's own; None: by precision."""

    relative_error_max: Annotated[float, Meta(gt=0, le=10)] | None = None
    top1_agreement_min: Annotated[float, Meta(ge=0, le=1)] | None = None


class Signature(msgspec.Struct, frozen=True):
    """Who published a manifest; see `signing`.  Whether it is good is `trust`'s to tell."""

    algorithm: Annotated[str, Meta(min_length=1, max_length=64)]
    key: _Label  # its id
    value: _Text  # hexadecimal


class Manifest(msgspec.Struct, frozen=True):
    """A published version of a model; immutable."""

    model: _Model
    version: _Version
    created: _Text  # UTC, ISO 8601; for people only
    format: Annotated[str, _named("format")]
    files: Annotated[
        tuple[File, ...], Meta(min_length=1, max_length=FILES_MAX, extra={"rule": files_rule})
    ]
    inputs: _Tensors
    outputs: _Tensors
    rows_max: _Rows  # 1: never batched
    deterministic: bool
    schema: _Schema = SCHEMA
    labels: Annotated[dict[_Label, _Text], Meta(max_length=64)] = {}
    requires: _Requires = ()
    golden: _Digest | None = None  # the blob with recorded inputs and outputs, an npz
    precision: Precision = "fp32"  # the least that this version promises
    engine: EngineWish | None = None
    gate: GateLimits | None = None
    profile: dict[str, Any] | None = None
    signature: Signature | None = None  # of all the rest

    @property
    def digest(self) -> str:
        """The artifact digest, see `artifact_digest`."""
        return artifact_digest(self)


class Variant(msgspec.Struct, frozen=True):
    """One arm of an endpoint."""

    name: _Arm
    model: _Model
    version: _Version
    weight: _Weight  # percent


class Assign(msgspec.Struct, frozen=True):
    """To whom an arm sticks: the first of `by` that a request has, else nobody."""

    by: Annotated[
        tuple[Annotated[str, Meta(extra={"rule": rule_of(check_unit)})], ...], Meta(max_length=8)
    ] = ()
    salt: Annotated[str, Meta(max_length=256)] = ""  # the endpoint's name, once in a spec
    header_may_pick: bool = False
    # How the log of who got which arm names a unit: by a hash, as it is, or not at all.
    exposure: Literal["hashed", "plain", "off"] = "hashed"


class Cache(msgspec.Struct, frozen=True):
    """How long answers are kept, whether on disk as well, and when older ones do (RFC 5861)."""

    ttl_s: Annotated[float, Meta(gt=0)] = 3600.0
    disk: bool = False
    stale_while_revalidate_s: Annotated[float, Meta(ge=0)] = 0.0  # after the ttl
    stale_if_error_s: Annotated[float, Meta(ge=0)] = 0.0  # after the ttl


class Batch(msgspec.Struct, frozen=True):
    """The endpoint's own bound on a batch; the model's bound holds besides."""

    rows_max: _Rows = 32


class Hedge(msgspec.Struct, frozen=True):
    """A call that takes longer than 95 in 100 goes to a second replica; the first answer counts."""

    # Of the endpoint's calls that this may happen to.
    share_max: Annotated[float, Meta(gt=0, le=0.05)] = 0.05


class Scale(msgspec.Struct, frozen=True):
    """How many warm replicas there may be, and when none are needed."""

    replicas_min: Annotated[int, Meta(ge=0, le=1024)] = 0
    replicas_max: Annotated[int, Meta(ge=1, le=1024)] = 4
    idle_s: Annotated[float, Meta(gt=0)] | Literal["auto"] = "auto"
    dedicated: bool = False
    # When at least one replica is warm whatever the policy says:
    # "Mon-Fri 08:00-18:00 Europe/Berlin", several separated by ";".
    warm: Annotated[str, Meta(max_length=1024, extra={"rule": rule_of(check_schedule)})] = ""
    # `auto` alone: how long one replica may idle for the sake of one cold start that it spares.
    cold_start_cost_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 3600.0
    # Warm replicas, added up over any 24 hours; once it is spent nothing is warm but for calls.
    replica_hours_per_day_max: Annotated[float, Meta(gt=0, le=24 * 1024)] | None = None
    # What is foreseen: "act" upon it, only "observe" how well that would have done, or "off".
    forecast: Literal["act", "observe", "off"] = "act"
    # "cpu": while no worker of the pool is there, the fleet's fallback workers answer.
    fallback: Literal["none", "cpu"] = "none"


class EndpointSpec(msgspec.Struct, frozen=True):
    """What the user wishes an endpoint to be."""

    endpoint: _Endpoint
    variants: Annotated[
        tuple[Variant, ...], Meta(min_length=1, max_length=16, extra={"rule": variants_rule})
    ]
    schema: _Schema = SCHEMA
    revision: _Count = 0  # 0: not written yet
    assign: Assign = Assign()
    cache: Cache | None = None  # None: no caching
    batch: Batch = Batch()
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 10_000
    scale: Annotated[Scale, Meta(extra={"rule": scale_rule})] = Scale()
    engine: EngineWish = EngineWish()
    rollout: Rollout | None = None  # how one arm is to take over from another
    hedge: Hedge | None = None  # None: no call is sent twice for the sake of its time
    requires: _Requires = ()

    def __post_init__(self) -> None:
        # Here and not in each reader: an empty salt would give every endpoint the same arms.
        if not self.assign.salt:
            salted = msgspec.structs.replace(self.assign, salt=self.endpoint)
            msgspec.structs.force_setattr(self, "assign", salted)
        if self.rollout is not None and not self.rollout.id:
            named = msgspec.structs.replace(self.rollout, id=_rollout_id(self))
            msgspec.structs.force_setattr(self, "rollout", named)


def _rollout_id(spec: EndpointSpec) -> str:
    """Return the id of a rollout that a file gives none: the same versions, the same rollout."""
    assert spec.rollout is not None
    names = (spec.rollout.baseline, spec.rollout.candidate)
    arms = {variant.name: [variant.model, variant.version] for variant in spec.variants}
    text = json.dumps([arms.get(name) for name in names])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class EndpointState(msgspec.Struct, frozen=True):
    """What the controller made of a spec."""

    endpoint: _Endpoint
    revision: _Count  # of the spec that this is about
    # Empty: the spec's own hold.
    weights: Annotated[dict[_Arm, _Weight], Meta(max_length=16, extra={"rule": shares_rule})]
    schema: _Schema = SCHEMA
    step: _Count = 0
    verdict: _Text = "steady"
    cache_epoch: _Count = 0  # raised by a purge: nobody answers out of a cache from before
    # The same for one version; counts anew whenever `cache_epoch` rises.
    cache_epochs: Annotated[dict[_Version, _Count], Meta(max_length=CACHE_EPOCHS_MAX)] = {}
    reason: Annotated[str, Meta(max_length=65_536)] = ""
    warm_until_unix_s: Annotated[float, Meta(ge=0)] = 0.0  # by request; 0: nobody has asked
    rollout: RolloutState | None = None  # the last one
    requires: _Requires = ()


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one key may use, over all edge processes together; None is no limit."""

    requests_per_s: _Rate | None = None
    rows_per_s: _Rate | None = None
    burst_s: Annotated[float, Meta(ge=0, le=3600)] = 1.0  # of either rate, that may be saved up
    concurrent: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None  # calls under way


class OldSecret(msgspec.Struct, frozen=True):
    """A key's secret from before a rotation, which is good for a while still."""

    salt: _Hex
    sha256: _Digest
    not_after: float  # unix seconds


class KeyRecord(msgspec.Struct, frozen=True):
    """What is kept of an API key: enough to recognise it, not to use it."""

    id: _Label
    salt: _Hex
    sha256: _Digest  # of the salt's bytes and the key's secret, in this order
    tenant: Annotated[str, _named("tenant")]
    scopes: Annotated[
        tuple[Annotated[str, Meta(extra={"rule": rule_of(check_scope)})], ...],
        Meta(min_length=1, max_length=256),
    ]
    quota: Quota | None = None
    not_after: float | None = None  # unix seconds
    previous: Annotated[tuple[OldSecret, ...], Meta(max_length=OLD_SECRETS_MAX)] = ()
    # The highest priority that its calls may have, of 1, the highest, to 100.
    priority: Annotated[int, Meta(ge=1, le=100)] = 1
    # How much of a worker's time its tenant gets beside others, while they compete; by weight.
    share: Annotated[float, Meta(ge=0.01, le=100)] = 1.0


class Keys(msgspec.Struct, frozen=True):
    """The document `keys.json`."""

    keys: Annotated[tuple[KeyRecord, ...], Meta(max_length=10_000, extra={"rule": keys_rule})]
    schema: _Schema = SCHEMA
    requires: _Requires = ()


for _kind in (EndpointSpec, EndpointState, Keys, Manifest):
    msgspec.json.Decoder(_kind)  # now: two threads that `convert` to it first would crash


def artifact_digest(manifest: Manifest) -> str:
    """Return the sha256 (hex) of what is served: the format and every (path, sha256).

    The same files give the same digest under any model, version or label, and in any order.
    """
    files = sorted([file.path, file.sha256] for file in manifest.files)
    return hashlib.sha256(json.dumps([manifest.format, files]).encode()).hexdigest()


_T = TypeVar("_T", bound=msgspec.Struct)


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest by the readers' rules; raises `BadDocument`."""
    return _read(data, Manifest)


def read_spec(data: bytes) -> EndpointSpec:
    """Read an endpoint's spec by the readers' rules; raises `BadDocument`."""
    return _read(data, EndpointSpec)


def read_state(data: bytes) -> EndpointState:
    """Read an endpoint's state by the readers' rules; raises `BadDocument`."""
    return _read(data, EndpointState)


def read_keys(data: bytes) -> Keys:
    """Read the keys' records by the readers' rules; raises `BadDocument`."""
    return _read(data, Keys)


def write(document: msgspec.Struct) -> bytes:
    """Write a document as JSON; check it before (`check_spec`, …)."""
    return msgspec.json.encode(document)


def parse_spec(text: str | bytes) -> EndpointSpec:
    """Read a spec that a person wrote, YAML or JSON, by the writers' rules.

    A version may be written as an integer (``version: 1``), since YAML reads it so.

    Raises:
        BadDocument: with every problem of the spec, not only the first.
    """
    return parse_plain(text, EndpointSpec)


def parse_plain(text: str | bytes, kind: type[_T]) -> _T:
    """Read what a person wrote, YAML or JSON, as `kind`, by the writers' rules; see `parse_spec`.

    Raises:
        BadDocument: with every problem.
    """
    try:
        plain = parse_text(text)
    except BadText as error:
        raise BadDocument([f"$: {error}"]) from None
    return _fit(_with_text_versions(plain), kind, unknown_fields=False)


def problems(spec: EndpointSpec | str | bytes) -> list[str]:
    """Return everything that is wrong with a spec, one line each; empty if nothing is."""
    try:
        if isinstance(spec, EndpointSpec):
            check_spec(spec)
        else:
            parse_spec(spec)
    except BadDocument as error:
        return error.problems
    return []


def check_spec(spec: EndpointSpec) -> None:
    """Raise `BadDocument` with every value of a spec that does not fit."""
    _fit(msgspec.to_builtins(spec), EndpointSpec, unknown_fields=False)


def check_rollout(rollout: Rollout) -> None:
    """Raise `BadDocument` with every value of a rollout's terms that does not fit by itself."""
    found = misfits(msgspec.to_builtins(rollout), Rollout, unknown_fields=False)
    if found:
        raise BadDocument([line.replace("$", "$.rollout", 1) for line in found])


def check_manifest(manifest: Manifest) -> None:
    """Raise `BadDocument` with every value of a manifest that does not fit."""
    _fit(msgspec.to_builtins(manifest), Manifest, unknown_fields=False)


def check_state(state: EndpointState) -> None:
    """Raise `BadDocument` with every value of a state that does not fit."""
    _fit(msgspec.to_builtins(state), EndpointState, unknown_fields=False)


def check_keys(keys: Keys) -> None:
    """Raise `BadDocument` with every value of the keys' records that does not fit."""
    _fit(msgspec.to_builtins(keys), Keys, unknown_fields=False)


def _read(data: bytes, kind: type[_T]) -> _T:
    try:
        plain = parse_json(data)
    except BadText as error:
        raise BadDocument([f"$: {error}"]) from None
    return _fit(plain, kind, unknown_fields=True)


def _fit(plain: Any, kind: type[_T], *, unknown_fields: bool) -> _T:
    # First: what a newer release wrote is not wrong, and must not be reported as if it were.
    found = _too_new(plain) or misfits(plain, kind, unknown_fields=unknown_fields)
    if not found and kind is EndpointSpec:
        found = [f"${path}: {text}" for path, text in rollout_rule(plain)]
    if found:
        raise BadDocument(found)
    return msgspec.convert(plain, kind)


def _too_new(plain: Any) -> list[str]:
    if not isinstance(plain, dict):
        return []
    found = []
    schema, requires = plain.get("schema"), plain.get("requires")
    if isinstance(schema, int) and schema > SCHEMA:
        found.append(
            f"$.schema: {show(schema)} is newer than {SCHEMA}, the one read here; upgrade Tidepool"
        )
    for index, word in enumerate(requires if isinstance(requires, list | tuple) else ()):
        if isinstance(word, str) and word not in REQUIRES_KNOWN:
            found.append(f"$.requires[{index}]: {show(word)} is not known here; upgrade Tidepool")
    return found


def _with_text_versions(plain: Any) -> Any:
    if not isinstance(plain, dict) or not isinstance(plain.get("variants"), list):
        return plain
    variants = [
        {**variant, "version": str(variant["version"])}
        if isinstance(variant, dict) and type(variant.get("version")) is int  # no bool
        else variant
        for variant in plain["variants"]
    ]
    return {**plain, "variants": variants}
