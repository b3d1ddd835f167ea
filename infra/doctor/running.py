"""The registry's documents, and the stack that runs by them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from infra.client import NoController, NotTrusted, ask, get
from infra.commands.options import controller_address, has_registry
from infra.doctor.findings import Finding, ok, warning, wrong
from infra.stack import Node
from pool.registry_watch import RegistryWatch
from registry_sync.open import open_store
from registry_sync.stores import Store, StoreError


def registry(data: Path, url: str) -> list[Finding]:
    """Read every document of the registry as a controller does."""
    if not has_registry(data, url):
        return [ok("registry", f"{url} is not there yet; the first `publish` or `up` makes it")]
    watch = None
    try:
        store = open_store(url)
        try:
            watch = RegistryWatch(store)
            watch.poll()
        finally:
            store.close()
    except StoreError as error:
        return [wrong("registry", str(error), "see the findings on bucket and permissions, if any")]
    return documents(watch, url)


def documents(watch: RegistryWatch, url: str) -> list[Finding]:
    """Judge what was read."""
    snapshot = watch.snapshot
    rejected = {**snapshot.rejected, **watch.wishes.rejected}
    findings = [
        wrong(
            "registry",
            f"{name} does not fit, and the last good one serves: {why}",
            "write it anew (`tidepool endpoint set`, `keys create`), or run this release's "
            "processes everywhere",
        )
        for name, why in sorted(rejected.items())
    ]
    if not snapshot.key_bytes and "keys.json" not in rejected:
        findings.append(
            warning(
                "registry",
                f"{url} has no keys, so every call is refused",
                "`tidepool keys create --scope admin --scope 'infer:*'`",
            )
        )
    return findings or [ok("registry", f"{len(snapshot.specs)} endpoints, all documents fit")]


def stack(node: Node, url: str) -> list[Finding]:
    """Look at what runs: the stack of this node, or the fleet of the registry."""
    found = node.read_stack()
    findings = []
    if found is not None:
        findings.append(_edge(found.url))
        if found.registry != url:
            text = f"the running stack is on {found.registry}, and this is a look at {url}"
            findings.append(warning("stack", text, "leave --registry out, or stop the stack"))
    store: Store | None = None
    try:
        store = open_store(url) if url.startswith("s3://") else None
        address = controller_address(node.data, store)
    except StoreError as error:
        return [*findings, wrong("stack", f"nobody knows who leads: {error}", "see the bucket")]
    finally:
        if store is not None:
            store.close()
    if address is None:
        return [*findings, ok("stack", "nothing runs here, and nobody leads the registry's fleet")]
    return [*findings, *_controller(address, node.data)]


def _edge(url: str) -> Finding:
    try:
        status, _ = get(f"{url}/v2/health/ready")
    except NotTrusted as error:
        return warning("stack", str(error), "set SSL_CERT_FILE to your CA's file")
    if status == 200:
        return ok("stack", f"{url} is ready")
    said = f"answers {status}" if status else "does not answer"
    return wrong("stack", f"{url} {said}", "look at the log of `tidepool up`, or start it again")


def _controller(address: str, data: Path) -> list[Finding]:
    try:
        answer = asyncio.run(ask(address, data, "status"))
    except NoController as error:
        return [
            wrong(
                "stack",
                f"the controller cannot be asked: {error}",
                "edges and workers go on; start `tidepool controller` or `up` again, let its "
                "security group admit this machine, and set the fleet's TIDEPOOL_FLEET_SECRET",
            )
        ]
    if not answer.ok:
        return [wrong("stack", f"the controller refuses: {answer.detail}", "see its log")]
    return status(msgspec.json.decode(answer.data))


def status(told: Mapping[str, Any]) -> list[Finding]:
    """Judge what a controller tells."""
    workers = told.get("workers", ())
    findings = []
    if why := told.get("controller", {}).get("registry_error", ""):
        text = f"the controller cannot read the registry: {why}"
        findings.append(wrong("stack", text, "look at its role, its network and the bucket"))
    for document, why in sorted(told.get("rejected", {}).items()):
        text = f"the controller does not take {document}: {why}"
        findings.append(wrong("stack", text, "write it anew, or run one release everywhere"))
    if not workers and not told.get("nodes", ()):
        findings.append(
            warning(
                "stack",
                "no worker has registered, so nothing can be answered",
                "start `tidepool pool`; if it runs, look at its log: it must reach the controller",
            )
        )
    edges = len(told.get("edges", ()))
    nodes = len(told.get("nodes", ()))
    if findings:
        return findings
    return [
        ok("stack", f"the controller leads {edges} edges, {len(workers)} workers, {nodes} nodes")
    ]
