"""Registries with versions that nobody can load: for tests of documents alone."""

from __future__ import annotations

from msgspec.structs import replace

from registry_sync import catalog, documents
from registry_sync.documents import File, Manifest, TensorSpec
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
