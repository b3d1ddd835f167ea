"""What a spec and its state mean together: the weights that hold, and whether a rollout runs.

Everybody who goes by weights (edges, controller, status) asks here, so that they agree; and so
does whoever writes a spec, for what a rollout leaves them to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from registry_sync.documents import EndpointSpec, EndpointState, Variant
from registry_sync.rollout_terms import Guard, Rollout, RolloutState, Shadow, Step, Wish
from registry_sync.rules import WEIGHTS_TOTAL
from registry_sync.spec_diff import differences

BASELINE: Final = "stable"
CANDIDATE: Final = "canary"
STEPS_DEFAULT: Final = (1.0, 5.0, 25.0, 50.0, 100.0)  # percent
HOLD_S_DEFAULT: Final = 60.0
PATHS_MAX: Final = 4  # that one refusal names


class Way(NamedTuple):
    """A way out by an option, which commands and requests spell each in their own words."""

    does: str  # "end it with"
    option: str  # as requests name it: "abort_rollout"
    value: str
    besides: str = ""  # what else it takes


class RolloutRefused(Exception):
    """What is wished does not go with the endpoint's rollout; the text names the way out."""

    def __init__(self, text: str, way: Way | None = None) -> None:
        super().__init__(text)
        self.way = way

    def told(self, spelled: Callable[[str, str], str]) -> str:
        """Return the text with all ways out; `spelled` writes an option, from name and value."""
        way = self.way
        if way is None:
            return str(self)
        return f"{self}, or {way.does} {spelled(way.option, way.value)}{way.besides}"


class NoRollout(RolloutRefused):
    """The endpoint has none."""


class RolloutLive(RolloutRefused):
    """A rollout runs, and the change would end or replace it."""


class RolloutOver(RolloutRefused):
    """The rollout has come to its end."""


class RolloutUnfit(RolloutRefused):
    """The endpoint's arms, or its former rollouts, do not allow it."""


def effective_weights(spec: EndpointSpec, state: EndpointState | None) -> Mapping[str, float]:
    """Return the weights that hold, by variant; a state that is not about this spec has no say.

    A rollout's weights hold through later revisions that keep the rollout and its arms; a spec
    without one goes by its own weights, unless the state is about this very revision.
    """
    own = {variant.name: variant.weight for variant in spec.variants}
    if state is None or not state.weights:
        return own
    if spec.rollout is not None:
        is_about = state.rollout is not None and state.rollout.id == spec.rollout.id
    else:
        is_about = state.revision == spec.revision
    return dict(state.weights) if is_about and state.weights.keys() == own.keys() else own


def shares_by_version(spec: EndpointSpec, state: EndpointState | None) -> dict[str, float]:
    """Return what each version has of the traffic, in percent."""
    weights = effective_weights(spec, state)
    found: dict[str, float] = {}
    for arm in spec.variants:
        found[arm.version] = found.get(arm.version, 0.0) + weights[arm.name]
    return found


def state_of(spec: EndpointSpec, state: EndpointState | None) -> RolloutState | None:
    """Return how far the spec's rollout is; None before the controller has begun it."""
    if spec.rollout is None or state is None or state.rollout is None:
        return None
    return state.rollout if state.rollout.id == spec.rollout.id else None


def is_live(spec: EndpointSpec, state: EndpointState | None) -> bool:
    """Tell whether the spec has a rollout that has not come to its end."""
    if spec.rollout is None:
        return False
    found = state_of(spec, state)
    if found is not None and found.state == "promoted":
        return spec.rollout.wish == "abort"  # then the baseline is about to have all again
    return found is None or found.state != "rolled_back"


def settled(spec: EndpointSpec, state: EndpointState | None) -> EndpointSpec:
    """Return a spec without its rollout, which has ended: the arm that won has everything.

    Raises:
        RolloutLive: it has not ended.
    """
    if spec.rollout is None:
        return spec
    if is_live(spec, state):
        raise _live(spec)
    weights = effective_weights(spec, state)
    winner = max(spec.variants, key=lambda arm: weights[arm.name])
    alone = replace(winner, name=BASELINE, weight=WEIGHTS_TOTAL)
    return replace(spec, variants=(alone,), rollout=None)


def terms(
    *,
    id: str,
    steps: Sequence[float] = STEPS_DEFAULT,
    hold_s: float = HOLD_S_DEFAULT,
    shadow: Shadow | None = None,
    guard: Guard | None = None,
) -> Rollout:
    """Return a rollout's terms, between the arms "stable" and "canary"; arguments: `started`."""
    shares = (*steps,) if steps and steps[-1] >= WEIGHTS_TOTAL else (*steps, WEIGHTS_TOTAL)
    return Rollout(
        id=id,
        steps=tuple(Step(share, hold_s) for share in shares),
        guard=guard or Guard(),
        shadow=shadow,
    )


def started(
    spec: EndpointSpec,
    state: EndpointState | None,
    *,
    id: str,
    version: str,
    steps: Sequence[float] = STEPS_DEFAULT,
    hold_s: float = HOLD_S_DEFAULT,
    shadow: Shadow | None = None,
    guard: Guard | None = None,
) -> EndpointSpec:
    """Return the spec that begins a rollout to `version`; `check_spec` tells whether it fits.

    An endpoint with one arm gets the arms "stable" and "canary".  Two arms keep their names, so
    that whom a test had sent to the candidate comes back to it; the one with `version` is the
    candidate.

    Args:
        spec: with no rollout, or with one that has ended and is settled first.
        state: of the endpoint.
        id: a new one, or this is taken for a former rollout.
        version: that is to take over, of the baseline's model.
        steps: the candidate's shares in percent, rising; 100 is added if it is missing.
        hold_s: how long each of them is watched.
        shadow: None: no copies of calls.
        guard: None: the defaults.

    Raises:
        RolloutLive: a rollout runs.
        RolloutUnfit: the endpoint's arms do not say what `version` is to replace.
    """
    before = settled(spec, state)
    baseline, candidate = _pair(before, version)
    begun = replace(
        terms(id=id, steps=steps, hold_s=hold_s, shadow=shadow, guard=guard),
        baseline=baseline.name,
        candidate=candidate.name,
    )
    return replace(before, variants=(baseline, candidate), rollout=begun)


def wished(spec: EndpointSpec, state: EndpointState | None, wish: Wish) -> EndpointSpec:
    """Return the spec with another wish for its rollout; the same spec if nothing changes.

    Raises:
        NoRollout: it has none.
        RolloutOver: its rollout has ended, and not as is wished; or it is being aborted.

    To go on with a rollout that a guard has paused is to overrule what the guard found.
    """
    rollout, name = spec.rollout, spec.endpoint
    if rollout is None:
        raise NoRollout(
            f"endpoint {name!r} has no rollout; begin one with `tidepool rollout start {name} --to "
            "VERSION`"
        )
    found = state_of(spec, state)
    phase = "" if found is None else found.state
    if phase == "rolled_back" and wish != "abort":
        why = f" ({found.reason})" if found is not None and found.reason else ""
        raise RolloutOver(
            f"the rollout of {name!r} was rolled back{why}; begin another with `tidepool rollout "
            f"start {name} --to VERSION`"
        )
    if rollout.wish == "abort" != wish:
        raise RolloutOver(f"the rollout of {name!r} is being aborted; begin another after that")
    if phase == "promoted" and wish not in ("promote", "abort"):
        raise RolloutOver(
            f"the rollout of {name!r} is promoted; `tidepool rollout abort {name}` goes back to "
            f"version {_version(spec, rollout.baseline)}"
        )
    if phase == {"promote": "promoted", "abort": "rolled_back"}.get(wish):
        return spec
    overruled = rollout.overruled
    if wish == "run" and found is not None and found.harm:
        overruled = found.segment
    return replace(spec, rollout=replace(rollout, wish=wish, overruled=overruled))


def check_replaced(
    current: EndpointSpec, new: EndpointSpec, state: EndpointState | None, *, may_abort: bool
) -> None:
    """See that `new` may replace `current`, as far as rollouts are concerned.

    What a rollout is about stays as it is for as long as the rollout has its id: weights that
    were reached with one version must not hold for another.

    Raises:
        RolloutLive: a rollout runs, and `new` has other arms, another rollout or none; or goes on
            with it among other units.
        RolloutUnfit: `new` has the id of a rollout that was about something else.
    """
    if is_same_rollout(current, new):
        if is_live(current, state):
            _check_units(current, new)
        return
    wanted = new.rollout
    if is_live(current, state) and not may_abort:
        assert current.rollout is not None
        is_of_its_id = wanted is not None and wanted.id == current.rollout.id
        besides = " and another `rollout.id`, or without `rollout`" if is_of_its_id else ""
        raise _ended_by(current, new, besides)
    if wanted is None:
        return
    if current.rollout is not None and current.rollout.id == wanted.id:
        raise RolloutUnfit(
            f"$.rollout.id: {wanted.id!r} is the rollout of revision {current.revision}, with "
            "other variants or terms; leave `rollout` out, or give a new one another id"
        )
    if state is not None and state.rollout is not None and state.rollout.id == wanted.id:
        raise RolloutUnfit(
            f"$.rollout.id: the rollout {wanted.id!r} has been here before "
            f"({state.rollout.state}); give a new one another id"
        )


def check_returned(
    current: EndpointSpec, previous: EndpointSpec, state: EndpointState | None, *, may_abort: bool
) -> None:
    """See that a former spec may be current again, as far as rollouts are concerned.

    Raises:
        RolloutLive: a rollout runs, and `previous` is from before it.
        RolloutUnfit: the rollout of `previous` would begin anew, or go on with nothing warm.
    """
    if is_same_rollout(current, previous):
        return
    if is_live(current, state) and not may_abort:
        raise _ended_by(current, previous)
    if is_live(previous, state):
        name, revision = previous.endpoint, previous.revision
        raise RolloutUnfit(
            f"revision {revision} of {name!r} would begin its rollout anew, or go on with it at "
            f"once; set what is to be with `tidepool endpoint set {name}`"
        )


def _check_units(current: EndpointSpec, new: EndpointSpec) -> None:
    """Guards count each unit once; to deal them anew is to compare something else."""
    for name in ("by", "salt"):
        if getattr(current.assign, name) != getattr(new.assign, name):
            raise RolloutLive(
                f"$.assign.{name}: a rollout of {current.endpoint!r} runs, and this would deal its "
                "units anew; wait for its end",
                Way("end it with", "abort_rollout", "true", " and without `rollout`"),
            )


def is_same_rollout(one: EndpointSpec, other: EndpointSpec) -> bool:
    """Tell whether two specs have one rollout, whatever is wished of it, and the same arms."""
    if one.rollout is None or other.rollout is None:
        return one.rollout is other.rollout
    wishing = with_wish_of(one, other)
    arms, others = (sorted(spec.variants, key=lambda arm: arm.name) for spec in (one, other))
    return wishing is not None and wishing.rollout == other.rollout and arms == others


def with_wish_of(spec: EndpointSpec, other: EndpointSpec) -> EndpointSpec | None:
    """Return `spec` with what is wished in `other` of their rollout; None if they share none."""
    if spec.rollout is None or other.rollout is None or spec.rollout.id != other.rollout.id:
        return None
    wish, overruled = other.rollout.wish, other.rollout.overruled
    return replace(spec, rollout=replace(spec.rollout, wish=wish, overruled=overruled))


def _pair(spec: EndpointSpec, version: str) -> tuple[Variant, Variant]:
    """Return baseline and candidate of a rollout to `version`, with their weights."""
    name = spec.endpoint
    if len(spec.variants) == 1:
        baseline = replace(spec.variants[0], name=BASELINE)
        candidate = replace(baseline, name=CANDIDATE, version=version)
    elif (
        [arm.version == version for arm in spec.variants].count(True) == 1 == len(spec.variants) - 1
    ):
        candidate = next(arm for arm in spec.variants if arm.version == version)
        baseline = next(arm for arm in spec.variants if arm.version != version)
    else:
        arms = ", ".join(f"{arm.name} (version {arm.version})" for arm in spec.variants)
        raise RolloutUnfit(
            f"endpoint {name!r} has the variants {arms}: a rollout to version {version} needs one "
            f"variant, or two of which one has that version; see `tidepool endpoint set {name}`"
        )
    if (
        candidate.version == baseline.version
        or candidate.weight == WEIGHTS_TOTAL != baseline.weight
    ):
        raise RolloutUnfit(f"version {version} has all traffic of {name!r} already")
    return replace(baseline, weight=WEIGHTS_TOTAL), replace(candidate, weight=0.0)


def _version(spec: EndpointSpec, arm: str) -> str:
    return next(variant.version for variant in spec.variants if variant.name == arm)


def _live(spec: EndpointSpec) -> RolloutLive:
    return RolloutLive(f"{_running(spec)}; {_waiting(spec)}")


def _ended_by(current: EndpointSpec, new: EndpointSpec, besides: str = "") -> RolloutLive:
    """Return the refusal of `new`, which names what of it would end the rollout."""
    paths = [change.path for change in differences(current, new) if _is_of_rollout(change.path)]
    named = ", ".join(paths[:PATHS_MAX]) + (", …" if len(paths) > PATHS_MAX else "")
    return RolloutLive(
        f"{named}: {_running(current)}, and this would end it; {_waiting(current)}",
        Way("end it with", "abort_rollout", "true", besides),
    )


def _is_of_rollout(path: str) -> bool:
    is_wish = path in ("$.rollout.wish", "$.rollout.overruled")
    return path.startswith(("$.variants", "$.rollout")) and not is_wish


def _running(spec: EndpointSpec) -> str:
    assert spec.rollout is not None
    version = _version(spec, spec.rollout.candidate)
    return f"a rollout of {spec.endpoint!r} to version {version} runs"


def _waiting(spec: EndpointSpec) -> str:
    name = spec.endpoint
    return (
        f"wait for its end, or `tidepool rollout promote {name}`, or `tidepool rollout abort "
        f"{name}`"
    )
