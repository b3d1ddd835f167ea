"""`doctor`: what is wrong with this machine, account or stack, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra import stack
from infra.commands.options import DATA_DEFAULT, Data, Json, node_of, print_json, registry_url
from infra.commands.pools_option import VARIABLE, described_pools
from infra.doctor.aws.needs import NEEDS
from infra.doctor.aws.plan import BadPlan, read_plan
from infra.doctor.examine import Patient, examine
from infra.doctor.findings import Finding, is_well, lines
from infra.stack import CannotStart
from registry_sync.logs import configure

RegistryOf = Annotated[
    str, typer.Option("--registry", help="s3://bucket/prefix or a folder; default: the stack's.")
]
Tier = Annotated[
    str,
    typer.Option(
        "--tier",
        help="Whose permissions are needed: operator (who runs commands), edge, edge-admin (one "
        "whose admin port changes documents), controller, worker or builder.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="On which workers are to serve: auto, cpu or cuda:N.")
]
Notifications = Annotated[
    str,
    typer.Option("--notifications", metavar="QUEUE_URL", help="The queue of the controller."),
]
InstanceTypes = Annotated[
    list[str] | None,
    typer.Option("--instance-type", help="That a pool is to have, e.g. g6.xlarge; repeatable."),
]
Zones = Annotated[
    list[str] | None,
    typer.Option("--zone", help="In which it is wanted, e.g. us-east-1a; repeatable."),
]
Pools = Annotated[
    Path | None,
    typer.Option(
        "--pools",
        help="A JSON file of the pools on AWS that a controller is to keep; default with --tier "
        f"controller: what {VARIABLE} holds, if anything.",
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="The JSON of a plan (`terraform show -json tfplan`): may we make all that is in it?",
    ),
]
_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor_command)


def doctor_command(
    data: Data = DATA_DEFAULT,
    registry: RegistryOf = "",
    host: Annotated[str, typer.Option("--host", help="Of the public port.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The public port.")] = 8000,
    admin_host: Annotated[
        str, typer.Option("--admin-host", help="Of the admin port.")
    ] = "127.0.0.1",
    admin_port: Annotated[
        int, typer.Option("--admin-port", min=1, max=65535, help="Admin and metrics.")
    ] = 8002,
    device: Device = stack.AUTO,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="The certificate of the edge's ports.")
    ] = None,
    notifications: Notifications = "",
    tier: Tier = "operator",
    instance_type: InstanceTypes = None,
    zone: Zones = None,
    pools: Pools = None,
    plan: Plan = None,
    json: Json = False,
) -> None:
    """Look at this machine, the account and the stack; say what is wrong and what to do about it.

    Writes nothing anywhere.  Exit status 1: something is wrong.
    """
    if tier not in NEEDS:
        raise CannotStart(f"--tier {tier}: expected {', '.join(NEEDS)}")
    configure("doctor", "critical")  # what a look meets is a finding, not a line of a log
    patient = Patient(
        node=node_of(data),
        registry=registry_url(data, registry),
        ports=((host, port, "--port"), (admin_host, admin_port, "--admin-port")),
        device=device,
        certificates=() if tls_cert is None else (tls_cert,),
        notifications=notifications,
        tier=tier,
        instance_types=tuple(instance_type or ()),
        zones=tuple(zone or ()),
        planned=None if plan is None else _planned(plan),
        pools=described_pools(pools) if pools is not None or tier == "controller" else None,
    )
    findings: list[Finding] = []
    for finding in examine(patient):
        findings.append(finding)
        if not json:
            _show(finding)
    if json:
        print_json({"ok": is_well(findings), "findings": findings})
    if not is_well(findings):
        raise typer.Exit(1)


def _planned(path: Path) -> tuple[str, ...]:
    """Return the types of resource of a plan.

    Raises:
        CannotStart: it is none.
    """
    try:
        return tuple(read_plan(path))
    except BadPlan as error:
        raise CannotStart(f"--plan: {error}") from None


def _show(finding: Finding) -> None:
    """Print a finding as soon as it is found; in colour on a terminal."""
    for index, line in enumerate(lines([finding])):
        typer.secho(line, fg=None if index else _COLOURS[finding.state])
