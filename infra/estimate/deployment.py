"""The file that says what is to be priced: a deployment and its load, as YAML or JSON.

    region: us-east-1
    pools:
      - name: gpu
        instance_type: g6.xlarge
        load: {requests_per_day: 100000, gpu_s_per_request: 0.02}

What is missing takes the defaults below, which are those of infra/terraform/examples/minimal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

_Count = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
_Some = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
_More = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
_Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
_Hours = Annotated[float, msgspec.Meta(gt=0, le=24)]
_Times = Annotated[float, msgspec.Meta(ge=1, le=1000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class BadDeployment(Exception):
    """The file cannot be priced; the text says where and why."""


class Edge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tasks that answer HTTP; as many as the mean rate of the busy hours needs."""

    tasks_min: _Some = 2
    tasks_max: _Some = 8
    vcpu: _More = 1.0
    memory_gb: _More = 2.0
    requests_per_s_per_task: _More = 500.0


class Tasks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tasks that are always there."""

    tasks: _Count = 1
    vcpu: _More
    memory_gb: _More


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The calls of one pool, on an ordinary day."""

    requests_per_day: _Amount
    gpu_s_per_request: _More  # a batch's time, by its rows
    active_hours_per_day: _Hours = 24.0  # in which they come
    wakes_per_day: _Amount = 1.0  # how often the pool has slept before; none if it is always awake
    peak_to_mean: _Times = 2.0  # the busiest minute of the active hours, over their mean


class Pool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """GPU instances of one type."""

    name: _Name
    instance_type: _Name
    load: Load
    instances_min: _Count = 0
    instances_max: _Some = 2
    workers_per_instance: _Some = 1
    on_demand_base: _Count = 0  # so many first ones are on demand, and
    on_demand_percent: _Percent = 100.0  # of the rest; the others are spot
    start_s: _Seconds = 240.0  # from the wish for an instance to a warm worker: paid for, and idle
    rest_s: _Seconds = 600.0  # that an instance nobody needs stays
    utilisation: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.6  # of a busy worker, at the most
    volume_gb: _Amount = 100.0


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What connects it."""

    zones: _Some = 2
    nat_gateways: _Count = 1
    interface_endpoints: _Count = 0  # in each zone
    kb_per_request: _Amount = 20.0  # in and out, through the load balancer


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    name: _Name = "tidepool"
    region: _Name = "us-east-1"
    edge: Edge = Edge()
    controller: Tasks = Tasks(vcpu=0.25, memory_gb=1.0)
    fallback: Tasks | None = Tasks(vcpu=2.0, memory_gb=4.0)
    pools: Annotated[tuple[Pool, ...], msgspec.Meta(min_length=1, max_length=64)]
    network: Network = Network()
    log_bytes_per_line: _Amount = 600.0  # of the access log
    log_lines_per_s_max: _Amount = 20.0  # of an edge task, which samples beyond that
    registry_gb: _Amount = 10.0


def read_deployment(path: Path) -> Deployment:
    """Return what a file says.

    Raises:
        BadDeployment: it cannot be read, or has a value that is none or a word that nobody knows.
    """
    try:
        return checked(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise BadDeployment(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BadDeployment(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    except BadDeployment as error:
        raise BadDeployment(f"{path}: {error}") from None


def checked(content: Any) -> Deployment:
    """Return what decoded YAML or JSON says; raises `BadDeployment`."""
    try:
        found = msgspec.convert(content, Deployment)
    except msgspec.ValidationError as error:
        raise BadDeployment(str(error)) from None
    names = [pool.name for pool in found.pools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadDeployment(f"pools: there are two named {twice}")
    for pool in found.pools:
        if pool.instances_min > pool.instances_max:
            raise BadDeployment(
                f"pools: {pool.name}: instances_min {pool.instances_min} is more than"
                f" instances_max {pool.instances_max}"
            )
    if found.edge.tasks_min > found.edge.tasks_max:
        raise BadDeployment(
            f"edge: tasks_min {found.edge.tasks_min} is more than tasks_max {found.edge.tasks_max}"
        )
    return found
