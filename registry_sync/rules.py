"""What a single value of a document, or a few that belong together, must satisfy.

Types and plain bounds stand in `documents` beside the fields; here is what they cannot say.
Rules over lists and mappings also see values that do not fit, and pass over them: they were
reported already.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from registry_sync.datatypes import DATATYPES
from registry_sync.fitting import INTEGER_MAX, show
from registry_sync.names import BadName, check_name

VERSION_PATTERN: Final = "[1-9][0-9]{0,15}"
WEIGHTS_TOTAL: Final = 100.0
WEIGHTS_TOLERANCE: Final = 1e-6


def check_version(value: str) -> str:
    """Return `value` if it is a version: a decimal number from 1 on, as a text.

    Raises:
        BadName: it is not.
    """
    if not isinstance(value, str) or not re.fullmatch(VERSION_PATTERN, value):
        raise BadName(f'version {show(value)} is not one: use "1", "2", …')
    return value


def check_path(value: str) -> str:
    """Return `value` if it names a file inside an artifact's folder.

    Raises:
        BadName: absolute, with an empty, `.` or `..` part, a backslash, a control character, or
            too long for a file system.
    """
    parts = value.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in value or not value.isprintable():
        raise BadName(f"path {show(value)} is not one inside the artifact's folder")
    if len(value.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise BadName(f"path {show(value)} is too long: at most 1024 bytes, 255 for each part")
    return value


def check_datatype(value: str) -> None:
    """Raise ValueError unless `value` is a datatype of the Open Inference Protocol."""
    if value not in DATATYPES:
        raise ValueError(f"datatype {show(value)} is not one of {', '.join(sorted(DATATYPES))}")


def check_scope(value: str) -> str:
    """Return `value` if it is a scope: ``admin``, ``infer:*`` or ``infer:<endpoint>``.

    Raises:
        BadName: it is not.
    """
    if value not in ("admin", "infer:*"):
        kind, _, endpoint = value.partition(":")
        if kind != "infer":
            raise BadName(f"scope {show(value)} is not one: use admin, infer:* or infer:<endpoint>")
        check_name("endpoint", endpoint)
    return value


def check_unit(value: str) -> None:
    """Raise ValueError unless `value` says what an arm may stick to: ``key`` or ``header:…``."""
    # The header's name is an RFC 9110 token; lower case, because that is what the edge sees.
    if value != "key" and not re.fullmatch(r"header:[!#$%&'*+.^_`|~0-9a-z-]{1,64}", value):
        raise ValueError(f"{show(value)} is no unit: use key or header:<name in lower case>")


def check_bytes_hex(value: str) -> None:
    """Raise ValueError unless `value` is 8 to 64 bytes in lower-case hexadecimal."""
    if not re.fullmatch(r"(?:[0-9a-f]{2}){8,64}", value):
        raise ValueError(f"{show(value)} is not 8 to 64 bytes in lower-case hexadecimal")


def files_rule(files: Any) -> Iterator[tuple[str, str]]:
    """Find paths that are there twice, or are a file and a folder at once."""
    yield from _repeated(files, "path")
    paths = _texts(files, "path")
    taken = set(paths)
    for index, path in enumerate(paths):
        parts = path.split("/")
        folders = {"/".join(parts[:length]) for length in range(1, len(parts))}
        for folder in sorted(taken & folders):
            yield f"[{index}].path", f"{show(folder)} is a file and a folder at once"


def tensors_rule(tensors: Any) -> Iterator[tuple[str, str]]:
    """Find tensors of one name."""
    yield from _repeated(tensors, "name")


def variants_rule(variants: Any) -> Iterator[tuple[str, str]]:
    """Find variants of one name, and weights that do not add up to 100."""
    yield from _repeated(variants, "name")
    weights: list[Any] = [
        item.get("weight") if isinstance(item, dict) else None for item in _items(variants)
    ]
    if not weights or not all(_is_weight(weight) for weight in weights):
        return
    total = math.fsum(weights)
    if abs(total - WEIGHTS_TOTAL) > WEIGHTS_TOLERANCE:
        yield "", f"weights add up to {total:.9g}, not {WEIGHTS_TOTAL:g}"


def shares_rule(weights: Any) -> Iterator[tuple[str, str]]:
    """Find weights by variant that do not add up to 100; none at all are no weights."""
    if not isinstance(weights, dict) or not all(_is_weight(w) for w in weights.values()):
        return
    total = math.fsum(weights.values())
    if weights and abs(total - WEIGHTS_TOTAL) > WEIGHTS_TOLERANCE:
        yield "", f"weights add up to {total:.9g}, not {WEIGHTS_TOTAL:g}"


def steps_rule(steps: Any) -> Iterator[tuple[str, str]]:
    """Find weights that do not rise, and a last one that is not 100."""
    weights: list[Any] = [
        step.get("weight") if isinstance(step, dict) else None for step in _items(steps)
    ]
    if not weights or not all(_is_weight(weight) for weight in weights):
        return
    for index, (before, weight) in enumerate(itertools.pairwise(weights), 1):
        if weight <= before:
            yield (
                f"[{index}].weight",
                f"{show(weight)} is not more than the step before, which is {show(before)}",
            )
    if weights[-1] != WEIGHTS_TOTAL:
        at = len(weights) - 1
        yield f"[{at}].weight", f"the last step is {show(weights[-1])}; it must be 100"


def rollout_rule(spec: Any) -> Iterator[tuple[str, str]]:
    """Find arms of a rollout that the spec has not, or that are not a baseline at 100 %."""
    rollout = spec.get("rollout") if isinstance(spec, dict) else None
    if not isinstance(rollout, dict):
        return
    arms = {item.get("name"): item for item in _items(spec.get("variants"))}
    names = {"baseline": rollout.get("baseline", "stable")}
    names["candidate"] = rollout.get("candidate", "canary")
    if names["baseline"] == names["candidate"]:
        yield ".rollout.candidate", f"{show(names['candidate'])} is the baseline as well"
        return
    for role, name in names.items():
        if name not in arms:
            known = ", ".join(str(arm) for arm in arms)
            yield f".rollout.{role}", f"there is no variant {show(name)}; there are {known}"
    for index, item in enumerate(_items(spec.get("variants"))):
        weight = item.get("weight")
        if weight and item.get("name") != names["baseline"]:
            yield (
                f".variants[{index}].weight",
                f"{show(weight)}: before a rollout the baseline {show(names['baseline'])} has 100",
            )


def guard_rule(guard: Any) -> Iterator[tuple[str, str]]:
    """Find a guard that watches nothing."""
    if not isinstance(guard, dict) or guard.get("errors", True) is not False:
        return
    if guard.get("slower_than_ms") is None and guard.get("latency_ratio_max") is None:
        yield (
            ".errors",
            "false: nothing would watch the rollout; give slower_than_ms or latency_ratio_max, "
            "or leave errors true",
        )


def scale_rule(scale: Any) -> Iterator[tuple[str, str]]:
    """Find a lower bound above the upper one, and a budget that the lower one alone exceeds."""
    if not isinstance(scale, dict):
        return
    least, most = scale.get("replicas_min", 0), scale.get("replicas_max", 4)
    if isinstance(least, int) and isinstance(most, int) and least > most:
        yield ".replicas_min", f"{show(least)} is more than replicas_max, which is {show(most)}"
    budget = scale.get("replica_hours_per_day_max")
    if isinstance(budget, int | float) and isinstance(least, int) and 0 < budget < 24 * least:
        yield (
            ".replica_hours_per_day_max",
            f"{show(budget)} is less than the {24 * least} that replicas_min {least} takes",
        )


def axes_rule(axes: Any) -> Iterator[tuple[str, str]]:
    """Find names that are no ``input:axis``, and ranges out of order."""
    if not isinstance(axes, dict):
        return
    for name, extents in axes.items():
        if not (isinstance(name, str) and re.fullmatch(r".+:[0-9]{1,2}", name)):
            yield "", f'{show(name)} names no axis: use "input:axis", e.g. "input_ids:1"'
        if isinstance(extents, dict):
            sizes = [extents.get(key) for key in ("min", "opt", "max")]
            numbers = [size for size in sizes if type(size) is int]
            if len(numbers) == 3 and numbers != sorted(numbers):
                low, middle, high = numbers
                yield f".{name}", f"min {low}, opt {middle}, max {high} are not in this order"


def keys_rule(keys: Any) -> Iterator[tuple[str, str]]:
    """Find keys of one id."""
    yield from _repeated(keys, "id")


def _repeated(values: Any, field: str) -> Iterator[tuple[str, str]]:
    texts = _texts(values, field)
    seen = Counter(texts)
    for index, text in enumerate(texts):
        if text and seen[text] > 1:
            yield f"[{index}].{field}", f"{show(text)} is there {seen[text]} times"


def _texts(values: Any, field: str) -> list[str]:
    found = [item.get(field) if isinstance(item, dict) else None for item in _items(values)]
    return [text if isinstance(text, str) else "" for text in found]


def _items(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else []


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= INTEGER_MAX
