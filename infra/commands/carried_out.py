"""Waits until the running stack's controller has carried out what was wished of a rollout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from infra.client import NoController, ask
from infra.commands.options import controller_address, node_of, poke
from infra.rollout_view import LIVE, shown_state
from infra.stack import CannotStart
from registry_sync.rollout_orders import Ordered
from registry_sync.stores import Store

Document = Mapping[str, Any]

CARRIED_OUT_S_MAX = 15.0
LOOK_S = 0.1


def carry_out(
    data: Path, store: Store, ordered: Ordered, is_done: Callable[[Document], bool]
) -> None:
    """Let the running stack, if there is one, carry out what was just written.

    Args:
        data: the folder of the stack.
        store: the registry.
        ordered: what was written.
        is_done: tells by the status's document whether it has been carried out.

    Raises:
        CannotStart: the rollout has ended otherwise, or nothing came of it in time; it is written
            all the same.
    """
    if not poke(data, store, says_if_nobody=True):
        return
    spec = ordered.spec
    end_s = time.monotonic() + CARRIED_OUT_S_MAX
    while True:
        try:
            document = _status(data, store, spec.endpoint)
            why = document["waits_for"] or "see `tidepool rollout status`"
        except NoController as error:  # one that is started again carries it out
            document, why = {}, str(error)
        if document and _is_at_end(document, ordered, is_done):
            poke(data, store)  # what the controller has decided, every live edge goes by as well
            return
        if time.monotonic() > end_s:
            raise CannotStart(f"written, but not carried out after {CARRIED_OUT_S_MAX:g} s: {why}")
        time.sleep(LOOK_S)


def _is_at_end(document: Document, ordered: Ordered, is_done: Callable[[Document], bool]) -> bool:
    rollout = ordered.spec.rollout
    if rollout is None or document["id"] != rollout.id:
        raise CannotStart(f"written, but {ordered.spec.endpoint} has another rollout by now")
    if is_done(document):
        return True
    # One that is promoted can be aborted still.
    if document["state"] not in LIVE and rollout.wish != "abort":
        why = document["reason"] or "see `tidepool rollout status`"
        raise CannotStart(f"written, but it is {shown_state(document['state'])}: {why}")
    return False


def _status(data: Path, store: Store, endpoint: str) -> Document:
    address = controller_address(data, store)
    if address is None:
        raise CannotStart("written, but the stack has ended meanwhile")
    answer = asyncio.run(ask(address, node_of(data).data, "rollout", endpoint))
    if not answer.ok:
        raise CannotStart(f"written, but the controller says: {answer.detail}")
    document: Document = msgspec.json.decode(answer.data)
    return document
