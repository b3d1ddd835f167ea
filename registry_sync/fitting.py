"""Compares plain values with a Struct's type and names every value that does not fit.

msgspec stops at the first problem; a person who mends a file wants all of them, each with its
path.  A type may carry a rule of its own: ``Annotated[T, msgspec.Meta(extra={"rule": rule})]``.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec.inspect as types

INTEGER_MAX = 2**53 - 1  # the largest that every JSON reader keeps exact
PROBLEMS_MAX = 50
UNKNOWN_FIELDS_MAX = 10  # reported for each mapping

# A rule sees a value that fits its type and yields (path below the value, what is wrong with it).
# Only rules over lists and mappings are also shown values that do not fit.
Rule = Callable[[Any], Iterable[tuple[str, str]]]


def rule_of(check: Callable[[str], object]) -> Rule:
    """Turn a function that raises ValueError into a rule."""

    def rule(value: Any) -> Iterator[tuple[str, str]]:
        try:
            check(value)
        except ValueError as error:
            yield "", str(error)

    return rule


def schema_of(pattern: str) -> dict[str, Any]:
    """Return what a JSON Schema says of a text that fits `pattern` as a whole; for ``Meta``."""
    return {"pattern": f"^(?:{pattern})$"}


def misfits(value: object, kind: type, *, unknown_fields: bool) -> list[str]:
    """Return every problem of a plain value, as ``$.path: what is wrong``; at most 50.

    Args:
        value: as it comes out of a JSON or YAML parser; tuples count as lists.
        kind: the Struct it should become.
        unknown_fields: True to pass over fields the Struct does not have.
    """
    found = _walk(value, _info_of(kind), "$", unknown_fields)
    return list(itertools.islice(found, PROBLEMS_MAX))


def show(value: object) -> str:
    """Write a value for a message, in one short line."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge integer"
    if value is None or isinstance(value, str | int | float):
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"a {type(value).__name__}"


@functools.cache
def _info_of(kind: type) -> types.Type:
    return types.type_info(kind)


def _walk(value: Any, info: types.Type, path: str, unknown: bool) -> Iterator[str]:
    match info:
        case types.Metadata(type=inner, extra=extra):
            found = list(_walk(value, inner, path, unknown))
            yield from found
            # A rule over a list or a mapping copes with items that were reported already.
            if extra and (not found or _is_container(value, inner)):
                yield from (f"{path}{below}: {text}" for below, text in extra["rule"](value))
        case types.UnionType(types=members):
            yield from _walk_union(value, members, path, unknown)
        case types.StructType(fields=fields):
            if not isinstance(value, dict):
                yield _expected(info, value, path)
            else:
                yield from _walk_fields(value, fields, path, unknown)
        case types.VarTupleType(item_type=item, min_length=least, max_length=most):
            if not isinstance(value, list | tuple):
                yield _expected(info, value, path)
            elif not (least or 0) <= len(value) <= (len(value) if most is None else most):
                yield f"{path}: {len(value)} items; allowed are {_range(least or 0, most)}"
            else:
                for index, item_value in enumerate(value):
                    yield from _walk(item_value, item, f"{path}[{index}]", unknown)
        case types.DictType(key_type=key_type, value_type=value_type, max_length=most):
            if not isinstance(value, dict):
                yield _expected(info, value, path)
            elif most is not None and len(value) > most:
                yield f"{path}: {len(value)} entries; at most {most} are allowed"
            else:
                for key, entry in value.items():
                    yield from _walk(key, key_type, below(path, key), unknown)
                    yield from _walk(entry, value_type, below(path, key), unknown)
        case types.AnyType():
            pass
        case _:
            problem = _scalar_problem(value, info)
            if problem:
                yield f"{path}: {problem}"


def _walk_fields(
    value: dict[Any, Any], fields: tuple[types.Field, ...], path: str, unknown: bool
) -> Iterator[str]:
    known = {field.encode_name: field for field in fields}
    for name, field in known.items():
        if name in value:
            yield from _walk(value[name], field.type, below(path, name), unknown)
        elif field.required:
            yield f"{below(path, name)}: missing; expected {_describe(field.type)}"
    if unknown:
        return
    strangers = (key for key in value if key not in known)
    for key in itertools.islice(strangers, UNKNOWN_FIELDS_MAX):
        close = difflib.get_close_matches(str(key)[:60], known, 1)
        way_out = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(known)}"
        yield f"{below(path, key)}: unknown field; {way_out}"


def _walk_union(
    value: Any, members: tuple[types.Type, ...], path: str, unknown: bool
) -> Iterator[str]:
    found = [list(_walk(value, member, path, unknown)) for member in members]
    if not all(found):
        return
    # Of the right type but out of bounds: that member's own words say more than all the types.
    near = [index for index, member in enumerate(members) if _is_near(value, member)]
    if len(near) == 1:
        yield from found[near[0]]
    else:
        allowed = " or ".join(_describe(member) for member in members)
        yield f"{path}: expected {allowed}, got {show(value)}"


def _is_near(value: object, info: types.Type) -> bool:
    match info:
        case types.Metadata(type=inner):
            return _is_near(value, inner)
        case types.IntType() | types.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case types.StrType():
            return isinstance(value, str)
        case types.StructType() | types.DictType():
            return isinstance(value, dict)
        case types.VarTupleType():
            return isinstance(value, list | tuple)
        case _:
            return False


def _is_container(value: object, info: types.Type) -> bool:
    return isinstance(value, dict | list | tuple) and _is_near(value, info)


def _scalar_problem(value: Any, info: types.Type) -> str:
    match info:
        case types.StrType(min_length=least, max_length=most):
            if not isinstance(value, str):
                return _other_than(info, value)
            if not (least or 0) <= len(value) <= (len(value) if most is None else most):
                return f"{len(value)} characters; allowed are {_range(least or 0, most)}"
            if not value.isascii() and re.search("[\ud800-\udfff]", value):
                return "a lone surrogate is no text"
        case types.IntType(ge=least, le=most):
            if not isinstance(value, int) or isinstance(value, bool):
                return _other_than(info, value)
            low = -INTEGER_MAX if least is None else least
            high = INTEGER_MAX if most is None else most
            if not low <= value <= high:
                return f"{show(value)} is out of range; allowed are {low} to {high}"
        case types.FloatType(ge=least, gt=above, le=most):
            if not isinstance(value, int | float) or isinstance(value, bool):
                return _other_than(info, value)
            if not -INTEGER_MAX <= value <= INTEGER_MAX:  # nan as well
                return f"{show(value)} is out of range; expected a finite number"
            if least is not None and value < least:
                return f"{show(value)} is out of range; allowed are {least:g} and more"
            if above is not None and value <= above:
                return f"{show(value)} is out of range; allowed is more than {above:g}"
            if most is not None and value > most:
                return f"{show(value)} is out of range; allowed are {most:g} and less"
        case types.BoolType():
            return "" if isinstance(value, bool) else _other_than(info, value)
        case types.NoneType():
            return "" if value is None else _other_than(info, value)
        case types.LiteralType(values=values):
            is_one = isinstance(value, str) and value in values
            return "" if is_one else _other_than(info, value)
        case _:
            raise AssertionError(f"no rule for {info}")
    return ""


def _expected(info: types.Type, value: object, path: str) -> str:
    return f"{path}: {_other_than(info, value)}"


def _other_than(info: types.Type, value: object) -> str:
    return f"expected {_describe(info)}, got {show(value)}"


def _describe(info: types.Type) -> str:
    match info:
        case types.Metadata(type=inner):
            return _describe(inner)
        case types.UnionType(types=members):
            return " or ".join(_describe(member) for member in members)
        case types.LiteralType(values=values):
            return " or ".join(json.dumps(word) for word in values)
        case _:
            return _WORDS.get(type(info), "a value")


_WORDS: dict[type, str] = {
    types.StructType: "a mapping",
    types.DictType: "a mapping",
    types.VarTupleType: "a list",
    types.StrType: "a text",
    types.IntType: "an integer",
    types.FloatType: "a number",
    types.BoolType: "true or false",
    types.NoneType: "null",
}


def _range(least: int, most: int | None) -> str:
    return f"{least} and more" if most is None else f"{least} to {most}"


def below(path: str, key: object) -> str:
    """Extend a path by a mapping's key: ``$.a`` and ``b`` make ``$.a.b``."""
    if isinstance(key, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", key):
        return f"{path}.{key}"
    return f"{path}[{show(key)}]"
