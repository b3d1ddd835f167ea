"""Text that a person or a program wrote → plain values (dict, list, str, number, bool, None).

Owns the strictness about the *text*: size, depth, repeated keys, and the parts of YAML that
surprise.  What the values mean is `documents`' business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

import msgspec
import yaml

TEXT_BYTES_MAX = 256 * 1024  # a spec with 16 variants is 2 KiB
JSON_BYTES_MAX = 16 * 1024 * 1024  # a manifest of 10,000 files is 2 MiB
DEPTH_MAX = 32  # our deepest document has 4 levels


class BadText(ValueError):
    """The text is not a document at all; the message has no path in front."""


def parse_json(data: bytes) -> Any:
    """Parse JSON that another process of ours wrote.

    Raises:
        BadText: not JSON, too long, or nested too deeply.
    """
    if len(data) > JSON_BYTES_MAX:
        raise BadText(f"{len(data)} bytes of JSON; at most {JSON_BYTES_MAX} are read")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadText(f"not JSON: {error}") from None
    except RecursionError:
        raise BadText("nested too deeply") from None


def parse_text(text: str | bytes) -> Any:
    """Parse YAML or JSON that a person wrote, without YAML's surprises.

    Plain scalars mean what YAML 1.2's core schema says, not what 1.1 says: ``no`` and ``on`` are
    texts, ``1:30`` is a text and not 90, ``010`` is a text and not 8, a date is a text.  Keys
    may not repeat.  Anchors, aliases, merge keys and tags are refused: with aliases, a few
    hundred bytes of YAML unfold to gigabytes.

    Raises:
        BadText: says the line and column, and what is not allowed there.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadText(f"not UTF-8: {error.reason} at byte {error.start}") from None
    text = text.removeprefix("\ufeff")
    if len(text) > TEXT_BYTES_MAX:
        raise BadText(f"{len(text)} characters; at most {TEXT_BYTES_MAX} are read")
    try:
        if text.lstrip().startswith("{"):
            try:
                return json.loads(
                    text, object_pairs_hook=_without_repeats, parse_constant=_no_constant
                )
            except json.JSONDecodeError:
                pass  # YAML's flow style starts with a brace as well
        return _read_yaml(text)
    except BadText:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadText(f"{where}{error.problem or error.context or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadText(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise BadText("nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise BadText(f"the key {key!r:.80} is there twice")
        values[key] = value
    return values


def _no_constant(name: str) -> Any:
    raise BadText(f"{name} is not JSON")


def _read_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` without anchors, aliases, tags, repeated keys and YAML 1.1 scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML's own declaration

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            raise yaml.MarkedYAMLError(
                problem=f"anchors and aliases are not allowed: {anchor!r:.80}",
                problem_mark=event.start_mark,
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"tags are not allowed: {event.tag!r:.80}", problem_mark=event.start_mark
            )
        if self._depth >= DEPTH_MAX:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {DEPTH_MAX} levels", problem_mark=event.start_mark
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a text", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r:.80} is there twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|(?:0|[1-9][0-9]*)\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
        r"|(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )
