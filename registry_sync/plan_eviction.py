"""Which plans leave a node's bounded folder. A pure function."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Held(msgspec.Struct, frozen=True):
    """A plan in the folder."""

    name: str
    bytes: int
    used_ns: int  # when it was last looked up or added; only compared with others'


def to_evict(held: Sequence[Held], bytes_max: int, keep: str = "") -> list[Held]:
    """Choose what has to go, so that the rest is within the bound: the least recently used first.

    Args:
        held: everything in the folder.
        bytes_max: of all that stays, together.
        keep: the name of what never goes, e.g. because it has just come.

    Returns:
        In the order in which they go; as few from that end as suffice.

    >>> held = [Held("a", 4, used_ns=2), Held("b", 4, used_ns=1), Held("c", 4, used_ns=3)]
    >>> [one.name for one in to_evict(held, 8, keep="b")]
    ['a']
    """
    excess = sum(one.bytes for one in held) - bytes_max
    gone: list[Held] = []
    for one in sorted(held, key=lambda one: (one.used_ns, one.name)):
        if excess <= 0:
            break
        if one.name != keep:
            gone.append(one)
            excess -= one.bytes
    return gone
