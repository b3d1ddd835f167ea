"""Frames in a folder, and everything that may happen to the folder meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.disk_store import ORPHAN_S_MIN, DiskFault, DiskStore
from tests.support import disk_faults

MIB = 1 << 20
SMALL, LARGE = b"small" * 10, b"large" * 10_000  # in the database; in a file


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "answers"


@pytest.fixture
def store(folder: Path) -> Iterator[DiskStore]:
    store = DiskStore(folder, 64 * MIB)
    store.put(key_of(1), SMALL, 60.0)
    store.put(key_of(2), LARGE, 60.0)
    yield store
    store.close()


def faults(store: DiskStore) -> str:
    """Ask for everything that is there; returns the kind of fault, or what was found."""
    try:
        return repr([store.get(key_of(1)), store.get(key_of(2))])
    except DiskFault as fault:
        return fault.kind


MISSES = repr([None, None])
ALL = repr([SMALL, LARGE])


def works(store: DiskStore) -> bool:
    """Tell whether answers are stored and found."""
    store.put(key_of(9), SMALL, 60.0)
    store.put(key_of(8), LARGE, 60.0)
    return (store.get(key_of(9)), store.get(key_of(8))) == (SMALL, LARGE)


def test_what_was_stored_is_found_also_by_another_process(store: DiskStore, folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_get, (folder, 2)) == LARGE
    assert store.get(key_of(1)) == SMALL
    assert store.get(key_of(3)) is None


def _get(folder: Path, number: int) -> bytes | None:
    return DiskStore(folder, MIB).get(key_of(number))


def test_deleted_and_expired_answers_are_gone(store: DiskStore, folder: Path) -> None:
    store.delete(key_of(2))
    store.delete(key_of(7))
    store.put(key_of(1), SMALL, 0.0)
    assert faults(store) == MISSES
    assert not disk_faults.values(folder)


def test_folder_and_files_are_ours_alone(store: DiskStore, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in disk_faults.values(folder))


def test_bytes_are_bounded(folder: Path) -> None:
    store = DiskStore(folder, 2 * MIB)
    for number in range(2000):
        store.put(key_of(number), SMALL * 10, 60.0)
    for number in range(60):  # each larger than the ten small ones that it pushes out
        store.put(key_of(10_000 + number), LARGE * 4, 60.0)
        assert store.held_bytes() <= 2 * MIB
    assert store.get(key_of(10_059)) == LARGE * 4
    assert not store.put(key_of(1), bytes(MIB // 2), 60.0)
    used = sum(path.stat().st_size for path in disk_faults.values(folder))
    assert used <= 2 * MIB


# --- what never happens ---


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("/tmp/evil-was-here",)


@pytest.mark.rule("SEC-8", "SEC-17")
@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4, 9])
def test_planted_row_is_never_unpickled(store: DiskStore, folder: Path, mode: int) -> None:
    evil = pickle.dumps(Evil())
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("UPDATE Cache SET mode = ?, value = ?, filename = NULL", (mode, evil))
        connection.commit()
    if mode == 1:
        assert store.get(key_of(1)) == evil  # bytes, whose frame will not fit
    else:
        assert faults(store) == "broken"
    assert not Path("/tmp/evil-was-here").exists()


@pytest.mark.rule("SEC-8", "SEC-17")
@pytest.mark.parametrize("mode", [2, 3, 4])
def test_planted_file_is_never_unpickled(store: DiskStore, folder: Path, mode: int) -> None:
    (path,) = disk_faults.values(folder)
    path.write_bytes(pickle.dumps(Evil()))
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("UPDATE Cache SET mode = ? WHERE filename IS NOT NULL", (mode,))
        connection.commit()
    if mode == 2:
        assert store.get(key_of(2)) == path.read_bytes()
    else:
        assert faults(store) == "broken"
    assert not Path("/tmp/evil-was-here").exists()


@pytest.mark.rule("SEC-17")
@pytest.mark.parametrize("value", ["text", 7, 1.5, None, ["list"], bytearray(b"x")])
def test_only_bytes_are_stored(store: DiskStore, value: object) -> None:
    with pytest.raises(DiskFault):
        store.put(key_of(5), value, 60.0)  # type: ignore[arg-type]
    with pytest.raises(DiskFault):
        store.get(value)  # type: ignore[arg-type]


@pytest.mark.rule("SEC-14", "SEC-17")
@pytest.mark.parametrize("name", ["../../victim", "/etc/hostname", "ab/../../../victim", ""])
def test_row_that_names_another_file_neither_reads_nor_removes_it(
    store: DiskStore, folder: Path, tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("UPDATE Cache SET filename = ? WHERE filename IS NOT NULL", (name,))
        connection.commit()
    with pytest.raises(DiskFault, match="none of ours"):
        store.get(key_of(2))
    assert victim.read_bytes() == b"mine"
    assert works(store)


@pytest.mark.rule("SEC-14", "SEC-17")
def test_link_in_place_of_a_file_is_not_followed(store: DiskStore, folder: Path) -> None:
    (path,) = disk_faults.values(folder)
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert store.get(key_of(2)) is None


def test_pipe_in_place_of_a_file_does_not_hold_up(store: DiskStore, folder: Path) -> None:
    (path,) = disk_faults.values(folder)
    path.unlink()
    os.mkfifo(path)
    assert store.get(key_of(2)) == b""


# --- whose folder it is ---


@pytest.mark.rule("SEC-17")
def test_folder_that_is_open_to_others_is_not_used(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o750)
    for act in (lambda store: store.open(), lambda store: store.put(key_of(1), SMALL, 60.0)):
        with pytest.raises(DiskFault, match="open to others: 750, not 700") as caught:
            act(DiskStore(folder, MIB))
        assert caught.value.kind == "insecure"
    assert not list(folder.iterdir())


@pytest.mark.rule("SEC-17")
def test_folder_of_somebody_else_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700, parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(DiskFault, match="belongs to user") as caught:
        DiskStore(folder, MIB).open()
    assert caught.value.kind == "insecure"


@pytest.mark.parametrize("what", ["a link", "a file"])
def test_what_is_no_folder_is_not_used(folder: Path, tmp_path: Path, what: str) -> None:
    folder.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if what == "a link":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.touch()
    with pytest.raises(DiskFault, match="is no folder"):
        DiskStore(folder, MIB).open()
    assert not list((tmp_path / "elsewhere").iterdir())


# --- faults ---


def test_database_of_garbage_is_set_aside_and_made_anew(store: DiskStore, folder: Path) -> None:
    for open_at_the_time in (True, False):
        if not open_at_the_time:
            store.close()
        (folder / "cache.db").write_bytes(os.urandom(1 << 16))
        for suffix in ("-wal", "-shm"):
            (folder / f"cache.db{suffix}").unlink(missing_ok=True)
        # Who has it open may still know what was there, and that is right.
        assert faults(store) == "broken" or (open_at_the_time and faults(store) == ALL)
        assert works(store)
        if open_at_the_time:
            continue
        aside = folder.with_name("answers.broken")
        assert (aside / "cache.db").exists()
        assert not disk_faults.values(aside)


def test_damaged_pages_end_in_misses_and_a_new_database(store: DiskStore, folder: Path) -> None:
    for number in range(100, 400):
        store.put(key_of(number), SMALL * 20, 60.0)
    store.close()
    database = folder / "cache.db"
    size = database.stat().st_size
    with database.open("r+b") as file:
        for at in range(4096, size, 4096):
            file.seek(at)
            file.write(os.urandom(4096))
    with contextlib.suppress(DiskFault):
        store.get(key_of(100))
    with contextlib.suppress(DiskFault):
        store.put(key_of(100), SMALL, 60.0)
    assert works(store)


@pytest.mark.parametrize("left", [0, 100, 4096, 10_000])
def test_database_cut_short_is_made_anew(store: DiskStore, folder: Path, left: int) -> None:
    for is_open in (True, False):
        if not is_open:
            store.close()
        os.truncate(folder / "cache.db", left)
        for _ in range(3):
            with contextlib.suppress(DiskFault):
                store.put(key_of(3), SMALL, 60.0)
        assert works(store)


def test_database_without_its_tables_is_made_anew(store: DiskStore, folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("DROP TABLE Cache")
    assert faults(store) == "broken"
    assert works(store)


def test_planted_setting_is_not_believed(store: DiskStore, folder: Path) -> None:
    store.close()
    with contextlib.closing(sqlite3.connect(folder / "cache.db")) as connection:
        connection.execute("UPDATE Settings SET value = 'none' WHERE key = 'eviction_policy'")
        connection.execute("UPDATE Settings SET value = 1 << 26 WHERE key = 'sqlite_mmap_size'")
        connection.execute("INSERT INTO Settings VALUES ('disk_surprise', 1)")
        connection.commit()
    assert faults(store) == "broken"
    assert works(store)


def test_others_go_on_with_the_new_database(store: DiskStore, folder: Path) -> None:
    other = DiskStore(folder, 64 * MIB)
    assert other.get(key_of(1)) == SMALL
    (folder / "cache.db").write_bytes(bytes(1 << 16))
    until_works(store)
    made = (folder / "cache.db").stat().st_ino
    until_works(other)
    assert (folder / "cache.db").stat().st_ino == made  # they did not set aside the new one
    assert other.get(key_of(9)) == store.get(key_of(9)) == SMALL


def test_fault_of_the_old_database_leaves_the_new_one_alone(store: DiskStore, folder: Path) -> None:
    slow = DiskStore(folder, 64 * MIB)
    slow.open()
    (folder / "cache.db").write_bytes(bytes(1 << 16))
    until_works(store)
    # What `slow` was in the middle of fails only now, on the file that it had open.
    slow._recover(DiskFault("broken", "malformed"))
    assert store.get(key_of(9)) == SMALL


def until_works(store: DiskStore) -> None:
    with contextlib.suppress(DiskFault):
        store.get(key_of(1))
    assert works(store)


@pytest.mark.parametrize("what", ["removed", "moved away"])
def test_folder_that_is_gone_is_made_anew(store: DiskStore, folder: Path, what: str) -> None:
    if what == "removed":
        shutil.rmtree(folder)
    else:
        folder.rename(folder.with_name("gone"))
    assert faults(store) == MISSES
    assert works(store)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_stopped_writer_fails_writes_and_no_reads(store: DiskStore, folder: Path) -> None:
    with disk_faults.held_transaction(folder):
        with pytest.raises(DiskFault) as caught:
            store.put(key_of(3), LARGE, 60.0)
        assert caught.value.kind == "busy"
        assert (store.get(key_of(1)), store.get(key_of(2))) == (SMALL, LARGE)
        assert len(disk_faults.values(folder)) == 1  # the file of what was not stored is gone
    assert works(store)
    assert store.get(key_of(1)) == SMALL


def test_full_disk_gets_the_room_back(tmp_path: Path) -> None:
    with disk_faults.small_disk(tmp_path / "disk"):
        folder = tmp_path / "disk" / "answers"
        store = DiskStore(folder, 64 * MIB)  # more than the disk has
        kinds = []
        for number in range(400):
            try:
                store.put(key_of(number), LARGE, 60.0)
            except DiskFault as fault:
                kinds.append(fault.kind)
        assert set(kinds) == {"full"}
        assert works(store)
        with disk_faults.filled(tmp_path / "disk"):
            with pytest.raises(DiskFault) as caught:
                store.put(key_of(1), LARGE * 5, 60.0)
            assert caught.value.kind == "full"
            for number in range(20):  # with the room that it gave back, or without
                with contextlib.suppress(DiskFault):
                    store.put(key_of(number), LARGE, 60.0)
                with contextlib.suppress(DiskFault):
                    assert store.get(key_of(number)) in (LARGE, None)
        assert works(store)
        store.close()


def test_disk_that_cannot_be_written_fails(tmp_path: Path) -> None:
    with disk_faults.small_disk(tmp_path / "disk", "ro"):
        store = DiskStore(tmp_path / "disk" / "answers", MIB)
        for _ in range(2):
            with pytest.raises(DiskFault) as caught:
                store.put(key_of(1), SMALL, 60.0)
            assert caught.value.kind == "failed"


def test_orphans_are_swept_and_nothing_else(store: DiskStore, folder: Path) -> None:
    (kept,) = disk_faults.values(folder)
    orphans = [folder / "ab" / f"{number:030x}.val" for number in (1, 2)]
    orphans[0].parent.mkdir(exist_ok=True)
    for path in (*orphans, folder / "ab" / "other"):
        path.write_bytes(LARGE)
    long_ago_s = time.time() - ORPHAN_S_MIN - 1
    for path in (orphans[0], kept, folder / "ab" / "other"):
        os.utime(path, (long_ago_s, long_ago_s))
    assert store.sweep() == 1
    assert set(disk_faults.values(folder)) == {kept, orphans[1]}
    assert store.get(key_of(2)) == LARGE


def test_many_processes_share_one_folder(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        failed = pool.starmap(_write_many, [(folder, start) for start in (0, 1000, 2000)])
    assert failed == [0, 0, 0]
    store = DiskStore(folder, 64 * MIB)
    assert all(store.get(key_of(start + 99)) for start in (0, 1000, 2000))


def _write_many(folder: Path, start: int) -> int:
    store, failed = DiskStore(folder, 64 * MIB), 0
    for number in range(start, start + 100):
        try:
            store.put(key_of(number), LARGE if number % 10 == 0 else SMALL, 60.0)
        except DiskFault:
            failed += 1
    return failed
