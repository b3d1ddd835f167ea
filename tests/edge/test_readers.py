"""Which bodies are read in a thread."""

from __future__ import annotations

import pytest

from edge.readers import READ_HERE_BYTES, is_long

LONG = b" " * (READ_HERE_BYTES + 1)


@pytest.mark.parametrize(
    ("header_length", "expected"),
    [
        (None, True),
        ("0", False),
        ("200", False),  # the rest are tensors
        (str(READ_HERE_BYTES), False),
        (str(READ_HERE_BYTES + 1), True),
        ("9" * 400, True),
        ("no number", True),
        ("-1", False),
    ],
)
def test_body_is_long_by_its_text(header_length: str | None, expected: bool) -> None:
    assert is_long(LONG, header_length) is expected
