"""The steps that the launcher may take on AWS."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Raise(msgspec.Struct, frozen=True):
    """Let a group have so many instances: more than it has."""

    group: str
    desired: int


class Lower(msgspec.Struct, frozen=True):
    """Take back launches that have not come: a group keeps all that it has."""

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
    """Terminate an instance."""

    group: str
    instance: str
    why: str
    is_leak: bool = False
    lowers: bool = True  # the desired capacity too, so that none comes in its place


class Tag(msgspec.Struct, frozen=True):
    """Note on instances under which leadership they are kept."""

    instances: tuple[str, ...]


Action: TypeAlias = Raise | Lower | Run | Stop | End | Tag


def subject(action: Action) -> str:
    """Return what a step is about: after AWS refused it, the next one about that waits a while."""
    match action:
        case Raise(group) | Lower(group):
            return group
        case Run(_, node_id):
            return node_id
        case Stop(task):
            return task
        case End(_, instance):
            return instance
        case Tag():
            return "tags"
