"""The documents as a request needs them: compiled once per change, then only read.

A `Snapshot` is built from the controller's documents and replaced whole, so that a request sees one
state of the world from its first line to its last.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from edge.arm_metrics import ArmMetrics
from edge.body import Signature
from edge.exposure import Exposure
from edge.metrics import Metrics
from edge.shadowing import Sample, sample_of
from edge.variants import Arm, Arms
from edge.watch import ArmWatch, Firsts, RolloutWatch, SegmentWatch
from pool.wire.control import Documents
from registry_sync import keys as key_rules
from registry_sync.builds import precision_of
from registry_sync.documents import (
    BadDocument,
    Cache,
    EndpointSpec,
    EndpointState,
    KeyRecord,
    Manifest,
    read_keys,
    read_manifest,
    read_spec,
    read_state,
)
from registry_sync.rollouts import effective_weights, is_live, state_of
from registry_sync.trust import Trust

Ref = tuple[str, str]

DEADLINE_S_DEFAULT = 10.0  # of calls for a version that no endpoint names

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Version:
    """One published version, ready to be called."""

    ref: Ref
    manifest: Manifest
    digest: str
    signature: Signature
    caches: bool  # its answers may be cached at all


@dataclass(frozen=True, slots=True)
class ArmOf:
    """One arm of an endpoint: the variant's name and the version behind it."""

    name: str
    version: Version
    metrics: ArmMetrics
    precision: str  # at least, of its answers; whoever asks for another one shares none of them
    purged: str = ""  # names the last purge; part of the key of every cached answer
    shadow: Sample | None = None  # who answers its calls as well
    watch: ArmWatch | None = None  # while it is one of a rollout's two
    exposure: Exposure | None = None  # None: who gets it is not logged


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a client calls; for a call by version, one arm under the model's name."""

    name: str
    revision: int
    arms: tuple[ArmOf, ...]
    assignment: Arms
    spec: EndpointSpec | None
    deadline_s: float
    cache_ttl_s: float  # 0: no caching
    rows_max: int  # of a batch, besides the model's own bound
    cache_disk: bool = False
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    stale_s: float = 0.0  # the longer of the two
    has_levels: bool = False  # whether a miss of the memory is not yet one
    watch: RolloutWatch | None = None  # while a rollout runs
    hedge_share: float = 0.0  # of the calls that may go to a second replica as well
    firsts: Firsts | None = None  # None: nobody asks whether a unit is new

    @property
    def running(self) -> tuple[ArmOf, ...]:
        """The arms that get requests by their weight."""
        return tuple(self.arms[index] for index in self.assignment.running)

    def arm_named(self, name: str) -> ArmOf | None:
        """Return the arm called `name`."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the data plane goes by."""

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    versions: Mapping[Ref, Version] = field(default_factory=dict)
    keys: Mapping[str, KeyRecord] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)


def compile_snapshot(
    documents: Documents, old: Snapshot, metrics: Metrics, trust: Trust | None = None
) -> Snapshot:
    """Build the snapshot of `documents`, taking over from `old` what has not changed.

    The controller has checked the documents; what this (maybe older) release cannot read stays out
    alone, and the last good one serves.

    Args:
        trust: whose manifests are used; no other one serves, also not as the last good one.
    """
    trust = trust or Trust()
    rejected = dict(documents.rejected)
    versions: dict[Ref, Version] = {}
    for name, data in documents.manifests.items():
        model, _, number = name.rpartition("/")
        known = old.versions.get((model, number))
        try:
            trust.check(data)
            # Manifests are immutable.
            versions[model, number] = known or _version(read_manifest(data))
        except BadDocument as error:
            rejected[f"models/{name}/manifest.json"] = str(error)
    endpoints: dict[str, Endpoint] = {}
    for name, data in documents.specs.items():
        document = f"endpoints/{name}/state.json"
        try:
            state_data = documents.states.get(name)
            state = read_state(state_data) if state_data else None
            document = f"endpoints/{name}.json"
            known_as = old.endpoints.get(name)
            endpoints[name] = _endpoint(read_spec(data), state, versions, metrics, known_as)
        except (ValueError, KeyError) as error:  # a document, its weights, or what it names
            rejected[document] = str(error)
            if (last := old.endpoints.get(name)) is not None and _may_serve(last, versions, trust):
                endpoints[name] = last
    keys = old.keys
    try:
        if documents.keys:
            keys = key_rules.by_id(read_keys(documents.keys))
        elif "keys.json" not in documents.rejected:
            keys = {}  # the registry has none: every call is refused
    except BadDocument as error:
        rejected["keys.json"] = str(error)
    for document, why in rejected.items():
        if document not in old.rejected:
            _log.warning("document_rejected", document=document, why=why)
    return Snapshot(endpoints, versions, keys, rejected)


def _may_serve(last: Endpoint, versions: Mapping[Ref, Version], trust: Trust) -> bool:
    """Tell whether an endpoint may go on as it was, though its documents cannot be used."""
    return not trust.is_required or all(arm.version.ref in versions for arm in last.arms)


def of_version(version: Version, metrics: Metrics) -> Endpoint:
    """Return the endpoint by which one version is called by its number."""
    model = version.ref[0]
    arm = metrics.arm((model, 0, "", version.ref[1]))
    return Endpoint(
        name=model,
        revision=0,
        arms=(ArmOf("", version, arm, precision_of(version.manifest)),),
        assignment=Arms([Arm("", 100.0)], model),
        spec=None,
        deadline_s=DEADLINE_S_DEFAULT,
        cache_ttl_s=0.0,
        rows_max=version.manifest.rows_max,
    )


def _version(manifest: Manifest) -> Version:
    return Version(
        ref=(manifest.model, manifest.version),
        manifest=manifest,
        digest=manifest.digest,
        signature=Signature.of(
            manifest.model, manifest.inputs, manifest.outputs, manifest.rows_max
        ),
        caches=manifest.deterministic,
    )


def _endpoint(
    spec: EndpointSpec,
    state: EndpointState | None,
    versions: Mapping[Ref, Version],
    metrics: Metrics,
    old: Endpoint | None,
) -> Endpoint:
    weights = effective_weights(spec, state)
    assignment = Arms([Arm(v.name, weights[v.name]) for v in spec.variants], spec.assign.salt)
    arms = tuple(
        ArmOf(
            v.name,
            versions[v.model, v.version],
            metrics.arm((spec.endpoint, spec.revision, v.name, v.version)),
            precision_of(versions[v.model, v.version].manifest, spec.engine),
            _purged(state, v.version),
            sample_of(spec, state, v.name),
        )
        for v in spec.variants
    )
    # From here on the documents fit, so that counters which are in use may go by them.
    rollout, watched = _watched(spec, state, old)
    firsts = _firsts(spec, weights, watched, old)
    if watched is not None or firsts is not None:
        arms = tuple(
            replace(
                arm,
                watch=watched.arms.get(arm.name) if watched is not None else None,
                exposure=_exposure(spec, arm, watched) if firsts is not None else None,
            )
            for arm in arms
        )
    cache = spec.cache or Cache()
    stale_s = max(cache.stale_while_revalidate_s, cache.stale_if_error_s)
    return Endpoint(
        name=spec.endpoint,
        revision=spec.revision,
        arms=arms,
        assignment=assignment,
        spec=spec,
        deadline_s=spec.deadline_ms / 1000,
        cache_ttl_s=spec.cache.ttl_s if spec.cache is not None else 0.0,
        rows_max=spec.batch.rows_max,
        cache_disk=cache.disk,
        stale_while_revalidate_s=cache.stale_while_revalidate_s,
        stale_if_error_s=cache.stale_if_error_s,
        stale_s=stale_s,
        has_levels=cache.disk or stale_s > 0,
        watch=rollout,
        firsts=firsts,
        hedge_share=0.0 if spec.hedge is None else spec.hedge.share_max,
    )


def _watched(
    spec: EndpointSpec, state: EndpointState | None, old: Endpoint | None
) -> tuple[RolloutWatch | None, SegmentWatch | None]:
    """Return what counts for the spec's rollout, and for its present segment."""
    wish, done = spec.rollout, state_of(spec, state)
    if wish is None or done is None or not is_live(spec, state):
        return None, None
    rollout = old.watch if old is not None else None
    if rollout is None or rollout.id != wish.id:
        rollout = RolloutWatch(spec.endpoint, wish.id, spec.assign.salt)
    limit_ms = wish.guard.slower_than_ms
    slow_s = math.inf if limit_ms is None else limit_ms / 1000
    return rollout, rollout.segment(done.segment, (wish.baseline, wish.candidate), slow_s)


def _firsts(
    spec: EndpointSpec,
    weights: Mapping[str, float],
    watched: SegmentWatch | None,
    old: Endpoint | None,
) -> Firsts | None:
    """Return who has been here since the weights are what they are, if that is of interest.

    It is where units have arms and there are arms to be compared.
    """
    if not spec.assign.by:
        return None
    if watched is not None:
        assert spec.rollout is not None
        if not weights[spec.rollout.candidate]:
            return None
        key: Hashable = (spec.assign.salt, watched.rollout.id, watched.number)
    elif sum(weight > 0 for weight in weights.values()) > 1:
        key = (spec.assign.salt, spec.revision, tuple(sorted(weights.items())))
    else:
        return None
    found = old.firsts if old is not None else None
    return found if found is not None and found.key == key else Firsts(key)


def _exposure(spec: EndpointSpec, arm: ArmOf, watched: SegmentWatch | None) -> Exposure | None:
    if spec.assign.exposure == "off":
        return None
    return Exposure(
        spec.endpoint,
        spec.revision,
        watched.rollout.id if watched is not None else "",
        watched.number if watched is not None else 0,
        arm.name,
        *arm.version.ref,
        spec.assign.salt,
        spec.assign.exposure,
    )


def _purged(state: EndpointState | None, version: str) -> str:
    """Name the purge from which on answers of this version count; empty before the first.

    With the endpoint's name: another endpoint with the same artifact, which shares answers until
    then, has purges of its own.
    """
    if state is None:
        return ""
    epochs = (state.cache_epoch, state.cache_epochs.get(version, 0))
    return f"{state.endpoint} {epochs[0]} {version} {epochs[1]}" if any(epochs) else ""
