"""Plans as they lie in a registry, with bytes that no engine made."""

from __future__ import annotations

import hashlib
from typing import Any

from pool.wire.handshake import Secret
from registry_sync import plans
from registry_sync.plans import (
    NOT_RUN,
    GateRecord,
    GateReport,
    OutputReport,
    PlanIdentity,
    PlanMeta,
    signed,
    signed_gate,
)
from registry_sync.stores import Store

FLEET = Secret.of("the secret of this fleet")
STRANGER = Secret.of("the secret of another fleet")
PASSED = GateReport(
    "passed",
    inputs="random",
    runs=2,
    outputs=(OutputReport("y", 1e-6, 1.0), OutputReport("z", 3e-5)),
    device="sm_86",
)
FAILED = GateReport(
    "failed", "y: relative error 0.5, at most 0.01", outputs=(OutputReport("y", 0.5),)
)


def identity_of(device: str = "sm_86", **changes: Any) -> PlanIdentity:
    """Return what a plan of the tests depends on."""
    known = {
        "artifact": "ab" * 32,
        "engine": "tensorrt_rtx",
        "runtime": "1.7.1",
        "precision": "fp32",
    }
    return PlanIdentity(**{**known, "device": device, **changes})


def put(
    store: Store,
    identity: PlanIdentity,
    *,
    model: str = "m",
    version: str = "1",
    gate: GateReport = NOT_RUN,
    secret: Secret = FLEET,
    forger: Secret | None = None,
    plan: bytes = b"the plan's bytes",
    used: str = "2026-11-26",
) -> PlanMeta:
    """Write a plan, its metadata and its day of use; `forger` signs in the secret's place."""
    meta = PlanMeta(
        identity=identity,
        key=identity.key,
        model=model,
        version=version,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
        created="2026-11-26T05:00:00+00:00",
        build_s=1.5,
        gate=gate,
    )
    meta = signed(meta, (forger or secret).key)
    place = f"engines/{identity.key}/{secret.id}"
    store.put_new(f"{place}/plan", plan)
    store.put_new(f"{place}/meta.json", plans.write(meta))
    if used:
        store.put_new(f"engines/{identity.key}/used.json", b'{"day": "%s"}' % used.encode())
    return meta


def put_gate(
    store: Store, meta: PlanMeta, report: GateReport, secret: Secret = FLEET, key: bytes = FLEET.key
) -> None:
    """Write the verdict of a device that came after the build."""
    record = signed_gate(GateRecord(key=meta.key, plan_sha256=meta.plan_sha256, report=report), key)
    store.put_new(f"engines/{meta.key}/{secret.id}/gate.json", plans.write(record))
