"""What one revision of an endpoint says otherwise than another: value by value, with its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from registry_sync.documents import EndpointSpec
from registry_sync.fitting import below


class Change(msgspec.Struct, frozen=True):
    """One value that differs; what is not there is left out of the JSON."""

    path: str  # as lint writes it, but variants go by name: $.variants[canary].weight
    before: Any | UnsetType = UNSET
    after: Any | UnsetType = UNSET

    def line(self) -> str:
        """Return it as one line for people."""
        if self.before is UNSET:
            return f"{self.path}: new: {_shown(self.after)}"
        if self.after is UNSET:
            return f"{self.path}: gone: {_shown(self.before)}"
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


def differences(before: EndpointSpec, after: EndpointSpec) -> list[Change]:
    """Return the values that differ, in the order of the documents' fields.

    Revisions do not count, nor does the order of variants, which means nothing.
    """
    left, right = (msgspec.to_builtins(spec) for spec in (before, after))
    for plain in (left, right):
        del plain["revision"]
        plain["variants"] = _by_name(plain["variants"])
    return list(_walk(left, right, "$"))


def _walk(before: Any, after: Any, path: str) -> Iterator[Change]:
    if not (isinstance(before, dict) and isinstance(after, dict)):
        if before != after:
            yield Change(path, before, after)
        return
    for key in before | after:
        at = f"{path}[{key}]" if path == "$.variants" else below(path, key)
        if key in before and key in after:
            yield from _walk(before[key], after[key], at)
        elif key in before:
            yield Change(at, before=before[key])
        else:
            yield Change(at, after=after[key])


def _by_name(variants: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        variant["name"]: {key: value for key, value in variant.items() if key != "name"}
        for variant in variants
    }


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
