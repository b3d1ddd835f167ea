"""`endpoint get|set|history|diff|rollback|lint|purge`: users' documents, by compare-and-swap."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import yaml

from infra.changes import recorded
from infra.client import NoController, ask
from infra.commands.options import (
    DATA_DEFAULT,
    Data,
    Json,
    Reason,
    Registry,
    controller_address,
    has_registry,
    node_of,
    poke,
    print_json,
    said,
    store_of,
)
from infra.stack import CannotStart
from registry_sync import audit, documents, endpoints, scale_advice, spec_diff
from registry_sync.rollouts import is_same_rollout, state_of
from registry_sync.stores import Store, StoreError
from registry_sync.variant_checks import check_variants

File = Annotated[Path | None, typer.Argument(help="YAML or JSON; default: stdin.")]
AbortRollout = Annotated[
    bool, typer.Option("--abort-rollout", help="Also if that ends a rollout that runs.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Read and write endpoints.")
    family.command("get")(get_command)
    family.command("set")(set_command)
    family.command("history")(history_command)
    family.command("diff")(diff_command)
    family.command("rollback")(rollback_command)
    family.command("lint")(lint_command)
    family.command("purge")(purge_command)
    app.add_typer(family, name="endpoint")


def get_command(
    name: str, data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False
) -> None:
    """Print an endpoint's current spec."""
    with said():
        spec, _ = endpoints.get_spec(store_of(data, registry, writes=False), name)
    encoded = documents.write(spec)
    if json:
        typer.echo(encoded.decode())
    else:
        plain = msgspec.json.decode(encoded)
        typer.echo(yaml.safe_dump(plain, sort_keys=False).rstrip())


def set_command(
    name: str,
    file: File = None,
    if_revision: Annotated[int | None, typer.Option(min=0, help="Must be current.")] = None,
    abort_rollout: AbortRollout = False,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Create or replace an endpoint's whole spec; prints its revision.

    Returns when every live edge of the running stack goes by it.
    """
    with said():
        spec = documents.parse_spec(_read(file))
        _check_name(name, spec)
        store = store_of(data, registry)
        revision = recorded(
            *(store, reason, "endpoint.set", name),
            lambda: endpoints.set_spec(store, spec, if_revision, abort_rollout=abort_rollout),
            audit.revisions,
        )
        poke(data, store, document=endpoints.spec_key(name))
    typer.echo(revision)
    _warn(data, store, spec)


def history_command(
    name: str, data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False
) -> None:
    """Print every spec that was ever current, oldest first."""
    with said():
        specs = endpoints.history(store_of(data, registry, writes=False), name)
    if json:
        typer.echo(b"[" + b",".join(documents.write(spec) for spec in specs) + b"]")
        return
    for spec in specs:
        arms = ", ".join(f"{v.name} {v.model}/{v.version} {v.weight:g} %" for v in spec.variants)
        wish = "" if spec.rollout is None else f"  rollout {spec.rollout.id}: {spec.rollout.wish}"
        typer.echo(f"{spec.revision}  {arms}{wish}")


def diff_command(
    name: str,
    before: Annotated[
        int | None, typer.Argument(min=1, help="A revision; default: the one before AFTER.")
    ] = None,
    after: Annotated[
        int | None, typer.Argument(min=1, help="Another; default: the current one.")
    ] = None,
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Show what differs between two revisions of an endpoint, value by value."""
    with said():
        store = store_of(data, registry, writes=False)
        current, _ = endpoints.get_spec(store, name)
        right = current if after is None else endpoints.get_revision(store, name, after)
        if before is None and right.revision <= 1:
            raise CannotStart(f"{name} has no revision before {right.revision}")
        left = endpoints.get_revision(store, name, right.revision - 1 if before is None else before)
        found = spec_diff.differences(left, right)
    if json:
        print_json({"before": left.revision, "after": right.revision, "changes": found})
        return
    typer.echo(f"revision {left.revision} -> {right.revision}", err=True)
    for change in found:
        typer.echo(change.line())


def rollback_command(
    name: str,
    to_revision: Annotated[
        int | None, typer.Option(min=1, help="That is to be current again; default: the previous.")
    ] = None,
    abort_rollout: AbortRollout = False,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Make the previous spec, or that of another revision, current again; prints the new one."""
    with said():
        store = store_of(data, registry)
        revision = recorded(
            *(store, reason, "endpoint.rollback", name),
            lambda: endpoints.rollback(
                store, name, to_revision=to_revision, abort_rollout=abort_rollout
            ),
            audit.revisions,
        )
        poke(data, store, document=endpoints.spec_key(name))
        typer.echo(revision)
        _say_what_stays(store, name, revision)


def _say_what_stays(store: Store, name: str, revision: int) -> None:
    """Tell who went back within a rollout that this moved no traffic, and what would."""
    after = endpoints.get_revision(store, name, revision)
    before = endpoints.get_revision(store, name, revision - 1)
    rollout = after.rollout
    if rollout is None or not is_same_rollout(before, after):
        return
    versions = {arm.name: arm.version for arm in after.variants}
    found = endpoints.read_state(store, name)
    state = state_of(after, None if found is None else found[0])
    abort = ""
    if state is None or state.state != "rolled_back":
        baseline = versions[rollout.baseline]
        abort = f"; `tidepool rollout abort {name}` gives version {baseline} all traffic"
    changes = ", ".join(change.line() for change in spec_diff.differences(before, after))
    typer.echo(
        f"note: {changes or 'nothing'} went back; the rollout to version "
        f"{versions[rollout.candidate]} and its weights stay as they are{abort}",
        err=True,
    )


def purge_command(
    name: str,
    version: Annotated[str | None, typer.Option(help="Only this version's answers.")] = None,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
) -> None:
    """Drop an endpoint's cached answers, in memory and on disk; prints what was purged.

    Returns when no live edge of the running stack answers from before any more.
    """
    with said():
        store = store_of(data, registry)
        recorded(
            *(store, reason, "endpoint.purge", name),
            lambda: endpoints.purge(store, name, version),
            lambda state: audit.epochs(state, version),
        )
        poke(data, store, says_if_nobody=True)
    typer.echo(f"purged {name}" + ("" if version is None else f" version {version}"))


def lint_command(
    name: str, file: File = None, data: Data = DATA_DEFAULT, registry: Registry = ""
) -> None:
    """Name everything that is wrong with a spec, without writing it.

    Whether its variants are published is looked up where there is a registry to ask, and what it
    means for the pool where there is a controller; that is only a warning.
    """
    spec = None
    with said():
        text = _read(file)
        found = documents.problems(text)
        if not found:
            spec = documents.parse_spec(text)
            _check_name(name, spec)
            if has_registry(data, registry):
                found = _unpublished(store_of(data, registry), spec)
    if not found:
        typer.echo("ok")
        if spec is not None:
            _warn(data, store_of(data, registry) if has_registry(data, registry) else None, spec)
        return
    for problem in found:
        typer.echo(problem, err=True)
    raise typer.Exit(1)


def _warn(data: Path, store: Store | None, spec: documents.EndpointSpec) -> None:
    """Say what a spec means in the fleet that runs, if its controller can be asked."""
    try:
        address = controller_address(data, store)
        if address is None:
            return
        found = asyncio.run(ask(address, node_of(data).data, "status"))
        fleet = scale_advice.fleet_of(found.data)
    except (NoController, StoreError, ConnectionError, msgspec.DecodeError):
        return  # nobody can say
    for line in scale_advice.warnings(spec, fleet):
        typer.echo(f"warning: {line}", err=True)


def _unpublished(store: Store, spec: documents.EndpointSpec) -> list[str]:
    try:
        check_variants(store, spec)
    except documents.BadDocument as error:
        return error.problems
    return []


def _read(file: Path | None) -> bytes:
    return sys.stdin.buffer.read() if file is None else file.read_bytes()


def _check_name(name: str, spec: documents.EndpointSpec) -> None:
    if spec.endpoint != name:
        raise CannotStart(f"$.endpoint: the file is of {spec.endpoint!r}, the command of {name!r}")
