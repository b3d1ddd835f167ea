"""If-Match and If-None-Match: which revision of an endpoint a writer wants to replace.

The entity tag of an endpoint is its revision, strong: ``"7"``.  Pure functions of header values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edge.admin.problems import Problem
from registry_sync.endpoints import RevisionConflict

TAGS_MAX = 32

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST = re.compile(rf"[ \t]*(?:{_TAG.pattern})(?:[ \t]*,[ \t]*(?:{_TAG.pattern}))*[ \t]*")
_REVISION = re.compile(r"[1-9][0-9]{0,15}")


@dataclass(frozen=True, slots=True)
class Unconditional:
    """Replace whatever is there; the last writer wins."""


@dataclass(frozen=True, slots=True)
class MustBeNew:
    """Create; there must be none."""


@dataclass(frozen=True, slots=True)
class MustExist:
    """Replace, whatever the revision."""


@dataclass(frozen=True, slots=True)
class MustBe:
    """Replace one of these revisions; none of them means that no revision can match."""

    revisions: frozenset[int]


Condition: TypeAlias = Unconditional | MustBeNew | MustExist | MustBe


def tag(revision: int) -> str:
    """Return the entity tag of a revision."""
    return f'"{revision}"'


def read_condition(if_match: str | None, if_none_match: str | None) -> Condition:
    """Read the conditions of a write.

    Raises:
        Problem: 400, they are malformed or contradict each other.
    """
    if if_match is not None and if_none_match is not None:
        raise Problem(
            400, "bad-condition", "If-Match and If-None-Match contradict each other: send one"
        )
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise Problem(
                400, "bad-condition", f"If-None-Match: {if_none_match!r:.80}: a write takes only *"
            )
        return MustBeNew()
    if if_match is None:
        return Unconditional()
    if if_match.strip() == "*":
        return MustExist()
    # A weak tag never matches (RFC 9110, 13.1.1), nor does one that is no revision.
    texts = [text for weak, text in _tags(if_match, "If-Match") if not weak]
    return MustBe(frozenset(int(text) for text in texts if _REVISION.fullmatch(text)))


def is_fresh(if_none_match: str | None, current: str) -> bool:
    """Tell whether a reader has what `current` tags, by weak comparison.

    Raises:
        Problem: 400, the header is malformed.
    """
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(f'"{text}"' == current for _, text in _tags(if_none_match, "If-None-Match"))


def expected_revision(condition: Condition, name: str, current: Callable[[], int]) -> int | None:
    """Return the revision that a compare-and-swap has to replace; None for any.

    Args:
        condition: of the request.
        name: of the endpoint, for messages.
        current: reads the current revision, 0 for none; only called if it is needed.

    Raises:
        RevisionConflict: the condition fails already.
        Problem: 412, likewise.
    """
    match condition:
        case Unconditional():
            return None
        case MustBeNew():
            return 0
        case MustExist():
            if current() == 0:
                raise Problem(
                    *(412, "revision-conflict", f"there is no endpoint {name!r} to replace"),
                    current_revision=0,
                )
            return None
        case MustBe(revisions) if len(revisions) == 1:
            return next(iter(revisions))
        case MustBe(revisions):
            at = current()
            if at in revisions:
                return at
            if revisions:
                raise RevisionConflict(name, at, max(revisions))
            raise Problem(
                412,
                "revision-conflict",
                f'at revision {at}, yours is none: use the ETag as it came, "{at}"',
                current_revision=at,
            )


def _tags(value: str, header: str) -> list[tuple[str, str]]:
    tags = _TAG.findall(value) if _LIST.fullmatch(value) else []
    if not 0 < len(tags) <= TAGS_MAX:
        raise Problem(
            400,
            "bad-condition",
            f'{header}: {value!r:.80}: expected "7", or up to {TAGS_MAX} of these with commas',
        )
    return tags
