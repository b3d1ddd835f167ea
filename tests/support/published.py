"""Registries for tests of documents alone: versions that nobody can load, decisions of nobody."""

from __future__ import annotations

from msgspec.structs import replace

from registry_sync import catalog, documents, endpoints
from registry_sync.documents import EndpointState, File, Manifest, TensorSpec
from registry_sync.rollout_terms import Phase, RolloutState
from registry_sync.stores import Store

MANIFEST = Manifest(
    model="m",
    version="1",
    created="",
    format="onnx",
    files=(File("model.onnx", "ab" * 32, 1),),
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    outputs=(TensorSpec("y", "FP32", (-1, 4)),),
    rows_max=1,
    deterministic=True,
)


def publish(store: Store, *versions: str, model: str = "m", **changes: object) -> None:
    """Write the manifests of `versions`, which have no files."""
    for version in versions:
        manifest = replace(MANIFEST, model=model, version=version, **changes)
        store.put_new(catalog.manifest_key(model, version), documents.write(manifest))


def decide(store: Store, name: str, phase: Phase, share: float, reason: str = "") -> None:
    """Write how far the current rollout is, as the controller does; `share` is the candidate's."""
    spec, _ = endpoints.get_spec(store, name)
    rollout = spec.rollout
    assert rollout is not None
    state = EndpointState(
        *(name, spec.revision, {rollout.baseline: 100 - share, rollout.candidate: share}),
        rollout=RolloutState(rollout.id, phase, 1, 1, reason=reason),
    )
    endpoints.update_state(store, name, lambda _: state)
