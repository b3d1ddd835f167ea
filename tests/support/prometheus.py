"""A real Prometheus that scrapes a running stack, and `promtool`, where a machine has them.

Debian has both in its package `prometheus`; tests marked `prometheus` are deselected without it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from infra.stack import free_port
from tests.support.source import ROOT

FOLDER = ROOT / "infra" / "monitoring" / "prometheus"
RULES = (FOLDER / "recording.yml", FOLDER / "alerts.yml")
READY_S_MAX = 20.0
_NAME = re.compile(r"\btidepool[_:][a-z0-9_:]+")
_PARTS = re.compile(r"_(bucket|sum|count)$")


def is_there() -> bool:
    """Tell whether this machine has both."""
    return all(map(shutil.which, ("prometheus", "promtool")))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool in the folder of the rules; its output says what is wrong."""
    return subprocess.run(
        ["promtool", *map(str, arguments)],
        cwd=FOLDER,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )


def rules() -> list[dict[str, Any]]:
    """Return all rules, recording and alerting."""
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def names_in(expression: str) -> set[str]:
    """Return the names of our metrics that an expression names.

    >>> sorted(names_in('rate(tidepool_a_total{b="c"}[5m]) / on (x) tidepool:d:rate5m'))
    ['tidepool:d:rate5m', 'tidepool_a_total']
    """
    return set(_NAME.findall(expression))


def family_of(name: str) -> str:
    """Return the name under which a scrape announces a series."""
    return _PARTS.sub("", name)


class Prometheus:
    """One started server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Ask its API; the data of an answer that is a success."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None
        assert said["status"] == "success", said
        return said["data"]

    def query(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of every series that an expression gives now."""
        found = self.get("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [row["metric"] for row in found["result"]]

    def series(self) -> set[str]:
        """Return the names of all series."""
        return set(self.get("label/__name__/values"))

    def families(self) -> set[str]:
        """Return the names that the last scrapes announced, with or without a series."""
        return set(self.get("metadata"))

    def is_ready(self) -> bool:
        """Tell whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, target: str, *, interval: str = "250ms") -> Iterator[Prometheus]:
    """Run Prometheus by the configuration that is shipped, but for the edge and the pace.

    Args:
        folder: for its data.
        target: host and port of the edge to be scraped.
        interval: between scrapes, and between evaluations.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        job["scrape_timeout"] = interval
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(f"http://127.0.0.1:{port}")
        assert process.poll() is None, (folder / "prometheus.log").read_text()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
