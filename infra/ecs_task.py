"""`ecs-task` as a host: the private IPv4 address of the ECS task that this process runs in.

In the network mode awsvpc every task has an address of its own, which is known only once the task
runs, so that no task definition can name it.
"""

from __future__ import annotations

import os
import re
import time

import msgspec
import typer

from infra.client import get
from infra.stack import CannotStart

WORD = "ecs-task"
VARIABLE = "ECS_CONTAINER_METADATA_URI_V4"
TRIED_S_MAX = 10.0  # a container may start before the agent can tell of it
_PAUSE_S = 0.25
_HOST = re.compile(rf"(?:^|(?<=://)){WORD}(?=$|:\d+$)")


class _Network(msgspec.Struct, frozen=True):
    mode: str = msgspec.field(name="NetworkMode", default="")
    ipv4: tuple[str, ...] = msgspec.field(name="IPv4Addresses", default=())


class _Container(msgspec.Struct, frozen=True):
    networks: tuple[_Network, ...] = msgspec.field(name="Networks", default=())


def host_option(param: typer.CallbackParam, value: str) -> str:
    """Put the task's address in place of `ecs-task` in an option: a host, or scheme://host:port.

    Raises:
        CannotStart: this is no task of ECS, or it has no address of its own.
    """
    return _resolved(value, param.opts[0])


def hosts_option(param: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Do the same for an option that may be given several times."""
    return None if value is None else [_resolved(one, param.opts[0]) for one in value]


def _resolved(text: str, option: str) -> str:
    if not _HOST.search(text):
        return text
    try:
        return _HOST.sub(address(), text)
    except LookupError as error:
        raise CannotStart(f"{option} {text}: {error}") from None


def address(tried_s_max: float = TRIED_S_MAX) -> str:
    """Return this task's private IPv4 address, as the task metadata endpoint version 4 tells it.

    Raises:
        LookupError: this is no task of ECS, nobody answers within `tried_s_max`, or the task's
            network mode gives it no address that others can dial.
    """
    url = os.environ.get(VARIABLE, "")
    if not url:
        raise LookupError(
            f"{VARIABLE} is not set, so this is no task of ECS (on Fargate 1.4.0, or an ECS agent "
            "1.39.0, or later); name an address instead"
        )
    until_s = time.monotonic() + tried_s_max
    while True:
        status, body = get(url)
        try:
            # Of the container; all containers of a task share its network interface.
            networks = msgspec.json.decode(body, type=_Container).networks if status == 200 else ()
        except msgspec.DecodeError as error:
            raise LookupError(f"{VARIABLE}={url} tells no container's metadata: {error}") from None
        for network in networks:
            if network.mode == "awsvpc" and network.ipv4:
                return network.ipv4[0]
            if network.mode and network.mode != "awsvpc":
                raise LookupError(
                    f"the task's network mode is {network.mode!r}, which gives it no address of "
                    'its own: set "awsvpc" in its task definition'
                )
        if time.monotonic() >= until_s:
            said = "tells no network" if status == 200 else f"answers {status or 'nothing'}"
            raise LookupError(f"{VARIABLE}={url} {said} after {tried_s_max:.0f} s")
        time.sleep(_PAUSE_S)
