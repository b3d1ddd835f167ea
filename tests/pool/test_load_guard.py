"""What is remembered of a load that the process did not survive."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pool.deaths import PAUSE_S_MAX, PAUSE_S_MIN, Deaths, What, after_death, is_suspect, pause_s
from pool.load_guard import LoadGuard, guard_folder
from pool.loaded import CannotLoad

POISON = What("poison", "1", "engine")
OTHER = What("other", "2", "engine")

PATIENCE_S = 20.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# The policy.


def test_pauses_begin_with_the_third_death_and_double_up_to_an_hour() -> None:
    pauses_s = [pause_s(Deaths(count, 100.0), 100.0) for count in range(1, 12)]
    assert pauses_s[:5] == [0.0, 0.0, PAUSE_S_MIN, 2 * PAUSE_S_MIN, 4 * PAUSE_S_MIN]
    assert pauses_s[-1] == PAUSE_S_MAX
    assert pause_s(Deaths(1 << 20, 100.0), 100.0) == PAUSE_S_MAX


def test_pause_runs_out_and_ends_with_the_machine() -> None:
    deaths = Deaths(3, 100.0)
    assert pause_s(deaths, 130.0) == PAUSE_S_MIN - 30.0
    assert pause_s(deaths, 100.0 + PAUSE_S_MIN) == 0.0
    assert pause_s(deaths, 5.0) == 0.0  # its clock has begun anew


def test_everything_that_was_being_loaded_is_under_suspicion() -> None:
    record = after_death({POISON: Deaths(1, 1.0)}, frozenset({POISON, OTHER}), 9.0)
    assert record == {POISON: Deaths(2, 9.0), OTHER: Deaths(1, 9.0)}
    assert is_suspect(record, OTHER)
    assert not is_suspect(record, What("third", "1", "engine"))


# What a process leaves behind.

DIES = """
import os, signal, sys
from pathlib import Path
from pool.load_guard import LoadGuard
guard = LoadGuard(Path(sys.argv[1]), sys.argv[2])
with guard.loading("other", "2", "engine"):
    pass
with guard.loading("poison", "1", "engine"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, incarnation: str) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(folder), incarnation], timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_third_death_in_a_row_keeps_it_from_being_loaded_and_says_so(tmp_path: Path) -> None:
    clock = Clock()
    for count in range(3):
        die(tmp_path, f"dead-{count}")
        guard = LoadGuard(tmp_path, f"live-{count}", clock)
        assert list(guard.refused()) == ([POISON] if count == 2 else [])
        guard.close()
    why = "died 3 times while loading it; the next try is in 60 s"
    with pytest.raises(CannotLoad, match=why), guard.loading(*POISON):
        raise AssertionError("it must not be tried")
    with guard.loading(*OTHER):
        pass  # what came out of its load is under no suspicion
    clock.now_s += PAUSE_S_MIN
    with guard.loading(*POISON):
        pass  # and it has survived
    assert LoadGuard(tmp_path, "last", clock).refused() == {}
    assert json.loads((tmp_path / "deaths.json").read_bytes()) == []


def test_load_that_raises_has_not_killed_anybody(tmp_path: Path) -> None:
    guard = LoadGuard(tmp_path, "a")
    with pytest.raises(CannotLoad, match="no"), guard.loading(*POISON):
        raise CannotLoad("no")
    assert (tmp_path / "a.journal").read_bytes() == b""


def test_process_that_still_loads_is_not_dead(tmp_path: Path) -> None:
    predecessor = LoadGuard(tmp_path, "old")
    with predecessor.loading(*POISON):
        successor = LoadGuard(tmp_path, "new")
        assert successor._record == {}
        assert (tmp_path / "old.journal").exists()


def test_process_that_was_told_to_end_in_a_load_has_not_died_of_it(tmp_path: Path) -> None:
    code = DIES.replace("os.kill(os.getpid(), signal.SIGKILL)", "guard.close(); os._exit(0)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "old"], timeout=60, check=True)
    assert LoadGuard(tmp_path, "new")._record == {}
    assert not (tmp_path / "old.journal").exists()


@pytest.mark.parametrize("damage", [b"", b"+", b'+["poison","1","eng', b"\xff\n\xfe", b"+[1,2]\n"])
def test_journal_that_cannot_be_read_blames_nobody(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "old.journal").write_bytes(damage)
    (tmp_path / "deaths.json").write_bytes(damage)
    guard = LoadGuard(tmp_path, "new")
    with guard.loading(*POISON):
        pass
    assert guard.refused() == {}


def test_folder_that_cannot_be_written_keeps_nothing_from_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    guard = LoadGuard(tmp_path / "file" / "below", "a")
    with guard.loading(*POISON):
        pass


def test_names_of_workers_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    assert guard_folder(tmp_path, "../a/b").parent == tmp_path / "loading"


# Turns.


class Loading(threading.Thread):
    """Loads in a thread until it is let out."""

    def __init__(self, guard: LoadGuard, what: What) -> None:
        super().__init__(daemon=True)
        self.entered = threading.Event()
        self.out = threading.Event()
        self._guard, self._what = guard, what
        self.start()

    def run(self) -> None:
        with self._guard.loading(*self._what):
            self.entered.set()
            self.out.wait(PATIENCE_S)

    def end(self) -> None:
        self.out.set()
        self.join(PATIENCE_S)


def test_what_is_under_suspicion_is_loaded_alone(tmp_path: Path) -> None:
    die(tmp_path, "dead")
    guard = LoadGuard(tmp_path, "live")
    first, second = Loading(guard, OTHER), Loading(guard, What("third", "1", "engine"))
    assert first.entered.wait(PATIENCE_S)
    assert second.entered.wait(PATIENCE_S)
    suspect = Loading(guard, POISON)
    while not guard._waits_alone:
        time.sleep(0.001)
    late = Loading(guard, OTHER)  # who comes later does not keep it waiting for ever
    first.end()
    assert not suspect.entered.wait(0.05)
    assert not late.entered.is_set()
    second.end()
    assert suspect.entered.wait(PATIENCE_S)
    assert not late.entered.wait(0.05)
    suspect.end()
    assert late.entered.wait(PATIENCE_S)
    late.end()
    again = [Loading(guard, POISON), Loading(guard, OTHER)]  # it has survived
    for one in again:
        assert one.entered.wait(PATIENCE_S)
    for one in again:
        one.end()
