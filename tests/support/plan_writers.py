"""What processes do that put one plan at once; apart, so that starting one imports little."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.plan_store import ORPHAN_S, put_plan
from tests.support.made_plans import KEYS, SECRET, add, key_of

DAY = "2026-11-26"


def put(
    url: str, root: Path, index: int, plan_bytes: int, pause_s: float = ORPHAN_S
) -> tuple[bool, bytes]:
    """Make a plan of this process's own on a node of its own and put it.

    Begins when `root` holds a file "go"; says that it is ready by a file of its own.

    Returns:
        Whether it is in the registry, and the plan that is on the node afterwards.
    """
    local = LocalPlans(root / f"node{index}")
    add(local, bytes([index + 1]) * (plan_bytes + index))
    with contextlib.closing(open_store(url)) as store:
        (root / f"ready{index}").touch()
        while not (root / "go").exists():
            time.sleep(0.002)
        is_ours = put_plan(store, local, key_of(), SECRET[0], DAY, pause_s=pause_s)
    found = local.find(key_of(), KEYS)
    assert found is not None
    return is_ours, found.plan.read_bytes()
