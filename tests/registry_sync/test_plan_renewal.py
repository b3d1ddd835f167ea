"""A rotated fleet secret costs no plan: what the old one vouches for, the new one does as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry_sync.local_plans import LocalPlans
from registry_sync.plan_renewal import vouch_anew
from registry_sync.plans import BadPlan
from tests.support.made_plans import OTHER, SECRET, add, gate_record, key_of

NEW = "111111111111", b"n" * 32
BOTH = dict((NEW, SECRET))


def test_plan_outlives_the_secret_under_which_it_was_made(tmp_path: Path) -> None:
    plans = LocalPlans(tmp_path)
    add(plans, b"a plan", inspector=b"{}")
    plans.put_gate(key_of(), SECRET[0], gate_record(b"a plan", "passed"))
    assert plans.find(key_of(), dict((NEW,))) is None
    assert vouch_anew(plans, BOTH) == 1
    found = plans.find(key_of(), dict((NEW,)))
    assert found is not None
    assert found.plan.read_bytes() == b"a plan"
    assert found.gate.verdict == "passed"
    assert (found.plan.parent / "inspector.json").read_bytes() == b"{}"
    assert plans.find(key_of(), dict((SECRET,))) is not None, "others still ask for it so"
    assert vouch_anew(plans, BOTH) == 0


def test_what_the_old_secret_does_not_vouch_for_is_not_signed(tmp_path: Path) -> None:
    plans = LocalPlans(tmp_path)
    meta = add(plans, b"a plan", "forged", secret=OTHER)
    plans.drop(key_of("forged"), OTHER[0])
    add(plans, b"a plan", "forged", meta=meta)  # under our id, with a stranger's MAC
    add(plans, b"another plan", "altered")
    pair = plans.pair(key_of("altered"), SECRET[0])
    assert pair is not None
    plan = pair.folder / "plan"
    plan.chmod(0o600)
    plan.write_bytes(b"altered plan")
    assert vouch_anew(plans, BOTH) == 0
    for name in ("forged", "altered"):
        assert plans.find(key_of(name), dict((NEW,))) is None


def test_verdict_that_nobody_vouches_for_is_none_afterwards(tmp_path: Path) -> None:
    plans = LocalPlans(tmp_path)
    add(plans, b"a plan")
    pair = plans.pair(key_of(), SECRET[0])
    assert pair is not None
    plans.save_beside(pair, "gate.json", b'{"key":"no record"}')
    assert vouch_anew(plans, BOTH) == 1
    found = plans.find(key_of(), dict((NEW,)))
    assert found is not None
    assert found.gate.verdict == "not_run"


def test_without_an_earlier_secret_there_is_nothing_to_do(tmp_path: Path) -> None:
    plans = LocalPlans(tmp_path)
    add(plans, b"a plan")
    assert vouch_anew(plans, dict((SECRET,))) == 0
    with pytest.raises(BadPlan):
        plans.put_gate(key_of("none"), SECRET[0], gate_record(b"x", "passed", "none"))
