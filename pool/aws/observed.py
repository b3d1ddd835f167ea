"""What is seen on AWS, as the launcher's policy takes it, and the names by which it knows its own.

Descriptions lag: what was started or ended a moment ago may not show yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

TAG_FLEET: Final = "tidepool:fleet"
TAG_POOL: Final = "tidepool:pool"
TAG_PLACE: Final = "tidepool:place"
TAG_EPOCH: Final = "tidepool:epoch"  # of the controller that started it, or took it over


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One task of this fleet that has not stopped, or was known and has."""

    id: str  # its ARN
    node_id: str  # of the place that it was started for
    epoch: int = 0
    instance: str = ""  # EC2's id; empty: not known
    is_running: bool = False  # its containers run
    is_stopping: bool = False  # it was told to end
    is_stopped: bool = False
    why: str = ""  # stopped


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One member of an auto scaling group."""

    id: str
    is_ending: bool = False
    is_leaving: bool = False  # takes nothing new: a spot notice, or it is not healthy
    is_joined: bool = False  # its ECS agent is connected to the cluster
    # That run or begin on it, whosever they are; as ECS counts: without those that are told to end.
    tasks: int = 0


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One auto scaling group."""

    desired: int
    most: int
    least: int = 0  # AWS refuses what goes below it, and replaces what ends
    instances: tuple[Instance, ...] = ()


class Observed(msgspec.Struct, frozen=True):
    """One look at everything."""

    groups: Mapping[str, Group]  # by name
    tasks: tuple[Task, ...] = ()


def started_by(fleet: str) -> str:
    """Return by which ECS tells a fleet's tasks from others."""
    return f"tidepool-{fleet}"


def token(fleet: str, node_id: str, generation: str) -> str:
    """Return the client token of the task of a place that comes after `generation`.

    Whoever starts that task, however often, starts one: ECS answers the same token with the same
    task for a day.
    """
    text = "\0".join((fleet, node_id, generation))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
