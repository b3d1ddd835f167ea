"""How `tidepool rollout status` shows a rollout: lines for a pipe, tables for a terminal.

Views of the document that `--json` prints; what the controller does not know yet is shown as
unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.live import View
from infra.printable import printable
from infra.status_view import UNKNOWN, add_row, shown_number

Document = Mapping[str, Any]

E_SHOWN_MAX = 1e6
CLASSES_SHOWN = 3
LIVE = ("running", "paused")
_STYLES = {"running": "yellow", "paused": "magenta", "promoted": "green", "rolled_back": "red"}
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))


def lines(rollout: Document) -> list[str]:
    """Return a rollout as lines."""
    rollout = printable(rollout)
    has_slow = _has_slow(rollout)
    head = f"rollout {rollout['endpoint']}  {shown_state(rollout['state'])}  {_progress(rollout)}"
    return [
        head,
        *(f"  {_arm_line(arm, has_slow=has_slow)}" for arm in rollout["variants"]),
        *(f"  {name:<9} {text}" for name, text, _ in _notes(rollout)),
    ]


def tables(rollout: Document) -> RenderableType:
    """Return a rollout as a table for a terminal, with what the guards say below it."""
    rollout = printable(rollout)
    title = Text(f"rollout {rollout['endpoint']}  ", "bold")
    title.append(shown_state(rollout["state"]), _STYLES.get(rollout["state"], ""))
    title.append(f"  {_progress(rollout)}", "not bold")
    notes = Table(box=None, pad_edge=False, show_header=False)
    notes.add_column(style="bold", no_wrap=True)
    notes.add_column(overflow="fold")
    for name, text, style in _notes(rollout):
        add_row(notes, name, Text(text, style))
    return Group(title, Text(""), _arms(rollout), Text(""), notes)


VIEW = View("rollout status", lines, tables)


def shadow_lines(rollout: Document) -> list[str]:
    """Return how the candidate's answers to copies of calls compare, the worst ones last.

    For `tidepool rollout diff`; of the same document.
    """
    rollout = printable(rollout)
    shadow = rollout.get("shadow")
    if shadow is None:
        return [
            f"rollout {rollout['endpoint']}: nothing is compared yet; calls are copied where "
            "it was started with --shadow"
        ]
    found = [f"rollout {rollout['endpoint']}  shadow  {_shadow(shadow)}"]
    found += [
        f"  request {one['request_id'] or UNKNOWN}  inputs {one['inputs']}  "
        f"{_example(one)}  {one['detail']}".rstrip()
        for one in shadow.get("worst", ())
    ]
    return found


def _example(one: Document) -> str:
    error = f"relative error {shown_number(one['relative_error'])}"
    return f"{one['kind']}  {error}" if one.get("kind") else error


def shown_state(state: str) -> str:
    """Return a rollout's state in words."""
    return state.replace("_", " ")


def shown_percent(share: float | None) -> str:
    """Return a share of 1 in percent.

    >>> [shown_percent(share) for share in (0.0, 0.00123, 0.0512, 0.5, None)]
    ['0 %', '0.123 %', '5.12 %', '50 %', '–']
    """
    return UNKNOWN if share is None else f"{shown_number(share * 100)} %"


def shown_e(e: float) -> str:
    """Return an e-value; what is far beyond any bound is cut.

    >>> [shown_e(e) for e in (0.1, 1.0, 24.53, 1e300)]
    ['0.1', '1', '24.5', 'over 1,000,000']
    """
    return f"over {E_SHOWN_MAX:,.0f}" if e > E_SHOWN_MAX else shown_number(e)


def shown_seconds(seconds: float) -> str:
    """Return a time in whole units.

    >>> [shown_seconds(seconds) for seconds in (0.4, 59, 600, 90_000)]
    ['0 s', '59 s', '10 min', '25 h']
    """
    for unit, length_s in _UNITS:
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _progress(rollout: Document) -> str:
    steps, step = rollout["steps"], rollout["step"]
    text = f"step {step} of {len(steps)}"
    if rollout["state"] not in LIVE or not 1 <= step <= len(steps):
        return text
    hold_s, left_s = steps[step - 1]["hold_s"], rollout.get("hold_left_s")
    if left_s is None:
        return f"{text}  the hold of {shown_seconds(hold_s)} has not begun"
    if not left_s:
        return f"{text}  {shown_seconds(hold_s)} held"
    return f"{text}  {shown_seconds(left_s)} of {shown_seconds(hold_s)} left"


def _arms(rollout: Document) -> Table:
    """Return a column for each arm: what is compared stands side by side, on 80 columns too."""
    arms = rollout["variants"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for arm in arms:
        table.add_column(Text(arm["name"]), overflow="fold")
    rows: dict[str, Callable[[Document], str]] = {
        "version": lambda arm: f"{arm['model']}/{arm['version']}",
        "share": lambda arm: f"{arm['weight']:g} %, seen {_seen(arm)}",
        "warm": lambda arm: _known(arm, "replicas"),
        "requests": lambda arm: f"{_requests(arm)}, {_known(arm, 'calls')} watched",
        "cache hits": lambda arm: shown_percent(arm.get("hit_share")),
        "errors": lambda arm: _known(arm, "failed_calls"),
        "error rate": _rate,
        "slow calls": lambda arm: _known(arm, "slow_calls"),
        "p50 ms": lambda arm: _ms(arm, "p50_ms"),
        "p99 ms": lambda arm: _ms(arm, "p99_ms"),
    }
    for name, cell in rows.items():
        if name != "slow calls" or _has_slow(rollout):
            add_row(table, name, *(cell(arm) for arm in arms))
    return table


def _arm_line(arm: Document, *, has_slow: bool) -> str:
    slow = f"  {_known(arm, 'slow_calls')} slow" if has_slow else ""
    return (
        f"{arm['name']}  {arm['model']}/{arm['version']}  {arm['weight']:g} %  seen {_seen(arm)}  "
        f"{_known(arm, 'replicas')} warm  {_requests(arm, ' requests')}  "
        f"{_known(arm, 'calls')} watched  {_known(arm, 'failed_calls')} errors  {_rate(arm)}{slow}"
        f"  p50 {_ms(arm, 'p50_ms')} ms  p99 {_ms(arm, 'p99_ms')} ms"
    )


def _notes(rollout: Document) -> Iterator[tuple[str, str, str]]:
    """Yield what is said below the arms: its name, text and style."""
    fires_at = rollout.get("fires_at", {})
    evidence = [
        f"{_guard(guard)} e {shown_e(e)}"
        + (f" of {shown_e(fires_at[guard])}" if guard in fires_at else "")
        for guard, e in rollout.get("e_values", {}).items()
    ]
    if evidence:
        yield "evidence", "  ".join(evidence), ""
    outputs = [text for arm in rollout["variants"] if (text := _outputs(arm))]
    if outputs:
        yield "outputs", "  ".join(outputs), ""
    if rollout.get("shadow") is not None:
        yield "shadow", _shadow(rollout["shadow"]), ""
    verdict, style = _verdict(rollout)
    if verdict != rollout.get("reason"):
        yield "verdict", verdict, style
    if rollout["state"] in LIVE and rollout.get("waits_for"):
        yield "waits for", rollout["waits_for"], "yellow"
    if rollout.get("reason"):
        at = rollout.get("at", "")[:19].replace("T", " ")
        yield "reason", f"{rollout['reason']}{f'  ({at} UTC)' if at else ''}", ""


def _verdict(rollout: Document) -> tuple[str, str]:
    if rollout.get("harms"):
        return "; ".join(rollout["harms"]), "red"
    if rollout.get("mismatch"):
        return rollout["mismatch"], "red"
    if rollout.get("worse"):
        return f"looks worse, not proven: {rollout['worse']}", "yellow"
    return rollout.get("verdict") or "no evidence of harm", "green"


def _guard(name: str) -> str:
    kind = name.removesuffix("_full")
    return kind if kind == name else f"{kind} at 100 %"


def _outputs(arm: Document) -> str:
    classes = arm.get("classes") or {}
    total = sum(classes.values())
    parts = []
    if arm.get("score_mean") is not None:
        parts.append(f"score {shown_number(arm['score_mean'])}")
    named = ((name, count) for name, count in classes.items() if name != "other")
    most = sorted(named, key=lambda item: -item[1])[:CLASSES_SHOWN]
    parts += [f"class {name} {shown_percent(count / total)}" for name, count in most if total]
    return f"{arm['name']} {', '.join(parts)}" if parts else ""


def _shadow(shadow: Document) -> str:
    absent = f" ({shadow['absent']:,} not warm there)" if shadow.get("absent") else ""
    parts = [f"{shadow['compared']:,} compared", f"{shadow['dropped']:,} dropped{absent}"]
    parts.append(f"{shadow['failed']:,} failed")
    parts.append(f"{shadow['unlike']:,} of another form")
    if shadow["rows"]:
        parts.append(f"top-1 differs in {shown_percent(shadow['top1_off'] / shadow['rows'])}")
    if shadow.get("error_mean") is not None:
        parts.append(f"relative error {shown_number(shadow['error_mean'])} on average")
    if shadow.get("error_max") is not None:
        parts.append(f"{shown_number(shadow['error_max'])} at most")
    if shadow.get("last_failure"):
        parts.append(f"last failure: {shadow['last_failure']}")
    return ", ".join(parts)


def _has_slow(rollout: Document) -> bool:
    return rollout.get("guard", {}).get("slower_than_ms") is not None


def _rate(arm: Document) -> str:
    """Return the share of watched calls that failed, and the interval that it lies in."""
    rate = shown_percent(arm.get("error_rate"))
    low, high = arm.get("error_low"), arm.get("error_high")
    if low is None or high is None:
        return rate
    return f"{rate} ({shown_number(low * 100)} to {shown_percent(high)})"


def _seen(arm: Document) -> str:
    seen = arm.get("share_seen")
    return UNKNOWN if seen is None else f"{shown_number(seen)} %"


def _known(arm: Document, name: str) -> str:
    value = arm.get(name)
    return UNKNOWN if value is None else f"{value:,}"


def _requests(arm: Document, what: str = "") -> str:
    """Return how many have ended, and how many of them badly, whoever's fault that was."""
    failed = f" ({arm['failed']:,} failed)" if arm.get("failed") else ""
    return f"{_known(arm, 'requests')}{what}{failed}"


def _ms(arm: Document, name: str) -> str:
    value = arm.get(name)
    return UNKNOWN if value is None else shown_number(value)
