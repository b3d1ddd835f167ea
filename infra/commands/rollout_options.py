"""What the options of `rollout start` say, and which of them says what cannot be."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import typer

from registry_sync import documents
from registry_sync.documents import BadDocument
from registry_sync.names import BadName
from registry_sync.rollout_terms import HOLD_S_MAX, Guard, Shadow
from registry_sync.rollouts import terms
from registry_sync.rules import check_version

_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_PATH: Final = re.compile(r"\$\.rollout\.(?:(steps)\b[^:]*|(?:guard|shadow)\.(\w+)): (.*)")
# Options that are named otherwise than the field that they set.
_OPTIONS: Final = {"sample": "shadow", "calls_per_s_max": "shadow_calls_per_s_max"}


class Terms(NamedTuple):
    """A rollout's terms, each of which may be."""

    steps: list[float]  # percent
    hold_s: float
    shadow: Shadow | None
    guard: Guard


def read_terms(
    *,
    to: str,
    steps: str,
    hold: str,
    shadow: float | None,
    shadow_calls_per_s_max: float | None,
    guard: Guard,
) -> Terms:
    """Return what the options say.

    Raises:
        typer.BadParameter: some say what cannot be; one line for each of them.
    """
    try:
        check_version(to)
    except BadName as error:
        raise typer.BadParameter(f"--to: {error}") from None
    if not guard.errors and guard.slower_than_ms is None and guard.latency_ratio_max is None:
        raise typer.BadParameter(
            "--no-errors: nothing would watch the rollout; add --slower-than-ms or "
            "--latency-ratio-max, or leave it out"
        )
    found = Terms(_shares(steps), _seconds(hold), _shadow(shadow, shadow_calls_per_s_max), guard)
    try:
        documents.check_rollout(terms(id="", **found._asdict()))
    except BadDocument as error:
        raise typer.BadParameter("\n".join(_by_option(error.problems))) from None
    return found


def _by_option(problems: list[str]) -> list[str]:
    """Return the first problem of each option; each step has its own, and people gave one text."""
    found: dict[str, str] = {}
    for problem in problems:
        match = _PATH.fullmatch(problem)
        assert match is not None, problem
        field = match[1] or match[2]
        option = "--" + _OPTIONS.get(field, field).replace("_", "-")
        found.setdefault(option, f"{option}: {match[3]}")
    return list(found.values())


def _shadow(sample: float | None, calls_per_s_max: float | None) -> Shadow | None:
    if sample is None:
        if calls_per_s_max is not None:
            raise typer.BadParameter("--shadow-calls-per-s-max: nothing is copied without --shadow")
        return None
    return Shadow(sample) if calls_per_s_max is None else Shadow(sample, calls_per_s_max)


def _shares(text: str) -> list[float]:
    try:
        return [float(part.strip().removesuffix("%")) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--steps {text!r}: expected shares like 1,5,25,50,100") from None


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|min|h|d|)", text.strip())
    if match is None:
        raise typer.BadParameter(f"--hold {text!r}: expected a time like 60s, 5m or 1h")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if seconds > HOLD_S_MAX:
        raise typer.BadParameter(f"--hold {text!r}: at most {HOLD_S_MAX // 86_400}d")
    return seconds
