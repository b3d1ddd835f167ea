"""Plans in the registry: one for the fleet, whoever races, dies, stalls or tampers."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync.directory import DirectoryStore
from registry_sync.local_plans import LocalPlans
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.plan_store import (
    ORPHAN_S,
    bring_plan,
    look_pauses,
    mark_used,
    put_gate,
    put_plan,
    read_used,
    used_key,
)
from registry_sync.plans import (
    BadPlan,
    GateRecord,
    GateReport,
    PlanMeta,
    read_gate,
    read_meta,
    signed,
    write,
)
from registry_sync.stores import Entry, Object, Store, StoreUnavailable
from registry_sync.sync import DiskFull, Stopped
from tests.support import plan_writers
from tests.support.faulty_s3 import HOLD, LOSE_ANSWER, RESET, SLOW_DOWN, FaultyS3, faulty_s3
from tests.support.made_plans import KEYS, OTHER, SECRET, add, gate_record, key_of, meta_of
from tests.support.plan_writers import DAY
from tests.support.seaweed import S3Server

MIB = 1 << 20
PLAN = b"plan" * 1000
THEIRS = b"THEY" * 1000
KEY = key_of()
PLACE = f"engines/{KEY}/{SECRET[0]}"
IDS = list(KEYS)
PAUSE_S = 0.3


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def local(tmp_path: Path) -> LocalPlans:
    return LocalPlans(tmp_path / "node")


@pytest.fixture
def other(tmp_path: Path) -> LocalPlans:
    return LocalPlans(tmp_path / "other")


def plan_on(local: LocalPlans) -> bytes | None:
    found = local.find(KEY, KEYS)
    return None if found is None else found.plan.read_bytes()


def put_pair(store: Store, plan: bytes | None, meta: bytes | None) -> None:
    if plan is not None:
        store.put_new(f"{PLACE}/plan", plan)
    if meta is not None:
        store.put_new(f"{PLACE}/meta.json", meta)


def assert_whole(store: Store, plan: bytes) -> None:
    """Check that the registry holds exactly this plan, and metadata that fit it."""
    assert [entry.key for entry in store.list(PLACE)] == [f"{PLACE}/meta.json", f"{PLACE}/plan"]
    assert store.get(f"{PLACE}/plan").data == plan
    meta = read_meta(store.get(f"{PLACE}/meta.json").data)
    assert (meta.plan_sha256, meta.bytes) == (meta_of(plan).plan_sha256, len(plan))


def wait_for(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.005)


# --- races ---


@pytest.mark.parametrize(
    ("url", "writers", "plan_bytes"),
    [("s3", 2, 9 * MIB), ("s3", 8, 50_000), ("directory", 8, 50_000)],
    indirect=["url"],
)
def test_of_racing_writers_one_wins_and_the_others_use_its_plan(
    url: str, store: Store, tmp_path: Path, writers: int, plan_bytes: int
) -> None:
    outcomes = race(url, tmp_path, writers, plan_bytes)
    assert [is_ours for is_ours, _ in outcomes].count(True) == 1
    (plan,) = {plan for _, plan in outcomes}
    assert_whole(store, plan)
    assert read_used(store.get(used_key(KEY)).data) == DAY


def test_of_many_who_replace_an_orphan_one_pair_remains(
    url: str, store: Store, tmp_path: Path
) -> None:
    put_pair(store, THEIRS, None)
    outcomes = race(url, tmp_path, 4, 50_000, 0.5)
    assert any(is_ours for is_ours, _ in outcomes)
    plan = store.get(f"{PLACE}/plan").data
    assert_whole(store, plan)
    assert plan in [plan for is_ours, plan in outcomes if is_ours]
    assert {plan for is_ours, plan in outcomes if not is_ours} <= {plan}


def race(
    url: str, root: Path, writers: int, plan_bytes: int, *pause_s: float
) -> list[tuple[bool, bytes]]:
    with multiprocessing.get_context("spawn").Pool(writers) as processes:
        outcomes = processes.starmap_async(
            plan_writers.put,
            [(url, root, index, plan_bytes, *pause_s) for index in range(writers)],
            chunksize=1,
        )
        wait_for(lambda: len(list(root.glob("ready*"))) == writers or outcomes.ready(), 60.0)
        (root / "go").touch()
        return outcomes.get(60.0)


# --- who dies, stalls or comes late ---


@dataclass
class Proxied:
    """A registry, and a way to it on which faults lie in wait."""

    url: str
    proxy: FaultyS3
    server: str
    patch: pytest.MonkeyPatch

    @contextlib.contextmanager
    def by_proxy(self) -> Iterator[None]:
        """Let whoever opens the registry meanwhile, children too, reach it through the proxy."""
        self.patch.setenv("AWS_ENDPOINT_URL", self.proxy.endpoint)
        yield
        self.patch.setenv("AWS_ENDPOINT_URL", self.server)

    def open(self) -> Store:
        with self.by_proxy():
            return open_store(self.url)


@pytest.fixture
def proxied(seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxied]:
    with faulty_s3(seaweed.endpoint) as proxy:
        yield Proxied(s3_url, proxy, seaweed.endpoint, monkeypatch)


def test_a_writer_killed_between_plan_and_metadata_is_followed_by_the_next(
    proxied: Proxied, tmp_path: Path, local: LocalPlans
) -> None:
    (tmp_path / "go").touch()
    proxied.proxy.match = "meta.json"
    proxied.proxy.faults += [HOLD]
    with proxied.by_proxy():
        writer = multiprocessing.get_context("spawn").Process(
            target=plan_writers.put, args=(proxied.url, tmp_path, 0, 50_000)
        )
        writer.start()
    wait_for(lambda: not proxied.proxy.faults or not writer.is_alive())
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    writer.close()
    with contextlib.closing(open_store(proxied.url)) as store:
        assert [entry.key for entry in store.list(PLACE)] == [f"{PLACE}/plan"]
        assert bring_plan(store, local, KEY, IDS) is None
        add(local, PLAN)
        began_s = time.monotonic()
        assert put_plan(store, local, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
        assert time.monotonic() - began_s >= PAUSE_S
        assert_whole(store, PLAN)


def test_a_writer_who_was_replaced_while_it_stood_still_uses_the_successors_plan(
    proxied: Proxied, local: LocalPlans, other: LocalPlans
) -> None:
    add(local, THEIRS)
    add(other, PLAN)
    proxied.proxy.match = "meta.json"
    proxied.proxy.faults += [HOLD]
    slow = proxied.open()
    outcome: list[bool] = []
    writer = threading.Thread(
        target=lambda: outcome.append(put_plan(slow, local, KEY, SECRET[0], DAY))
    )
    writer.start()
    wait_for(lambda: not proxied.proxy.faults)
    with contextlib.closing(open_store(proxied.url)) as store:
        assert put_plan(store, other, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
        proxied.proxy.release.set()
        writer.join(30.0)
        assert outcome == [False]
        assert_whole(store, PLAN)
    assert plan_on(local) == PLAN
    slow.close()


def test_who_finds_a_plan_waits_for_its_metadata_and_uses_it(
    store: Store, local: LocalPlans, other: LocalPlans
) -> None:
    add(local, PLAN)
    put_pair(store, THEIRS, None)
    outcome: list[bool] = []
    waiting = threading.Thread(
        target=lambda: outcome.append(put_plan(store, local, KEY, SECRET[0], DAY))
    )
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    put_pair(store, None, write(meta_of(THEIRS)))
    waiting.join(30.0)
    assert outcome == [False]
    assert plan_on(local) == THEIRS
    assert_whole(store, THEIRS)


def test_a_change_begins_the_pause_anew(directory: DirectoryStore, local: LocalPlans) -> None:
    add(local, PLAN)
    put_pair(directory, THEIRS, b"{")
    began_s = time.monotonic()
    outcome: list[bool] = []
    waiting = threading.Thread(
        target=lambda: outcome.append(put_plan(directory, local, KEY, SECRET[0], DAY, pause_s=1.0))
    )
    waiting.start()
    waiting.join(0.6)
    directory.put_if(f"{PLACE}/meta.json", b"[", directory.get(f"{PLACE}/meta.json").etag)
    waiting.join(30.0)
    assert outcome == [True]
    assert time.monotonic() - began_s >= 1.6
    assert_whole(directory, PLAN)


def test_waiting_ends_when_the_process_does(directory: DirectoryStore, local: LocalPlans) -> None:
    add(local, PLAN)
    put_pair(directory, THEIRS, None)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(Stopped):
        put_plan(directory, local, KEY, SECRET[0], DAY, stop=stop)
    assert plan_on(local) == PLAN


# --- what does not fit ---

ALTERED = THEIRS[:-1] + b"!"
UNFIT = {
    "no metadata": (THEIRS, None),
    "no plan": (None, write(meta_of(THEIRS))),
    "plan altered": (ALTERED, write(meta_of(THEIRS))),
    "plan truncated": (THEIRS[:-1], write(meta_of(THEIRS))),
    "plan empty": (b"", write(meta_of(THEIRS))),
    "metadata no JSON": (THEIRS, b"{"),
    "metadata too long": (THEIRS, b" " * (MIB + 1)),
    "metadata of another plan": (THEIRS, write(meta_of(PLAN))),
    "metadata of another key": (THEIRS, write(meta_of(THEIRS, "n"))),
    "another key put into them": (THEIRS, write(replace(meta_of(THEIRS, "n"), key=KEY))),
    "huge": (THEIRS, write(replace(meta_of(THEIRS), bytes=1 << 50))),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_pair_that_does_not_fit_is_not_brought_and_is_replaced_after_the_pause(
    directory: DirectoryStore, local: LocalPlans, other: LocalPlans, name: str
) -> None:
    put_pair(directory, *UNFIT[name])
    if None in UNFIT[name]:
        assert bring_plan(directory, other, KEY, IDS) is None
    else:
        with pytest.raises(BadPlan):
            bring_plan(directory, other, KEY, IDS)
    assert other.pair(KEY, SECRET[0]) is None
    add(local, PLAN)
    assert put_plan(directory, local, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
    assert_whole(directory, PLAN)
    assert bring_plan(directory, other, KEY, IDS) == SECRET[0]
    assert plan_on(other) == PLAN


def test_a_large_plan_that_was_altered_in_the_bucket_is_replaced(
    store: Store, local: LocalPlans, other: LocalPlans
) -> None:
    plan = os.urandom(9 * MIB)
    put_pair(store, plan[:-1] + bytes([plan[-1] ^ 1]), write(meta_of(plan)))
    with pytest.raises(BadPlan, match="sha256"):
        bring_plan(store, other, KEY, IDS)
    ours = os.urandom(9 * MIB)
    add(local, ours)
    assert put_plan(store, local, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
    assert_whole(store, ours)


@pytest.mark.rule("SEC-16")
@pytest.mark.parametrize(
    "meta",
    [signed(meta_of(THEIRS), OTHER[1]), replace(meta_of(THEIRS), gate=GateReport("passed"))],
    ids=["another fleet's", "altered"],
)
def test_a_pair_whose_mac_does_not_hold_is_replaced_by_who_found_out(
    store: Store, local: LocalPlans, other: LocalPlans, meta: PlanMeta
) -> None:
    put_pair(store, THEIRS, write(meta))
    assert bring_plan(store, local, KEY, IDS) == SECRET[0]
    with pytest.raises(BadPlan, match="MAC"):
        local.find(KEY, KEYS)
    with pytest.raises(BadPlan, match="MAC"):
        bring_plan(store, local, KEY, IDS)
    add(local, PLAN)
    assert put_plan(store, local, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
    assert_whole(store, PLAN)
    assert bring_plan(store, other, KEY, IDS) == SECRET[0]
    assert plan_on(other) == PLAN


@pytest.mark.rule("SEC-16")
def test_a_plan_that_was_altered_after_it_was_put_is_replaced(
    store: Store, local: LocalPlans
) -> None:
    add(local, PLAN)
    assert put_plan(store, local, KEY, SECRET[0], DAY)
    store.put_if(f"{PLACE}/plan", ALTERED, store.get(f"{PLACE}/plan").etag)
    assert put_plan(store, local, KEY, SECRET[0], DAY, pause_s=PAUSE_S)
    assert_whole(store, PLAN)


@pytest.mark.rule("SEC-16")
def test_a_plan_copied_under_another_secrets_id_is_refused(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    place = f"engines/{KEY}/{OTHER[0]}"
    directory.put_new(f"{place}/plan", PLAN)
    directory.put_new(f"{place}/meta.json", write(meta_of(PLAN)))
    assert bring_plan(directory, local, KEY, [OTHER[0]]) == OTHER[0]
    with pytest.raises(BadPlan, match="MAC"):
        local.find(KEY, dict([OTHER]))


def test_a_plan_under_an_unknown_secret_is_not_asked_for(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    directory.put_new(f"engines/{KEY}/{OTHER[0]}/plan", PLAN)
    directory.put_new(f"engines/{KEY}/{OTHER[0]}/meta.json", write(meta_of(PLAN, secret=OTHER)))
    assert bring_plan(directory, local, KEY, IDS) is None


def test_the_previous_secrets_plan_is_brought_where_the_current_one_has_none_that_fits(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    put_pair(directory, ALTERED, write(meta_of(THEIRS)))
    directory.put_new(f"engines/{KEY}/{OTHER[0]}/plan", PLAN)
    directory.put_new(f"engines/{KEY}/{OTHER[0]}/meta.json", write(meta_of(PLAN, secret=OTHER)))
    assert bring_plan(directory, local, KEY, [SECRET[0], OTHER[0]]) == OTHER[0]
    found = local.find(KEY, dict([SECRET, OTHER]))
    assert found is not None
    assert found.secret_id == OTHER[0]


@pytest.mark.parametrize("bad", ["", "..", "0" * 63, f"{'0' * 64}/.."])
def test_what_is_no_key_does_not_reach_the_store(
    directory: DirectoryStore, local: LocalPlans, bad: str
) -> None:
    for act in (
        lambda: bring_plan(directory, local, bad, IDS),
        lambda: bring_plan(directory, local, KEY, [bad[:2] + "/"]),
        lambda: put_plan(directory, local, bad, SECRET[0], DAY),
        lambda: mark_used(directory, bad, DAY),
    ):
        with pytest.raises(BadName):
            act()


# --- a store that fails ---


class Failing(DirectoryStore):
    """Counts its calls, and fails after so many of them, before or after the deed."""

    calls_left = 1000
    is_after = False

    def _spend(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise StoreUnavailable("told to fail")

    def get(self, key: str) -> Object:
        self._spend()
        return super().get(key)

    def read(self, key: str, offset: int, length: int) -> bytes:
        self._spend()
        return super().read(key, offset, length)

    def list(self, prefix: str, recursive: bool = True) -> list[Entry]:
        self._spend()
        return super().list(prefix, recursive)

    def put_new(self, key: str, data: bytes) -> str:
        if not self.is_after:
            self._spend()
        etag = super().put_new(key, data)
        if self.is_after:
            self._spend()
        return etag

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        self._spend()
        return super().put_if(key, data, etag)

    def put_file_new(self, key: str, path: Path) -> str | None:
        if not self.is_after:
            self._spend()
        etag = super().put_file_new(key, path)
        if self.is_after:
            self._spend()
        return etag

    def put_file_if(self, key: str, path: Path, etag: str) -> str:
        self._spend()
        return super().put_file_if(key, path, etag)


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("found", [(None, None), (THEIRS, None), (THEIRS, write(meta_of(PLAN)))])
def test_a_put_that_fails_anywhere_shows_nothing_wrong_and_the_next_try_succeeds(
    tmp_path: Path, found: tuple[bytes | None, bytes | None], is_after: bool
) -> None:
    for calls in range(100):
        root = tmp_path / f"registry{calls}"
        local = LocalPlans(tmp_path / f"node{calls}")
        other = LocalPlans(tmp_path / f"other{calls}")
        add(local, PLAN)
        put_pair(DirectoryStore(root), *found)
        store = Failing(root)
        store.calls_left, store.is_after = calls, is_after
        try:
            assert put_plan(store, local, KEY, SECRET[0], DAY, pause_s=0.02)
            break
        except StoreUnavailable:
            pass
        with contextlib.suppress(BadPlan):
            bring_plan(DirectoryStore(root), other, KEY, IDS)
        assert plan_on(other) in (None, PLAN)
        assert plan_on(local) == PLAN
        assert put_plan(DirectoryStore(root), local, KEY, SECRET[0], DAY, pause_s=0.02)
        assert_whole(DirectoryStore(root), PLAN)
    assert 4 <= calls < 40


def test_a_put_survives_every_single_fault_of_s3(proxied: Proxied, tmp_path: Path) -> None:
    store = proxied.open()
    for index in range(7):
        for fault in (RESET, SLOW_DOWN, LOSE_ANSWER):
            name = f"{index}{fault}"
            local = LocalPlans(tmp_path / name)
            add(local, PLAN, name)
            proxied.proxy.faults[:] = [*([None] * index), fault]
            assert put_plan(store, local, key_of(name), SECRET[0], DAY, pause_s=PAUSE_S)
            assert bool(proxied.proxy.faults) == (index >= 6)
            proxied.proxy.faults.clear()
            place = f"engines/{key_of(name)}/{SECRET[0]}"
            assert store.get(f"{place}/plan").data == PLAN
            assert read_meta(store.get(f"{place}/meta.json").data) == meta_of(PLAN, name)
    store.close()


# --- what it costs ---


def test_calls_of_s3_are_as_few_as_promised(
    proxied: Proxied, local: LocalPlans, other: LocalPlans, tmp_path: Path
) -> None:
    store, requests = proxied.open(), proxied.proxy.requests
    third = LocalPlans(tmp_path / "third")

    def calls(act: Callable[[], object]) -> int:
        requests.clear()
        act()
        return len(requests)

    add(local, bytes(17 * MIB), inspector=b"{}")
    add(other, PLAN)
    # The day twice, a look, the upload's beginning, three parts, its end; the two files, a list.
    assert calls(lambda: put_plan(store, local, KEY, SECRET[0], DAY)) == 11
    # The day, a look, a list, the metadata; and three parts where they are not known to be there.
    assert calls(lambda: put_plan(store, local, KEY, SECRET[0], DAY)) == 4
    assert calls(lambda: put_plan(store, other, KEY, SECRET[0], DAY)) == 7
    assert calls(lambda: put_plan(store, other, KEY, SECRET[0], DAY)) == 4
    assert calls(lambda: bring_plan(store, other, KEY, ["000000000000", *IDS])) == 3
    assert calls(lambda: bring_plan(store, third, KEY, IDS)) == 5
    assert calls(lambda: put_plan(store, third, KEY, SECRET[0], DAY)) == 4
    assert calls(lambda: bring_plan(store, other, key_of("n"), IDS)) == 1
    assert calls(lambda: mark_used(store, KEY, DAY)) == 1
    assert calls(lambda: mark_used(store, KEY, "2026-11-27")) == 2
    local.put_gate(KEY, SECRET[0], gate_record(bytes(17 * MIB), "passed"))
    assert calls(lambda: put_gate(store, local, KEY, SECRET[0])) == 1
    assert calls(lambda: put_gate(store, local, KEY, SECRET[0])) == 2
    store.close()


@pytest.mark.parametrize("pause_s", [0.1, 1.0, ORPHAN_S, 600.0])
def test_looks_are_few_and_the_first_ones_soon(pause_s: float) -> None:
    looks_s = list(
        itertools.takewhile(lambda at_s: at_s < pause_s, itertools.accumulate(look_pauses(pause_s)))
    )
    assert 11 <= len(looks_s) <= 20
    assert looks_s[0] <= 0.1


# --- a full disk ---


def bring_with_small_files(url: str, data: Path) -> None:
    # The kernel refuses to let a file grow, as it does on a full disk or over a quota.
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, 5 * MIB))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(DiskFull, match=f"plan {KEY}: no room for its {9 * MIB} bytes") as full:
        bring_plan(open_store(url), LocalPlans(data), KEY, IDS)
    assert full.value.retry
    os._exit(7)


def test_a_plan_for_which_there_is_no_room_leaves_nothing_behind(
    store: Store, url: str, tmp_path: Path, local: LocalPlans
) -> None:
    plan = bytes(9 * MIB)
    put_pair(store, plan, write(meta_of(plan)))
    process = multiprocessing.get_context("spawn").Process(
        target=bring_with_small_files, args=(url, tmp_path / "node")
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    process.close()
    assert list((tmp_path / "node").rglob("plan")) == []
    assert list((tmp_path / "node" / ".scratch").iterdir()) == []
    assert bring_plan(store, local, KEY, IDS) == SECRET[0]


def test_a_plan_that_cannot_fit_is_not_begun(
    directory: DirectoryStore, local: LocalPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pair(directory, PLAN, write(meta_of(PLAN)))

    class Disk:
        f_bavail = len(PLAN) - 1
        f_frsize = 1

    monkeypatch.setattr(os, "statvfs", lambda _path: Disk)
    store = Failing(Path(directory.url.removeprefix("file://")))
    store.calls_left = 2  # the list and the metadata
    with pytest.raises(DiskFull):
        bring_plan(store, local, KEY, IDS)


def test_another_failure_of_the_disk_is_not_called_a_full_one(
    directory: DirectoryStore, local: LocalPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_pair(directory, PLAN, write(meta_of(PLAN)))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pwrite", broken)
    with pytest.raises(OSError, match="broken"):
        bring_plan(directory, local, KEY, IDS)
    assert local.pair(KEY, SECRET[0]) is None


# --- the gate's record ---


@pytest.mark.parametrize(
    ("theirs", "ours", "stays"),
    [
        (gate_record(PLAN, "passed"), gate_record(PLAN, "passed"), True),
        (gate_record(PLAN, "failed"), gate_record(PLAN, "passed"), True),
        (gate_record(PLAN, "failed"), gate_record(PLAN, "failed"), True),
        (gate_record(PLAN, "passed"), gate_record(PLAN, "failed"), False),
        (gate_record(THEIRS, "failed"), gate_record(PLAN, "passed"), False),
    ],
)
def test_a_verdict_stays_unless_this_node_knows_worse_or_it_is_about_other_bytes(
    directory: DirectoryStore,
    local: LocalPlans,
    theirs: GateRecord,
    ours: GateRecord,
    stays: bool,
) -> None:
    # Written by another device, so that even equal verdicts differ.
    theirs = replace(theirs, report=replace(theirs.report, device="sm_86 of another node"))
    directory.put_new(f"{PLACE}/gate.json", write(theirs))
    add(local, PLAN)
    local.put_gate(KEY, SECRET[0], ours)
    put_gate(directory, local, KEY, SECRET[0])
    found = read_gate(directory.get(f"{PLACE}/gate.json").data)
    assert found == (theirs if stays else ours)


def test_a_record_that_cannot_be_read_is_replaced(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    directory.put_new(f"{PLACE}/gate.json", b"{")
    add(local, PLAN)
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    put_gate(directory, local, KEY, SECRET[0])
    assert read_gate(directory.get(f"{PLACE}/gate.json").data).report.verdict == "passed"


def test_verdicts_on_recorded_inputs_stay_on_their_nodes(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    golden = "1" * 64
    failed = replace(gate_record(PLAN, "failed").report, golden=golden)
    put_pair(directory, PLAN, write(meta_of(PLAN, gate=failed)))
    directory.put_new(f"{PLACE}/gate.json", write(gate_record(PLAN, "failed", golden="2" * 64)))
    bring_plan(directory, local, KEY, IDS)
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed", golden="2" * 64))
    with pytest.raises(BadPlan, match="no verdict about the plan"):
        put_gate(directory, local, KEY, SECRET[0])
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    put_gate(directory, local, KEY, SECRET[0])
    assert read_gate(directory.get(f"{PLACE}/gate.json").data) == gate_record(PLAN, "passed")
    # Another node gets the one on drawn inputs, though the build came with one of its own.
    local.drop(KEY, SECRET[0])
    bring_plan(directory, local, KEY, IDS)
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == "passed"


def test_this_nodes_own_verdict_is_not_replaced_by_the_registrys(
    directory: DirectoryStore, local: LocalPlans
) -> None:
    put_pair(directory, PLAN, write(meta_of(PLAN)))
    assert bring_plan(directory, local, KEY, IDS) == SECRET[0]
    local.put_gate(KEY, SECRET[0], gate_record(PLAN, "failed"))
    directory.put_new(f"{PLACE}/gate.json", write(gate_record(PLAN, "passed")))
    bring_plan(directory, local, KEY, IDS)
    found = local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == "failed"


# --- the day ---


@pytest.mark.parametrize("stored", [b"{", b"[]", b'{"day": "yesterday"}', b'{"day": 3}', b"\xff"])
def test_a_day_that_cannot_be_read_is_written_anew(
    directory: DirectoryStore, stored: bytes
) -> None:
    directory.put_new(used_key(KEY), stored)
    assert read_used(stored) == ""
    mark_used(directory, KEY, DAY)
    assert read_used(directory.get(used_key(KEY)).data) == DAY


def test_the_day_does_not_go_back(directory: DirectoryStore) -> None:
    for day in (DAY, "2026-11-25"):
        mark_used(directory, KEY, day)
    assert read_used(directory.get(used_key(KEY)).data) == DAY
