"""Which form a body has, by Content-Type, and which the answer is to have, by Accept.

Bodies of calls are JSON (with or without binary tensors behind it) or msgpack.  Clients of the
protocol send `application/json`, `application/octet-stream` or, as tritonclient does, nothing.
curl calls whatever it sends a form unless it is told otherwise, so that is as good as nothing: the
body is read as JSON, never as a form.
"""

from __future__ import annotations

import functools

from edge.errors import Unsupported, quote

MSGPACK = "application/msgpack"
ACCEPTED = "application/json, application/octet-stream, application/msgpack"
HEADER_CHARS_MAX = 256  # of an Accept that is looked at and remembered

_MSGPACK_TYPES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
_JSON_TYPES = frozenset({"application/json", "application/octet-stream"})
_UNSAID = "application/x-www-form-urlencoded"
# What almost every request says, so that it costs a lookup.
_IS_MSGPACK: dict[str | None, bool] = {
    None: False,
    _UNSAID: False,
    **dict.fromkeys(_JSON_TYPES, False),
    **dict.fromkeys(_MSGPACK_TYPES, True),
}


def is_msgpack(content_type: str | None) -> bool:
    """Tell whether a body is msgpack; else it is JSON.

    Args:
        content_type: the header's value, None if there is none.

    Raises:
        Unsupported: it is of another type, or of a charset that is not UTF-8.
    """
    found = _IS_MSGPACK.get(content_type)
    if found is not None:
        return found
    assert content_type is not None
    return _is_msgpack(content_type[:HEADER_CHARS_MAX])


def refuse_msgpack(content_type: str | None) -> None:
    """Hold a body to JSON where nothing else is spoken; raises `Unsupported`."""
    if is_msgpack(content_type):
        raise _unsupported(content_type or "", "application/json")


def answers_msgpack(accept: str | None, is_packed: bool) -> bool:
    """Tell whether the answer is to be msgpack; else it is JSON, with or without binary tensors.

    The form that Accept prefers (RFC 9110 §12.5.1); without a preference that of the request.  An
    Accept that allows neither is disregarded, as the RFC permits: an answer in the request's own
    form is of more use than a refusal.

    Args:
        accept: the header's value, None if there is none.
        is_packed: whether the request is msgpack.
    """
    if accept is None or accept == "*/*" or len(accept) > HEADER_CHARS_MAX:
        return is_packed
    preferred = _prefers_msgpack(accept)
    return is_packed if preferred is None else preferred


@functools.lru_cache(maxsize=256)
def _is_msgpack(content_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise _unsupported(content_type)
    found = _IS_MSGPACK.get(kind)
    if found is None:
        raise _unsupported(content_type)
    return found


@functools.lru_cache(maxsize=256)
def _prefers_msgpack(accept: str) -> bool | None:
    """Return which form has the higher weight; None if they are equal."""
    weights: dict[str, float] = {}
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = _weight(parameter[2:])
        weights[kind] = max(weights.get(kind, 0.0), weight)
    anything = weights.get("application/*", weights.get("*/*", 0.0))
    packed, text = (
        max((weights[kind] for kind in kinds if kind in weights), default=anything)
        for kinds in (_MSGPACK_TYPES, _JSON_TYPES)
    )
    return None if packed == text else packed > text


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0


def _unsupported(content_type: str, accepted: str = ACCEPTED) -> Unsupported:
    return Unsupported(
        f"Content-Type {quote(content_type)} is not supported here; use {accepted}, or none",
        headers=(("accept-post", accepted),),
    )
