"""The names that may become part of a path or a key, and nothing else about them.

Every model, endpoint and version name passes through here before it is joined
to a folder or a prefix, so that no later code has to think about `..`.
"""

from __future__ import annotations

import re
from typing import Final

NAME_PATTERN: Final = "[a-z0-9][a-z0-9._-]{0,63}"
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BadName(ValueError):
    """A name is not one that may touch a path or a key."""


def check_name(kind: str, value: str) -> str:
    """Return `value` if it may name a `kind` ("model", "endpoint", "variant", …).

    Raises:
        BadName: it is no string, empty, longer than 64 characters, or holds
            anything but a-z, 0-9, dot, underscore and dash, the first of them
            a letter or a digit.
    """
    # fullmatch, because `$` would let a trailing newline through.
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadName(
            f"{kind} {_shown(value)} is not a name: use 1 to 64 of a-z 0-9 . _ -, "
            "beginning with a letter or a digit"
        )
    return value


def check_version(value: str) -> str:
    """Return `value` if it may name a version; the rule is that of names.

    Raises:
        BadName: see `check_name`.
    """
    return check_name("version", value)


def check_digest(value: str) -> str:
    """Return `value` if it is a sha256 in 64 lower-case hexadecimal digits.

    Raises:
        BadName: it is anything else; a `sha256:` prefix is not part of it.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise BadName(f"digest {_shown(value)} is not 64 lower-case hexadecimal digits")
    return value


def _shown(value: object) -> str:
    """Quote what was given, cut so that a hostile name cannot fill a log."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
