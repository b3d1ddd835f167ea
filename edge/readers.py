"""Reads large bodies in threads of their own, so that small requests need not wait behind them.

Reading holds the interpreter's lock, but lets go of it between the pieces of a large array: a
request that comes meanwhile waits for one piece and not for the whole body.  Few are read at a
time: more would not be faster, and each takes a few times its size while it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from edge.body_msgpack import has_much_to_decode
from edge.body_request import InferRequest
from edge.body_signature import Signature

READ_HERE_BYTES = 256 << 10  # of text; a larger one costs more than going to a thread and back
READERS = 2


class Readers:
    """The threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def read(
        self,
        parse: Callable[[bytes, str | None, Signature], InferRequest],
        body: bytes,
        header_length: str | None,
        signature: Signature,
    ) -> InferRequest:
        """Return what `parse` makes of a body, which may be of any size."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, parse, body, header_length, signature)


def is_long(body: bytes, header_length: str | None, *, is_packed: bool = False) -> bool:
    """Tell whether a body has so much text that it is better read in a thread.

    Args:
        body: of more than `READ_HERE_BYTES`.
        header_length: the value of Inference-Header-Content-Length: behind so many bytes of text
            there are only tensors, which are not read but passed on.
        is_packed: whether it is msgpack, whose bin is passed on as well.
    """
    if is_packed:
        return has_much_to_decode(body, READ_HERE_BYTES)
    if header_length is None:
        return True
    return len(header_length) > len(str(READ_HERE_BYTES)) or (
        header_length.isdecimal() and int(header_length) > READ_HERE_BYTES
    )
