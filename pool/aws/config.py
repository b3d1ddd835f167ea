"""Which pools of instances there are on AWS: what Terraform writes and a controller is told.

`TIDEPOOL_POOLS`, or the file of `tidepool controller --pools FILE`:

    {"fleet": "prod", "cluster": "prod",
     "pools": [{"name": "gpu", "group": "prod-gpu", "task_definition": "prod-gpu",
                "instances_max": 4, "subnets": ["subnet-0a"], "security_groups": ["sg-0a"]}]}
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final

import msgspec

PLACES_MAX: Final = 1000  # of one fleet: what a report of them still carries with ease

# Short enough for all names that are made of them: RunTask's `startedBy` takes 36 characters.
_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
_SubnetId = Annotated[str, msgspec.Meta(pattern=r"^subnet-[0-9a-z]+$")]
_GroupId = Annotated[str, msgspec.Meta(pattern=r"^sg-[0-9a-z]+$")]


class BadPools(ValueError):
    """What is said of pools does not fit; the message names the path of the value."""


class PoolConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One auto scaling group of like instances, and the task that is a worker on them."""

    name: _Name
    group: _Text  # of auto scaling; its new instances are protected from scale-in
    task_definition: _Text  # family, family:revision or ARN
    container: _Text = "pool"  # in that task definition
    instances_min: Annotated[int, msgspec.Meta(ge=0)] = 0
    instances_max: Annotated[int, msgspec.Meta(ge=1, le=PLACES_MAX)]
    workers_per_instance: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # one to a GPU
    device: Annotated[str, msgspec.Meta(pattern=r"^(cpu|cuda:[0-9]+)$")] = "cuda:0"  # in a task
    subnets: Annotated[tuple[_SubnetId, ...], msgspec.Meta(min_length=1, max_length=16)]
    security_groups: Annotated[tuple[_GroupId, ...], msgspec.Meta(min_length=1, max_length=5)]
    # A worker that nobody needs is up so long after it was last of use, and with it its instance.
    rest_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 600.0
    # A first guess from the order to a worker that answers, until it was measured.
    start_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 240.0

    @property
    def workers_min(self) -> int:
        """How many workers are up whatever the demand."""
        return self.instances_min * self.workers_per_instance

    @property
    def workers_max(self) -> int:
        """How many places it has."""
        return self.instances_max * self.workers_per_instance

    def node_ids(self) -> list[str]:
        """Return by place what a worker's task is told as `TIDEPOOL_NODE_ID`; always the same."""
        return [f"{self.name}-{slot}" for slot in range(self.workers_max)]


class PoolsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All pools of one fleet, in one ECS cluster and region."""

    fleet: _Name
    cluster: _Text  # name or ARN
    pools: Annotated[tuple[PoolConfig, ...], msgspec.Meta(min_length=1, max_length=50)]


_pools_of = msgspec.json.Decoder(PoolsConfig)


class AwsAgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the process that starts and ends workers on AWS: JSON in argv[1]."""

    data: str  # the node's data folder
    controller: str  # of this node: "unix:/path"
    pools: PoolsConfig
    log_level: str = "info"


def worker_id(node_id: str) -> str:
    """Return the id of the only worker of a node.

    >>> worker_id("gpu-0")
    'gpu-0-0'
    """
    return f"{node_id}-0"


def decode(text: str | bytes) -> PoolsConfig:
    """Return the pools that a JSON document describes.

    Raises:
        BadPools: it does not fit; says where, and what is expected there.
    """
    try:
        found = _pools_of.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPools(f"pools: {error}") from None
    for at, pool in enumerate(found.pools):
        if pool.instances_min > pool.instances_max:
            raise BadPools(
                f"pools: instances_min {pool.instances_min} is more than instances_max "
                f"{pool.instances_max} - at `$.pools[{at}]`"
            )
    _require_unlike("name", [pool.name for pool in found.pools])
    _require_unlike("group", [pool.group for pool in found.pools])
    places = sum(pool.workers_max for pool in found.pools)
    if places > PLACES_MAX:
        raise BadPools(
            f"pools: room for {places} workers; {PLACES_MAX} are kept track of at most: "
            "lower instances_max or workers_per_instance"
        )
    return found


def _require_unlike(what: str, values: list[str]) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            raise BadPools(f"pools: {what} {value!r} is that of two pools; each has its own")
