"""What is published: where it lies in a store, and how it is looked up.

Reads only; `publish` writes.
"""

from __future__ import annotations

from registry_sync import documents
from registry_sync.documents import Manifest
from registry_sync.names import BadName, check_digest, check_name
from registry_sync.rules import check_version
from registry_sync.stores import Store


def manifest_key(model: str, version: str) -> str:
    """Return the key of a version's manifest; raises `BadName`."""
    return f"models/{check_name('model', model)}/{check_version(version)}/manifest.json"


def blob_key(sha256: str) -> str:
    """Return the key of a blob; raises `BadName`."""
    return f"blobs/sha256/{check_digest(sha256)}"


def load_manifest(store: Store, model: str, version: str) -> Manifest:
    """Read a version's manifest.

    Raises:
        NotFound: there is no such version.
        BadDocument: it does not fit, or is about another model or version than its key says.
    """
    key = manifest_key(model, version)
    manifest = documents.read_manifest(store.get(key).data)
    if (manifest.model, manifest.version) != (model, version):
        raise documents.BadDocument(
            [f"$.model: {key} is about {manifest.model} version {manifest.version}"]
        )
    return manifest


def models(store: Store) -> dict[str, list[str]]:
    """Return every published model with its versions, oldest first."""
    found: dict[str, list[str]] = {}
    for entry in store.list("models"):
        model, version = _model_and_version(entry.key)
        if version:
            found.setdefault(model, []).append(version)
    return {model: sorted(found[model], key=int) for model in sorted(found)}


def versions(store: Store, model: str) -> list[str]:
    """Return a model's published versions, oldest first; none if there is no such model."""
    listed = store.list(f"models/{check_name('model', model)}")
    return sorted(filter(None, (_model_and_version(entry.key)[1] for entry in listed)), key=int)


def _model_and_version(key: str) -> tuple[str, str]:
    match key.split("/"):
        case ["models", model, version, "manifest.json"]:
            try:
                return check_name("model", model), check_version(version)
            except BadName:
                return "", ""  # not ours; a bucket may hold anything
        case _:
            return "", ""
