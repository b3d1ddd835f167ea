"""Models of the simulated engine, and endpoints for them, written into a registry."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from registry_sync.documents import EndpointSpec, Scale, Variant, write
from registry_sync.stores import Conflict, Store
from tests.simulation.engine import Costs, artifact, described
from tests.support.artifacts import blob_key, manifest_of


def put_model(
    store: Store, model: str, costs: Costs | None = None, version: str = "1", rows_max: int = 32
) -> None:
    """Publish a version of a model."""
    files = artifact(costs or Costs())
    manifest = described(replace(manifest_of(files, model, version), rows_max=rows_max))
    for data in files.values():
        try:
            store.put_new(blob_key(data), data)
        except Conflict:
            pass  # another model that costs as much
    store.put_new(f"models/{model}/{version}/manifest.json", write(manifest))


def put_endpoint(store: Store, name: str, **scale: Any) -> None:
    """Write the endpoint of a model's version 1."""
    variants = (Variant("stable", name, "1", 100.0),)
    spec = EndpointSpec(name, variants, scale=Scale(**scale))
    store.put_new(f"endpoints/{name}.json", write(spec))
