"""Wishes for plans: what a user wants built, and what endpoints want to run a version with.

`builds/<model>/<version>/<device class>.json` holds a `BuildWish`.  A wish stays until somebody
withdraws it: whoever has built the plan leaves it, so that a plan which is lost is built again.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from registry_sync.documents import EngineWish

SCHEMA: Final = 1


class BuildWish(msgspec.Struct, frozen=True, kw_only=True):
    """Build this version for this device class."""

    model: str
    version: str
    device_class: str
    engine: str = ""  # empty: any that can
    created: str = ""  # UTC, ISO 8601; for people only
    schema: Annotated[int, Meta(ge=1, le=SCHEMA)] = SCHEMA


class Wanted(msgspec.Struct, frozen=True):
    """What the endpoints that name a version want of its engine, all together."""

    engine: EngineWish = EngineWish()
    rows_max: int = 0  # of a batch; 0: the manifest's


def wish_key(model: str, version: str, device_class: str) -> str:
    """Return the key of a wish in the registry."""
    return f"builds/{model}/{version}/{device_class}.json"
