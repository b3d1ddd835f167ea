"""Compressed request bodies: gzip and deflate, bounded before anything is made of them."""

from __future__ import annotations

import zlib

from edge.errors import BadRequest, TooLarge

# What zlib calls the formats: gzip with its header, and what HTTP calls deflate, a zlib stream.
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
ENCODINGS = frozenset(_WINDOW_BITS)


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
