"""`rollout start|pause|resume|promote|abort|diff` on a running stack: what they return after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.admin import Site, fresh, publish
from tests.support.commands import Commands
from tests.support.stack import Stack, until

HOUR = ("--hold", "1h")


@pytest.fixture(scope="module")
def site(wide_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two edges on a registry in a directory."""
    publish(wide_stack, tmp_path_factory.mktemp("rollout-commands"))
    return Site(wide_stack)


@pytest.fixture(scope="module")
def cli(site: Site) -> Commands:
    return Commands("--data", str(site.stack.data))


@pytest.fixture
def name(site: Site) -> Iterator[str]:
    """An endpoint with version 1 alone; what was begun on it is over when the test is."""
    found = fresh("c")
    site.put(found)
    yield found
    site("POST", f"/endpoints/{found}/rollout/abort")


def status(site: Site, name: str) -> Any:
    return site("GET", f"/endpoints/{name}/rollout").json()


def weights(site: Site, name: str) -> dict[str, float]:
    return {arm["name"]: arm["weight"] for arm in status(site, name)["variants"]}


def test_each_command_returns_once_it_is_carried_out(site: Site, cli: Commands, name: str) -> None:
    assert cli.ok("rollout", "start", name, "--to", "2", *HOUR) == "2"
    begun = status(site, name)
    assert (begun["state"], [arm["name"] for arm in begun["variants"]]) == (
        "running",
        ["stable", "canary"],
    )
    assert begun["at"]
    until(lambda: weights(site, name) == {"stable": 99, "canary": 1}, 30.0, "the first step")
    cli.ok("rollout", "pause", name)
    assert status(site, name)["state"] == "paused"
    cli.ok("rollout", "resume", name)
    assert status(site, name)["state"] == "running"
    cli.ok("rollout", "promote", name)
    until(lambda: status(site, name)["state"] == "promoted", 30.0, "the promotion")
    assert weights(site, name) == {"stable": 0, "canary": 100}
    assert "is promoted" in cli.fails("rollout", "pause", name)
    cli.ok("rollout", "abort", name)
    assert (status(site, name)["state"], weights(site, name)) == (
        "rolled_back",
        {"stable": 100, "canary": 0},
    )


def test_what_is_compared_is_shown(site: Site, cli: Commands, name: str) -> None:
    assert "has no rollout" in cli.fails("rollout", "diff", name)
    cli.ok("rollout", "start", name, "--to", "2", *HOUR)
    shown = json.loads(cli.ok("rollout", "diff", name, "--json"))
    assert shown == {"endpoint": name, "id": status(site, name)["id"], "shadow": None}
    assert "--shadow" in cli.ok("rollout", "diff", name)


def test_a_file_without_the_rollout_ends_it_only_if_it_may(
    site: Site, cli: Commands, name: str
) -> None:
    plain = json.dumps({**json.loads(cli.ok("endpoint", "get", name, "--json")), "revision": 0})
    cli.ok("rollout", "start", name, "--to", "2", "--steps", "50", *HOUR)
    until(lambda: weights(site, name)["canary"] == 50, 30.0, "the first step")
    assert "rollout abort" in cli.fails("endpoint", "set", name, stdin=plain)
    assert weights(site, name)["canary"] == 50
    cli.ok("endpoint", "set", name, "--abort-rollout", stdin=plain)
    assert {(v["version"], v["weight"]) for v in site.stack.variants(name).values()} == {("1", 100)}
