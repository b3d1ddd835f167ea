"""`audit`: who changed what, when and why."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from infra.commands.options import DATA_DEFAULT, Data, Json, Registry, said, store_of
from infra.printable import printable
from registry_sync import audit
from registry_sync.audit import Found, Query

LIMIT_MAX = 100_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("audit")(audit_command)


def audit_command(
    endpoint: Annotated[str, typer.Option(help="Changes of this endpoint or model.")] = "",
    key: Annotated[str, typer.Option(help="Changes by or of the key with this id.")] = "",
    who: Annotated[str, typer.Option(help="Changes by this key id or user@host.")] = "",
    since: Annotated[str, typer.Option(help="A date, a time, or 7d, 12h, 30m ago.")] = "30d",
    until: Annotated[str, typer.Option(help="As --since; default: now.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=LIMIT_MAX, help="Newest first.")] = 100,
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    json: Json = False,
) -> None:
    """Show the changes of documents, newest first."""
    now = datetime.now(UTC)
    with said():
        end = audit.parse_time(until, now) if until else now
        query = Query(audit.parse_time(since, now), end, endpoint, key, who)
        store = store_of(data, registry, writes=False)
        found: list[Found] = []
        before = ""
        while True:
            wanted = min(limit - len(found), audit.PAGE_MAX)
            page = audit.page(store, query, limit=wanted, before=before)
            found += page.found
            before = page.next
            if not before or len(found) == limit:
                break
    if json:
        typer.echo(msgspec.json.encode([audit.row(one) for one in found]).decode())
        return
    for one in found:
        typer.echo(printable(_line(one)))
    if before:
        typer.echo(f"there are more; see them with --until or --limit {limit * 10}", err=True)


def _line(found: Found) -> str:
    record = found.record
    if record is None:
        return f"{found.id}  unreadable: {found.problem}"
    text = f"{record.at}  {record.by} {record.who}  {record.what} {record.target}"
    if record.before or record.after:
        text += f"  {record.before or 'none'} → {record.after or 'none'}"
    if record.outcome != "done":
        text += f"  outcome {record.outcome}"
    return f"{text}  {record.why}".rstrip()
