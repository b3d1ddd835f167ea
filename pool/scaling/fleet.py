"""Which worker processes are up: a pure function from what is wanted and what is there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

GATHER_S = 600.0  # more workers than needed serve for so long before one of them is emptied
EMPTY_S_MAX = 60.0  # for that; it does not fit elsewhere if it takes longer
SILENT_S_MAX = 30.0  # a process of which nothing is heard for so long is ended


class NodeLimits(msgspec.Struct, frozen=True):
    """What a node was told about its places."""

    up_min: int = 0  # whatever the demand
    parked: int = 0  # on each device so many are up beyond those that serve
    rest_s: float = 60.0  # one that nobody needs is up so long after it was of use


class PlaceView(msgspec.Struct, frozen=True, kw_only=True):
    """Room for one worker process.

    A worker that no node can start or end is one on the node "", and always up.
    """

    worker: str
    node: str
    device: str
    owner: str = ""  # the endpoint whose own it is; empty: of all that share
    is_up: bool = False  # a process runs or starts, and does not drain
    is_starting: bool = False  # and has not said yet that it is there
    is_far: bool = False  # nobody can dial it: it starts because it was to be up, and only then
    is_awaited: bool = False  # calls began its start of which nothing is seen any more
    engines: int = 0  # loaded, or being loaded
    calls: int = 0
    is_sole: bool = False  # it alone has an engine warm that is wanted
    is_silent: bool = False  # there is a process of which nothing is heard

    @property
    def is_in_use(self) -> bool:
        """Tell whether it serves something."""
        return self.engines > 0 or self.calls > 0


class Fleet(msgspec.Struct, frozen=True):
    """What is to be."""

    # worker → why: demand, in use, awaited, minimum, parked, just used, leaving, silent
    up: Mapping[str, str] = {}
    leaving: frozenset[str] = frozenset()  # get nothing new; what they have is loaded elsewhere
    silent: frozenset[str] = frozenset()  # for too long: these are ended


class FleetState(msgspec.Struct, frozen=True):
    """What the policy remembers; times are monotonic."""

    used_s: Mapping[str, float] = {}  # worker → when it was last of use
    crowded_s: Mapping[str, float] = {}  # owner → since when more of its serve than are needed
    leaving_s: Mapping[str, float] = {}  # worker → since when it is emptied
    silent_s: Mapping[str, float] = {}  # worker → since when nothing is heard of it


def plan(
    places: Sequence[PlaceView],
    needed: Mapping[str, int],
    nodes: Mapping[str, NodeLimits],
    state: FleetState,
    now_s: float,
) -> tuple[Fleet, FleetState]:
    """Decide which places have a process.

    Up are: as many as are needed, whoever serves or is awaited, each node's minimum, the parked
    ones, and for `rest_s` who was of use until now.  What is up already is taken before anything
    is started, and what is started goes to the node on which the fewest are up.  Where more serve
    than are needed for `GATHER_S`, one after the other is emptied, unless its node keeps it up
    anyway.

    One that is silent counts as none, so that others are up in its stead.  It may be heard of
    again, and has `SILENT_S_MAX` for that.

    Args:
        places: all of them, in a fixed order.
        needed: workers by owner: the most replicas of any one version that they are to have.
        nodes: by their ids.
        state: what this returned last.
        now_s: monotonic.

    >>> places = [PlaceView(worker=name, node="n", device="cpu") for name in ("a", "b", "c")]
    >>> plan(places, {"": 1}, {"n": NodeLimits(parked=1)}, FleetState(), 0.0)[0].up
    {'a': 'demand', 'b': 'parked'}
    """
    silent_s = {p.worker: state.silent_s.get(p.worker, now_s) for p in places if p.is_silent}
    heard = [place for place in places if not place.is_silent]
    fleet, state = _plan(heard, needed, nodes, state, now_s)
    hoped = [w for w, since_s in silent_s.items() if now_s - since_s < SILENT_S_MAX]
    fleet = msgspec.structs.replace(
        fleet,
        up={**fleet.up, **dict.fromkeys(hoped, "silent")},
        silent=frozenset(silent_s.keys() - set(hoped)),
    )
    return fleet, msgspec.structs.replace(state, silent_s=silent_s)


def _plan(
    places: Sequence[PlaceView],
    needed: Mapping[str, int],
    nodes: Mapping[str, NodeLimits],
    state: FleetState,
    now_s: float,
) -> tuple[Fleet, FleetState]:
    """Decide for the places of whose processes, if any, is heard."""
    leaving_s = {
        place.worker: since_s
        for place in places
        if place.is_up and (since_s := state.leaving_s.get(place.worker)) is not None
    }
    crowded_s: dict[str, float] = {}
    up: dict[str, str] = {}
    on_node = Counter(place.node for place in places if place.is_up)
    for owner, own in _grouped((place.owner, place) for place in places).items():
        chosen = _order(own, on_node, leaving_s)[: needed.get(owner, 0)]
        up.update({place.worker: "demand" for place in chosen})
        up.update({p.worker: "in use" for p in own if p.is_in_use and p.worker not in up})
        up.update({p.worker: "awaited" for p in own if p.is_awaited and p.worker not in up})
        serving = [place for place in own if place.is_in_use]
        if not chosen or len(serving) <= len(chosen):
            continue
        since_s = crowded_s[owner] = state.crowded_s.get(owner, now_s)
        if now_s - since_s >= GATHER_S and not any(p.worker in leaving_s for p in serving):
            spare = [
                p for p in serving if up[p.worker] == "in use" and _may_rest(p, on_node, nodes)
            ]
            if spare:
                leaving_s[min(spare, key=lambda p: (p.calls, p.engines)).worker] = now_s
    _see_off(up, places, leaving_s, crowded_s, now_s)
    used_s = {
        place.worker: (
            now_s
            if place.worker in up or (place.is_starting and not place.is_far)
            else state.used_s.get(place.worker, _since_s(place, now_s))
        )
        for place in places
        if place.is_up or place.worker in up
    }
    _add_stock(up, places, nodes, leaving_s, on_node)
    for place in places:
        if not place.is_up or place.worker in up or place.worker in leaving_s:
            continue
        if place.node and now_s - used_s[place.worker] < nodes[place.node].rest_s:
            up[place.worker] = "just used"
    names = {place.worker for place in places if place.node}
    fleet = Fleet({w: why for w, why in up.items() if w in names}, frozenset(leaving_s) & names)
    return fleet, FleetState(used_s, crowded_s, leaving_s)


def _since_s(place: PlaceView, now_s: float) -> float:
    """Return when a place was of use of which nothing is remembered.

    One that starts where nobody can dial it starts by our own word, and was of no use yet.  Were it
    kept for that, word and report could chase each other.
    """
    return -math.inf if place.is_far and place.is_starting else now_s


def _see_off(
    up: dict[str, str],
    places: Iterable[PlaceView],
    leaving_s: dict[str, float],
    crowded_s: dict[str, float],
    now_s: float,
) -> None:
    """Let who is emptied rest once others have what it has; keep who is needed, or fits nowhere."""
    for place in places:
        began_s = leaving_s.get(place.worker)
        if began_s is None:
            continue
        if up.get(place.worker) == "demand" or now_s - began_s > EMPTY_S_MAX:
            del leaving_s[place.worker]
            crowded_s[place.owner] = now_s
        elif place.is_sole:
            up[place.worker] = "leaving"
        else:
            up.pop(place.worker, None)


def _grouped(pairs: Iterable[tuple[str, PlaceView]]) -> dict[str, list[PlaceView]]:
    found: dict[str, list[PlaceView]] = {}
    for key, place in pairs:
        found.setdefault(key, []).append(place)
    return found


def _order(
    own: Sequence[PlaceView], up_on_node: Mapping[str, int], leaving: Collection[str]
) -> list[PlaceView]:
    """Return `own` in the order in which they are taken."""
    on_node = Counter(up_on_node)
    ranked = []
    for at, place in enumerate(own):
        rank = 0
        if not place.is_up:
            rank = on_node[place.node]
            on_node[place.node] += 1
        is_last = place.worker in leaving
        ranked.append((is_last, not place.is_in_use, not place.is_up, bool(place.node), rank, at))
    return [own[at] for *_, at in sorted(ranked)]


def _may_rest(
    place: PlaceView, up_on_node: Mapping[str, int], nodes: Mapping[str, NodeLimits]
) -> bool:
    """Tell whether its node would not keep it up for its own sake."""
    return bool(place.node) and up_on_node[place.node] > nodes[place.node].up_min


def _add_stock(
    up: dict[str, str],
    places: Iterable[PlaceView],
    nodes: Mapping[str, NodeLimits],
    leaving: Collection[str],
    up_on_node: Mapping[str, int],
) -> None:
    """Add each node's minimum, and on each device those that wait for work."""
    staying = (place for place in places if place.node and place.worker not in leaving)
    for node, own in _grouped((place.node, place) for place in staying).items():
        limits = nodes[node]
        on_node = {node: up_on_node[node]}
        spare = [place for place in _order(own, on_node, ()) if place.worker not in up]
        missing = max(0, limits.up_min - sum(place.worker in up for place in own))
        up.update({place.worker: "minimum" for place in spare[:missing]})
        del spare[:missing]
        stock = Counter(p.device for p in own if up.get(p.worker) in ("minimum", "parked"))
        for place in spare:
            if stock[place.device] < limits.parked:
                stock[place.device] += 1
                up[place.worker] = "parked"
