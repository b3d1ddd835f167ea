"""What is kept of all that was learned, and what of it is believed when it is read back.

Bytes in a registry may be damaged, or written by somebody else.  Every number that is read back is
finite and within what its writer can mean; one that is not costs the version that it belongs to
what was learned, and nobody else.  Pure: no files, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

Ref: TypeAlias = tuple[str, str]  # model, version

BYTES_MAX: Final = 8 << 20
POLICY_BYTES_MAX: Final = 64 << 10
AGE_S_MAX: Final = 366 * 86_400.0  # what is older is as good as this old
# Who claims to take longer than this to wake, or to start, is not believed.
WAKE_S_MAX: Final = 4 * 3600.0
_UNIX_S_MAX: Final = 1e11
_EXTRA_BYTES: Final = 256  # of a version besides its policy, more than enough
_VERSIONS_MAX: Final = BYTES_MAX // _EXTRA_BYTES
_COUNT_MAX: Final = 2**53  # as the control wire has it

# A bound refuses NaN too.
Age: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=AGE_S_MAX)]
Wake: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=WAKE_S_MAX)]
_Rows: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=_COUNT_MAX)]
_T = TypeVar("_T")


class Version(msgspec.Struct, array_like=True, frozen=True):
    """What was learned of one version."""

    policy: Annotated[bytes, msgspec.Meta(max_length=POLICY_BYTES_MAX)]
    age_s: Age = 0.0  # of the policy's state, before the whole was kept
    rows_per_s: _Rows = 0.0
    rows_per_call: _Rows = 0.0
    wake_s: Wake = 0.0
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=_COUNT_MAX)] = 0
    idle_s: Age | None = None  # since it was last used, before the whole was kept


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    unix_s: Annotated[float, msgspec.Meta(ge=0, le=_UNIX_S_MAX)]
    start_s: Wake
    versions: dict[str, msgspec.Raw]  # by "model/version"; each is read by itself


_version_of = msgspec.msgpack.Decoder(Version)
_kept_of = msgspec.msgpack.Decoder(_Kept)


class Kept(msgspec.Struct, frozen=True):
    """What could be read."""

    unix_s: float
    start_s: float
    versions: dict[Ref, Version]
    damaged: int  # versions that could not be


def unpack(data: bytes | msgspec.Raw, decoder: msgspec.msgpack.Decoder[_T]) -> _T | None:
    """Return what `data` holds; None: not that, or one of its numbers is beyond its bounds."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def age(seconds: float) -> float:
    """Return an age as it is kept.

    >>> age(-1.0), age(5.0), age(float("inf")) == AGE_S_MAX
    (0.0, 5.0, True)
    """
    return min(max(0.0, seconds), AGE_S_MAX)


def pack(unix_s: float, start_s: float, versions: Iterable[tuple[Ref, Version]]) -> bytes:
    """Return what is kept of these versions: the first of them, if not all have room.

    Args:
        unix_s: wall clock: tells the successor how long nobody was there to learn.
        start_s: how long a worker process takes to start.
        versions: each once.
    """
    packed: dict[str, msgspec.Raw] = {}
    left_bytes = BYTES_MAX
    for ref, version in versions:
        size_bytes = len(version.policy) + _EXTRA_BYTES
        if len(version.policy) <= POLICY_BYTES_MAX and size_bytes <= left_bytes:
            packed["/".join(ref)] = msgspec.Raw(msgspec.msgpack.encode(version))
            left_bytes -= size_bytes
    return msgspec.msgpack.encode(_Kept(unix_s, start_s, packed))


def read(data: bytes) -> Kept | None:
    """Return what `pack` packed; None: nothing of it can be read."""
    kept = unpack(data, _kept_of)
    if kept is None:
        return None
    versions: dict[Ref, Version] = {}
    for name, raw in islice(kept.versions.items(), _VERSIONS_MAX):
        model, _, number = name.partition("/")
        version = unpack(raw, _version_of)
        if model and number and version is not None:
            versions[model, number] = version
    if kept.versions and not versions:
        return None
    return Kept(kept.unix_s, kept.start_s, versions, len(kept.versions) - len(versions))
