"""All of infra/terraform is formatted; the example of every module is valid, and whole."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import defaultdict

import pytest
import yaml

from infra.estimate.prices import load_prices
from tests.support.terraform import MODULES, Root, copied

pytestmark = pytest.mark.terraform

_EDGE = re.compile(
    r'"(?:\[root\] )?([^"]+?)(?: \(expand\))?" -> "(?:\[root\] )?([^"]+?)(?: \(expand\))?"'
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The example of all modules, ready to be looked at."""
    folder = tmp_path_factory.mktemp("format")
    # The example reads the rules of Prometheus beside it.
    shutil.copytree(
        MODULES.parent / "monitoring" / "prometheus", folder / "monitoring" / "prometheus"
    )
    variables = {
        "TF_VAR_region": "us-east-1",
        "TF_VAR_domain": "example.com",
        "TF_VAR_images": '{edge = "tidepool-edge:1", pool = "tidepool-pool:1"}',
    }
    root = Root(copied(folder) / "examples" / "complete", variables)
    root.init()
    return root


def test_all_of_it_is_formatted() -> None:
    Root(MODULES).run("fmt", "-check", "-recursive", "-diff").ok()


def test_example_of_all_modules_is_valid(example: Root) -> None:
    example.run("validate").ok()


@pytest.mark.parametrize(
    ("later", "sooner"),
    [
        # AWS: "InvalidSubnet: VPC … has no internet gateway".
        ("edge.aws_lb.edge", "network.aws_internet_gateway.this"),
        ("edge.aws_lb.edge", "network.aws_route.internet"),
        ("edge.aws_lb.edge", "network.aws_route_table_association.public"),
        # A task that cannot pull its image ends.
        ("edge.aws_ecs_service.edge", "network.aws_route.nat"),
        ("edge.aws_ecs_service.controller", "network.aws_route.nat"),
    ],
)
def test_what_needs_another_waits_for_it(
    later: str, sooner: str, needs: dict[str, set[str]]
) -> None:
    seen: set[str] = set()
    left = [f"module.{later}"]
    assert left[0] in needs, "it is in the graph"
    while left:
        found = needs[left.pop()] - seen
        seen |= found
        left += found
    assert f"module.{sooner}" in seen


@pytest.fixture(scope="module")
def needs(example: Root) -> dict[str, set[str]]:
    """What each node of the plan's graph waits for."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in example.run("graph", "-type=plan").ok().splitlines():
        if edge := _EDGE.search(line):
            found[edge[1]].add(edge[2])
    return found


def test_each_pool_has_its_price_among_the_rules(example: Root) -> None:
    expression = (
        "base64encode(jsonencode({pools = local.pools, recording = local.rules.recording}))"
    )
    said = example.run("console", told=expression).ok()
    found = json.loads(base64.b64decode(said.strip().splitlines()[-1].strip('"')))
    groups = yaml.safe_load(found["recording"])["groups"]
    list_of = load_prices("us-east-1")
    expected = {}
    for name, pool in found["pools"].items():
        prices = [list_of.find(f"ec2.{one}") for one in pool["instance_types"]]
        assert pool["usd_per_hour"] in [price.usd for price in prices if price is not None]
        expected[name] = f"vector({pool['usd_per_hour']})"
    record = "tidepool:price:instance_usd_per_hour"
    prices_told = [rule for group in groups for rule in group["rules"] if rule["record"] == record]
    assert {rule["labels"]["pool"]: rule["expr"] for rule in prices_told} == expected

    path = MODULES.parent / "monitoring" / "prometheus" / "recording.yml"
    shipped = yaml.safe_load(path.read_text())["groups"]
    for group in shipped:
        group["rules"] = [rule for rule in group["rules"] if rule["record"] != record]
    assert groups[1:] == shipped, "all else is as it is shipped"
