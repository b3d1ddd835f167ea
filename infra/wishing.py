"""Wishes for plans that commands write: which targets are asked for, and whether they can be."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from infra.changes import recorded
from infra.client import NoController, ask
from infra.commands.options import controller_address, node_of
from infra.stack import CannotStart
from pool.engines.targets import BadTarget, check_targets, installed
from registry_sync import wishes
from registry_sync.builds import BuildWish
from registry_sync.documents import Manifest
from registry_sync.stores import NotFound, Store, StoreError
from registry_sync.wishes import check_device_class, new_wish


def parse_targets(text: str) -> list[str]:
    """Return the device classes of a list with commas, each once.

    Raises:
        BadName: one cannot be a device class.
        ValueError: there is none.
    """
    if not text.strip():
        raise ValueError("no device class is named, such as sm_86")
    return list(dict.fromkeys(check_device_class(part.strip()) for part in text.split(",")))


def check(
    data: Path, store: Store, manifest: Manifest, device_classes: Sequence[str], engine: str = ""
) -> None:
    """Refuse device classes for which nothing can ever build a plan of this version.

    What is installed here counts, and what the live workers of a running stack say they can build.

    Args:
        data: the folder of the stack.
        store: the registry.
        manifest: of the version.
        device_classes: that are asked for.
        engine: that is asked for; empty: the manifest's, if it names one.

    Raises:
        BadTarget: see `check_targets`.
    """
    if not device_classes:
        return
    named = manifest.engine.name if manifest.engine is not None else "auto"
    wanted = engine or ("" if named == "auto" else named)
    toolkits = installed()
    try:
        check_targets(device_classes, manifest.format, toolkits, engine=wanted)
    except BadTarget:
        announced = _announced(data, store)
        check_targets(device_classes, manifest.format, toolkits, announced, wanted)


def write(
    store: Store,
    reason: str,
    model: str,
    version: str,
    device_classes: Sequence[str],
    engine: str = "",
) -> None:
    """Write a wish for each device class, each with its record in the audit trail.

    Raises:
        CannotStart: the version is there, but this wish is not.
    """
    for device_class in device_classes:
        wish = new_wish(model, version, device_class, engine)
        try:
            recorded(
                *(store, reason, "engine.wish", model),
                functools.partial(wishes.put, store, wish),
                functools.partial(_written, wish),
            )
        except StoreError as error:
            raise CannotStart(
                f"{model} version {version} is published, but not its wish for a plan for "
                f"{device_class}: {error}; write it with `tidepool engines wish {model} {version} "
                f"--for {device_class}`"
            ) from error


def withdraw(
    store: Store, reason: str, model: str, version: str, device_classes: Sequence[str]
) -> None:
    """Take wishes back, each with its record in the audit trail.

    Raises:
        ValueError: there is none for a device class; those before it are withdrawn.
    """
    for device_class in device_classes:
        try:
            recorded(
                *(store, reason, "engine.withdraw", model),
                functools.partial(wishes.withdraw, store, model, version, device_class),
                functools.partial(_withdrawn, version, device_class),
            )
        except NotFound:
            raise ValueError(
                f"nobody wishes for a plan of {model} version {version} for {device_class}"
            ) from None


def _written(wish: BuildWish, _: bool) -> tuple[str, str]:
    return "", f"version {wish.version} {wish.device_class}"


def _withdrawn(version: str, device_class: str, _: None) -> tuple[str, str]:
    return f"version {version} {device_class}", ""


def _announced(data: Path, store: Store) -> list[str]:
    """Return what live workers say that they can build: "engine/device class"."""
    try:
        address = controller_address(data, store)
        if address is None:
            return []
        answer = asyncio.run(ask(address, node_of(data).data, "status"))
    except (NoController, StoreError):
        return []
    if not answer.ok:
        return []
    # A controller of the release before does not say it.
    status = msgspec.json.decode(answer.data)
    return [pair for worker in status["workers"] for pair in worker.get("builds", ())]
