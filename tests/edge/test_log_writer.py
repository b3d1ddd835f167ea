"""Lines from a thread: nobody waits for whoever reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from edge.log_writer import ITEMS_MAX, LogWriter
from tests.support.stack import until

PIPE_BYTES = 1 << 16  # what a pipe takes before it blocks


@contextmanager
def pipe() -> Iterator[tuple[int, LogWriter]]:
    """Make a pipe with a writer; the test reads it."""
    read, write = os.pipe()
    writer = LogWriter(write)
    try:
        yield read, writer
    finally:
        os.close(read)
        writer.close(10.0)
        os.close(write)


def read_all(read: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += os.read(read, 1 << 20)
    return found


def test_lines_come_in_order_rendered_or_not() -> None:
    with pipe() as (read, writer):
        writer.write("one\n")
        writer.put(lambda: b"two\n")
        writer.write("three\n")
        assert read_all(read, 14) == b"one\ntwo\nthree\n"


def test_reader_that_stands_still_blocks_nobody_and_loses_what_is_too_much() -> None:
    line = "x" * 1023 + "\n"
    with pipe() as (read, writer):
        sent = 3 * ITEMS_MAX
        for _ in range(sent):  # would hang here
            writer.write(line)
        kept = sent - writer.lost
        assert ITEMS_MAX <= kept <= ITEMS_MAX + PIPE_BYTES // len(line) + 2
        assert len(read_all(read, kept * len(line))) == kept * len(line), "each of them whole"


def test_reader_that_has_left_costs_the_lines_alone() -> None:
    read, write = os.pipe()
    writer = LogWriter(write)
    os.close(read)
    writer.write("nobody reads this")
    until(lambda: writer.lost == 1)
    writer.write("nor this")
    until(lambda: writer.lost == 2)
    writer.close(10.0)
    os.close(write)


def test_what_was_taken_is_written_before_it_closes() -> None:
    with pipe() as (read, writer):
        for _ in range(50):
            writer.write("x\n")
        writer.close(10.0)
        assert read_all(read, 100) == b"x\n" * 50
