"""How the desk for builds shows its plans: a pure view, for `tidepool status` and the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Any

from pool.build_desk import BuildDesk
from pool.build_jobs import Job, Target

NAMED_MAX = 8  # of what workers can build, in one reason


def rows(
    desk: BuildDesk, now_s: float, unknown: Mapping[Target, str] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return one row for every version whose plan is wished, wanted, under way or there.

    Args:
        unknown: wishes that nobody can see to yet, each with the reason.
    """
    found = [
        _row("", target, "waiting", reason=reason, wished=True)
        for target, reason in unknown.items()
    ]
    for job in desk.jobs.values():
        is_known = job.is_needed or job.is_built or job.attempts or job.refused
        if not is_known or _is_second_look(desk, job):
            continue
        state, worker, reason = _state(desk, job, now_s)
        found += [
            _row(
                job.key,
                target,
                state,
                reason=reason,
                worker=worker,
                wished=bool(job.wishes),
                failures=job.failures + job.losses,
                retry_s=_pause_s(desk, job, now_s) if state == "failed" else 0.0,
            )
            for target in job.targets
        ]
    return sorted(found, key=_place)


def _place(row: dict[str, Any]) -> tuple[str, int, str, str, str]:
    version = row["version"]
    number = int(version) if version.isdecimal() else 0
    return (row["model"], number, version, row["device_class"], row["engine"])


def _row(
    key: str,
    target: Target,
    state: str,
    *,
    reason: str,
    wished: bool,
    worker: str = "",
    failures: int = 0,
    retry_s: float = 0.0,
) -> dict[str, Any]:
    return {
        "key": key,
        **target._asdict(),
        "state": state,
        "reason": reason,
        "worker": worker,
        "wished": wished,
        "failures": failures,
        "retry_s": retry_s,
    }


def _is_second_look(desk: BuildDesk, job: Job) -> bool:
    """Tell whether this only sees after a wished plan that was there an hour ago."""
    return (
        not job.key
        and not job.failures
        and any(other.key and job.wishes & other.wishes for other in desk.jobs.values())
    )


def _state(desk: BuildDesk, job: Job, now_s: float) -> tuple[str, str, str]:
    """Return state, worker and reason."""
    if builders := ", ".join(sorted(job.builders())):
        return "building", builders, job.error
    if job.is_built:
        return "built", "", _refusals(job)
    if job.attempts:
        worker = next(iter(job.attempts))
        return "waiting", worker, _after(job, f"{worker} has been asked")
    if _pause_s(desk, job, now_s) > 0:
        return "failed", "", job.error
    if job.refused and not job.is_needed:
        return "refused", ", ".join(sorted(job.refused)), _refusals(job)
    return "waiting", "", _after(job, missing(desk, job, now_s))


def _pause_s(desk: BuildDesk, job: Job, now_s: float) -> float:
    """Return for how long nobody tries again what failed; 0: it has not, or somebody may."""
    until_s = job.not_before_s
    able = _able(desk, job)
    if job.failures and able:
        until_s = max(until_s, min(job.held_s.get(worker, -inf) for worker in able))
    return max(0.0, until_s - now_s)


def _able(desk: BuildDesk, job: Job) -> list[str]:
    """Return the workers that could build it, busy or not."""
    return [
        worker
        for worker, seat in desk.seats.items()
        if seat.gone_s is None and not seat.is_draining and seat.can_build(job.target)
    ]


def _refusals(job: Job) -> str:
    return "; ".join(f"{worker} refused it: {why}" for worker, why in job.refused.items())


def _after(job: Job, text: str) -> str:
    return f"{text}; before: {job.error}" if job.error else text


def missing(desk: BuildDesk, job: Job, now_s: float) -> str:
    """Say what a plan that waits is waiting for."""
    able = _able(desk, job)
    if not able:
        seats = (one for one in desk.seats.values() if one.gone_s is None and not one.is_draining)
        builds = sorted({build for seat in seats for build in seat.builds})
        known = ", ".join(builds[:NAMED_MAX]) + (", …" if len(builds) > NAMED_MAX else "")
        there = f"those here can build {known}" if known else "none here can build any"
        return f"no worker is here that can build {_named(job.target)}; {there}"
    rival = desk.rival(job)
    if rival is not None:
        worker = next(iter(rival.attempts))
        return f"{worker} builds {_named(rival.target)} of the same artifact, maybe the same plan"
    held = [worker for worker in able if job.held_s.get(worker, now_s) > now_s]
    if len(held) == len(able):
        return f"{', '.join(able[:NAMED_MAX])} may not try again yet"
    return f"{', '.join(able[:NAMED_MAX])} can build it, and no one is free"


def _named(target: Target) -> str:
    return f"{target.engine or 'a plan'} for {target.device_class}"
