"""All of infra/terraform is formatted, and the example that uses every module is valid."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict

import pytest

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
    root = Root(copied(folder) / "examples" / "complete")
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
