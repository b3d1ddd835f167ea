"""The form of one answer on disk, and how old it is.

    frame  =  magic: 8 bytes | version: u16 | tenant_bytes: u16 | heads_bytes: u32 | data_bytes: u64
              | key: 32 bytes | boot: 16 bytes | boot_s: f64 | wall_s: f64 | ttl_s: f64
              | checksum: 32 bytes | tenant | heads | data                         (little-endian)
    heads  =  msgpack, [[name, datatype, shape, bytes], ...]
    data   =  the tensors' bytes in this order, each padded with zeros to 8 bytes

The checksum is over everything else, under a context of its own.  What a disk gives back is
believed only if it is exactly what was asked for: this key, this tenant, whole, unchanged.  No
clock, no I/O.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from pool.wire import data as wire
from pool.wire.data import Tensor, TensorHead, TensorLike
from pool.wire.frames import Buffer, WireError, padded

MAGIC = b"tidepool"
VERSION = 1
KEY_BYTES = 32
BOOT_BYTES = 16
HEADS_MAX = 1024

_HEAD = struct.Struct("<8sHHIQ32s16sddd")
_CHECKSUM_BYTES = 32
_BEGIN = _HEAD.size + _CHECKSUM_BYTES
_CONTEXT = "tidepool 2026-11 answer on disk"
_PADDING = bytes(8)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[TensorHead, ...])


class BadFrame(Exception):
    """What lies on disk is not the answer that was asked for."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment on two clocks: the one since this boot, which nobody sets, and the calendar's."""

    boot: bytes  # which boot; 16 bytes
    boot_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that was on disk."""

    outputs: Sequence[TensorLike]  # views of the frame
    frame_bytes: int
    stored: Stamp
    ttl_s: float  # for how long it was fresh when it was stored


def age_s(stored: Stamp, now: Stamp) -> float | None:
    """Return how old what was stored then is now, in seconds; None if no clock can tell.

    The older of what both clocks say, so that a calendar that was set back prolongs nothing.  After
    another boot only the calendar is left; where it says that the answer is from the future, the
    answer's age is not known.

    >>> age_s(Stamp(b"a", 100.0, 5000.0), Stamp(b"a", 160.0, 4000.0))
    60.0
    >>> age_s(Stamp(b"a", 100.0, 5000.0), Stamp(b"b", 3.0, 4000.0)) is None
    True
    """
    wall_s = now.wall_s - stored.wall_s
    if now.boot != stored.boot:
        return wall_s if wall_s >= 0 else None
    boot_s = now.boot_s - stored.boot_s
    return max(boot_s, wall_s) if boot_s >= 0 else None


def encode(
    key: bytes, tenant: str, outputs: Sequence[TensorLike], stored: Stamp, ttl_s: float
) -> bytes:
    """Return the frame of an answer.

    Args:
        key: from `cache.cache_key`.
        tenant: whose answer it is.
        outputs: the tensors.
        stored: now.
        ttl_s: for how long it is fresh.
    """
    owner = tenant.encode()
    heads = _encoder.encode(wire.heads(outputs))
    parts: list[Buffer] = [owner, heads]
    data_bytes = 0
    for output in outputs:
        size = len(output.data)
        data_bytes += padded(size)
        parts.append(output.data)
        parts.append(_PADDING[: padded(size) - size])
    head = _HEAD.pack(
        *(MAGIC, VERSION, len(owner), len(heads), data_bytes, key, stored.boot),
        *(stored.boot_s, stored.wall_s, ttl_s),
    )
    return b"".join([head, _checksum(head, parts), *parts])


def decode(frame: bytes, key: bytes, tenant: str) -> Found:
    """Read the frame of the answer to `key` of `tenant`.

    Raises:
        BadFrame: it is damaged, of another version, or of another key or tenant.
    """
    if len(frame) < _BEGIN:
        raise BadFrame(f"{len(frame)} bytes are no frame")
    (magic, version, tenant_bytes, heads_bytes, data_bytes, of, boot, boot_s, wall_s, ttl_s) = (
        _HEAD.unpack_from(frame)
    )
    if magic != MAGIC or version != VERSION:
        raise BadFrame("not a frame of this version")
    if len(frame) != _BEGIN + tenant_bytes + heads_bytes + data_bytes:
        raise BadFrame(f"{len(frame)} bytes are not what the frame says")
    view = memoryview(frame)
    if view[_HEAD.size : _BEGIN] != _checksum(view[: _HEAD.size], [view[_BEGIN:]]):
        raise BadFrame("the checksum is another one")
    heads_at = _BEGIN + tenant_bytes
    if of != key or view[_BEGIN:heads_at] != tenant.encode():
        raise BadFrame("the answer to another question")
    if not all(map(math.isfinite, (boot_s, wall_s, ttl_s))):
        raise BadFrame("a time that is none")
    data_at = heads_at + heads_bytes
    try:
        heads = _decoder.decode(view[heads_at:data_at])
        if len(heads) > HEADS_MAX:
            raise BadFrame(f"{len(heads)} tensors")
        outputs: list[Tensor] = wire.tensors(heads, view[data_at:])
    except (msgspec.DecodeError, UnicodeDecodeError, WireError) as error:
        raise BadFrame(str(error)) from None
    return Found(outputs, len(frame), Stamp(boot, boot_s, wall_s), ttl_s)


def _checksum(head: Buffer, parts: Sequence[Buffer]) -> bytes:
    hasher = blake3(head, derive_key_context=_CONTEXT)
    for part in parts:
        hasher.update(part)
    return bytes(hasher.digest())
