"""What a month costs: one line for everything that has a price, the rest by name.  Pure.

Every line is rounded to cents, and the total is the sum of the lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from infra.estimate.deployment import BadDeployment, Deployment, Pool
from infra.estimate.hours import HOURS, Use, on_demand
from infra.estimate.prices import NoPrice, Price, Prices

# Of a volume, as module pool has it: 500, of which 125 are free.
_MB_PER_S: Final = 375


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One position; `cents` up to `cents_high` where the price is a range."""

    component: str
    what: str
    quantity: float
    unit: str
    price: Price
    cents: int
    cents_high: int


class Unpriced(msgspec.Struct, frozen=True):
    """What costs something too, of which no price is known here."""

    what: str
    quantity: float | None = None
    unit: str = ""


class Bill(msgspec.Struct, frozen=True):
    """All lines of a month."""

    lines: tuple[Line, ...]

    @property
    def cents(self) -> int:
        """The sum of the lines, by the least prices."""
        return sum(line.cents for line in self.lines)

    @property
    def cents_high(self) -> int:
        """The sum of the lines, by the highest prices."""
        return sum(line.cents_high for line in self.lines)


def bill_of(deployment: Deployment, uses: Sequence[Use], prices: Prices) -> Bill:
    """Return what a month costs.

    Args:
        deployment: what is there.
        uses: of its pools, in their order.
        prices: of its region.

    Raises:
        NoPrice: an instance type has none, so that no sum would mean anything.
        BadDeployment: an instance has fewer GPUs than workers.
    """
    found = [*_tiers(deployment, uses, prices), *_network(deployment, uses, prices)]
    for pool, use in zip(deployment.pools, uses, strict=True):
        found += _instances(pool, use, prices)
    return Bill(tuple(line for line in found if line.quantity))


def always_on_of(deployment: Deployment, uses: Sequence[Use], prices: Prices) -> Bill:
    """Return what the same costs if the busiest minute's instances are there all the time.

    Nobody needs the CPU fallback then.
    """
    awake = msgspec.structs.replace(deployment, fallback=None)
    peaks = [
        msgspec.structs.replace(
            use,
            instance_hours=max(use.instances_peak, 1) * HOURS,
            on_demand_hours=on_demand(pool, max(use.instances_peak, 1)) * HOURS,
        )
        for pool, use in zip(deployment.pools, uses, strict=True)
    ]
    return bill_of(awake, peaks, prices)


def unpriced_of(deployment: Deployment, uses: Sequence[Use]) -> tuple[Unpriced, ...]:
    """Return what is not in the bill, with as much of it as is known."""
    volumes = sum(
        pool.volume_gb * use.instance_hours / HOURS
        for pool, use in zip(deployment.pools, uses, strict=True)
    )
    volumes_count = sum(use.instance_hours for use in uses) / HOURS
    return (
        Unpriced("EBS volumes (gp3)", volumes, "GB-month"),
        Unpriced("their throughput beyond 125 MB/s", volumes_count * _MB_PER_S, "MB/s-month"),
        Unpriced("egress to the internet", _gb(deployment, uses), "GB at the most"),
        Unpriced("S3 requests"),
        Unpriced("Secrets Manager"),
        Unpriced("SQS"),
        Unpriced("CloudWatch alarms and metrics"),
        Unpriced("Cloud Map"),
        Unpriced("traffic between zones"),
    )


def warnings_of(deployment: Deployment, uses: Sequence[Use]) -> list[str]:
    """Return what would not fit: it is priced as if it did."""
    found = [
        f"{pool.name}: the busiest minute needs {use.instances_peak} instances, more than"
        f" instances_max {pool.instances_max}"
        for pool, use in zip(deployment.pools, uses, strict=True)
        if use.instances_peak > pool.instances_max
    ]
    tasks = _edge_tasks(deployment, uses)
    if tasks > deployment.edge.tasks_max:
        found.append(f"edge: {tasks} tasks are needed, more than tasks_max")
    return found


def _line(
    prices: Prices, component: str, what: str, quantity: float, id: str, price: Price | None = None
) -> Line:
    found = price or prices.find(id)
    if found is None:
        raise NoPrice(f"{component}: no price {id!r} is known in {prices.region}")
    return Line(
        component=component,
        what=what,
        quantity=quantity,
        unit=found.unit,
        price=found,
        cents=round(quantity * found.usd * 100),
        cents_high=round(quantity * found.usd_high * 100),
    )


def _tiers(deployment: Deployment, uses: Sequence[Use], prices: Prices) -> Iterator[Line]:
    edge = deployment.edge
    busy_hours = max(use.active_hours for use in uses)
    busy_tasks = max(_edge_tasks(deployment, uses), edge.tasks_min)
    task_hours = busy_tasks * busy_hours + edge.tasks_min * (HOURS - busy_hours)
    tiers = [("edge", task_hours, edge.vcpu, edge.memory_gb)]
    for name, tasks in (("controller", deployment.controller), ("fallback", deployment.fallback)):
        if tasks is not None:
            tiers.append((name, tasks.tasks * HOURS, tasks.vcpu, tasks.memory_gb))
    for name, hours, vcpu, memory_gb in tiers:
        yield _line(prices, name, "Fargate vCPU", hours * vcpu, "fargate.vcpu")
        yield _line(prices, name, "Fargate memory", hours * memory_gb, "fargate.gb")


def _network(deployment: Deployment, uses: Sequence[Use], prices: Prices) -> Iterator[Line]:
    network, component = deployment.network, "network"
    logs_gb = _log_lines(deployment, uses) * deployment.log_bytes_per_line / 1e9
    endpoints = network.interface_endpoints * network.zones
    addresses = network.zones + network.nat_gateways
    yield _line(prices, component, "load balancer", HOURS, "alb")
    # Of a capacity unit's four measures the one that grows with bodies; one is 1 GB an hour.
    yield _line(prices, component, "its capacity, by bytes", _gb(deployment, uses), "alb.lcu")
    yield _line(prices, component, "NAT gateways", network.nat_gateways * HOURS, "nat")
    if network.nat_gateways:
        yield _line(prices, component, "logs through NAT", logs_gb, "nat.gb")
    yield _line(prices, component, "interface endpoints", endpoints * HOURS, "interface_endpoint")
    yield _line(prices, component, "public addresses", addresses * HOURS, "public_ipv4")
    yield _line(prices, "logs", "CloudWatch, taken in", logs_gb, "logs.gb")
    yield _line(prices, "registry", "S3, stored", deployment.registry_gb, "s3.gb")


def _instances(pool: Pool, use: Use, prices: Prices) -> Iterator[Line]:
    """Yield the instances of a pool, those on demand and those on spot apart."""
    prices.device_usd_per_h(pool.instance_type)  # says which types there are
    component, what = f"pool {pool.name}", f"{pool.instance_type} on demand"
    line = _line(prices, component, what, use.on_demand_hours, f"ec2.{pool.instance_type}")
    gpus = line.price.gpus or 0
    if pool.workers_per_instance > gpus:
        raise BadDeployment(
            f"pools: {pool.name}: workers_per_instance is {pool.workers_per_instance}, but"
            f" {pool.instance_type} has {gpus} GPUs; each worker takes one"
        )
    yield line
    if spot_hours := use.instance_hours - use.on_demand_hours:
        spot, what = _spot(pool, prices), f"{pool.instance_type} on spot"
        if spot is None:
            raise NoPrice(f"{component}: no spot price of {pool.instance_type} is known")
        yield _line(prices, component, what, spot_hours, spot.id, spot)


def _spot(pool: Pool, prices: Prices) -> Price | None:
    return prices.find(f"ec2.{pool.instance_type}.spot")


def _edge_tasks(deployment: Deployment, uses: Sequence[Use]) -> int:
    requests_per_s = sum(use.requests_per_s for use in uses)
    return math.ceil(round(requests_per_s / deployment.edge.requests_per_s_per_task, 9))


def _log_lines(deployment: Deployment, uses: Sequence[Use]) -> float:
    requests, requests_per_s = (
        sum(use.requests for use in uses),
        sum(use.requests_per_s for use in uses),
    )
    tasks = max(_edge_tasks(deployment, uses), deployment.edge.tasks_min)
    lines_per_s = min(requests_per_s, deployment.log_lines_per_s_max * tasks)
    return requests * lines_per_s / requests_per_s if requests else 0.0


def _gb(deployment: Deployment, uses: Sequence[Use]) -> float:
    return sum(use.requests for use in uses) * deployment.network.kb_per_request / 1e6
