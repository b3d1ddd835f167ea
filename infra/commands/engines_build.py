"""`engines build`: plans made right here, by a person who does not want to wait for a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from infra import wishing
from infra.changes import recorded
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    EngineName,
    For,
    Json,
    Reason,
    Registry,
    node_of,
    poke,
    print_json,
    said,
    store_of,
)
from infra.plan_builds import Made, NotMade, Workshop, fleet_secrets, make
from infra.printable import printable
from infra.stack import CannotStart
from infra.status_view import shown_bytes
from registry_sync.audit import check_reason
from registry_sync.logs import configure
from registry_sync.sync import FetchError


def build_command(
    model: str,
    version: str,
    build_for: For,
    engine: EngineName = "",
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Build plans of a version right here and put them into the registry.

    What the registry has already is not built again.  TensorRT for RTX builds for every device
    that it knows, on any machine; other engines for the device on which they run.
    """
    configure("engines", "warning")
    made: list[Made] = []
    failed: list[str] = []
    with said():
        targets = wishing.parse_targets(build_for)
        check_reason(reason)  # before minutes are spent
        node = node_of(data)
        secrets = fleet_secrets(node.data)
        store = store_of(data, registry, writes=False)
        workshop = Workshop(store, node, secrets)
        try:
            manifest = workshop.bring(model, version)
        except FetchError as error:
            raise CannotStart(str(error)) from None
        for target in targets:
            typer.echo(f"{model} version {version} for {target} …", err=True)

            def put(act: Callable[[], Made], target: str = target) -> Made:
                return recorded(
                    *(store, reason, "engine.build", model, act),
                    lambda one: ("", f"version {version} {target} {one.option.key}"),
                )

            try:
                made.append(make(workshop, manifest, target, engine, put))
            except NotMade as error:
                failed.append(f"{target}: {error}")
        if made:
            poke(data, store)
    if json:
        print_json([_made_row(one) for one in made])
    else:
        for one in made:
            typer.echo(printable(_made_line(one)))
    if failed:
        raise CannotStart("\n".join(failed))


def _made_row(one: Made) -> dict[str, Any]:
    meta, gate = one.plan.meta, one.plan.gate
    return {
        "key": one.option.key,
        "state": one.state,
        "model": meta.model,
        "version": meta.version,
        "engine": meta.identity.engine,
        "device": meta.identity.device,
        "precision": meta.identity.precision,
        "bytes": meta.bytes,
        "build_s": meta.build_s,
        "gate": gate.verdict,
        "reason": gate.reason,
    }


def _made_line(one: Made) -> str:
    meta, gate = one.plan.meta, one.plan.gate
    words = [one.option.key, one.state, meta.identity.device, meta.identity.engine]
    words += [meta.identity.precision, shown_bytes(meta.bytes), gate.verdict.replace("_", " ")]
    return "  ".join([*words, gate.reason] if gate.verdict == "failed" else words)
