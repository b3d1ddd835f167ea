"""The audit trail: who changed which document, when and why; one record for each change.

    audit/<day>/<time of day>-<random>.json    audit/2026-11-26/024413.123456Z-3fa94c21d0b7.json

Days and times are UTC by the writer's clock, so keys in order are records in time, and a page is
found by listing the days that it spans.  Records are create-only; nothing here removes one, so
how long they are kept is the bucket's own rule on `audit/`, or whoever removes a day's folder.

Of what a controller decides, key and time follow from the decision, so that whoever finds it can
write its record, and it is there once.

The change comes first, then its record: a trail that cannot be written must not keep an operator
from revoking a key, and a record must not claim what did not happen.  What this costs is that a
process which dies in between leaves a change without a record.  A record that could not be written
is handed back (`Lost`), for the caller to say aloud with everything that it would have said.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from registry_sync.documents import EndpointState
from registry_sync.keys import redact
from registry_sync.stores import Conflict, NotFound, Store, StoreError, StoreUnavailable

SCHEMA: Final = 1
FOLDER: Final = "audit"
REASON_CHARS_MAX: Final = 1024
SHORT_CHARS_MAX: Final = 256
DAYS_DEFAULT: Final = 30  # looked back where no `since` is given
PAGE_MAX: Final = 1000
EXAMINED_MAX: Final = 2000  # records read for one page, however few of them match
DAYS_MAX: Final = 400  # listed for one page
READS_AT_ONCE: Final = 8
BATCH: Final = 32  # records read together
FIRST: Final = datetime(2020, 1, 1, tzinfo=UTC)  # there is nothing older

_AGO = re.compile(r"([0-9]{1,6})([dhm])")
_MINUTES = {"d": 24 * 60, "h": 60, "m": 1}
_ID = re.compile(r"(\d{4}-\d\d-\d\d)/([0-9A-Za-z.-]{0,64})")
_T = TypeVar("_T")
_Short = Annotated[str, Meta(max_length=SHORT_CHARS_MAX)]


class Record(msgspec.Struct, frozen=True):
    """One change; readers ignore fields that they do not know."""

    at: _Short  # UTC, ISO 8601
    by: _Short  # api | cli | controller
    who: _Short  # the key's id; user@host of a command; a controller's epoch
    # endpoint.set | .rollback | .purge | .load | .unload, key.create | .rotate | .revoke,
    # rollout.start | .pause | .resume | .promote | .abort; by the controller, which decides,
    # rollout.begin | .step | .pause | .resume | .promote | .rollback,
    # model.publish, engine.wish | .withdraw | .build | .gc
    what: _Short
    target: _Short  # an endpoint's or model's name, or a key's id
    before: _Short = ""  # the revision, epoch or key id that was replaced; empty: none
    after: _Short = ""  # what replaced it
    why: Annotated[str, Meta(max_length=REASON_CHARS_MAX)] = ""
    request_id: _Short = ""
    outcome: Literal["done", "unknown"] = "done"  # unknown: the store did not answer the write
    schema: Annotated[int, Meta(ge=1, le=SCHEMA)] = SCHEMA


_record_of = msgspec.json.Decoder(Record)


@dataclass(frozen=True, slots=True)
class Actor:
    """On whose behalf something is changed, and why."""

    by: str
    who: str
    why: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A record that could not be written."""

    record: Record
    error: str


@dataclass(frozen=True, slots=True)
class Done(Generic[_T]):
    """A change that was made; `lost` is its record if the trail has it not."""

    result: _T
    lost: Lost | None


@dataclass(frozen=True, slots=True)
class Query:
    """Which records are wanted; empty texts match all."""

    since: datetime
    until: datetime
    endpoint: str = ""  # or model
    key: str = ""  # that did it, or that it was done to
    who: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """One record of the trail; `problem` says why it cannot be read."""

    id: str
    record: Record | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, newest first; `next` is where the next page begins, empty at the end."""

    found: list[Found]
    next: str


def check_reason(text: str) -> str:
    """Return `text` if it may be a record's `why`.

    Raises:
        ValueError: it is longer than 1,024 characters, or has a control character.
    """
    if len(text) > REASON_CHARS_MAX:
        raise ValueError(f"a reason of {len(text)} characters; at most {REASON_CHARS_MAX} are kept")
    if not text.isprintable():
        raise ValueError("a reason is one line of printable text")
    return text


def revisions(after: int) -> tuple[str, str]:
    """Return a record's `before` and `after` for a number that a change raised by 1."""
    return str(after - 1), str(after)


def epochs(state: EndpointState, version: str | None) -> tuple[str, str]:
    """Return a record's `before` and `after` for a purge that led to `state`."""
    if version is not None and version in state.cache_epochs:
        before, after = revisions(state.cache_epochs[version])
        return f"version {version} epoch {before}", f"version {version} epoch {after}"
    before, after = revisions(state.cache_epoch)
    return f"epoch {before}", f"epoch {after}"


def carry_out(
    store: Store,
    actor: Actor,
    what: str,
    target: str,
    act: Callable[[], _T],
    moved: Callable[[_T], tuple[str, str]] = lambda _: ("", ""),
) -> Done[_T]:
    """Make a change and record it; what `act` raises is raised.

    Args:
        store: the registry.
        actor: who does it.
        what: see `Record`.
        target: see `Record`.
        act: makes the change.
        moved: from the result of `act` to the record's `before` and `after`.
    """
    record = _record(actor, what, target)
    try:
        result = act()
    except StoreUnavailable as error:
        # It may have landed: better a record too many than a change that nobody knows of.
        lost = _append(store, replace(record, outcome="unknown"))
        if lost is not None:
            error.add_note(f"the audit trail could not be written either: {lost.error}")
        raise
    before, after = moved(result)
    return Done(result, _append(store, replace(record, before=before, after=after)))


def note(store: Store, actor: Actor, what: str, target: str) -> Lost | None:
    """Record what was done without changing a document; return the record if that fails."""
    return _append(store, _record(actor, what, target))


def record_at(
    at: str, actor: Actor, what: str, target: str, *, before: str = "", after: str = ""
) -> Record:
    """Return the record of what was done at `at`, ISO 8601 with an offset."""
    return replace(_record(actor, what, target), at=at, before=before, after=after)


def append_once(store: Store, record: Record, tag: str) -> None:
    """Write a record whose key follows from itself and `tag`: a second time changes nothing.

    Raises:
        StoreError: it is not known whether the trail has it.
    """
    named = "\0".join((record.what, record.target, record.before, record.after, tag))
    key = _key_of(record, hashlib.sha256(named.encode()).hexdigest()[:12])
    try:
        store.put_new(key, msgspec.json.encode(record))
    except Conflict:
        return  # it is there


def parse_id(text: str) -> str:
    """Return `text` if it is a record's id, or the beginning of one with its whole day.

    Raises:
        ValueError: it is not.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.80} is not the id of a record: expected YYYY-MM-DD/…")
    date.fromisoformat(match[1])
    return text


def parse_time(text: str, now: datetime) -> datetime:
    """Read a day, a time (UTC unless it says otherwise), or how long ago: ``7d``, ``12h``, ``30m``.

    Raises:
        ValueError: it is none of these.
    """
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now - timedelta(minutes=int(ago[1]) * _MINUTES[ago[2]])
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r:.80} is no time: use 2026-11-26, 2026-11-26T02:44:13Z, 7d, 12h or 30m"
        ) from None


def row(found: Found) -> dict[str, object]:
    """Return a record as `tidepool audit --json` and `GET /admin/audit` show it."""
    if found.record is None:
        return {"id": found.id, "error": found.problem}
    shown: dict[str, object] = msgspec.to_builtins(found.record)
    return {"id": found.id, **shown}


def page(store: Store, query: Query, *, limit: int, before: str = "") -> Page:
    """Read records, newest first.

    Args:
        store: the registry.
        query: which of them.
        limit: of the page, 1 to 1,000; it may hold fewer and still have a `next`, since no more
            than 2,000 records are read and 400 days listed for one page.
        before: the former page's `next`.

    Raises:
        ValueError: `before` is not an id.
        StoreError: the registry did not answer.
    """
    assert 1 <= limit <= PAGE_MAX
    latest = _id_of(query.until, "~")  # after every id of that microsecond
    bound = min(latest, parse_id(before)) if before else latest
    earliest = _id_of(max(query.since, FIRST), "")
    days, rest = _days(earliest, bound)
    found: list[Found] = []
    examined = 0
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        for day in days:
            ids = [id for id in _ids_of(store, day) if earliest <= id < bound][::-1]
            for start in range(0, len(ids), BATCH):
                batch = ids[start : start + BATCH]
                for one in threads.map(lambda id: _read(store, id), batch):
                    if one is None or not _matches(one, query):
                        continue
                    if len(found) == limit:
                        return Page(found, found[-1].id)
                    found.append(one)
                examined += len(batch)
                if examined >= EXAMINED_MAX:
                    return Page(found, batch[-1])
    return Page(found, rest)


def _days(earliest: str, bound: str) -> tuple[list[date], str]:
    """Return the days between two ids, the last one first, and where the next page begins."""
    first, last = date.fromisoformat(earliest[:10]), date.fromisoformat(bound[:10])
    count = max(0, (last - first).days + 1)
    days = [last - timedelta(days=back) for back in range(min(count, DAYS_MAX))]
    return days, f"{days[-1].isoformat()}/" if count > DAYS_MAX else ""


def _record(actor: Actor, what: str, target: str) -> Record:
    return Record(
        at=datetime.now(UTC).isoformat(timespec="microseconds"),
        by=actor.by,
        who=redact(actor.who)[:SHORT_CHARS_MAX],
        what=what,
        target=redact(target)[:SHORT_CHARS_MAX],
        why=redact(actor.why)[:REASON_CHARS_MAX],
        request_id=redact(actor.request_id)[:SHORT_CHARS_MAX],
    )


def _append(store: Store, record: Record) -> Lost | None:
    try:
        store.put_new(_key_of(record, secrets.token_hex(6)), msgspec.json.encode(record))
    except StoreError as error:
        return Lost(record, str(error))
    return None


def _key_of(record: Record, tag: str) -> str:
    return f"{FOLDER}/{_id_of(datetime.fromisoformat(record.at), f'-{tag}')}.json"


def _id_of(at: datetime, end: str) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d/%H%M%S.%fZ") + end


def _ids_of(store: Store, day: date) -> Iterator[str]:
    for entry in store.list(f"{FOLDER}/{day.isoformat()}", recursive=False):
        id = entry.key.removeprefix(f"{FOLDER}/").removesuffix(".json")
        if _ID.fullmatch(id):
            yield id


def _read(store: Store, id: str) -> Found | None:
    try:
        data = store.get(f"{FOLDER}/{id}.json").data
        return Found(id, _record_of.decode(data))
    except NotFound:
        return None  # removed since it was listed
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Found(id, None, f"not a record that this release can read: {error}")


def _matches(found: Found, query: Query) -> bool:
    record = found.record
    if record is None:
        return True  # what cannot be read must not be hidden by a filter
    of_key = record.what.startswith("key.")
    return (
        (not query.endpoint or (not of_key and record.target == query.endpoint))
        and (not query.who or record.who == query.who)
        and (
            not query.key
            or record.who == query.key
            or (of_key and query.key in (record.target, record.after))
        )
    )
