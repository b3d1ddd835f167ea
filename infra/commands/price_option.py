"""`--device-price-usd-per-h`: what devices cost, so that edges can count what requests do."""

from __future__ import annotations

import math
import os
from typing import Annotated, Final

import typer

from infra.estimate.prices import NoPrice, load_prices
from infra.stack import CannotStart

REGION_DEFAULT: Final = "us-east-1"
REGION_NAMES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")  # what ECS sets, what boto3 reads

DevicePrices = Annotated[
    str,
    typer.Option(
        "--device-price-usd-per-h",
        envvar="TIDEPOOL_DEVICE_PRICE_USD_PER_H",
        help="What an hour of a device costs, so that it is counted what requests do: "
        "DEVICE=PRICE,…; of which DEVICE is a GPU such as l4, or gpu (any other), or cpu, "
        "and PRICE USD, or an EC2 instance type of the price list, or fargate-VCPUS-GB.",
    ),
]


def device_prices(text: str) -> dict[str, float]:
    """Return what was given, in USD an hour.

    Raises:
        CannotStart: it cannot be read, or an instance type has no price in the region of
            the environment.
    """
    found: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        device, _, price = (word.strip() for word in part.partition("="))
        if not device or not price or device in found:
            twice = " twice" if device in found else ""
            raise CannotStart(
                f"--device-price-usd-per-h: {part!r}{twice}: DEVICE=PRICE is needed, such as"
                " gpu=0.8048 or l4=g6.xlarge"
            )
        found[device] = _usd(device, price)
    return found


def _usd(device: str, price: str) -> float:
    try:
        usd = float(price)
    except ValueError:
        region = next(filter(None, map(os.environ.get, REGION_NAMES)), REGION_DEFAULT)
        try:
            return load_prices(region).device_usd_per_h(price)
        except NoPrice as error:
            raise CannotStart(
                f"--device-price-usd-per-h: {device}: {error}; or give it in USD"
            ) from None
    if not math.isfinite(usd) or usd < 0:
        raise CannotStart(f"--device-price-usd-per-h: {device}={price}: must be 0 or more")
    return usd
