"""What a deployment costs in a month: every line has its source, and the total is their sum."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from infra.cli import make_app
from infra.commands.estimate import SCALES
from infra.estimate.deployment import BadDeployment, Deployment, checked, read_deployment
from infra.estimate.hours import DAYS, HOURS, busiest, scaled, use_by_load
from infra.estimate.lines import Bill, always_on_of, bill_of
from infra.estimate.prices import NoPrice, load_prices
from infra.simulate.engine import Load
from infra.stack import CannotStart
from pool.aws.config import PoolConfig
from tests.support.stack import REPOSITORY

TERRAFORM = REPOSITORY / "infra" / "terraform"
EXAMPLES = sorted((TERRAFORM / "examples").glob("*/estimate.yaml"))
MINIMAL = TERRAFORM / "examples" / "minimal" / "estimate.yaml"
PRICES = load_prices("us-east-1")

EDGE = {("edge", "Fargate vCPU"), ("edge", "Fargate memory")}
GPU = {("pool gpu", "g6.xlarge on demand")}
LOGS = {("network", "logs through NAT"), ("logs", "CloudWatch, taken in")}
LCU = {("network", "its capacity, by bytes")}
ADDRESSES = {("network", "public addresses")}

# Each variable of the file, another value for it, and the lines that it may change (and does).
CHANGES: dict[str, tuple[Any, set[tuple[str, str]]]] = {
    "name": ("other", set()),
    "edge.tasks_min": (3, EDGE | LOGS),
    "edge.tasks_max": (9, set()),
    "edge.vcpu": (2, {("edge", "Fargate vCPU")}),
    "edge.memory_gb": (4, {("edge", "Fargate memory")}),
    "edge.requests_per_s_per_task": (2.5, EDGE | LOGS),
    "controller.tasks": (2, {("controller", "Fargate vCPU"), ("controller", "Fargate memory")}),
    "controller.vcpu": (0.5, {("controller", "Fargate vCPU")}),
    "controller.memory_gb": (2, {("controller", "Fargate memory")}),
    "fallback.tasks": (0, {("fallback", "Fargate vCPU"), ("fallback", "Fargate memory")}),
    "fallback.vcpu": (1, {("fallback", "Fargate vCPU")}),
    "fallback.memory_gb": (8, {("fallback", "Fargate memory")}),
    "network.zones": (3, ADDRESSES),
    "network.nat_gateways": (
        0,
        ADDRESSES | {("network", "NAT gateways"), ("network", "logs through NAT")},
    ),
    "network.interface_endpoints": (7, {("network", "interface endpoints")}),
    "network.kb_per_request": (40, LCU),
    "log_bytes_per_line": (1200, LOGS),
    "log_lines_per_s_max": (1, LOGS),
    "registry_gb": (500, {("registry", "S3, stored")}),
    "pools.0.name": ("g", GPU | {("pool g", "g6.xlarge on demand")}),
    "pools.0.instance_type": ("g6e.2xlarge", GPU | {("pool gpu", "g6e.2xlarge on demand")}),
    "pools.0.instances_min": (1, GPU),
    "pools.0.instances_max": (3, set()),
    "pools.0.on_demand_base": (1, set()),  # all are on demand
    "pools.0.on_demand_percent": (50, GPU | {("pool gpu", "g6.xlarge on spot")}),
    "pools.0.start_s": (400, GPU),
    "pools.0.rest_s": (60, GPU),
    "pools.0.utilisation": (0.1, GPU),
    "pools.0.volume_gb": (200, set()),  # not priced
    "pools.0.load.requests_per_day": (10_000, GPU | LCU | LOGS),
    "pools.0.load.gpu_s_per_request": (0.2, GPU),
    "pools.0.load.active_hours_per_day": (12, GPU | LOGS),
    "pools.0.load.wakes_per_day": (9, GPU),
    "pools.0.load.peak_to_mean": (9, set()),  # of who is always on
}
# There is one price list; g6.xlarge has one GPU.
ELSEWHERE = {"region", "pools.0.workers_per_instance"}


def minimal() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(MINIMAL.read_text())
    return content


def changed(path: str, value: Any) -> Deployment:
    content: Any = minimal()
    at, last = content, path.split(".")[-1]
    for name in path.split(".")[:-1]:
        at = at[int(name)] if name.isdigit() else at[name]
    assert last in at, "the example says all that it can"
    at[last] = value
    return checked(content)


def bill(deployment: Deployment, scale: float = 1.0) -> Bill:
    return bill_of(deployment, [use_by_load(pool, scale) for pool in deployment.pools], PRICES)


def amounts(found: Bill) -> dict[tuple[str, str], tuple[float, int, int]]:
    return {
        (line.component, line.what): (line.quantity, line.cents, line.cents_high)
        for line in found.lines
    }


def leaves(content: Any, path: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from leaves(value, f"{path}.{place}")
    else:
        yield path


def tidepool(*words: str) -> str:
    ended = CliRunner().invoke(make_app("estimate"), ["estimate", *words], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def fails(*words: str) -> str:
    with pytest.raises(CannotStart) as caught:
        tidepool(*words)
    return str(caught.value)


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.parent.name for path in EXAMPLES])
def test_each_line_has_a_dated_source_and_the_total_is_their_sum(example: Path) -> None:
    found = json.loads(tidepool("--config", str(example), "--json"))
    assert [one["scale"] for one in found["scales"]] == list(SCALES)
    ids = {(price.source, price.date) for price in PRICES.prices}
    for one in found["scales"]:
        for part in (one, one["always_on"]):
            assert {(line["source"], line["date"]) for line in part["lines"]} <= ids
            for bound in ("usd", "usd_max"):
                assert round(sum(line[bound] for line in part["lines"]), 2) == part[bound] > 0
            for line in part["lines"]:
                expected = pytest.approx(line["quantity"] * line["unit_usd"], abs=0.005001)
                assert line["usd"] == expected
        assert {"what": "SQS", "quantity": None, "unit": ""} in one["not_priced"]


def test_every_variable_of_the_file_is_tried() -> None:
    assert set(leaves(minimal())) == CHANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("path", CHANGES)
def test_one_changed_variable_changes_only_its_lines(path: str) -> None:
    value, expected = CHANGES[path]
    # At a load that is more than one instance can do, and more than is logged.
    before, after = (amounts(bill(one, 20.0)) for one in (checked(minimal()), changed(path, value)))
    differing = {
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }
    assert differing == expected


def default(folder: str, variable: str, field: str = "") -> float:
    """Return the default of a Terraform variable, or of a field of one that is an object."""
    text = (TERRAFORM / folder / "variables.tf").read_text()
    block = text.partition(f'variable "{variable}" {{')[2].partition("\nvariable ")[0]
    found = re.search(
        rf"\b{field} *= optional\(number, ([\d.]+)\)" if field else r"default += ([\d.]+)", block
    )
    assert found is not None, f"{folder}: {variable} {field}"
    return float(found[1])


def test_example_prices_what_its_terraform_makes_by_default() -> None:
    priced = checked(minimal())
    (pool,) = priced.pools
    edge = "modules/edge"
    fallback = priced.fallback
    assert fallback is not None
    terraform = {
        "tasks_min": default(edge, "tasks", "min"),
        "tasks_max": default(edge, "tasks", "max"),
        "vcpu": default(edge, "tasks", "cpu") / 1024,
        "memory_gb": default(edge, "tasks", "memory_mib") / 1024,
        "requests_per_s_per_task": default(edge, "tasks", "requests_per_min_per_task") / 60,
    }
    assert msgspec.structs.asdict(priced.edge) == terraform
    assert msgspec.structs.asdict(fallback) == {
        "tasks": default(edge, "fallback", "tasks"),
        "vcpu": default(edge, "fallback", "cpu") / 1024,
        "memory_gb": default(edge, "fallback", "memory_mib") / 1024,
    }
    assert (pool.instances_max, pool.workers_per_instance, pool.rest_s, pool.volume_gb) == (
        default("examples/minimal", "instances_max"),
        default("modules/pool", "worker", "per_instance"),
        default("modules/pool", "worker", "rest_s"),
        default("modules/pool", "volume_gb"),
    )
    launcher = {field.name: field.default for field in msgspec.structs.fields(PoolConfig)}
    assert pool.start_s == launcher["start_s"]
    variables = (TERRAFORM / "examples" / "minimal" / "variables.tf").read_text()
    assert f'default     = "{pool.instance_type}"' in variables


def test_spot_is_a_range_and_so_is_the_total() -> None:
    found = bill(changed("pools.0.on_demand_percent", 0))
    (line,) = [line for line in found.lines if line.component == "pool gpu"]
    assert (line.price.usd, line.price.usd_high) == (0.349, 0.4011)
    assert found.cents_high - found.cents == line.cents_high - line.cents > 0


@pytest.mark.parametrize(
    ("scale", "base", "percent", "on_demand", "always"),
    [
        (1, 1, 25, 1.0, 730),  # one instance, and that is the base
        (100, 1, 25, (8 * 7 + 0.7) / (8 * 24 + 0.7), 730 * 13),  # 24: 1 + 5.75; 47: 1 + 11.5
        (100, 0, 0, 0.0, 0),
        (100, 30, 0, 1.0, 730 * 30),
    ],
)
def test_the_first_instances_are_on_demand_and_a_part_of_the_rest(
    scale: int, base: int, percent: float, on_demand: float, always: float
) -> None:
    content = minimal()
    content["pools"][0].update(on_demand_base=base, on_demand_percent=percent)
    deployment = checked(content)
    (use,) = uses = [use_by_load(deployment.pools[0], scale)]
    assert use.on_demand_hours == pytest.approx(on_demand * use.instance_hours)
    hours = {line.what: line.quantity for line in always_on_of(deployment, uses, PRICES).lines}
    assert hours.get("g6.xlarge on demand", 0) == pytest.approx(always)


def test_an_instance_has_a_gpu_for_each_worker() -> None:
    content = minimal()
    content["pools"][0]["workers_per_instance"] = 8
    with pytest.raises(BadDeployment, match=r"gpu: workers_per_instance is 8, but g6.xlarge has 1"):
        bill(checked(content))
    content["pools"][0]["instance_type"] = "g6e.48xlarge"
    one, eight = (
        use_by_load(changed("pools.0.workers_per_instance", workers).pools[0], 100)
        for workers in (1, 8)
    )
    assert ("pool gpu", "g6e.48xlarge on demand") in amounts(bill(checked(content)))
    assert (one.instances_peak, eight.instances_peak) == (47, 6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"instance_type": "p5.48xlarge"}, "p5.48xlarge: no price of it is known .*g6.xlarge"),
        (
            {"instance_type": "g5.xlarge", "on_demand_percent": 0},
            "no spot price of g5.xlarge is known",
        ),
    ],
)
def test_what_has_no_price_is_not_guessed(changes: dict[str, Any], why: str) -> None:
    content = minimal()
    content["pools"][0].update(changes)
    with pytest.raises(NoPrice, match=why):
        bill(checked(content))


def test_hours_of_a_load_are_what_its_mean_needs_and_each_wake_costs_its_start_and_rest() -> None:
    pool = checked(minimal()).pools[0]
    use = use_by_load(pool, 1)
    # 200,000 calls of 20 ms in 8 h keep 0.139 of a GPU busy, and 3 wakes take 14 minutes each.
    assert use.instance_hours == pytest.approx((8 + 3 * 840 / 3600) * DAYS)
    assert use.instances_peak == 1
    assert use_by_load(pool, 0).instance_hours == 0
    assert use_by_load(pool, 100).instance_hours == pytest.approx((24 * 8 + 3 * 840 / 3600) * DAYS)
    assert use_by_load(pool, 100).instances_peak == 47


def test_there_are_never_more_hours_than_the_day_has() -> None:
    pool = changed("pools.0.load.wakes_per_day", 1e6).pools[0]
    assert use_by_load(pool, 1).instance_hours == pytest.approx(HOURS)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({}, "pools"),
        ({"pools": []}, "pools"),
        ({"pools": [{"name": "g"}]}, "instance_type"),
        ({"pool": []}, "pool"),
        ([1], "object"),
        (
            {"pools": [{**minimal()["pools"][0], "instances_min": 5}]},
            "instances_min 5 is more than",
        ),
        ({"pools": [{**minimal()["pools"][0], "on_demand_percent": 150}]}, "on_demand_percent"),
        ({"pools": [minimal()["pools"][0]] * 2}, "two named gpu"),
        ({**minimal(), "edge": {"tasks_min": 9, "tasks_max": 2}}, "tasks_min 9 is more than"),
        ({**minimal(), "edge": {"cpus": 9}}, "cpus"),
    ],
)
def test_file_that_does_not_fit_is_refused_by_name(content: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadDeployment, match=rf"{path}: .*{why}"):
        read_deployment(path)


def test_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "deployment.yaml"
    assert "cannot be read: " in fails("--config", str(path))
    path.write_text("a: [")
    assert f"{path}: no YAML" in fails("--config", str(path))
    path.write_text(yaml.safe_dump({**minimal(), "region": "eu-west-9"}))
    assert f"{path}: region eu-west-9: there is no price list; there are: us-east-1" in fails(
        "--config", str(path)
    )


# traces


def write_trace(path: Path, hours: float = 6.0) -> Path:
    """Write twenty minutes of a call of 0.1 s a second at the beginning of each two hours."""
    draw = np.random.RandomState(1)
    arrivals_s = [
        start_s + offset_s
        for start_s in np.arange(0, hours * 3600, 7200)
        for offset_s in np.sort(draw.uniform(0, 1200, 1200))
    ]
    arrivals_s.append(hours * 3600)
    path.write_text("t_s,exec_s\n" + "\n".join(f"{one:.3f},0.1" for one in arrivals_s))
    return path


def test_trace_is_played_by_the_policy_of_production(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "calls.csv")
    words = ("--config", str(MINIMAL), "--trace", str(trace), "--json", "--scale", "1x")
    found = json.loads(tidepool(*words, "--scale", "10x"))
    assert found["gpu_hours_by"] == "the trace calls.csv, over and over"
    one, many = (month["pools"][0] for month in found["scales"])
    assert one["requests"] == pytest.approx(3601 * HOURS / 6, rel=0.01)
    assert many["requests"] == pytest.approx(10 * one["requests"], rel=0.01)
    # It sleeps between the twenty minutes, and needs more than these.
    assert HOURS / 6 < one["instance_hours"] < HOURS
    assert one["instance_hours"] < many["instance_hours"]
    assert (one["instances_peak"], many["instances_peak"]) == (1, 3)
    again = json.loads(tidepool(*words))
    assert again["scales"][0] == found["scales"][0], "the same calls cost the same"


def test_copies_of_calls_are_as_many_and_in_order_within_the_trace() -> None:
    load = Load("m", np.array([0.0, 30.0, 4000.0]), np.array([1.0, 2.0, 3.0]))
    (found,) = scaled([load], 5)
    assert len(found.arrivals_s) == 15
    assert (np.diff(found.arrivals_s) >= 0).all()
    assert 0 <= found.arrivals_s[0] <= found.arrivals_s[-1] <= 4000.0
    assert found.exec_s.sum() == 30.0
    assert busiest([load]) == pytest.approx(3 / 60)


def test_trace_that_cannot_be_priced_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "calls.csv"
    trace.write_text("t_s\n0\n1\n")
    short = fails("--config", str(MINIMAL), "--trace", str(trace))
    assert "spans 1.02 s; a month cannot be told from less than 60 s" in short
    trace.write_text("t\n0\n")
    assert "no column t_s" in fails("--config", str(MINIMAL), "--trace", str(trace))
    pools = minimal()["pools"]
    two = tmp_path / "two.yaml"
    two.write_text(yaml.safe_dump({**minimal(), "pools": [*pools, {**pools[0], "name": "b"}]}))
    assert "has 2 pools" in fails("--config", str(two), "--trace", str(trace))
    long = write_trace(tmp_path / "long.csv", 6)
    assert "use a shorter part" in fails(
        "--config", str(MINIMAL), "--trace", str(long), "--scale", "10000x"
    )


# what it prints


def test_table_names_sources_what_is_not_priced_and_what_does_not_fit() -> None:
    text = tidepool("--config", str(MINIMAL))
    assert "GPU hours by the load of FILE" in text
    assert "[1] fargate.vcpu: 0.04048 USD/vCPU-hour (https://www.factualminds.com/" in text
    assert "not priced: EBS volumes (gp3) (" in text
    assert "Container Insights" not in text, "it is off"
    assert "warning: at 100x gpu: the busiest minute needs 47 instances, more than" in text
    only = tidepool("--config", str(MINIMAL), "--scale", "1x")
    assert "warning" not in only
    assert "5x" not in only


@pytest.mark.parametrize("scale", ["x", "0x", "1.5x", "-1x", "10001x", "５x"])
def test_scale_that_is_none_is_bad_usage(scale: str) -> None:
    words = ["estimate", "--config", str(MINIMAL), "--scale", scale]
    ended = CliRunner().invoke(make_app("estimate"), words)
    assert (ended.exit_code, scale in ended.output) == (2, True)


def test_picture_is_drawn(tmp_path: Path) -> None:
    words = ("--config", str(MINIMAL), "--plot")
    tidepool(*words, str(tmp_path / "made"))
    assert (tmp_path / "made" / "cost.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    assert "no folder that can be written" in fails(*words, str(tmp_path / "file"))
