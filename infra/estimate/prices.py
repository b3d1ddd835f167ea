"""The price list of a region: one dated source for every price, and nothing that has none.

    infra/prices/aws-us-east-1.json   [{id, usd, usd_max, unit, gpus, source, date}, …]

A price that varies, as spot prices do, is a range from `usd` to `usd_max`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

FOLDER: Final = Path(__file__).parent.parent / "prices"

_FARGATE: Final = re.compile(r"fargate-(\d{1,3}(?:\.\d{1,2})?)-(\d{1,3})")

_Usd = Annotated[float, msgspec.Meta(gt=0)]
_Date = Annotated[str, msgspec.Meta(pattern=r"^20\d\d-[01]\d-[0-3]\d$")]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class NoPrice(Exception):
    """The list has no such price; the text says which ones there are."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one unit costs."""

    id: _Text
    usd: _Usd  # the least, of one that varies
    usd_max: _Usd | None = None
    unit: _Text
    gpus: Annotated[int, msgspec.Meta(ge=1)] | None = None  # of an instance
    source: _Text
    date: _Date  # of the source; where that has none, of its being read

    @property
    def usd_high(self) -> float:
        """The most that it costs."""
        return self.usd if self.usd_max is None else self.usd_max


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is known of one region."""

    provider: str
    region: str
    prices: tuple[Price, ...]

    def find(self, id: str) -> Price | None:
        """Return a price; None: it is not known."""
        return next((price for price in self.prices if price.id == id), None)

    def device_usd_per_h(self, instance_type: str) -> float:
        """Return what one GPU of an instance costs an hour, on demand.

        Args:
            instance_type: of EC2; or "fargate-2-4", a task of 2 vCPU and 4 GB, which has no GPU
                and is itself the device.

        Raises:
            NoPrice: of such instances none is known.
        """
        if size := _FARGATE.fullmatch(instance_type):
            vcpu, gb = self.find("fargate.vcpu"), self.find("fargate.gb")
            if vcpu is not None and gb is not None:
                return float(size[1]) * vcpu.usd + float(size[2]) * gb.usd
        price = self.find(f"ec2.{instance_type}")
        if price is None or price.gpus is None:
            known = ", ".join(self.instance_types)
            raise NoPrice(
                f"{instance_type}: no price of it is known in {self.region}; there are: {known}"
            )
        return price.usd / price.gpus

    @property
    def instance_types(self) -> list[str]:
        """The instances that have a price on demand."""
        found = [p.id.removeprefix("ec2.") for p in self.prices if p.id.startswith("ec2.")]
        return sorted(name for name in found if not name.endswith(".spot"))


def regions() -> list[str]:
    """Return the regions that have a list."""
    return sorted(path.stem.removeprefix("aws-") for path in FOLDER.glob("aws-*.json"))


def load_prices(region: str) -> Prices:
    """Return the list of a region.

    Raises:
        NoPrice: there is none.
    """
    if region not in regions():
        raise NoPrice(f"region {region}: there is no price list; there are: {', '.join(regions())}")
    return msgspec.json.decode((FOLDER / f"aws-{region}.json").read_bytes(), type=Prices)
