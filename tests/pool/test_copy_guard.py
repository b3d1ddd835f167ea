"""What is remembered of a copy that the process did not survive."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pool.copy_guard import DIED, CopyGuard
from tests.support import virtual_time
from tests.support.shadow_bench import BASELINE, CANDIDATE, Bench

DIES = """
import os, signal, sys
from pathlib import Path
from pool.copy_guard import CopyGuard
guard = CopyGuard(Path(sys.argv[1]), sys.argv[2])
guard.begin(("other", "12"))
guard.end()
guard.begin(("m", "2"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, incarnation: str, code: str = DIES, status: int = -signal.SIGKILL) -> None:
    done = subprocess.run([sys.executable, "-c", code, str(folder), incarnation], timeout=60)
    assert done.returncode == status


def test_whose_copy_a_process_has_died_of_is_known_to_all_that_follow(tmp_path: Path) -> None:
    die(tmp_path, "dead")
    assert CopyGuard(tmp_path, "between").deadly == set()  # it may have been killed for anything
    (tmp_path / "another.copy").write_bytes(b"m/3\n")
    die(tmp_path, "dead-too")
    for incarnation in ("first", "second"):
        guard = CopyGuard(tmp_path, incarnation)
        assert guard.deadly == {CANDIDATE}
        guard.begin(BASELINE)
        guard.end()


def test_process_that_ends_otherwise_blames_nobody(tmp_path: Path) -> None:
    die(tmp_path, "dead", DIES.replace('guard.begin(("m", "2"))', "pass"))
    assert CopyGuard(tmp_path, "live").deadly == set()
    assert not (tmp_path / "dead.copy").exists()


def test_process_that_gives_up_because_of_a_copy_blames_it(tmp_path: Path) -> None:
    (tmp_path / "before.copy").write_bytes(b"m/2\n")
    gives_up = DIES.replace("os.kill(os.getpid(), signal.SIGKILL)", "guard.blame(); guard.end()")
    die(tmp_path, "dead", gives_up, 0)
    assert CopyGuard(tmp_path, "live").deadly == {CANDIDATE}


def test_process_that_runs_a_copy_is_not_dead(tmp_path: Path) -> None:
    predecessor = CopyGuard(tmp_path, "old")
    predecessor.begin(CANDIDATE)
    assert CopyGuard(tmp_path, "new").deadly == set()
    assert (tmp_path / "old.copy").exists()


@pytest.mark.parametrize("damage", [b"", b"\n", b"/\n", b"m\n", b"\xff\xfe\n", bytes(512)])
def test_note_that_cannot_be_read_blames_nobody(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "old.copy").write_bytes(damage)
    (tmp_path / "older.copy").write_bytes(damage)
    assert CopyGuard(tmp_path, "new").deadly == set()


def test_folder_that_cannot_be_written_keeps_no_copy_from_running(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    guard = CopyGuard(tmp_path / "file" / "below", "a")
    guard.begin(CANDIDATE)
    guard.end()
    assert guard.deadly == set()


def test_candidate_that_has_killed_a_worker_is_given_no_copy_and_shown_as_failed(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.copy").write_bytes(b"m/2\n")

    async def main() -> None:
        bench = Bench(guard=CopyGuard(tmp_path, "live"))
        for _ in range(3):
            bench.call()
            await asyncio.sleep(1)
        count = bench.count
        assert (count.offered, count.failed, count.dropped) == (3, 1, 2)
        assert count.last_failure == DIED
        assert bench.copies() == []

    virtual_time.run(main())


def test_copy_is_noted_while_it_runs_and_no_longer(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(guard=CopyGuard(tmp_path, "live"))
        note = tmp_path / "live.copy"
        bench.call()
        while not bench.copies():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert note.read_bytes().startswith(b"m/2\n")
        await asyncio.sleep(1)
        assert note.read_bytes().startswith(b"\n")
        bench.call()
        while len(bench.copies()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        bench.shadows.close()
        assert note.read_bytes().startswith(b"\n")
        await asyncio.sleep(1)

    virtual_time.run(main())
