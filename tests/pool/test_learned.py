"""What was learned is kept in the registry and on the node, and its loss costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pool import learned
from pool.learned import KEY, Learned
from registry_sync.directory import DirectoryStore
from registry_sync.local import LocalStore
from registry_sync.stores import Object, StoreUnavailable


class Registry(DirectoryStore):
    """A registry that can be away."""

    is_away = False

    def size(self, key: str) -> int:
        self._answer()
        return super().size(key)

    def get(self, key: str) -> Object:
        self._answer()
        return super().get(key)

    def _answer(self) -> None:
        if self.is_away:
            raise StoreUnavailable("no answer")


class Kept:
    """A registry and a node's folder."""

    def __init__(self, folder: Path) -> None:
        self.store = Registry(folder / "registry")
        self.node = folder / "control"
        self.learned = Learned(self.store, LocalStore(self.node))

    def on_another_node(self, folder: Path) -> Learned:
        return Learned(self.store, LocalStore(folder))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_what_is_kept_is_found_by_whoever_leads_next(kept: Kept, tmp_path: Path) -> None:
    other = kept.on_another_node(tmp_path / "other")
    assert other.load() is None
    assert kept.learned.save(b"one")
    assert kept.learned.save(b"two")
    assert other.load() == b"two"


def test_registry_that_fails_leaves_the_copy_of_this_node(kept: Kept) -> None:
    assert kept.learned.save(b"one")
    kept.store.is_away = True
    assert not kept.learned.save(b"two")
    assert not kept.learned.save(b"three")
    assert kept.learned.load() == b"three"


def test_node_without_a_copy_has_nothing(kept: Kept, tmp_path: Path) -> None:
    kept.learned.save(b"one")
    kept.store.is_away = True
    assert kept.on_another_node(tmp_path / "other").load() is None


def test_folder_that_cannot_be_written_costs_the_copy_alone(kept: Kept) -> None:
    documents = kept.node / "documents"
    documents.rmdir()
    documents.write_bytes(b"")
    assert kept.learned.save(b"one")
    assert kept.learned.load() == b"one"
    assert kept.learned.load_local() is None


def test_what_is_too_large_is_not_read(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "BYTES_MAX", 10)
    kept.store.put_new(KEY, b"x" * 11)
    assert kept.learned.load() is None
