"""Why AWS, or a server that speaks like it, did not do what it was asked; and the way out."""

from __future__ import annotations

from typing import Final

import msgspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
)

EXPIRED: Final = "the credentials have expired"
_EXPIRED_CODES: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_UNKNOWN_CODES: Final = frozenset(
    {
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "UnrecognizedClientException",
        "AuthFailure",
        "InvalidToken",
    }
)
_SKEWED_CODES: Final = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_DENIED_CODES: Final = frozenset(
    {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AllAccessDisabled"}
)
LOG_IN: Final = (
    "log in again (`aws sso login`), or set a new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN; on ECS and EC2 see that the task or the instance has a role"
)


class Refusal(msgspec.Struct, frozen=True):
    """What came back instead of an answer."""

    kind: str  # expired, unknown, secret, skewed, denied, unreachable, other
    why: str
    do: str

    @property
    def is_of_credentials(self) -> bool:
        """Whether every other call would be refused as well."""
        return self.kind in ("expired", "unknown", "secret", "skewed", "unreachable")


def refusal(error: Exception, action: str) -> Refusal:
    """Say in words why a call failed.

    Args:
        action: that was asked for, as policies name it: "s3:ListBucket".
    """
    if isinstance(error, ClientError):
        return _of_service(error, action)
    if isinstance(error, NoCredentialsError):
        return Refusal("unknown", "there are no credentials", LOG_IN)
    if isinstance(error, ConnectionError | HTTPClientError):
        do = "look at the network, AWS_ENDPOINT_URL and the region; behind a proxy HTTPS_PROXY"
        return Refusal("unreachable", str(error), do)
    assert isinstance(error, BotoCoreError | ValueError)
    return Refusal("other", str(error), f"see {action} in AWS's documentation")


def _of_service(error: ClientError, action: str) -> Refusal:
    code, text = code_of(error), error.response.get("Error", {}).get("Message", "")
    if code in _SKEWED_CODES or (code == "SignatureDoesNotMatch" and "expired" in text):
        return Refusal("skewed", f"this machine's clock is wrong: {code}", SET_CLOCK)
    if code in _EXPIRED_CODES:
        return Refusal("expired", f"{EXPIRED} ({code})", LOG_IN)
    if code in _UNKNOWN_CODES:
        do = f"the access key is deleted, of another account's endpoint, or mistyped: {LOG_IN}"
        return Refusal("unknown", f"the access key is not known ({code})", do)
    if code == "SignatureDoesNotMatch":
        do = "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID: copy both anew"
        return Refusal("secret", "the secret key is wrong", do)
    if code in _DENIED_CODES or status_of(error) == 403:
        do = f"allow {action} in a policy of this identity, and of the bucket or key if it has one"
        return Refusal("denied", f"{action} is not allowed", do)
    return Refusal("other", f"{action}: {code or status_of(error)} {text}".rstrip(), "see its text")


SET_CLOCK: Final = "set the clock (`chronyc makestep`, `timedatectl set-ntp true`)"


def code_of(error: ClientError) -> str:
    """Return the service's own code of an error."""
    return error.response.get("Error", {}).get("Code", "")


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an error; 0: none is known."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
