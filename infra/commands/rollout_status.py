"""`rollout status`: the table of a rollout, once or refreshed in place."""

from __future__ import annotations

from urllib.parse import quote

from infra.commands.asking import AdminUrl, Watch, ask_controller, get_admin
from infra.commands.options import DATA_DEFAULT, Data, Json, Registry
from infra.live import show
from infra.rollout_view import VIEW


def status_command(
    name: str,
    data: Data = DATA_DEFAULT,
    registry: Registry = "",
    url: AdminUrl = "",
    json: Json = False,
    watch: Watch = False,
) -> None:
    """Show a rollout: its step, what both arms did, and what the guards say."""

    def look() -> bytes:
        if url:
            return get_admin(url, f"/admin/endpoints/{quote(name, safe='')}/rollout")
        return ask_controller(data, registry, "rollout", name).data

    show(look, VIEW, json=json, watch=watch)
