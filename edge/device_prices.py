"""What devices cost, and so what calls do.  Pure.

Only the time counts for which calls hold a device.  What it costs while it idles, loads or builds
is nobody's in particular: that is the difference between the bill and the sum over endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

N = TypeVar("N", int, float)

CPU: Final = "cpu"
GPU: Final = "gpu"  # in prices: any device that is no CPU and has no price of its own
MAKER: Final = "nvidia-"  # need not be said
US_PER_H: Final = 3_600_000_000
NO_PRICES: Final[Mapping[str, float]] = MappingProxyType({})


def price_of(usd_per_h: Mapping[str, float], device: str) -> float | None:
    """Return what a device costs in USD an hour; None: nobody has said.

    >>> prices = {"gpu": 0.8, "cpu": 0.05, "l40s": 2.2}
    >>> [price_of(prices, device) for device in ("nvidia-l4", "nvidia-l40s", "cpu")]
    [0.8, 2.2, 0.05]
    >>> price_of({"l40s": 2.2}, "nvidia-l4")
    """
    names = [device, device.removeprefix(MAKER)]
    if device and device != CPU:
        names.append(GPU)
    return next((usd_per_h[name] for name in names if name in usd_per_h), None)


def costs_usd(device_us: Mapping[str, int], usd_per_h: Mapping[str, float]) -> dict[str, float]:
    """Return what times on devices cost, without the devices that have no price."""
    prices = {device: price_of(usd_per_h, device) for device in device_us}
    return {
        device: device_us[device] / US_PER_H * price
        for device, price in prices.items()
        if price is not None
    }


def added(one: Mapping[str, N], other: Mapping[str, N]) -> dict[str, N]:
    """Return the sums by device."""
    total = dict(one)
    for device, value in other.items():
        total[device] = total[device] + value if device in total else value
    return total
