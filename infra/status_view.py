"""How `tidepool status` shows the pool: lines for a pipe, tables for a terminal.

Both are views of the document that `--json` prints; a field that an older controller does not send
is shown as unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.printable import printable
from infra.zero_view import zero_words

Document = Mapping[str, Any]

UNKNOWN = "–"
_STYLES = {"ready": "green", "warm": "green", "draining": "yellow", "loading": "yellow",
           "starting": "yellow", "failed": "red", "built": "green", "building": "yellow",
           "refused": "red"}  # fmt: skip


def lines(status: Document) -> list[str]:
    """Return `status` as lines."""
    status = printable(status)
    found = [*_controller(status)]
    for worker in status["workers"]:
        found.append(
            f"worker {worker['id']}  {worker['state']}  {worker['device']}  pid {worker['pid']}  "
            f"{worker['calls']} calls  wait {shown_number(worker['wait_ms'])} ms"
            + ("  fallback" if worker.get("fallback") else "")
        )
        if worker.get("phases_ms"):
            found.append(f"  started in {shown_phases(worker['phases_ms'])}")
        for engine in worker["engines"]:
            text = f"  {engine['model']}/{engine['version']}  {engine['state']}"
            text += f"  {engine['engine']}  {shown_bytes(engine['bytes'])}  {engine['detail']}"
            found.append(text.rstrip())
            if engine.get("phases_ms"):
                found.append(f"    woke in {shown_phases(engine['phases_ms'])}")
    for node in status.get("nodes", ()):
        found += [_node_line(node), *(f"  {line}" for line in _troubles(node))]
    for edge in status["edges"]:
        text = f"edge {edge['id']}  pid {edge['pid']}  {edge.get('in_flight', UNKNOWN)} in flight"
        found += [text, *(f"  {line}" for line in _away(edge))]
    for endpoint in status["endpoints"]:
        text = f"endpoint {endpoint['name']}  revision {endpoint['revision']}"
        found.append(f"{text}  {_recent_line(endpoint)}")
        found.extend(
            f"  {v['name']}  {v['model']}/{v['version']}  {v['weight']:g} %  "
            f"{_replicas(v)} warm  {v['requests']} requests  {v['errors']} errors  "
            f"{_recent_line(v)}"
            for v in endpoint["variants"]
        )
        found += [f"  {line}" for line in _zeros(endpoint)]
        if endpoint.get("rollout"):
            found.append(f"  {_rollout(endpoint['rollout'])}")
    found.extend(_build_line(build) for build in status.get("builds", ()))
    found += _signing(status)
    found += [f"rejected {document}: {why}" for document, why in status["rejected"].items()]
    found += [_quarantined_line(row) for row in status.get("quarantined", ())]
    return found


def shown_phases(phases_ms: Mapping[str, float]) -> str:
    """Return the whole and its phases, in ms.

    >>> shown_phases({"fetch": 0.21, "deserialise": 12.5})
    '13 ms: fetch 0.2, deserialise 12.5'
    """
    each = ", ".join(f"{name} {took_ms:.1f}" for name, took_ms in phases_ms.items())
    return f"{sum(phases_ms.values()):.0f} ms: {each}"


def tables(status: Document) -> RenderableType:
    """Return `status` as tables for a terminal."""
    status = printable(status)
    parts: list[RenderableType] = [Text(line, "red") for line in _controller(status)]
    parts += [
        Text(f"node {node['id']}: {line}", "red")
        for node in status.get("nodes", ())
        for line in _troubles(node)
    ]
    parts += [_workers(status), *_nodes(status), _edges(status), _endpoints(status)]
    parts += [
        Text(f"edge {edge['id']}: {line}", "yellow")
        for edge in status["edges"]
        for line in _away(edge)
    ]
    parts += [
        Text(f"endpoint {endpoint['name']}: {line}", "yellow")
        for endpoint in status["endpoints"]
        for line in _zeros(endpoint)
    ]
    parts += [
        Text(f"endpoint {endpoint['name']}: {_rollout(endpoint['rollout'])}", "yellow")
        for endpoint in status["endpoints"]
        if endpoint.get("rollout")
    ]
    if status.get("phases"):
        parts.append(_phases(status))
    if status.get("builds"):
        parts.append(_builds(status))
    parts += [Text(line) for line in _signing(status)]
    parts += [Text(f"rejected {d}: {why}", "red") for d, why in status["rejected"].items()]
    parts += [Text(_quarantined_line(row), "red") for row in status.get("quarantined", ())]
    return Group(*parts)


def _away(edge: Document) -> Iterator[str]:
    """Yield which workers an edge leaves alone."""
    for worker, why in edge.get("away", {}).items():
        yield f"worker {worker} gets no calls: {why}"


def _zeros(endpoint: Document) -> Iterator[str]:
    """Yield which versions sleep, on a machine or without one, or are helped out with."""
    for v in endpoint["variants"]:
        if words := zero_words(v):
            yield f"{v['model']}/{v['version']} is {words}"


def _signing(status: Document) -> list[str]:
    signing = status.get("signing", {})
    if not signing.get("required"):
        return []
    keys = ", ".join(f"{key['id']} {key['name']}".rstrip() for key in signing["trusted"])
    return [f"only versions signed by {keys or 'nobody'}"]


def _controller(status: Document) -> Iterator[str]:
    controller = status.get("controller", {})
    if not controller.get("leader", True):
        yield "this controller does not lead"
    if controller.get("registry_error"):
        yield f"registry: {controller['registry_error']}"
    signing = status.get("signing", {})
    if signing.get("problem"):
        yield f"trusted keys: {signing['problem']}; those before hold"


def _quarantined_line(row: Document) -> str:
    return (
        f"quarantined {row['fingerprint']}  {row['model']}/{row['version']}  "
        f"two workers died of this request, it is refused for {row['left_s']:.0f} s"
    )


def _workers(status: Document) -> Table:
    table = _table("worker", "device", "state", "pid", "calls", "wait ms", "engines", "memory")
    for worker in status["workers"]:
        engines = worker["engines"]
        add_row(
            table,
            worker["id"],
            worker["device"] + (" fallback" if worker.get("fallback") else ""),
            _state(worker["state"]),
            str(worker["pid"]),
            str(worker["calls"]),
            f"{worker['wait_ms']:.1f}",
            Text("\n").join(_engine(engine) for engine in engines) if engines else UNKNOWN,
            shown_bytes(sum(engine["bytes"] for engine in engines)),
        )
    return table


def _engine(engine: Document) -> Text:
    text = Text(f"{engine['model']}/{engine['version']} ")
    text.append_text(_state(engine["state"])).append(f" {engine['engine']}".rstrip())
    if engine.get("plan"):
        text.append(f" plan {engine['plan'][:12]}")
    return text.append(f" {engine['detail']}") if engine["detail"] else text


def _nodes(status: Document) -> Iterator[Table]:
    """Yield the places that are not among the workers: without a process, or nothing is heard."""
    cold = [
        (node, place)
        for node in status.get("nodes", ())
        for place in node["places"]
        if place["state"] in ("cold", "starting", "silent")
    ]
    if not cold:
        return
    table = _table("place", "node", "device", "state")
    for node, place in cold:
        device = place["device"] or UNKNOWN
        add_row(table, place["worker"], node["id"], device, _state(place["state"]))
    yield table


def _node_line(node: Document) -> str:
    states = Counter(place["state"] for place in node["places"])
    text = f"node {node['id']}  pid {node['pid']}  {len(node['places'])} places  {states['up']} up"
    others = (f"{states[state]} {state}" for state in ("starting", "silent", "draining", "cold"))
    return "  ".join([text, *(other for other in others if not other.startswith("0 "))])


def _troubles(node: Document) -> list[str]:
    return [f"trouble: {node['trouble']}"] if node.get("trouble") else []


def _edges(status: Document) -> Table:
    table = _table("edge", "pid", "in flight")
    for edge in status["edges"]:
        add_row(table, edge["id"], str(edge["pid"]), str(edge.get("in_flight", UNKNOWN)))
    return table


def _endpoints(status: Document) -> Table:
    table = _table(
        "endpoint", "variant", "version", "weight", "warm", "req/s", "p50 ms", "p99 ms", "failed",
        "hits",
    )  # fmt: skip
    for endpoint in status["endpoints"]:
        add_row(
            table, f"{endpoint['name']} r{endpoint['revision']}", "", "", "", "", *_recent(endpoint)
        )
        for v in endpoint["variants"]:
            version = f"{v['model']}/{v['version']}"
            weight, warm = f"{v['weight']:g} %", _replicas(v)
            add_row(table, "", v["name"], version, weight, warm, *_recent(v))
    return table


def _phases(status: Document) -> Table:
    table = _table("wakes", "engine", "phase", "count", "p50 ms", "p99 ms")
    for row in status["phases"]:
        count = str(row["count"])
        p50, p99 = f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"
        add_row(table, row["of"], row["engine"], row["phase"] or "all", count, p50, p99)
    return table


def _builds(status: Document) -> Table:
    table = _table("build", "device", "engine", "state", "worker", "reason")
    for build in status["builds"]:
        add_row(
            table,
            f"{build['model']}/{build['version']}",
            build["device_class"],
            build["engine"] or UNKNOWN,
            _state(build["state"]),
            build["worker"] or UNKNOWN,
            build["reason"],
        )
    return table


def _replicas(variant: Document) -> str:
    """Return how many are warm, and how many are wanted where that is something else."""
    replicas, wanted = variant["replicas"], variant.get("wanted")
    return f"{replicas}" if wanted in (None, replicas) else f"{replicas} of {wanted}"


def _rollout(rollout: Document) -> str:
    state = rollout["state"].replace("_", " ")
    text = f"rollout {state}, step {rollout['step']} of {len(rollout['steps'])}"
    return f"{text}: {rollout['reason']}" if rollout.get("reason") else text


def _build_line(build: Document) -> str:
    text = f"build {build['model']}/{build['version']}  {build['device_class']}"
    text += f"  {build['engine'] or UNKNOWN}  {build['state']}"
    return "  ".join([text, *(build[name] for name in ("worker", "reason") if build[name])])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Add a row whose texts are shown as they are: rich would take brackets for markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _state(state: str) -> Text:
    return Text(state, _STYLES.get(state, ""))


def _recent(thing: Document) -> tuple[str, str, str, str, str]:
    """Return requests per second, median, p99, failed share and hit share."""
    recent = thing.get("recent") or {}

    def shown(name: str, show: Callable[[float], str]) -> str:
        value = recent.get(name)
        return UNKNOWN if value is None else show(value)

    return (
        shown("requests_per_s", "{:.1f}".format),
        shown("p50_ms", shown_number),
        shown("p99_ms", shown_number),
        shown("failed_share", lambda share: f"{share * 100:.1f} %"),
        shown("hit_share", lambda share: f"{share * 100:.1f} %"),
    )


def _recent_line(thing: Document) -> str:
    rate, p50, p99, failed, hits = _recent(thing)
    return f"{rate}/s  p50 {p50} ms  p99 {p99} ms  failed {failed}  hits {hits}"


def shown_number(value: float, digits: int = 3) -> str:
    """Return `value` to so many digits, never as a power of ten where it is large.

    >>> [shown_number(value) for value in (0.0, 0.1234, 12.34, 999.7, 4360.4, 29_812.0)]
    ['0', '0.123', '12.3', '1,000', '4,360', '29,800']
    """
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10**digits else f"{rounded:g}"


def shown_bytes(count: int) -> str:
    """Return a size with a unit that keeps it short."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count = count / 1024  # type: ignore[assignment]
    return f"{count:.1f} GiB"
