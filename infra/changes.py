"""Changes of documents by commands: who makes them, and their records in the audit trail."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Callable
from typing import TypeVar

import msgspec

from registry_sync import audit
from registry_sync.stores import Store

T = TypeVar("T")


def recorded(
    store: Store,
    reason: str,
    what: str,
    target: str,
    act: Callable[[], T],
    moved: Callable[[T], tuple[str, str]] = lambda _: ("", ""),
) -> T:
    """Make a change, record it, and return its result; arguments as of `audit.carry_out`.

    A record that cannot be written is printed to stderr whole: the change is made all the same.

    Raises:
        ValueError: the reason is none; nothing was changed.
    """
    actor = audit.Actor("cli", person(), audit.check_reason(reason))
    done = audit.carry_out(store, actor, what, target, act, moved)
    if done.lost is not None:
        record = msgspec.json.encode(done.lost.record).decode()
        print(
            f"warning: done, but missing in the audit trail ({done.lost.error}): {record}",
            file=sys.stderr,
        )
    return done.result


def person() -> str:
    """Return who runs this command, as user@host; the user by its id, not by the environment."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user often has no name
        user = str(uid)
    return f"{user}@{socket.gethostname()}"
