"""What commands ask a running stack: its controller, or an edge's admin port."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from infra.client import NotTrusted, ask, get
from infra.commands.options import controller_address, node_of, said, store_of
from infra.stack import CannotStart
from pool.wire.control import Answer

ANSWER_S_MAX = 20.0

AdminUrl = Annotated[
    str,
    typer.Option("--url", help="An edge's admin URL, asked with TIDEPOOL_API_KEY; else --data."),
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second.")]


def ask_controller(data: Path, registry: str, what: str, argument: str = "") -> Answer:
    """Ask the controller of the running stack.

    Raises:
        CannotStart: there is none, or it refuses.
    """
    with said():
        store = store_of(data, registry) if registry else None
        address = controller_address(data, store)
        if address is None:
            raise CannotStart(f"no stack runs on --data {data}; start one with `tidepool up`")
        answer = asyncio.run(ask(address, node_of(data).data, what, argument))
    if not answer.ok:
        raise CannotStart(answer.detail)
    return answer


def get_admin(url: str, path: str) -> bytes:
    """Return what an edge's admin port tells at `path`.

    Raises:
        CannotStart: nobody answers, or the key is not good for it.
    """
    key = os.environ.get("TIDEPOOL_API_KEY", "")
    if not key:
        raise CannotStart("--url needs a key: set TIDEPOOL_API_KEY")
    headers = {"authorization": f"Bearer {key}"}
    try:
        status, body = get(f"{url.rstrip('/')}{path}", headers, ANSWER_S_MAX)
    except NotTrusted as error:
        raise CannotStart(str(error)) from None
    if status == 200:
        return body
    if status == 0:
        raise CannotStart(f"nobody answers at {url}; is it the admin URL?")
    raise CannotStart(f"{url} answered {status}: {_detail(body)}")


def _detail(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).detail
    except msgspec.DecodeError:
        return "no problem document; is it the admin URL?"


class _Problem(msgspec.Struct):
    detail: str
