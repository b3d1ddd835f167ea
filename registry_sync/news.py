"""What a bucket's messages tell: S3's own event notifications, read without trust.

    {"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "prefix/endpoints%2Fe.json"}}}]}
    {"Event": "s3:TestEvent", …}      once, when the notifications are set up

Only that something changed is taken from them, never what.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from typing import Final

import msgspec

_DOCUMENTS: Final = "endpoints/"
_WISHES: Final = "builds/"
_MANIFESTS: Final = ("models/", "/manifest.json")


class QueueError(Exception):
    """A queue cannot be used; the text says which, and why."""


class Notice(msgspec.Struct, frozen=True):
    """What one message tells of one registry."""

    is_event: bool = False  # S3 told of an object of this registry
    is_document: bool = False  # a spec, a state, keys or a manifest may be another
    is_wish: bool = False  # a wish for a plan may be


class News(msgspec.Struct, frozen=True):
    """What was received at once: by what it is deleted, and what its messages tell together."""

    receipts: tuple[str, ...] = ()
    is_event: bool = False
    is_document: bool = False
    is_wish: bool = False

    @property
    def is_worth_a_look(self) -> bool:
        """Whether something may have changed that the controller follows."""
        return self.is_document or self.is_wish


class _Named(msgspec.Struct):
    name: str


class _Object(msgspec.Struct):
    key: str


class _S3(msgspec.Struct):
    bucket: _Named
    object: _Object


class _Record(msgspec.Struct):
    s3: _S3


class _Message(msgspec.Struct):
    records: list[_Record] | msgspec.UnsetType = msgspec.field(
        name="Records", default=msgspec.UNSET
    )
    event: str = msgspec.field(name="Event", default="")


_message_of = msgspec.json.Decoder(_Message)


def read_notice(body: str, bucket: str, prefix: str) -> Notice:
    """Return what a message tells of the registry below `prefix` ("" or ending in a slash).

    One that cannot be read is worth a look, and no proof that S3 tells of anything.

    >>> event = '{"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "p/%s"}}}]}'
    >>> read_notice(event % "endpoints/a.json", "b", "p/").is_document
    True
    >>> read_notice(event % "control/leader.json", "b", "p/")
    Notice(is_event=True, is_document=False, is_wish=False)
    """
    try:
        message = _message_of.decode(body)
    except msgspec.DecodeError:
        return Notice(is_document=True)
    if message.records is msgspec.UNSET:
        return Notice(is_document=message.event != "s3:TestEvent")
    keys = [
        urllib.parse.unquote_plus(record.s3.object.key).removeprefix(prefix)
        for record in message.records
        if record.s3.bucket.name == bucket
        and urllib.parse.unquote_plus(record.s3.object.key).startswith(prefix)
    ]
    return Notice(bool(keys), any(map(_is_document, keys)), any(map(_is_wish, keys)))


def together(receipts: Iterable[str], notices: Iterable[Notice]) -> News:
    """Return what several messages tell."""
    told = list(notices)
    return News(
        tuple(receipts),
        is_event=any(notice.is_event for notice in told),
        is_document=any(notice.is_document for notice in told),
        is_wish=any(notice.is_wish for notice in told),
    )


def _is_document(key: str) -> bool:
    """Tell whether a key is one that the controller follows: not copies, nor what it wrote itself.

    A state that others are to follow leaves a mark beside the spec, see `registry_sync.endpoints`.
    """
    if key.startswith(_DOCUMENTS):
        return "/" not in key.removeprefix(_DOCUMENTS)
    return key == "keys.json" or (key.startswith(_MANIFESTS[0]) and key.endswith(_MANIFESTS[1]))


def _is_wish(key: str) -> bool:
    return key.startswith(_WISHES)
