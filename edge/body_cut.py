"""Large flat arrays of numbers, cut out of a JSON body before it is read.

A body is read in two steps: as a whole, to find its tensors, and each tensor's numbers, by its
datatype.  For 150,000 numbers the first step is a third of the work and learns nothing, so such an
array is replaced by a word of its own before it, and the second step reads what was cut.  What was
cut is checked as JSON there; a word that turns up anywhere but as the data of a tensor means that
the body is none of the usual ones, and is read anew as a whole.
"""

from __future__ import annotations

import secrets

CUT_BYTES_MIN = 64 << 10
_KEY = b'"data"'
_BLANKS = b" \t\n\r"
_WORD = secrets.token_hex(16).encode()  # nobody outside of this process can write it


def cut(text: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Replace the large flat arrays behind keys called `data`.

    Returns:
        The text with a JSON string in the place of each, and the arrays by these strings.
    """
    if len(text) < CUT_BYTES_MIN:
        return text, {}
    arrays: dict[bytes, bytes] = {}
    parts: list[bytes] = []
    done = at = 0
    while (at := text.find(_KEY, at)) >= 0:
        at += len(_KEY)
        start = _start_of_array(text, at)
        end = text.find(b"]", start) + 1 if start else 0
        if end - start < CUT_BYTES_MIN:
            continue
        array = text[start:end]
        # An array within it or a string: not only numbers.
        if array.rfind(b"[") or b'"' in array:
            break
        word = b'"%b-%d"' % (_WORD, len(arrays))
        arrays[word] = array
        parts += (text[done:start], word)
        done = at = end
    if not arrays:
        return text, arrays
    parts.append(text[done:])
    return b"".join(parts), arrays


def _start_of_array(text: bytes, at: int) -> int:
    """Return where an array begins that is the value of the key which ends at `at`; 0 if none."""
    head = text[at : at + 16].lstrip(_BLANKS)
    if not head.startswith(b":"):
        return 0
    if not head[1:].lstrip(_BLANKS).startswith(b"["):
        return 0
    return text.index(b"[", at)
