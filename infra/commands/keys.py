"""`keys create|list|rotate|revoke`: who may call, how much, and until when."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from infra.changes import recorded
from infra.commands import keys_fleet, keys_signing
from infra.commands.options import DATA_DEFAULT, Data, Json, Reason, Registry, poke, said, store_of
from registry_sync import keys
from registry_sync.documents import KeyRecord, Quota

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

RequestsPerS = Annotated[
    float | None, typer.Option("--requests-per-s", help="Calls a second, over the whole fleet.")
]
RowsPerS = Annotated[
    float | None, typer.Option("--rows-per-s", help="Rows a second, over the whole fleet.")
]
BurstS = Annotated[
    float | None,
    typer.Option("--burst-s", help="Seconds of either rate that may be saved up; default 1."),
]
Concurrent = Annotated[int | None, typer.Option("--concurrent", help="Calls under way at once.")]
NotAfter = Annotated[
    str | None,
    typer.Option("--not-after", help="Refused from then on: 2027-01-31 or 2027-01-31T12:00:00Z."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")
    family.command("create")(create_command)
    family.command("list")(list_command)
    family.command("rotate")(rotate_command)
    family.command("revoke")(revoke_command)
    family.add_typer(keys_signing.family(), name="signing")
    keys_fleet.register(family)
    app.add_typer(family, name="keys")


def create_command(
    tenant: Annotated[str, typer.Option(help="Whose cache and share it is.")] = "default",
    scope: Annotated[
        list[str] | None, typer.Option(help="infer:NAME, infer:* or admin; default infer:*.")
    ] = None,
    requests_per_s: RequestsPerS = None,
    rows_per_s: RowsPerS = None,
    burst_s: BurstS = None,
    concurrent: Concurrent = None,
    days: Annotated[float | None, typer.Option(min=0, help="Refused after so many.")] = None,
    not_after: NotAfter = None,
    priority: Annotated[
        int, typer.Option(min=1, max=100, help="The highest that its calls may have; 1: any.")
    ] = 1,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=100, help="Of a worker's time beside other tenants, by weight."),
    ] = 1.0,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Make a key; it is printed once and kept nowhere."""
    if days is not None and not_after is not None:
        raise typer.BadParameter("--days and --not-after say the same: give one of them")
    until_s = None if days is None else time.time() + days * 86400
    with said():
        if not_after is not None:
            until_s = _unix_s(not_after)
        quota = _quota(requests_per_s, rows_per_s, burst_s, concurrent)
        store = store_of(data, registry)
        key, record = keys.make_key(tenant, scope or ["infer:*"], quota, until_s, priority, share)
        recorded(store, reason, "key.create", record.id, lambda: keys.add_key(store, record))
        poke(data, store)
    typer.echo(_json({"id": record.id, "key": key}) if json else key)


def list_command(data: Data = DATA_DEFAULT, registry: Registry = "", json: Json = False) -> None:
    """List the keys' records; the keys themselves are known to nobody."""
    with said():
        records = keys.list_keys(store_of(data, registry, writes=False))
    if json:
        typer.echo(_json([_row(record) for record in records]))
        return
    for record in records:
        words = [record.id, record.tenant, " ".join(record.scopes)]
        if record.quota is not None:
            limits = msgspec.to_builtins(record.quota)
            words.append(" ".join(f"{name}={value:g}" for name, value in limits.items()))
        if record.priority != 1:
            words.append(f"priority={record.priority}")
        if record.share != 1:
            words.append(f"share={record.share:g}")
        if record.not_after is not None:
            words.append(f"until {_iso(record.not_after)}")
        words += [f"earlier secret until {_iso(old.not_after)}" for old in record.previous]
        typer.echo("  ".join(words))


def rotate_command(
    id: str,
    grace: Annotated[
        str, typer.Option(help="The secret before is good for so long: 90s, 30m, 24h, 7d; 0: ends.")
    ] = "24h",
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Give a key another secret, printed once; id, scopes and quota stay.

    With `--grace 0` every earlier secret of the key ends at once.
    """
    with said():
        grace_s = _duration_s(grace)
        now_s = time.time()
        store = store_of(data, registry)
        key = recorded(
            store, reason, "key.rotate", id, lambda: keys.rotate_key(store, id, grace_s, now_s)
        )
        poke(data, store, says_if_nobody=True)
    made = {"id": id, "key": key, "previous_not_after": now_s + grace_s if grace_s else None}
    typer.echo(_json(made) if json else key)


def revoke_command(
    id: str,
    reason: Reason = "",
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Let a key no longer be good, on every live edge when this returns."""
    with said():
        store = store_of(data, registry)
        recorded(store, reason, "key.revoke", id, lambda: keys.revoke_key(store, id))
        poke(data, store, says_if_nobody=True)
    typer.echo(_json({"id": id, "revoked": True}) if json else f"revoked {id}")


def _quota(
    requests_per_s: float | None,
    rows_per_s: float | None,
    burst_s: float | None,
    concurrent: int | None,
) -> Quota | None:
    if burst_s is not None and requests_per_s is None and rows_per_s is None:
        raise ValueError("--burst-s: needs --requests-per-s or --rows-per-s, whose burst it is")
    if requests_per_s is None and rows_per_s is None and concurrent is None:
        return None
    return Quota(requests_per_s, rows_per_s, 1.0 if burst_s is None else burst_s, concurrent)


def _row(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "scopes": list(record.scopes),
        "quota": None if record.quota is None else msgspec.structs.asdict(record.quota),
        "priority": record.priority,
        "share": record.share,
        "not_after": record.not_after,
        "previous_not_after": [old.not_after for old in record.previous],
    }


def _duration_s(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise ValueError(f"--grace {text!r}: write a number and s, m, h or d, such as 24h")
    return float(match[1]) * _UNITS_S[match[2]]


def _unix_s(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--not-after {text!r}: write a day or a time, such as 2027-01-31 or "
            "2027-01-31T12:00:00Z"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def _json(content: object) -> str:
    return msgspec.json.encode(content).decode()
