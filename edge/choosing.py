"""Which arm answers a request, and who takes note of that: the log, and a rollout's guards.

A caller that picks its arm by a header says nothing of the others, so neither is told of it.
"""

from __future__ import annotations

import random

from edge.errors import BadRequest
from edge.exposure import ExposureLog
from edge.snapshot import ArmOf, Endpoint
from edge.trace import Header, Trace
from edge.variants import unit_of
from registry_sync.documents import KeyRecord


def choose(
    trace: Trace,
    endpoint: Endpoint,
    record: KeyRecord,
    header: Header,
    exposures: ExposureLog | None,
) -> ArmOf:
    """Choose the arm of a request, and write it into its trace.

    Raises:
        BadRequest: the caller picked an arm that the endpoint has not.
    """
    arms = endpoint.arms
    if len(arms) == 1:
        arm = trace.arm = arms[0]
        return arm
    spec = endpoint.spec
    assert spec is not None
    if spec.assign.header_may_pick:
        name = header("x-tidepool-variant")
        if name is not None:
            picked = trace.arm = endpoint.arm_named(name)
            if picked is None:
                raise BadRequest(f"x-tidepool-variant: {endpoint.name} has no such variant")
            return picked
    unit = unit_of(spec.assign, header, record.id)
    if unit is None:
        index = endpoint.assignment.draw(random.random())
    else:
        index = endpoint.assignment.assign(unit)
    arm = trace.arm = arms[index]
    watch, firsts = arm.watch, endpoint.firsts
    if watch is not None:
        trace.watch, trace.unit = watch, unit
        watch.requests += 1
    if unit is None or firsts is None:
        if watch is not None:
            watch.assigned += 1
    elif firsts.take(unit):
        if watch is not None:
            watch.assigned += firsts.is_whole
        if arm.exposure is not None and exposures is not None:
            exposures.note(arm.exposure, unit, firsts)
    return arm
