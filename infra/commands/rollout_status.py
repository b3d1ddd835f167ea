"""`rollout status`, once or refreshed in place, and `rollout diff`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import msgspec
import typer

from infra.commands.asking import AdminUrl, Watch, ask_controller, get_admin
from infra.commands.options import DATA_DEFAULT, Data, Json, Registry, print_json
from infra.live import show
from infra.rollout_view import VIEW, shadow_lines


def status_command(
    name: str,
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    url: AdminUrl = "",
    json: Json = False,
    watch: Watch = False,
) -> None:
    """Show a rollout: its step, what both arms did, and what the guards say."""

    show(lambda: _look(name, data, registry, url), VIEW, json=json, watch=watch)


def diff_command(
    name: str,
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    url: AdminUrl = "",
    json: Json = False,
) -> None:
    """Show how a rollout's version answered copies of calls, the worst examples last."""
    rollout = msgspec.json.decode(_look(name, data, registry, url))
    if json:
        print_json({"endpoint": name, "id": rollout["id"], "shadow": rollout["shadow"]})
    else:
        typer.echo("\n".join(shadow_lines(rollout)))


def _look(name: str, data: Path, registry: str, url: str) -> bytes:
    if url:
        return get_admin(url, f"/admin/endpoints/{quote(name, safe='')}/rollout")
    return ask_controller(data, registry, "rollout", name).data
