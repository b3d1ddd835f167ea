"""Plans whose bytes mean nothing, but which are named, signed and laid out as real ones are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from registry_sync.local_plans import LocalPlans
from registry_sync.plans import (
    NOT_RUN,
    GateRecord,
    GateReport,
    PlanIdentity,
    PlanMeta,
    Verdict,
    signed,
    signed_gate,
    write,
)

SECRET = "a1b2c3d4e5f6", b"k" * 32
OTHER = "0f0e0d0c0b0a", b"o" * 32
KEYS = dict((SECRET,))


def identity(name: str = "m") -> PlanIdentity:
    """Return the identity of a model's plan."""
    return PlanIdentity(
        artifact=hashlib.sha256(name.encode()).hexdigest(),
        engine="tensorrt_rtx",
        runtime="1.7.1.116",
        device="sm_86",
        precision="fp32",
    )


def key_of(name: str = "m") -> str:
    return identity(name).key


def meta_of(
    plan: bytes,
    name: str = "m",
    *,
    secret: tuple[str, bytes] = SECRET,
    gate: GateReport = NOT_RUN,
    build_s: float = 1.5,
) -> PlanMeta:
    """Return signed metadata of a plan."""
    of = identity(name)
    meta = PlanMeta(
        identity=of,
        key=of.key,
        model=name,
        version="1",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        bytes=len(plan),
        created="2026-11-26T00:00:00Z",
        build_s=build_s,
        gate=gate,
    )
    return signed(meta, secret[1])


def gate_record(plan: bytes, verdict: Verdict, name: str = "m", golden: str = "") -> GateRecord:
    """Return a signed verdict about a plan."""
    report = GateReport(
        verdict, reference="onnxruntime 1.23", inputs="random", runs=3, golden=golden
    )
    record = GateRecord(
        key=key_of(name), plan_sha256=hashlib.sha256(plan).hexdigest(), report=report
    )
    return signed_gate(record, SECRET[1])


def lay_out(folder: Path, plan: bytes, meta: PlanMeta, inspector: bytes = b"") -> Path:
    """Write a plan's files into a folder, as a builder does."""
    folder.mkdir(exist_ok=True)
    (folder / "plan").write_bytes(plan)
    (folder / "meta.json").write_bytes(write(meta))
    if inspector:
        (folder / "inspector.json").write_bytes(inspector)
    return folder


def add(
    local: LocalPlans,
    plan: bytes,
    name: str = "m",
    *,
    secret: tuple[str, bytes] = SECRET,
    meta: PlanMeta | None = None,
    inspector: bytes = b"",
) -> PlanMeta:
    """Put a plan into a node's folder."""
    meta = meta_of(plan, name, secret=secret) if meta is None else meta
    with local.scratch() as folder:
        lay_out(folder, plan, meta, inspector)
        local.add(key_of(name), secret[0], folder)
    return meta
