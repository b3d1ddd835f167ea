"""Very many requests that no client would send, quickly: bases by hypothesis, then accidents.

Hypothesis finds odd requests and is slow; here its finds meet with many accidents each, of their
bytes or of their documents' values, which cost microseconds.  The same seed gives the same ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support import fuzz
from tests.support.fuzz import Request

CONNECTIONS = 8
ANSWER_S_MAX = 60.0
GRAFTED_SHARE = 0.5
HEAD_SHARE = 0.1  # of the requests whose heads meet with accidents; they need their own connection
UNTOUCHED_SHARE = 0.02
SPLICED_SHARE = 0.1
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r$")


def found_by(strategy: st.SearchStrategy[Request], count: int) -> list[Request]:
    """Return what hypothesis makes of a strategy, always the same."""
    found: list[Request] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def take(request: Request) -> None:
        found.append(request)

    take()
    return found


def bases(count: int) -> list[Request]:
    """Return requests to begin with: valid ones, and as many others.

    None that sets itself a deadline: an accident may leave it no time, and its 504 would be right.
    """
    drawn = [
        *found_by(fuzz.json_requests(), count // 2),
        *found_by(fuzz.msgpack_requests(), count // 4),
        *found_by(fuzz.mutated_requests(), count // 4),
    ]
    sets_none = [one for one in drawn if b"timeout" not in one.body]
    for one in sets_none:
        one.headers.pop("x-request-timeout-seconds", None)
    return [*fuzz.valid_requests() * (count // 10), *sets_none]


def accident(raw: bytes, draw: random.Random) -> bytes:
    """Return `raw` after a few accidents; see `fuzz.mutated`."""
    found = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        if not found:
            break
        at = draw.randrange(len(found))
        size = draw.randint(1, 12)
        match draw.randrange(7):
            case 0:
                found[at] ^= 1 << draw.randrange(8)
            case 1:
                del found[at : at + size]
            case 2:
                found[at:at] = found[at : at + size]
            case 3:
                found[at:at] = draw.randbytes(size)
            case 4:
                found[at:at] = draw.choice(fuzz.TOKENS)
            case 5:
                to = draw.randrange(len(found))
                found[to : to + size] = found[at : at + size]
            case 6:
                del found[at:]
    return bytes(found)


Document = dict[str, Any]


def document_of(request: Request) -> Document | None:
    """Return the document in a body; None where it is in none of the plain forms."""
    is_packed = request.headers.get("content-type") == "application/msgpack"
    try:
        found = msgpack.unpackb(request.body) if is_packed else json.loads(request.body)
    except (ValueError, msgpack.UnpackException):
        return None
    return found if isinstance(found, dict) else None


def grafted(document: Any, scion: Any, draw: random.Random) -> Any:
    """Return a document with another value somewhere in it: of its own or somebody else's."""
    if not isinstance(document, dict | list) or not document or draw.random() < 0.15:
        return draw.choice([scion, *ODD])
    grown = document.copy()
    keys: list[Any] = list(grown) if isinstance(grown, dict) else list(range(len(grown)))
    key = draw.choice(keys)
    match draw.randrange(8):
        case 0:
            del grown[key]
        case 1 if isinstance(grown, list):
            grown.insert(key, grown[key])
        case 1:
            grown[str(draw.choice(list(NAMES)))] = grown.pop(key)
        case _:
            grown[key] = grafted(grown[key], scion, draw)
    return grown


def part_of(document: Any, draw: random.Random) -> Any:
    """Return some value out of a document."""
    while isinstance(document, dict | list) and document and draw.random() < 0.8:
        document = draw.choice(list(document.values() if isinstance(document, dict) else document))
    return document


NAMES = ("inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "x", "")
ODD = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        2**64 - 1,
        -(2**63),
        1e308,
        "",
        "x",
        "é\x00",
        "9" * 300,
    ),
    *(
        [],
        {},
        [[]],
        [[[[]]]],
        {"": {}},
        [None],
        ["1"],
        [0] * 300,
        "INT64",
        "FP16",
        "BYTES",
        b"\xff",
    ),
)


def body_with(request: Request, document: Any) -> bytes:
    """Return a document in the request's own form."""
    if request.headers.get("content-type") == "application/msgpack":
        try:
            return bytes(msgpack.packb(document))
        except (OverflowError, ValueError):  # what msgpack cannot say
            return request.body
    return json.dumps(document, default=lambda raw: raw.decode("latin-1")).encode()


@dataclass(frozen=True)
class Sent:
    """What goes over a connection, and whether its head is whole, so that others may follow it."""

    raw: bytes
    is_framed: bool


def requests(count: int, key: str, base: Sequence[Request], seed: int) -> Iterator[Sent]:
    """Yield so many requests."""
    draw = random.Random(seed)
    documents = {id(one): document_of(one) for one in base}
    known = [document for document in documents.values() if document]
    for _ in range(count):
        one = draw.choice(base)
        kind = draw.random()
        document = documents[id(one)]
        if kind < UNTOUCHED_SHARE:
            body = one.body
        elif document and kind < UNTOUCHED_SHARE + GRAFTED_SHARE:
            for _ in range(draw.randint(1, 2)):
                document = grafted(document, part_of(draw.choice(known), draw), draw)
            body = body_with(one, document)
        elif kind < UNTOUCHED_SHARE + GRAFTED_SHARE + SPLICED_SHARE:
            other = draw.choice(base).body
            body = one.body[: draw.randint(0, len(one.body))]
            body += other[draw.randint(0, len(other)) :]
        else:
            body = accident(one.body, draw)
        whole = fuzz.rendered(Request(one.path, body, one.headers), key)
        if draw.random() < HEAD_SHARE:
            head, blank, _ = whole.partition(b"\r\n\r\n")
            yield Sent(accident(head, draw) + blank + body, is_framed=False)
        elif one.path.endswith("generate_stream"):
            yield Sent(whole, is_framed=False)
        else:
            yield Sent(whole.replace(b"connection: close\r\n", b"", 1), is_framed=True)


@dataclass
class Storm:
    """Sends requests over a few connections at once, and looks at each answer.

    Args:
        port: of a server of this host.
        look: takes what was sent, the status, or 0 for none, and all that was received.
    """

    port: int
    look: Callable[[Sent, int, bytes], None]
    took_s: list[float] = field(default_factory=list)  # of the framed ones

    async def send(self, count: int, key: str, base: Sequence[Request], seed: int) -> None:
        """Send so many; ends with the first that `look` does not like."""
        source = requests(count, key, base, seed)
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._client(source))

    async def _client(self, source: Iterator[Sent]) -> None:
        kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for sent in source:
            if not sent.is_framed:
                self.look(sent, *_first_of(await self._alone(sent.raw)))
                continue
            began_s = time.perf_counter()
            received = b""
            if kept is not None:
                received, is_kept = await _exchange(*kept, sent.raw)
                if not is_kept:
                    kept[1].close()
                    kept = None
            if not received:  # the server had hung up before it read this one
                kept = await self._dial()
                received, is_kept = await _exchange(*kept, sent.raw)
                if not is_kept:
                    kept[1].close()
                    kept = None
            self.took_s.append(time.perf_counter() - began_s)
            self.look(sent, *_first_of(received))
        if kept is not None:
            kept[1].close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def _alone(self, raw: bytes) -> bytes:
        """Send bytes, say that no more come, and read until the connection ends."""
        reader, writer = await self._dial()
        received = b""
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                writer.write(raw)
                writer.write_eof()
                while more := await reader.read(1 << 16):
                    received += more
        except OSError:
            pass  # it was closed before it was read
        finally:
            writer.close()
        return received


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes
) -> tuple[bytes, bool]:
    """Send one request and read its answer; tell whether the connection can be used again."""
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:  # it ends with the connection
                return head + await reader.read(), False
            body = await reader.readexactly(int(length[1]))
            return head + body, b"connection: close" not in head.lower()
    except asyncio.IncompleteReadError as error:
        return error.partial, False
    except OSError:
        return b"", False


def _first_of(received: bytes) -> tuple[int, bytes]:
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
    worst = max((s for s in statuses if s >= 500), default=0)
    return worst or (statuses[0] if statuses else 0), received


def run(storm: Storm, count: int, key: str, base: Sequence[Request], seed: int = 0) -> Any:
    """Send so many, on a loop of its own."""
    return asyncio.run(storm.send(count, key, base, seed))
