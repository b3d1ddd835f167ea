"""`status` and `warm`: questions to the controller of the running stack."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import typer

from infra.client import ask
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Json,
    Registry,
    controller_address,
    node_of,
    said,
    store_of,
)
from infra.stack import CannotStart
from pool.wire.control import Answer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status_command)
    app.command("warm")(warm_command)


def status_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """Show workers, engines and endpoints."""
    found = _ask(data, registry, "status", "")
    if json:
        typer.echo(found.data.decode())
        return
    for line in _lines(msgspec.json.decode(found.data)):
        typer.echo(line)


def warm_command(name: str, data: Data = DATA_DEFAULT, registry: Registry = "") -> None:
    """Let every version of an endpoint be loaded somewhere now."""
    _ask(data, registry, "warm", name)
    typer.echo(f"warming {name}")


def _ask(data: Any, registry: str, what: str, argument: str) -> Answer:
    with said():
        store = store_of(data, registry) if registry else None
        address = controller_address(data, store)
        if address is None:
            raise CannotStart(f"no stack runs on --data {data}; start one with `tidepool up`")
        answer = asyncio.run(ask(address, node_of(data).data, what, argument))
    if not answer.ok:
        raise CannotStart(answer.detail)
    return answer


def _lines(status: dict[str, Any]) -> list[str]:
    lines = []
    for worker in status["workers"]:
        lines.append(f"worker {worker['id']}  {worker['state']}  pid {worker['pid']}")
        for engine in worker["engines"]:
            text = f"  {engine['model']}/{engine['version']}  {engine['state']}"
            lines.append(f"{text}  {engine['engine']}  {engine['detail']}".rstrip())
    for endpoint in status["endpoints"]:
        lines.append(f"endpoint {endpoint['name']}  revision {endpoint['revision']}")
        lines.extend(
            f"  {v['name']}  {v['model']}/{v['version']}  {v['weight']:g} %  "
            f"{v['replicas']} warm  {v['requests']} requests  {v['errors']} errors"
            for v in endpoint["variants"]
        )
    for document, why in status["rejected"].items():
        lines.append(f"rejected {document}: {why}")
    return lines
