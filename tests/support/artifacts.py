"""Versions of models whose files are plain bytes, put into a store without any publishing."""

from __future__ import annotations

import hashlib

from registry_sync.documents import File, Manifest, TensorSpec, write
from registry_sync.stores import Store


def manifest_of(files: dict[str, bytes], model: str = "m", version: str = "1") -> Manifest:
    """Return the manifest of an artifact with these files (path -> content)."""
    return Manifest(
        model=model,
        version=version,
        created="2026-11-21T00:00:00Z",
        format="onnx",
        files=tuple(
            File(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()
        ),
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        rows_max=32,
        deterministic=True,
    )


def blob_key(data: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


def put_artifact(
    store: Store, files: dict[str, bytes], model: str = "m", version: str = "1"
) -> Manifest:
    """Put an artifact's blobs and then its manifest into the store."""
    manifest = manifest_of(files, model, version)
    for data in {*files.values()}:
        store.put_new(blob_key(data), data)
    store.put_new(f"models/{model}/{version}/manifest.json", write(manifest))
    return manifest
