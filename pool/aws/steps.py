"""The steps that the launcher may take on AWS."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Raise(msgspec.Struct, frozen=True):
    """Let a group have so many instances: more than it has."""

    group: str
    desired: int


class Run(msgspec.Struct, frozen=True):
    """Start the task of a place on an instance."""

    pool: str
    node_id: str
    instance: str
    token: str


class Stop(msgspec.Struct, frozen=True):
    """Let a task end; it has the time of its stopTimeout."""

    task: str
    why: str
    is_leak: bool = False


class End(msgspec.Struct, frozen=True):
    """Terminate an instance, and lower its group's desired capacity by it."""

    group: str
    instance: str
    why: str
    is_leak: bool = False


class Tag(msgspec.Struct, frozen=True):
    """Note on instances under which leadership they are kept."""

    instances: tuple[str, ...]


Action: TypeAlias = Raise | Run | Stop | End | Tag
