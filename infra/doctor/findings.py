"""What a look found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from infra.printable import printable

State: TypeAlias = Literal["ok", "warning", "wrong"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    `wrong`: something does not work so, or will be lost.  `warning`: it works, and is worth a
    thought, or could not be looked at.
    """

    check: str  # what was looked at: "bucket", "port", …
    state: State
    found: str
    do: str = ""  # the way out; empty where nothing is to be done


def ok(check: str, found: str) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, do: str) -> Finding:
    """Return what is worth a thought."""
    return Finding(check, "warning", found, do)


def wrong(check: str, found: str, do: str) -> Finding:
    """Return what does not work."""
    assert do, "a finding without a way out helps nobody"
    return Finding(check, "wrong", found, do)


def is_well(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing is wrong."""
    return all(finding.state != "wrong" for finding in findings)


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return what `tidepool doctor` shows.

    >>> lines([wrong("region", "none is set", "set AWS_DEFAULT_REGION")])
    ['wrong    region       none is set', '                      do: set AWS_DEFAULT_REGION']
    """
    shown = []
    for finding in findings:
        shown.append(f"{finding.state:8} {finding.check:12} {printable(finding.found)}")
        if finding.do:
            shown.append(f"{'':22}do: {printable(finding.do)}")
    return shown
