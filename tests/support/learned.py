"""What a scale desk has learned, as its controller keeps it."""

from __future__ import annotations

from pool.scale_desk import ScaleDesk


def kept_of(desk: ScaleDesk, now_s: float, unix_s: float) -> bytes:
    """Return all that `desk` has learned by now, for `ScaleDesk.restore`."""
    found = {ref: desk.learned(ref, now_s) for ref in desk.known()}
    return desk.pack(((ref, one) for ref, one in found.items() if one is not None), unix_s)
