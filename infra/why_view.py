"""How `tidepool status --why` explains an endpoint's replicas: lines for a person.

A view of the document that `--json` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from infra.printable import printable
from infra.status_view import shown_number
from infra.zero_view import zero_words

Document = Mapping[str, Any]


def why_lines(why: Document) -> list[str]:
    """Return the explanation of one endpoint as lines."""
    why = printable(why)
    due = {"schedule": "  due by its schedule", "request": "  due by request"}
    found = [f"endpoint {why['endpoint']}{due.get(why.get('due', ''), '')}"]
    for version in why["versions"]:
        found.extend(_version(version, why.get("workers")))
    return found


def _version(version: Document, workers: int | None) -> Iterator[str]:
    name = f"{version['model']}/{version['version']}"
    if version.get("unloaded"):
        yield (
            f"  {name}  unloaded by request: none is loaded until a call or `tidepool warm` wakes "
            "it, or a new document sets scale.replicas_min above 0"
        )
    if version["wanted"] is None:
        yield f"  {name}  {version['reason']}"
        return
    count = version["wanted"]
    would = " otherwise" if version.get("unloaded") else ""
    holds = _seconds(version["holds_s"]) if version["holds_s"] is not None else ""
    yield (
        f"  {name}  {count} replica{'' if count == 1 else 's'} wanted{would}: {version['reason']}"
        + (f"  unless a call comes, for {holds}" if holds else "")
    )
    if words := zero_words(version):
        yield f"    now       {words}"
    if version.get("fallback"):
        yield "    fallback  cpu: fallback workers answer while no other worker has it warm"
    if workers is not None and workers < count:
        yield f"    short     there are workers for {workers} of {count}"
    if version.get("owner"):
        yield f"    on workers of {version['owner']} alone"
    demand = version["demand"]
    yield (
        f"    demand    {demand['arrived']} calls seen, {demand['waiting']} waiting, "
        f"{demand['running']} running; {demand['warm']} warm, {demand['loading']} loading"
    )
    learned = version["learned"]
    yield (
        f"    learned   {_speed(learned['calls_per_s'])} by one replica; "
        f"a wake takes {_known(learned['wake_s'])}, a process {_known(learned['start_s'])} more"
    )
    limits = version["limits"]
    idle_s = limits["idle_s"]
    budget = limits.get("replica_hours_per_day_max")
    yield (
        f"    limits    {limits['replicas_min']} to {limits['replicas_max']} replicas, idle "
        + ("learned" if idle_s is None else _seconds(idle_s))
        + f", a cold start costs {_seconds(limits['cold_start_cost_s'])} of idling"
        + (f", {shown_number(budget, 4)} replica hours a day" if budget is not None else "")
        + f", forecast {limits['forecast']}"
    )
    for term, value in version["terms"].items():
        yield f"    term      {term} {'unbounded' if value is None else shown_number(value, 4)}"
    for entry in version["log"]:
        before = "" if entry["before"] is None else f"{entry['before']} → "
        terms = "  ".join(
            f"{term} {shown_number(value, 4)}"
            for term, value in entry["terms"].items()
            if value is not None
        )
        line = f"    {_seconds(entry['s_ago'])} ago  {before}{entry['replicas']}  {entry['reason']}"
        yield f"{line}  {terms}".rstrip()


def _speed(calls_per_s: float) -> str:
    return f"{shown_number(calls_per_s, 4)} calls/s" if calls_per_s else "speed not known"


def _known(seconds: float) -> str:
    if not seconds:
        return "an unknown time"
    return f"{shown_number(seconds * 1e3)} ms" if seconds < 1 else _seconds(seconds)


def _seconds(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{shown_number(seconds / length_s)} {unit}"
    return f"{shown_number(seconds)} s"
