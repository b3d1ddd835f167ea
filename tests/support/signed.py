"""Signing keys and files of trusted keys for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from registry_sync import catalog
from registry_sync.directory import DirectoryStore
from registry_sync.documents import Manifest, write
from registry_sync.signing import PublicKey, SigningKey, load_key, make_key
from registry_sync.trust import change_keys, with_revoked, with_trusted


@dataclass(frozen=True)
class Signers:
    """Two keys, of which a node's file trusts the first."""

    folder: Path
    ours: SigningKey
    theirs: SigningKey
    file: Path

    def trust(self, key: PublicKey) -> None:
        """Have a key trusted."""
        change_keys(self.file, lambda lines: with_trusted(lines, key))

    def revoke(self, key: PublicKey) -> None:
        """Have a key revoked."""
        change_keys(self.file, lambda lines: with_revoked(lines, key.id))


def make_signers(folder: Path) -> Signers:
    """Make keys and a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = []
    for name in ("ours", "theirs"):
        public = make_key(folder / f"{name}.key", name)
        keys.append(SigningKey(public, load_key(folder / f"{name}.key").sign))
    signers = Signers(folder, keys[0], keys[1], folder / "trusted.keys")
    signers.trust(signers.ours.public)
    return signers


def overwrite(store: DirectoryStore, manifest: Manifest) -> None:
    """Replace a manifest, as only somebody with the bucket's credentials can."""
    key = catalog.manifest_key(manifest.model, manifest.version)
    store.put_if(key, write(manifest), store.get(key).etag)
