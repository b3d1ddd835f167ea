"""What this edge is made of: releases, platform, commit, and the schemas that it speaks."""

from __future__ import annotations

import functools
import json
import platform
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.admin.answers import answer, query
from pool.wire import control
from registry_sync import audit, documents

PACKAGES = ("granian", "starlette", "uvloop", "msgspec", "numpy", "onnxruntime", "boto3")

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


class Build:
    """The handler of `/admin/build`."""

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/admin/build", self.build)]

    async def build(self, request: Request) -> Response:
        """Say what answers; a package that is not installed here is null."""
        query(request)
        return answer(_build())


@functools.cache
def _build() -> dict[str, Any]:
    ours = _distribution("tidepool")
    return {
        "version": ours.version if ours is not None else None,
        "commit": _commit(ours),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        # Not `platform.platform()`, which starts a process.
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "packages": {
            name: found.version if (found := _distribution(name)) is not None else None
            for name in PACKAGES
        },
        "schemas": {
            "documents": documents.SCHEMA,
            "audit": audit.SCHEMA,
            "control_wire": control.WIRE,
        },
    }


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _commit(ours: Distribution | None) -> str | None:
    """Return the commit that was installed (PEP 610), else the one that is checked out here."""
    says = json.loads((ours and ours.read_text("direct_url.json")) or "{}")
    installed = says.get("vcs_info", {}).get("commit_id")
    if isinstance(installed, str):
        return installed
    try:
        return _checked_out(Path(__file__).resolve().parents[2] / ".git")
    except OSError:
        return None


def _checked_out(git: Path) -> str | None:
    if git.is_file():  # a worktree: "gitdir: /path/of/it"
        git = Path(git.read_text().removeprefix("gitdir: ").strip())
    head = (git / "HEAD").read_text().strip()
    if _COMMIT.fullmatch(head):
        return head
    ref = head.removeprefix("ref: ")
    shared = git / "commondir"
    roots = [git, (git / shared.read_text().strip()).resolve()] if shared.exists() else [git]
    for root in roots:
        if (root / ref).is_file():
            return (root / ref).read_text().strip()
        packed = root / "packed-refs"
        for line in packed.read_text().splitlines() if packed.exists() else []:
            if line.endswith(f" {ref}"):
                return line.partition(" ")[0]
    return None
