"""Compressed bodies, gzip and deflate: requests bounded before anything is made of them, answers.

A request is decompressed whatever its size.  An answer is compressed for who asks for it: by an
Accept-Encoding that names one of the two and no other coding, as tritonclient's
`response_compression_algorithm` does.  Most HTTP libraries list all that they could read with
every request, without a wish of anybody's; compressing tensors for them would cost far more time
than it saves.
"""

from __future__ import annotations

import asyncio
import functools
import zlib

from edge.errors import BadRequest, TooLarge

# What zlib calls the formats: gzip with its header, and what HTTP calls deflate, a zlib stream.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
ENCODINGS = frozenset(_WINDOW_BITS)
LEVEL = 1  # the client waits for it: a higher level costs more time than it saves on most links
DEFLATED_HERE_BYTES = 16 << 10  # a larger one is compressed in a thread
HEADER_CHARS_MAX = 256  # of an Accept-Encoding that is looked at and remembered
# A tensor of zeros compresses a thousandfold and is no attack; 8 MB of them are cheap enough to
# find out.  Larger ones must not be made of next to nothing.
INFLATED_BYTES_FREE = 8 << 20
RATIO_MAX = 20


def inflated_bytes_max(body_bytes: int, bytes_max: int) -> int:
    """Return how large a compressed body may become.

    Args:
        body_bytes: of the body as it came.
        bytes_max: of any body.

    >>> [inflated_bytes_max(size, 64 << 20) >> 20 for size in (1, 1 << 20, 10 << 20)]
    [8, 20, 64]
    """
    return min(bytes_max, max(INFLATED_BYTES_FREE, body_bytes * RATIO_MAX))


def inflate(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """Return the body as it was before it was compressed.

    Args:
        body: whole, as it came.
        encoding: one of `ENCODINGS`.
        bytes_max: of the result; a bomb is refused after so much.

    Raises:
        BadRequest: it is not of that encoding, is cut off, or has something behind it.
        TooLarge: the result would be over `bytes_max`.
    """
    inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        found = inflater.decompress(body, bytes_max + 1)
    except zlib.error:
        raise BadRequest(f"the body is not {encoding}, as Content-Encoding says") from None
    if len(found) > bytes_max:
        raise TooLarge(f"the body is over {bytes_max} bytes once it is decompressed")
    if not inflater.eof:
        raise BadRequest(f"the {encoding} body is cut off")
    if inflater.unused_data:
        raise BadRequest(f"{len(inflater.unused_data)} bytes are left behind the {encoding} body")
    return found


def deflate(body: bytes, encoding: str) -> bytes:
    """Return `body` compressed; `encoding` is one of `ENCODINGS`."""
    deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return deflater.compress(body) + deflater.flush()


async def encoded(body: bytes, accept_encoding: str) -> tuple[bytes, list[tuple[str, str]]]:
    """Compress an answer if the client asks for it.

    Args:
        body: the answer's.
        accept_encoding: the header's value.

    Returns:
        The body, and the headers that belong to it.
    """
    encoding = wanted(accept_encoding) if len(accept_encoding) <= HEADER_CHARS_MAX else ""
    if not encoding:
        return body, []
    if len(body) <= DEFLATED_HERE_BYTES:
        small = deflate(body, encoding)
    else:
        small = await asyncio.to_thread(deflate, body, encoding)
    return small, [("content-encoding", encoding), ("vary", "accept-encoding")]


@functools.lru_cache(maxsize=256)
def wanted(accept_encoding: str) -> str:
    """Return the one coding that an Accept-Encoding asks for; empty if it asks for none.

    >>> wanted("gzip"), wanted("deflate;q=0.5, identity;q=0"), wanted("gzip, deflate, br")
    ('gzip', 'deflate', '')
    """
    named = []
    for choice in accept_encoding.lower().split(","):
        coding, _, weight = (part.strip() for part in choice.partition(";"))
        is_refused = weight.replace(" ", "").rstrip("0").rstrip(".") in ("q=0", "q=")
        if coding and coding != "identity" and not is_refused:
            named.append(coding)
    return named[0] if len(named) == 1 and named[0] in ENCODINGS else ""
