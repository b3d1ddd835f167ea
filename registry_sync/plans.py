"""What a built engine is: its identity, its key, its metadata, and who vouches for it.

A plan holds for one artifact, one engine in one exact version, one kind of device and one set of
shapes.  All of that is its identity, and the identity's digest is its key: whoever needs the same
plan looks under the same key.

    engines/<key>/<secret id>/plan            the engine's own bytes
    engines/<key>/<secret id>/meta.json       `PlanMeta`; written after the plan, create-only
    engines/<key>/<secret id>/inspector.json  what the engine says of its layers, if anything
    engines/<key>/<secret id>/gate.json       `GateRecord` on drawn inputs, by a device that came
                                              after the build
    engines/<key>/used.json                   when it was last loaded, to the day

A plan is code for a GPU: only one whose metadata carries a MAC under the fleet's secret is loaded.
Values only; `plan_store` and `local_plans` read and write them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from registry_sync.documents import Precision

SCHEMA: Final = 1
REASON_CHARS_MAX: Final = 4000

_Short = Annotated[str, Meta(max_length=512)]
_Reason = Annotated[str, Meta(max_length=REASON_CHARS_MAX)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Golden = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
_Shape = Annotated[tuple[_Count, ...], Meta(max_length=16)]

Verdict = Literal["passed", "failed", "not_run"]


class ShapeRange(msgspec.Struct, frozen=True):
    """The shapes of one input in one profile: the least, the one tuned for, the most."""

    min: _Shape
    opt: _Shape
    max: _Shape


class PlanIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan depends on; equal identities are interchangeable."""

    artifact: _Digest  # `Manifest.digest`
    engine: _Short  # tensorrt | tensorrt_rtx | torch
    runtime: _Short  # the engine's exact version
    device: _Short  # device class: "sm_86", …
    precision: Precision
    driver: _Count = 0  # major version; 0: does not matter
    # one after the other, each by input
    profiles: Annotated[tuple[dict[_Short, ShapeRange], ...], Meta(max_length=64)] = ()
    flags: Annotated[tuple[_Short, ...], Meta(max_length=64)] = ()  # sorted
    plugins: Annotated[tuple[_Short, ...], Meta(max_length=64)] = ()  # sorted

    @property
    def key(self) -> str:
        """The sha256 (hex) of the identity as canonical JSON."""
        return hashlib.sha256(_canonical(msgspec.to_builtins(self))).hexdigest()


class OutputReport(msgspec.Struct, frozen=True):
    """How far one output was from the artifact's own."""

    name: Annotated[str, Meta(max_length=1024)]
    relative_error: float | None = None  # the largest; None: not comparable
    top1_agreement: float | None = None  # of rows; None: no classifier


class GateReport(msgspec.Struct, frozen=True):
    """The outcome of comparing a built engine with the portable one.

    It holds for the versions whose recorded inputs are those of `golden`, and for no other.
    """

    verdict: Verdict
    reason: _Reason = ""
    inputs: Literal["golden", "random", "none"] = "none"
    runs: _Count = 0
    outputs: Annotated[tuple[OutputReport, ...], Meta(max_length=1024)] = ()
    reference: _Short = ""  # the engine that it was compared with, and its version
    device: _Short = ""  # where it ran
    golden: _Golden = ""  # `Manifest.golden` of the inputs; empty: they were drawn


NOT_RUN: Final = GateReport("not_run", "no device of this class has run it yet")


class PlanMeta(msgspec.Struct, frozen=True, kw_only=True):
    """`meta.json`: what a plan is, and that somebody of this fleet built it."""

    identity: PlanIdentity
    key: _Digest
    model: _Short  # for which it was built first; others may share the artifact
    version: _Short
    plan_sha256: _Digest
    bytes: _Count
    created: _Short  # UTC, ISO 8601; for people only
    build_s: Annotated[float, Meta(ge=0)]
    gate: GateReport = NOT_RUN
    schema: Annotated[int, Meta(ge=1, le=SCHEMA)] = SCHEMA
    mac: Annotated[str, Meta(max_length=128)] = ""  # HMAC-SHA256 over everything else


_meta_of = msgspec.json.Decoder(PlanMeta)


class GateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`gate.json`: the verdict of a device that came after the build."""

    key: _Digest
    plan_sha256: _Digest
    report: GateReport
    mac: Annotated[str, Meta(max_length=128)] = ""


_gate_of = msgspec.json.Decoder(GateRecord)


class BadPlan(ValueError):
    """A plan that must not be loaded; the text says why."""


def signed(document: PlanMeta, secret_key: bytes) -> PlanMeta:
    """Return the metadata with its MAC under a fleet secret."""
    return replace(document, mac=_mac(document, secret_key))


def signed_gate(document: GateRecord, secret_key: bytes) -> GateRecord:
    """Return the record with its MAC under a fleet secret."""
    return replace(document, mac=_mac(document, secret_key))


def check_mac(document: PlanMeta | GateRecord, secret_key: bytes) -> None:
    """Raise `BadPlan` unless somebody who holds the secret wrote exactly this."""
    if not hmac.compare_digest(document.mac, _mac(document, secret_key)):
        raise BadPlan("its MAC is not one of this fleet")


def read_meta(data: bytes) -> PlanMeta:
    """Read `meta.json`; unknown fields are passed over.

    Raises:
        BadPlan: it does not fit, or its key is not that of its identity.
    """
    try:
        meta = _meta_of.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadPlan(f"its metadata cannot be read: {error}") from None
    if meta.key != meta.identity.key:
        raise BadPlan("its key is not that of its identity")
    return meta


def read_gate(data: bytes) -> GateRecord:
    """Read `gate.json`; raises `BadPlan`."""
    try:
        return _gate_of.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadPlan(f"its gate's record cannot be read: {error}") from None


def write(document: PlanMeta | GateRecord) -> bytes:
    """Write either as JSON."""
    return msgspec.json.encode(document)


def _mac(document: PlanMeta | GateRecord, secret_key: bytes) -> str:
    what = type(document).__name__.encode()
    text = _canonical(msgspec.to_builtins(replace(document, mac="")))
    return hmac.digest(secret_key, b"tidepool " + what + b"\0" + text, "sha256").hex()


def _canonical(plain: Any) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
