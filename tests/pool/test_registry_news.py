"""A controller's looks at a bucket that tells a queue of its changes; both answer over HTTP.

Some are at a folder of which nobody tells.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pool import look_pace, registry_news
from pool.registry_news import RegistryNews
from pool.registry_watch import RegistryWatch
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointSpec, Keys, Variant, write
from registry_sync.keys import KEYS_KEY, make_key
from registry_sync.notifications import Queue
from registry_sync.open import open_store
from registry_sync.stores import Object, Store, StoreUnavailable
from tests.support.aws import AwsServer
from tests.support.published import publish
from tests.support.told_bucket import told_bucket

NEVER_S = 3600.0


class Secretive:
    """A store that answers, and may keep the keys to itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.keeps_keys = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_if_changed(self, key: str, etag: str | None) -> Object | None:
        if self.keeps_keys and key == KEYS_KEY:
            raise StoreUnavailable(f"{key}: no answer")
        return self._store.get_if_changed(key, etag)


class Looks:
    """Looks at a registry, and counts them."""

    def __init__(self, store: Store) -> None:
        self.store = Secretive(store)
        self.watch = RegistryWatch(self.store)  # type: ignore[arg-type]
        self.count = 0
        self.fails = False
        self.may_act = True
        self.lapsed = asyncio.Event()
        self._looking = asyncio.Lock()  # a watch is for one at a time, as the controller sees to

    async def look(self, *, is_asked: bool = False) -> bool | None:
        self.count += 1
        if self.fails:
            return None
        async with self._looking:
            changed = await asyncio.to_thread(self.watch.poll, is_asked=is_asked)
            return changed if self.watch.is_whole else None


@pytest.fixture
def told(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A bucket and the URL of its queue, which are read without pauses."""
    monkeypatch.setattr(registry_news, "RECEIVES_APART_S", 0.01)
    return told_bucket(aws)


@pytest.fixture
def store(told: tuple[str, str]) -> Iterator[Store]:
    with contextlib.closing(open_store(f"s3://{told[0]}/fleet")) as store:
        publish(store, "1")
        yield store


@contextlib.asynccontextmanager
async def following(
    looks: Looks, url: str, registry: str, interval_s: float = NEVER_S
) -> AsyncIterator[None]:
    with contextlib.ExitStack() as stack:
        queue = None
        if url:
            queue = stack.enter_context(contextlib.closing(Queue(url, registry, wait_s=0)))
        news = RegistryNews(queue, looks.look, lambda: looks.may_act, looks.lapsed, interval_s)
        task = asyncio.get_running_loop().create_task(news.run_forever())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        news._thread.shutdown()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def quiet(looks: Looks) -> int:
    """Wait until nobody looks any more, and return how many looks there have been.

    That is what is asserted: at a pace of 0.02 s it does not come about.
    """
    before = -1
    async with asyncio.timeout(10):
        while looks.count > before:
            before = looks.count
            await asyncio.sleep(0.2)
    return before


def put_spec(store: Store, name: str = "e") -> None:
    spec = EndpointSpec(name, (Variant("a", "m", "1", 100.0),), revision=1)
    store.put_new(f"endpoints/{name}.json", write(spec))


def held(aws: AwsServer, url: str) -> int:
    """Return how many messages are in a queue, those that somebody has in hand too."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = aws.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=names)
    return sum(map(int, found["Attributes"].values()))


async def test_message_is_a_look_at_once_and_is_deleted_after_it(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    looks = Looks(store)
    async with following(looks, told[1], store.url):
        await until(lambda: looks.count and not held(aws, told[1]))
        put_spec(store)
        await until(lambda: "e" in looks.watch.snapshot.specs)
        await until(lambda: not held(aws, told[1]))


async def test_what_the_controller_wrote_itself_is_no_look(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    looks = Looks(store)
    async with following(looks, told[1], store.url):
        await until(lambda: looks.count and not held(aws, told[1]))
        before = looks.count
        store.put_new("endpoints/e/state.json", b"{}")
        await until(lambda: not held(aws, told[1]))
        assert looks.count == before


async def test_message_stays_while_the_registry_does_not_answer(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    looks = Looks(store)
    async with following(looks, told[1], store.url):
        await until(lambda: looks.count and not held(aws, told[1]))
        looks.fails, before = True, looks.count
        put_spec(store)
        await until(lambda: looks.count > before)
    assert held(aws, told[1]) == 1


async def test_who_does_not_lead_neither_receives_nor_looks(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    looks = Looks(store)
    looks.may_act = False
    async with following(looks, told[1], store.url):
        await asyncio.sleep(0.1)
        assert looks.count == 0
        assert held(aws, told[1])
        looks.may_act = True
        await until(lambda: looks.count and not held(aws, told[1]))


async def test_without_its_queue_a_controller_looks_at_the_usual_pace(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    sqs = aws.client("sqs")
    sqs.delete_queue(QueueUrl=told[1])
    looks = Looks(store)
    with capture_logs() as logs:
        async with following(looks, told[1], store.url, interval_s=0.02):
            await until(lambda: looks.count > 5)
            sqs.create_queue(QueueName=told[0])
            await until(lambda: any(log["event"] == "notifications_back" for log in logs))
            before = await quiet(looks)
            sqs.delete_queue(QueueUrl=told[1])
            await until(lambda: looks.count > before + 3)
    assert [log["event"] for log in logs].count("notifications_unreachable") == 2


async def test_change_of_which_nobody_told_is_found_and_the_queue_not_relied_on(
    aws: AwsServer, told: tuple[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_pace, "SLOW_S", 0.3)
    aws.client("s3").put_bucket_notification_configuration(
        Bucket=told[0], NotificationConfiguration={}
    )
    looks = Looks(store)
    with capture_logs() as logs:
        async with following(looks, told[1], store.url, interval_s=0.02):
            # The messages of what is there are a look, which must not be what finds the spec.
            await until(lambda: looks.count >= 2 and not held(aws, told[1]))
            put_spec(store)
            await until(lambda: any(log["event"] == "notifications_missed" for log in logs))
            monkeypatch.setattr(look_pace, "SLOW_S", NEVER_S)
            before = looks.count
            await until(lambda: looks.count > before + 3)
    assert "e" in looks.watch.snapshot.specs


async def test_keys_that_could_not_be_read_are_looked_for_at_the_usual_pace(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    """Or a key that is revoked would be good until the next look of the slow pace."""
    looks = Looks(store)
    store.put_new(KEYS_KEY, write(Keys((make_key("t", ["infer:*"])[1],))))
    revoked = write(Keys(()))
    with capture_logs() as logs:
        async with following(looks, told[1], store.url, interval_s=0.02):
            await until(lambda: looks.watch.snapshot.key_bytes and not held(aws, told[1]))
            before = await quiet(looks)
            looks.store.keeps_keys = True
            store.put_if(KEYS_KEY, revoked, store.get(KEYS_KEY).etag)
            await until(lambda: looks.count > before + 4)
            assert held(aws, told[1]) == 1
            assert looks.watch.snapshot.key_bytes != revoked
            looks.store.keeps_keys = False
            await until(lambda: looks.watch.snapshot.key_bytes == revoked)
            await quiet(looks)
    assert not [log for log in logs if log["event"].startswith("notifications")]


async def test_reign_that_ends_and_begins_within_a_pause_begins_with_a_look(
    aws: AwsServer, told: tuple[str, str], store: Store
) -> None:
    looks = Looks(store)
    async with following(looks, told[1], store.url):
        await until(lambda: looks.count and not held(aws, told[1]))
        before = await quiet(looks)
        looks.lapsed.set()
        await until(lambda: looks.count == before + 1)
        looks.may_act = False
        looks.lapsed.set()
        await asyncio.sleep(0.1)
        assert looks.count == before + 1
        looks.may_act = True
        await until(lambda: looks.count == before + 2)


async def test_without_a_queue_looks_are_at_the_usual_pace_and_at_once_in_a_new_reign(
    tmp_path: Path,
) -> None:
    looks = Looks(DirectoryStore(tmp_path))
    async with following(looks, "", "", interval_s=0.02):
        await until(lambda: looks.count > 5)
    looks = Looks(DirectoryStore(tmp_path))
    async with following(looks, "", ""):
        await until(lambda: looks.count == 1)
        looks.lapsed.set()
        await until(lambda: looks.count == 2)
