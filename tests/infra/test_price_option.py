"""What a device costs, as the edge is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import EdgeConfig
from infra import stack
from infra.commands.price_option import REGION_NAMES, device_prices
from infra.estimate.prices import FOLDER, load_prices, regions
from infra.stack import CannotStart, Node


@pytest.fixture(autouse=True)
def _no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REGION_NAMES:
        monkeypatch.delenv(name, raising=False)


def test_price_is_a_number_or_that_of_an_instance_by_its_gpus() -> None:
    assert device_prices("cpu=0.05, l4=g6.xlarge,gpu=g6e.48xlarge,old=fargate-0.25-1") == {
        "cpu": 0.05,
        "l4": 0.8048,
        "gpu": 30.13118 / 8,
        "old": 0.25 * 0.04048 + 0.004445,
    }
    assert device_prices("") == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.8", "DEVICE=PRICE is needed"),
        ("gpu=", "DEVICE=PRICE is needed"),
        ("gpu=1,gpu=2", "'gpu=2' twice"),
        ("gpu=p5.48xlarge", "p5.48xlarge: no price of it is known in us-east-1; there are: g5.xl"),
        ("gpu=-1", "gpu=-1: must be 0 or more"),
        ("gpu=nan", "gpu=nan: must be 0 or more"),
    ],
)
def test_price_that_cannot_be_read_is_named(text: str, why: str) -> None:
    with pytest.raises(CannotStart, match=rf"--device-price-usd-per-h: .*{why}"):
        device_prices(text)


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_region_without_a_list_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "eu-west-9")
    assert device_prices("gpu=1") == {"gpu": 1.0}
    with pytest.raises(
        CannotStart, match="region eu-west-9: there is no price list; there are: us"
    ):
        device_prices("gpu=g6.xlarge")


def test_edges_are_told(tmp_path: Path) -> None:
    (edge,) = stack.edge_processes(
        *(Node(tmp_path), 1, "info"),
        host="127.0.0.1",
        port=1,
        admin_host="127.0.0.1",
        admin_port=2,
        registry="",
        controller="c",
        device_usd_per_h={"gpu": 0.8},
    )
    assert isinstance(edge.config, EdgeConfig)
    assert edge.config.device_usd_per_h == (("gpu", 0.8),)


@pytest.mark.parametrize("region", regions())
def test_every_price_of_a_list_has_a_dated_source_and_a_name_of_its_own(region: str) -> None:
    found = load_prices(region)  # which refuses one without
    assert found.region == region
    assert (FOLDER / f"aws-{region}.json").exists()
    assert len({price.id for price in found.prices}) == len(found.prices) > 0
    for price in found.prices:
        assert price.usd_high >= price.usd
        assert price.gpus is not None or not price.id.startswith("ec2.")
