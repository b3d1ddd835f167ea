"""What an edge answers instead of a result: one exception per HTTP status.

Owns the statuses and the words of a refusal.  Does not own the body around the words: `/v2`
answers `{"error": text}` and the admin routes problem+json, each in its own handler.

    400-431   the caller's fault; sending the same again gives the same
    500       the model failed on a body that fits its signature; counts against its variant
    502-504   ours; sending the same again may well succeed
"""

from __future__ import annotations

import math
import random
from typing import ClassVar

TEXT_CHARS_MAX = 300
RETRY_AFTER_S_MAX = 120.0  # clients that read it do not come back at all after a longer one
SPREAD = 1.5
QUOTE_CHARS_MAX = 80  # of the caller's own input, so that an error never reflects a body

Headers = tuple[tuple[str, str], ...]


class Refusal(Exception):
    """A request that is not answered with a result.

    Args:
        text: for the caller: what is wrong, which value, and the way out; cut to 300 characters.
        code: a word for metrics and machines; the class has a default.
        headers: response headers in lower case, on top of the usual ones.
    """

    status: ClassVar[int] = 500
    code: str = "failed"

    def __init__(self, text: str, *, code: str = "", headers: Headers = ()) -> None:
        if len(text) > TEXT_CHARS_MAX:
            text = text[: TEXT_CHARS_MAX - 1] + "…"
        super().__init__(text)
        self.text = text
        self.headers = headers
        if code:
            self.code = code

    @staticmethod
    def of(status: int, text: str, retry_after_ms: int = 0) -> Refusal:
        """Make the refusal that a worker answered with; a status it may not use is its fault."""
        if status == Unavailable.status:
            return Unavailable(text, retry_after_s=retry_after_ms / 1000)
        return _OF_WORKERS.get(status, WorkerLost)(text)


class BadRequest(Refusal):
    """The body or a header is malformed."""

    status, code = 400, "malformed"


class Unauthorized(Refusal):
    """No key, or one that is not known."""

    status, code = 401, "unauthorized"

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text, code=code, headers=(("www-authenticate", "Bearer"),))


class Forbidden(Refusal):
    """A known key that may not do this."""

    status, code = 403, "forbidden"


class NotFound(Refusal):
    """No such route, endpoint, model or version."""

    status, code = 404, "not_found"


class MethodNotAllowed(Refusal):
    """The route exists, for other methods."""

    status, code = 405, "method_not_allowed"


class BodyTooSlow(Refusal):
    """The body did not arrive in time."""

    status, code = 408, "body_too_slow"


class TooLarge(Refusal):
    """The body, before or after decompression, is over the limit."""

    status, code = 413, "too_large"


class TargetTooLong(Refusal):
    """The request's target is longer than any that means something."""

    status, code = 414, "target_too_long"


class Unsupported(Refusal):
    """A content type or encoding that is not spoken here."""

    status, code = 415, "unsupported"


class Unprocessable(Refusal):
    """Well-formed, but not this model's signature; or quarantined."""

    status, code = 422, "not_this_signature"


class QuotaExceeded(Refusal):
    """The key's quota is used up for now."""

    status, code = 429, "quota"

    def __init__(self, text: str, *, retry_after_s: float, code: str = "") -> None:
        super().__init__(text, code=code, headers=retry_headers(retry_after_s))
        self.retry_after_s = retry_after_s


class ShareExceeded(Refusal):
    """The key's tenant has more under way than its part, while others compete."""

    status, code = 429, "share"

    def __init__(self, text: str, *, retry_after_s: float) -> None:
        super().__init__(text, headers=retry_headers(retry_after_s))
        self.retry_after_s = retry_after_s


class HeadersTooLarge(Refusal):
    """More or longer request headers than are read."""

    status, code = 431, "headers_too_large"


class ClientGone(Refusal):
    """The client left before its answer; nobody reads this, it is only counted."""

    status, code = 499, "client_gone"

    def __init__(self) -> None:
        super().__init__("the client went away")


class ModelFailed(Refusal):
    """The model failed on a body that fits its signature, or answered what it must not."""

    status, code = 500, "model_failed"


class WorkerLost(Refusal):
    """The worker broke, or answered what is no answer."""

    status, code = 502, "worker_lost"


class Unavailable(Refusal):
    """Overloaded, cold or draining: try again in `retry_after_s` seconds."""

    status, code = 503, "unavailable"

    def __init__(self, text: str, *, retry_after_s: float, code: str = "") -> None:
        super().__init__(text, code=code, headers=retry_headers(retry_after_s))
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """Nobody can take this call now."""

    code = "overloaded"


class DeadlineExceeded(Refusal):
    """The request's own deadline passed while it waited."""

    status, code = 504, "deadline"


_OF_WORKERS: dict[int, type[Refusal]] = {
    kind.status: kind
    for kind in (BadRequest, NotFound, Unprocessable, ModelFailed, WorkerLost, DeadlineExceeded)
}


def retry_headers(retry_after_s: float) -> Headers:
    """Say when to come back: whole seconds, rounded up, for everybody; exact for who reads ms."""
    return (
        ("retry-after", str(max(1, math.ceil(retry_after_s)))),
        ("retry-after-ms", str(max(1, math.ceil(retry_after_s * 1000)))),
    )


def jittered(retry_after_s: float) -> float:
    """Spread a wait, at most 120 s, so that those refused together do not come back together."""
    return min(retry_after_s, RETRY_AFTER_S_MAX / SPREAD) * random.uniform(1.0, SPREAD)


def quote(value: str) -> str:
    """Quote a piece of the caller's input for an error text: printable, at most 80 characters."""
    text = repr(value[:QUOTE_CHARS_MAX])
    if len(value) <= QUOTE_CHARS_MAX and len(text) <= QUOTE_CHARS_MAX:
        return text
    return text[: QUOTE_CHARS_MAX - 2] + "…'"
