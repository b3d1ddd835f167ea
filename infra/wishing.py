"""Wishes for plans that commands write: which targets are asked for, and whether they can be."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec
from msgspec.structs import replace

from infra.changes import recorded
from infra.client import NoController, ask
from infra.commands.options import controller_address, node_of
from infra.stack import CannotStart
from pool.engines.base import CannotBuild
from pool.engines.choice import spec_of
from pool.engines.registry import find_plan_engines
from pool.engines.targets import BadTarget, check_targets, installed
from registry_sync import artifact, wishes
from registry_sync.builds import BuildWish, Wanted
from registry_sync.documents import File, Manifest
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
    data: Path,
    store: Store,
    manifest: Manifest,
    wanted: Wanted,
    device_classes: Sequence[str],
    engine: str = "",
) -> None:
    """Refuse device classes for which nothing can ever build a plan of this version.

    What is installed here counts, and what the live workers of a running stack say they can build.
    Whether an engine has all of a model's operators, only a build tells.

    Args:
        data: the folder of the stack.
        store: the registry.
        manifest: of the version; that of one which is not published yet will do.
        wanted: of its engine.
        device_classes: that are asked for.
        engine: that is asked for; empty: the manifest's, if it names one.

    Raises:
        BadTarget: see `check_targets`; or each engine that builds for one says that there can be
            no plan, e.g. because an axis may have any size.
    """
    if not device_classes:
        return
    named = manifest.engine.name if manifest.engine is not None else "auto"
    name = engine or ("" if named == "auto" else named)
    toolkits = installed()
    try:
        check_targets(device_classes, manifest.format, toolkits, engine=name)
    except BadTarget:
        announced = _announced(data, store)
        check_targets(device_classes, manifest.format, toolkits, announced, name)
    for device_class in device_classes:
        builders = {toolkit.engine for toolkit in toolkits if toolkit.covers(device_class)}
        said = _objections(manifest, wanted, device_class, {name} & builders if name else builders)
        if said and not _others(_announced(data, store), device_class, name, builders):
            raise BadTarget(f"{device_class}: {said}")


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


def _objections(
    manifest: Manifest, wanted: Wanted, device_class: str, builders: AbstractSet[str]
) -> str:
    """Return why none of some engines can have a plan; empty if one can, or there is none."""
    precision = wanted.engine.precision or manifest.precision
    graph = artifact.graph_of(precision)
    if precision != "fp32" and all(file.path != graph for file in manifest.files):
        # Of a draft: it will be converted.
        manifest = replace(manifest, files=(*manifest.files, File(graph, "0" * 64, 0)))
    spec = spec_of(manifest, Path(), wanted, device_class)
    said = []
    for engine in find_plan_engines():
        if engine.name in builders and manifest.format in engine.formats:
            try:
                engine.identity(spec)
            except CannotBuild as error:
                said.append(f"{engine.name}: {error}")
            else:
                return ""
    return "; ".join(said)


def _others(
    announced: Sequence[str], device_class: str, name: str, builders: AbstractSet[str]
) -> list[str]:
    """Return the engines of live workers that build for a device class and cannot be asked here."""
    found = [pair.partition("/") for pair in announced]
    return [
        engine
        for engine, _, where in found
        if where == device_class and engine not in builders and name in ("", engine)
    ]


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
