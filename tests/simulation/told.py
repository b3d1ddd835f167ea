"""A registry that tells a queue of its changes, as a bucket tells SQS, and the queue.

Messages come late, in the words of S3, and again unless they are deleted in time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import msgspec

from registry_sync.directory import DirectoryStore
from registry_sync.news import News, read_notice, together

URL: Final = "https://sqs.eu-central-1.amazonaws.com/123456789012/told"
BUCKET, PREFIX = "simulated", "registry/"  # of `fleet.REGISTRY`
LATE_S: Final = 0.8  # a message, after what it tells of
VISIBLE_S: Final = 30.0  # after so long one that was received, and not deleted, comes again
WAIT_S: Final = 20.0  # of a receive
LOOK_S: Final = 0.2


class TellingStore(DirectoryStore):
    """A directory that notes what is changed in it; `told` has the keys that nobody took yet."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.told: list[tuple[float, str]] = []  # from when on it is told, and the key

    def put_new(self, key: str, data: bytes) -> str:
        etag = super().put_new(key, data)
        self._tell(key)
        return etag

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        found = super().put_if(key, data, etag)
        self._tell(key)
        return found

    def put_file_new(self, key: str, path: Path) -> str | None:
        etag = super().put_file_new(key, path)
        self._tell(key)
        return etag

    def put_file_if(self, key: str, path: Path, etag: str) -> str:
        found = super().put_file_if(key, path, etag)
        self._tell(key)
        return found

    def delete(self, key: str) -> None:
        super().delete(key)
        self._tell(key)

    def _tell(self, key: str) -> None:
        if not key.startswith("control/"):
            self.told.append((time.monotonic() + LATE_S, key))


class ToldQueue:
    """What a store tells, for whoever receives."""

    def __init__(self, store: TellingStore) -> None:
        self._store = store

    def receive(self) -> News:
        until_s = time.monotonic() + WAIT_S
        while True:
            now_s = time.monotonic()
            found = [one for one in self._store.told if one[0] <= now_s][:10]
            if found or now_s >= until_s:
                break
            time.sleep(LOOK_S)
        for one in found:
            self._store.told.remove(one)
        again = [(now_s + VISIBLE_S, key) for _, key in found]
        self._store.told += again
        return together(
            map(_receipt, again), (read_notice(_body(key), BUCKET, PREFIX) for _, key in again)
        )

    def delete(self, news: News) -> None:
        self._store.told = [one for one in self._store.told if _receipt(one) not in news.receipts]

    def close(self) -> None:
        pass


def _receipt(message: tuple[float, str]) -> str:
    return f"{message[0]!r} {message[1]}"


def _body(key: str) -> str:
    record: Any = {"s3": {"bucket": {"name": BUCKET}, "object": {"key": PREFIX + key}}}
    return msgspec.json.encode({"Records": [record]}).decode()
