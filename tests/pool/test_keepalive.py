"""Whether a version without calls is to be warm."""

from __future__ import annotations

import math

from pool.scaling.keepalive import KeepAlive


def test_version_in_use_is_warm() -> None:
    assert KeepAlive().wants(5.0, 3600.0, 1.0) == (True, math.inf)


def test_new_version_stays_warm_for_hours() -> None:
    keep = KeepAlive()
    keep.ended(10.0)
    is_warm, until_s = keep.wants(10.0, 3600.0, 1.0)
    assert is_warm
    assert until_s >= 10.0 + 3600.0
