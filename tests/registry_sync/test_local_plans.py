"""A node's folder of plans: checked on use, bounded, and whole whatever dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync.local_plans import LocalPlans
from registry_sync.names import BadName
from registry_sync.plan_eviction import Held, to_evict
from registry_sync.plans import BadPlan, GateReport, PlanMeta, Verdict, signed, write
from tests.support.made_plans import KEYS, OTHER, SECRET, add, gate_record, key_of, lay_out, meta_of

PLAN = b"plan" * 1000
KEY = key_of()
MIB = 1 << 20


@pytest.fixture
def local(tmp_path: Path) -> LocalPlans:
    return LocalPlans(tmp_path / "engines")


def folder_of(local: LocalPlans, name: str = "m", secret_id: str = SECRET[0]) -> Path:
    pair = local.pair(key_of(name), secret_id)
    assert pair is not None
    return pair.folder


def rewrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def scratch_of(local: LocalPlans, tmp_path: Path) -> list[Path]:
    return list((tmp_path / "engines" / ".scratch").iterdir())


# --- found and refused ---


def test_a_plan_that_was_added_is_found(local: LocalPlans) -> None:
    meta = add(local, PLAN)
    found = local.find(KEY, KEYS)
    assert found is not None
    assert (found.key, found.secret_id, found.meta) == (KEY, SECRET[0], meta)
    assert found.plan.read_bytes() == PLAN
    assert found.gate.verdict == "not_run"


def test_what_is_not_here_is_none(local: LocalPlans) -> None:
    assert local.find(KEY, KEYS) is None
    add(local, PLAN)
    assert local.find(key_of("n"), KEYS) is None


def test_nobody_else_may_read_or_write_the_folder(local: LocalPlans, tmp_path: Path) -> None:
    add(local, PLAN)
    assert stat.S_IMODE((tmp_path / "engines").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder_of(local) / "plan").stat().st_mode) == 0o444


def test_a_plan_of_an_unknown_secret_is_not_looked_at(local: LocalPlans) -> None:
    add(local, PLAN, secret=OTHER)
    assert local.find(KEY, KEYS) is None
    assert local.find(KEY, dict([OTHER])) is not None


def test_a_plan_of_the_previous_secret_is_accepted_and_the_current_one_preferred(
    local: LocalPlans,
) -> None:
    both = dict([SECRET, OTHER])
    add(local, PLAN, secret=OTHER)
    found = local.find(KEY, both)
    assert found is not None
    assert found.secret_id == OTHER[0]
    add(local, PLAN)
    found = local.find(KEY, both)
    assert found is not None
    assert found.secret_id == SECRET[0]


@pytest.mark.rule("SEC-16")
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("plan", PLAN[:-1] + b"!", "sha256"),
        ("plan", PLAN[:-1], "3999 bytes"),
        ("plan", b"", "0 bytes"),
        ("plan", PLAN + b"!", "4001 bytes"),
        ("meta.json", b"{", "cannot be read"),
        ("meta.json", b"", "cannot be read"),
        ("meta.json", b"[" * 2000, "cannot be read"),
        ("meta.json", b" " * (MIB + 1), "longer than"),
        ("meta.json", write(meta_of(PLAN, build_s=2.0)), "not those that came"),
        ("meta.json", write(meta_of(PLAN, "n")), "another key"),
        ("meta.json", write(replace(meta_of(PLAN), key=key_of("n"))), "not that of its identity"),
    ],
)
def test_files_that_were_altered_here_are_refused_and_may_come_again(
    local: LocalPlans, name: str, data: bytes, reason: str
) -> None:
    add(local, PLAN)
    rewrite(folder_of(local) / name, data)
    digest = folder_of(local).name if local.pair(KEY, SECRET[0]) else "0" * 64
    with pytest.raises(BadPlan, match=reason):
        local.find(KEY, KEYS)
    assert local.find(KEY, KEYS) is None
    assert local.bytes_held() == 0
    assert not local.is_refused(KEY, SECRET[0], digest)
    add(local, PLAN)
    assert local.find(KEY, KEYS) is not None


@pytest.mark.parametrize("name", ["plan", "meta.json"])
def test_a_file_that_is_missing_is_refused(local: LocalPlans, name: str) -> None:
    add(local, PLAN)
    (folder_of(local) / name).unlink()
    with pytest.raises(BadPlan, match="not whole"):
        local.find(KEY, KEYS)


@pytest.mark.rule("SEC-14", "SEC-16")
@pytest.mark.parametrize("name", ["plan", "meta.json"])
def test_a_link_is_not_followed(local: LocalPlans, tmp_path: Path, name: str) -> None:
    add(local, PLAN)
    path = folder_of(local) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadPlan, match="is no file"):
        local.find(KEY, KEYS)


@pytest.mark.rule("SEC-16")
@pytest.mark.parametrize(
    "meta",
    [
        replace(meta_of(PLAN), mac="0" * 64),
        replace(meta_of(PLAN), mac=""),
        signed(meta_of(PLAN), OTHER[1]),
        replace(meta_of(PLAN), model="other"),
        replace(meta_of(PLAN), gate=GateReport("passed")),
    ],
    ids=["wrong", "none", "another fleet's", "altered", "gate forged"],
)
def test_a_mac_that_does_not_hold_is_refused_and_remembered(
    local: LocalPlans, meta: object
) -> None:
    add(local, PLAN, meta=meta)  # type: ignore[arg-type]
    pair = local.pair(KEY, SECRET[0])
    assert pair is not None
    with pytest.raises(BadPlan, match="MAC"):
        local.find(KEY, KEYS)
    assert local.find(KEY, KEYS) is None
    assert local.is_refused(KEY, SECRET[0], pair.digest)
    assert not local.is_refused(KEY, SECRET[0], "0" * 64)


def test_a_good_plan_is_found_though_another_secrets_is_bad(local: LocalPlans) -> None:
    add(local, PLAN, meta=replace(meta_of(PLAN), mac="0" * 64))
    add(local, PLAN, secret=OTHER)
    found = local.find(KEY, dict([SECRET, OTHER]))
    assert found is not None
    assert found.secret_id == OTHER[0]


def test_only_so_many_refusals_are_remembered(local: LocalPlans, tmp_path: Path) -> None:
    for number in range(20):
        add(local, PLAN, meta=replace(meta_of(PLAN), mac=f"{number:064}"))
        with pytest.raises(BadPlan):
            local.find(KEY, KEYS)
    assert len(list((tmp_path / "engines").rglob("*.refused"))) == 16


@pytest.mark.rule("SEC-14")
@pytest.mark.parametrize("bad", ["", "../x", "x" * 63, "A" * 64, "0" * 64 + "\n"])
def test_what_is_no_key_does_not_touch_a_path(local: LocalPlans, bad: str) -> None:
    with pytest.raises(BadName):
        local.find(bad, KEYS)
    with pytest.raises(BadName):
        local.drop(KEY, bad.replace("x", "/"))


# --- the gate ---


def verdict_on(local: LocalPlans, golden: str | None) -> str:
    found = local.find(KEY, KEYS, golden)
    assert found is not None
    return found.gate.verdict


def test_verdict_holds_for_the_recorded_inputs_on_which_it_was_found_and_no_others(
    local: LocalPlans,
) -> None:
    one, other, third = "1" * 64, "2" * 64, "3" * 64
    add(local, PLAN, meta=meta_of(PLAN, gate=GateReport("failed", golden=one)))
    assert [verdict_on(local, golden) for golden in (one, other, None)] == [
        *("failed", "not_run", "not_run")
    ]
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed", golden=other))
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    assert [verdict_on(local, golden) for golden in (one, other, None, third)] == [
        *("failed", "passed", "passed", "not_run")
    ]
    # Nor does a record count under another's name.
    folder = folder_of(local)
    (folder / f"gate-{other}.json").rename(folder / f"gate-{third}.json")
    assert verdict_on(local, third) == "not_run"


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_a_later_devices_verdict_holds(local: LocalPlans, verdict: Verdict) -> None:
    add(local, PLAN)
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, verdict))
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == verdict


def test_the_builds_own_verdict_goes_before_a_later_one(local: LocalPlans) -> None:
    add(local, PLAN, meta=meta_of(PLAN, gate=GateReport("failed", "too far off")))
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate == GateReport("failed", "too far off")


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        write(replace(gate_record(PLAN, "passed"), mac="0" * 64)),
        write(replace(gate_record(PLAN, "failed"), report=GateReport("passed"))),
        write(gate_record(b"other bytes", "passed")),
        write(gate_record(PLAN, "passed", "n")),
    ],
    ids=["no JSON", "MAC", "altered", "another plan", "another key"],
)
def test_a_verdict_that_nobody_vouches_for_is_none(local: LocalPlans, data: bytes) -> None:
    add(local, PLAN)
    (folder_of(local) / "gate.json").write_bytes(data)
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == "not_run"


def test_a_verdict_about_another_plan_is_not_kept(local: LocalPlans) -> None:
    with pytest.raises(BadPlan):
        local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    add(local, PLAN)
    for record in (gate_record(b"x", "passed"), gate_record(PLAN, "passed", "n")):
        with pytest.raises(BadPlan):
            local.put_gate(KEY, SECRET[0], record)


# --- added ---


def test_a_new_plan_takes_the_place_of_the_one_before_it(local: LocalPlans) -> None:
    add(local, PLAN)
    before = local.find(KEY, KEYS)
    add(local, b"another")
    found = local.find(KEY, KEYS)
    assert before is not None
    assert found is not None
    assert found.plan.read_bytes() == b"another"
    # A path names its bytes or nothing: the old one did not become the new one.
    assert not before.plan.exists()
    assert local.bytes_held() < 1000


def test_the_same_plan_may_be_added_again(local: LocalPlans) -> None:
    for _ in range(2):
        add(local, PLAN)
    assert local.find(KEY, KEYS) is not None


def test_a_plan_that_is_added_again_brings_its_verdict(local: LocalPlans) -> None:
    add(local, PLAN)
    with local.scratch() as folder:
        lay_out(folder, PLAN, meta_of(PLAN))
        (folder / "gate.json").write_bytes(write(gate_record(PLAN, "passed")))
        local.add(KEY, SECRET[0], folder)
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == "passed"


def test_what_does_not_belong_to_a_plan_is_not_taken_over(local: LocalPlans) -> None:
    with local.scratch() as folder:
        lay_out(folder, PLAN, meta_of(PLAN), inspector=b"{}")
        (folder / "core").write_bytes(b"x")
        (folder / "cache").mkdir()
        (folder / "cache" / "x").write_bytes(b"x")
        local.add(KEY, SECRET[0], folder)
    assert sorted(path.name for path in folder_of(local).iterdir()) == [
        "inspector.json",
        "meta.json",
        "plan",
    ]


@pytest.mark.parametrize(
    ("plan", "meta", "key"),
    [
        (PLAN[:-1], meta_of(PLAN), KEY),
        (PLAN, meta_of(PLAN), key_of("n")),
        (PLAN, replace(meta_of(PLAN), key=key_of("n")), KEY),
    ],
    ids=["truncated", "of another key", "of no key"],
)
def test_files_that_do_not_fit_are_not_added(
    local: LocalPlans, tmp_path: Path, plan: bytes, meta: PlanMeta, key: str
) -> None:
    with local.scratch() as folder:
        lay_out(folder, plan, meta)
        with pytest.raises(BadPlan):
            local.add(key, SECRET[0], folder)
    assert local.bytes_held() == 0
    assert scratch_of(local, tmp_path) == []


def test_a_dropped_plan_is_gone_and_leaves_no_folders(local: LocalPlans, tmp_path: Path) -> None:
    add(local, PLAN)
    local.drop(KEY, SECRET[0])
    local.drop(KEY, SECRET[0])
    assert local.find(KEY, KEYS) is None
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [".scratch"]


# --- the bound ---


def test_the_least_recently_used_leaves_and_never_the_new_one(tmp_path: Path) -> None:
    bytes_max = 3 * (10_000 + 1_000)
    local = LocalPlans(tmp_path / "engines", bytes_max)
    for name in ("a", "b", "c"):
        add(local, bytes(10_000), name)
    assert local.find(key_of("a"), KEYS) is not None
    add(local, bytes(10_000), "d")
    assert [local.find(key_of(name), KEYS) is not None for name in "abcd"] == [
        True,
        False,
        True,
        True,
    ]
    assert local.bytes_held() <= bytes_max
    add(local, bytes(31_000), "e")
    assert [local.find(key_of(name), KEYS) is not None for name in "acde"] == [
        False,
        False,
        False,
        True,
    ]


def test_the_new_one_stays_even_where_the_clock_went_back(tmp_path: Path) -> None:
    local = LocalPlans(tmp_path / "engines", 15_000)
    add(local, bytes(10_000), "a")
    os.utime(folder_of(local, "a"), (2**33, 2**33))
    add(local, bytes(10_000), "b")
    assert local.find(key_of("b"), KEYS) is not None
    assert local.find(key_of("a"), KEYS) is None


def test_a_plan_counts_as_used_from_when_it_was_added_not_made(tmp_path: Path) -> None:
    local = LocalPlans(tmp_path / "engines", 25_000)
    with local.scratch() as folder:
        lay_out(folder, bytes(10_000), meta_of(bytes(10_000), "a"))
        add(local, bytes(10_000), "b")
        local.add(key_of("a"), SECRET[0], folder)
    add(local, bytes(10_000), "c")
    assert local.find(key_of("a"), KEYS) is not None
    assert local.find(key_of("b"), KEYS) is None


def test_a_plan_above_the_bound_is_refused_with_the_way_out(tmp_path: Path) -> None:
    local = LocalPlans(tmp_path / "engines", 5000)
    add(local, PLAN, "a")
    with pytest.raises(BadPlan, match="at most 5000 bytes of plans: raise --plans-bytes-max"):
        add(local, bytes(5001), "b")
    assert local.find(key_of("a"), KEYS) is not None


def test_a_plan_that_is_replaced_does_not_count_against_its_successor(tmp_path: Path) -> None:
    local = LocalPlans(tmp_path / "engines", 25_000)
    add(local, bytes(10_000), "a")
    add(local, bytes(10_000), "b")
    add(local, b"x" * 10_000, "b")
    assert local.find(key_of("a"), KEYS) is not None


def test_as_few_as_suffice_are_evicted() -> None:
    held = [Held(str(number), 10, number) for number in range(5)]
    assert to_evict(held, 50) == []
    assert [one.name for one in to_evict(held, 49)] == ["0"]
    assert [one.name for one in to_evict(held, 30, keep="0")] == ["1", "2"]
    assert [one.name for one in to_evict(held, 0, keep="4")] == ["0", "1", "2", "3"]
    assert to_evict([], 0) == []


# --- processes ---


def run(target: object, *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(
        target=target,  # type: ignore[arg-type]
        args=arguments,
    )
    process.start()
    return process


def add_again_and_again(root: Path, number: int) -> None:
    local = LocalPlans(root, 60_000)
    for turn in range(25):
        for name in ("a", "b", "c"):
            add(local, bytes([number, turn]) * 10_000, name)
            try:
                found = local.find(key_of(name), KEYS)
                if found is not None:
                    found.plan.stat()
            except FileNotFoundError:
                pass


def test_processes_that_add_at_once_leave_whole_plans_within_the_bound(tmp_path: Path) -> None:
    processes = [run(add_again_and_again, tmp_path / "engines", n) for n in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    local = LocalPlans(tmp_path / "engines", 60_000)
    assert 0 < local.bytes_held() <= 60_000
    places = [path for path in (tmp_path / "engines").glob("[0-9a-f]*/*") if path.is_dir()]
    assert all(len(list(place.iterdir())) == 1 for place in places)
    assert sum(local.find(key_of(name), KEYS) is not None for name in "abc") >= 2


_KILLED = """
import sys
from pathlib import Path
from registry_sync.local_plans import LocalPlans
from tests.support.made_plans import lay_out, meta_of
with LocalPlans(Path(sys.argv[1])).scratch() as folder:
    lay_out(folder, b"plan" * 1000, meta_of(b"plan" * 1000))
    print("made", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(
    local: LocalPlans, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "engines")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        try:
            assert maker.stdout is not None
            assert maker.stdout.readline() == b"made\n"
            with local.scratch():
                assert len(scratch_of(local, tmp_path)) == 2
            maker.send_signal(signal.SIGKILL)
            maker.wait()
        finally:
            maker.kill()
    assert len(scratch_of(local, tmp_path)) == 1
    assert local.bytes_held() == 0
    with local.scratch():
        assert len(scratch_of(local, tmp_path)) == 1


def add_with_small_files(root: Path) -> None:
    # The kernel refuses to let a file grow, as it does on a full disk or over a quota.
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
        add(LocalPlans(root), bytes(2 * MIB))
    os._exit(7)


def test_a_plan_for_which_there_is_no_room_leaves_what_was_there(
    local: LocalPlans, tmp_path: Path
) -> None:
    add(local, PLAN)
    process = run(add_with_small_files, tmp_path / "engines")
    process.join()
    assert process.exitcode == 7
    process.close()
    assert scratch_of(local, tmp_path) == []
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.plan.read_bytes() == PLAN


def test_a_use_counts_from_any_process(local: LocalPlans, tmp_path: Path) -> None:
    add(local, PLAN, "a")
    add(local, PLAN, "b")
    assert LocalPlans(tmp_path / "engines").find(key_of("a"), KEYS) is not None
    bound = LocalPlans(tmp_path / "engines", 2 * len(PLAN) + 3000)
    add(bound, PLAN, "c")
    assert bound.find(key_of("a"), KEYS) is not None
    assert bound.find(key_of("b"), KEYS) is None
