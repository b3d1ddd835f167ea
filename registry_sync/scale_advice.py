"""What a spec's `scale` means in the fleet that there is: warnings, in words with the time.

A spec that fits may still be a surprise: where the pool goes down to no instance, the first call
after that is refused unless somebody answers meanwhile.  A pure function of the spec and of what
the controller's status says.
"""

from __future__ import annotations

import msgspec

from registry_sync.documents import EndpointSpec


class _Place(msgspec.Struct, frozen=True):
    worker: str = ""
    address: str = ""


class _Node(msgspec.Struct, frozen=True):
    places: list[_Place] = []
    up_min: int = 0


class _Worker(msgspec.Struct, frozen=True):
    id: str = ""
    fallback: bool = False


class Fleet(msgspec.Struct, frozen=True):
    """What of the controller's status matters here; one of a former release says less."""

    workers: list[_Worker] = []
    nodes: list[_Node] = []
    instance_start_s: float | None = None  # until one is up; None: no place needs one

    def reaches_zero(self, spec: EndpointSpec) -> bool:
        """Tell whether no instance may be up for `spec`: every place has one started, none stays.

        A worker that is no place's is up for good.  What is kept up is kept for those that share:
        a dedicated endpoint has one of it only where no place is ever down.
        """
        places = {place.worker: place for node in self.nodes for place in node.places}
        if not places or any(place.address for place in places.values()):
            return False
        if spec.scale.dedicated:
            return sum(node.up_min for node in self.nodes) < len(places)
        is_kept = any(node.up_min for node in self.nodes)
        others = any(not one.fallback and one.id not in places for one in self.workers)
        return not is_kept and not others


_fleet_of = msgspec.json.Decoder(Fleet)


def fleet_of(status: bytes) -> Fleet:
    """Read the document that `tidepool status --json` prints.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return _fleet_of.decode(status)


def warnings(spec: EndpointSpec, fleet: Fleet) -> list[str]:
    """Return what a user may not expect of `spec` in `fleet`; each begins with the value's path.

    >>> from registry_sync.documents import Scale, Variant
    >>> arms = (Variant("stable", "m", "1", 100.0),)
    >>> warnings(EndpointSpec("m", arms, scale=Scale(fallback="cpu")), Fleet())[0][:60]
    '$.scale.fallback: cpu, but no fallback worker is there: the '
    """
    found = []
    scale = spec.scale
    if scale.fallback == "cpu" and not any(worker.fallback for worker in fleet.workers):
        found.append(
            "$.scale.fallback: cpu, but no fallback worker is there: the endpoint is served as if "
            "it said none; start one with `tidepool pool --fallback`"
        )
    elif scale.fallback == "none" and not scale.replicas_min and fleet.reaches_zero(spec):
        start_s = fleet.instance_start_s or 0.0
        took = f"about {_shown(start_s)}" if start_s else "minutes"
        waits = (
            f"calls wait for it up to their deadline of {spec.deadline_ms / 1000:g} s"
            if start_s and spec.deadline_ms / 1000 > start_s
            else f"until then calls are refused with 503, as their deadline of "
            f"{spec.deadline_ms / 1000:g} s is shorter"
        )
        found.append(
            "$.scale.replicas_min: 0 without a fallback, in a pool that goes down to no instance: "
            f"the first call after that has one started, which takes {took}; {waits}. "
            "scale.fallback: cpu answers meanwhile, scale.replicas_min: 1 keeps one up"
        )
    return found


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.2g} min"
