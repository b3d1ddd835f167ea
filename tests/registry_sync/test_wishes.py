"""Wishes for plans: written for what is published, one for each device class, and withdrawn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from registry_sync import wishes
from registry_sync.directory import DirectoryStore
from registry_sync.documents import BadDocument
from registry_sync.names import BadName
from registry_sync.publish import publish
from registry_sync.stores import NotFound, Store
from registry_sync.wishes import new_wish
from tests.support.models import identity

KEY = "builds/m/1/sm_86.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A registry with the model `m`, version 1."""
    made = DirectoryStore(tmp_path / "registry")
    publish(made, "m", identity(tmp_path / "m.onnx"))
    return made


def test_a_wish_comes_back_as_it_was_written(store: Store) -> None:
    wish = new_wish("m", "1", "sm_86", "tensorrt_rtx")
    assert wishes.put(store, wish)
    assert wishes.get(store, "m", "1", "sm_86") == wish
    assert wishes.of_version(store, "m", "1") == wishes.everything(store) == [wish]
    assert wish.created


def test_a_second_wish_for_a_device_class_replaces_the_first(store: Store) -> None:
    assert wishes.put(store, new_wish("m", "1", "sm_86"))
    assert not wishes.put(store, new_wish("m", "1", "sm_86", "tensorrt"))
    (found,) = wishes.everything(store)
    assert found.engine == "tensorrt"


def test_only_what_is_published_can_be_wished_for(store: Store) -> None:
    for model, version in (("m", "2"), ("n", "1")):
        with pytest.raises(NotFound):
            wishes.put(store, new_wish(model, version, "sm_86"))
    assert store.list("builds") == []


def test_a_wish_that_is_withdrawn_is_gone(store: Store) -> None:
    wishes.put(store, new_wish("m", "1", "sm_86"))
    wishes.withdraw(store, "m", "1", "sm_86")
    assert wishes.everything(store) == []
    for act in (wishes.withdraw, wishes.get):
        with pytest.raises(NotFound):
            act(store, "m", "1", "sm_86")


@pytest.mark.parametrize(
    "name",
    ["sm_86/../x", "sm_", "sm_8.6", "sm_086", "SM_86", "sm_86\n", "sm_90a", "cpu", "cpu_", "gpu",
     "", "cpu_" + "a" * 61],
)  # fmt: skip
def test_what_is_no_device_class_never_becomes_a_key(store: Store, name: str) -> None:
    with pytest.raises(BadName, match="device class"):
        new_wish("m", "1", name)
    for act in (wishes.withdraw, wishes.get):
        with pytest.raises(BadName):
            act(store, "m", "1", name)


@pytest.mark.parametrize("name", ["sm_75", "sm_121", "cpu_avx512", "cpu_x86-64-v4"])
def test_classes_of_gpus_and_cpus_are_device_classes(name: str) -> None:
    assert wishes.check_device_class(name) == name


def _with(**changes: object) -> bytes:
    wish = msgspec.to_builtins(new_wish("m", "1", "sm_86"))
    return msgspec.json.encode({**wish, **changes})


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"\xff", b"{}", b"[" * 5000, _with(model=1), _with(model="n")),
        *(_with(version="2"), _with(device_class="sm_75"), _with(engine="../x"), _with(schema=2)),
    ],
)
def test_a_wish_that_does_not_fit_is_named_and_hides_no_other(store: Store, data: bytes) -> None:
    wishes.put(store, new_wish("m", "1", "sm_75"))
    store.put_new(KEY, data)
    with pytest.raises(BadDocument, match=KEY):
        wishes.get(store, "m", "1", "sm_86")
    assert [wish.device_class for wish in wishes.everything(store)] == ["sm_75"]
    assert not wishes.put(store, new_wish("m", "1", "sm_86"))


def test_what_a_later_release_adds_to_a_wish_is_passed_over(store: Store) -> None:
    store.put_new(KEY, _with(urgent=True))
    assert wishes.get(store, "m", "1", "sm_86").device_class == "sm_86"


@pytest.mark.parametrize(
    "key",
    ["builds/m/1/sm_86.json.tmp", "builds/m/1/x/sm_86.json", "builds/m/x/sm_86.json",
     "builds/M/1/sm_86.json", "models/m/1/sm_86.json", "builds/m/1/sm_0.json"],
)  # fmt: skip
def test_other_objects_are_no_wishes(key: str) -> None:
    assert wishes.is_wish(KEY)
    assert not wishes.is_wish(key)


def test_of_many_writers_at_once_one_makes_the_wish_and_all_succeed(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: wishes.put(store, new_wish("m", "1", "sm_86")), range(8)))
    assert sorted(made) == [False] * 7 + [True]
