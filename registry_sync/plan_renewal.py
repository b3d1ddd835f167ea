"""Plans that an earlier fleet secret vouches for get the word of the current one.

Else every plan would have to be built again once the earlier secret is retired.  Only what holds
under the earlier secret is signed; the plan's bytes stay where they are, by a second name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from registry_sync.local_plans import LocalPlan, LocalPlans
from registry_sync.plan_files import SIDE_BYTES_MAX, read_small
from registry_sync.plans import BadPlan, check_mac, read_gate, signed, signed_gate, write


def vouch_anew(plans: LocalPlans, secret_keys: Mapping[str, bytes]) -> int:
    """Sign this node's plans with the current secret; return how many were.

    Whoever loads one next puts it into the registry as well.  What an earlier secret does not
    vouch for is left to be refused.

    Args:
        secret_keys: by secret id, the current one first.

    Raises:
        OSError: the disk is full or broken.
    """
    current, *earlier = secret_keys
    count = 0
    for secret_id in earlier:
        for key in plans.keys(secret_id):
            if plans.pair(key, current) is not None:
                continue
            with contextlib.suppress(BadPlan):
                plan = plans.find(key, {secret_id: secret_keys[secret_id]})
                if plan is not None:
                    _copy(plans, plan, secret_keys[secret_id], current, secret_keys[current])
                    count += 1
    return count


def _copy(plans: LocalPlans, plan: LocalPlan, old_key: bytes, secret_id: str, key: bytes) -> None:
    with plans.scratch() as folder:
        os.link(plan.plan, folder / "plan")
        (folder / "meta.json").write_bytes(write(signed(plan.meta, key)))
        for path in plan.plan.parent.iterdir():
            data = _side_file(path, old_key, key)
            if data:
                (folder / path.name).write_bytes(data)
        plans.add(plan.key, secret_id, folder)


def _side_file(path: Path, old_key: bytes, key: bytes) -> bytes:
    """Return what lies beside the copy; nothing of what the old secret does not vouch for."""
    if path.name == "inspector.json":
        return read_small(path, SIDE_BYTES_MAX)
    if not path.name.startswith("gate"):
        return b""
    try:
        record = read_gate(read_small(path, SIDE_BYTES_MAX))
        check_mac(record, old_key)
    except BadPlan:
        return b""
    return write(signed_gate(record, key))
