"""The controller's eyes on the registry: which documents hold now.

One list of `endpoints/` and one conditional read of `keys.json` a round (and seldom one of the
wishes, see `wish_watch`); the list shows changed specs, and changed states by their marks
(`registry_sync.endpoints`).  A changed document is read,
checked whole, and taken only with everything that it names.  One that does not fit stays out, the
last good one serves, and `rejected` says why.  Manifests are immutable and read once.
Blocking, and for one caller at a time: the controller calls it in a thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import structlog

from pool.wire.control import Documents
from pool.wish_watch import WishWatch
from registry_sync.documents import (
    BadDocument,
    EndpointSpec,
    EndpointState,
    Manifest,
    check_spec,
    read_keys,
    read_manifest,
    read_spec,
    read_state,
)
from registry_sync.endpoints import MARK_SUFFIX
from registry_sync.names import BadName, check_name, check_version
from registry_sync.stores import NotFound, Store, StoreError
from registry_sync.trust import Trust, Untrusted

Ref: TypeAlias = tuple[str, str]

RESOLVED_MAX = 1000  # versions that no endpoint names: called by number, or named before
DOCUMENT_BYTES_MAX = 4 << 20

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every document that holds, with its bytes as they lie in the registry."""

    specs: Mapping[str, EndpointSpec] = field(default_factory=dict)
    states: Mapping[str, EndpointState] = field(default_factory=dict)
    manifests: Mapping[Ref, Manifest] = field(default_factory=dict)
    spec_bytes: Mapping[str, bytes] = field(default_factory=dict)
    state_bytes: Mapping[str, bytes] = field(default_factory=dict)
    manifest_bytes: Mapping[Ref, bytes] = field(default_factory=dict)
    key_bytes: bytes = b""
    rejected: Mapping[str, str] = field(default_factory=dict)


class _Unpublished(BadDocument):
    """A spec names a version that is not there, which may still come."""


class RegistryWatch:
    """Follows one registry, round by round.

    Args:
        start: what held last, if anything.
        wishes: those of the same registry.
        trust: whose manifests are used.
    """

    def __init__(
        self,
        store: Store,
        start: Snapshot | None = None,
        wishes: WishWatch | None = None,
        trust: Trust | None = None,
    ) -> None:
        self.store = store
        self.trust = trust or Trust()
        self.wishes = wishes or WishWatch(store)
        # The whole mutable state: what holds, and the etags by which a change is noticed.
        self.snapshot = start or Snapshot()
        self.is_known = start is not None  # False: the registry has never been seen
        self.is_whole = True  # False: not all could be read in the last look, which is to be soon
        self._spec_etags: dict[str, str] = {}
        self._mark_etags: dict[str, str] = {}
        self._keys_etag: str | None = None
        self._are_keys_good = True  # those of that etag
        self._resolved: dict[Ref, None] = {}
        self._trust_changes = self.trust.changes()

    def poll(self, *, is_asked: bool = False) -> bool:
        """Look once; tell whether `snapshot` is another one now.

        Args:
            is_asked: somebody waits for what has been written, wishes too.

        Raises:
            StoreError: the registry did not answer; the snapshot stays, but for what may no
                longer be used.  Where it does not tell the keys or the wishes alone, the rest is
                taken, and `is_whole` says that another look is due.
        """
        self.is_whole = True
        begun = self.snapshot
        self._drop_untrusted()
        old = self.snapshot
        specs, spec_bytes = dict(old.specs), dict(old.spec_bytes)
        states, state_bytes = dict(old.states), dict(old.state_bytes)
        manifests, manifest_bytes = dict(old.manifests), dict(old.manifest_bytes)
        rejected = dict(old.rejected)
        etags = dict(self._spec_etags)  # taken over with the snapshot only, or a change is missed
        marks: dict[str, str] = {}
        present = set()
        for entry in self.store.list("endpoints/", recursive=False):
            name = entry.key.removeprefix("endpoints/").removesuffix(".json")
            if name.endswith(MARK_SUFFIX):
                marks[name.removesuffix(MARK_SUFFIX)] = entry.etag
                continue
            if not entry.key.endswith(".json"):
                continue
            present.add(name)
            if etags.get(name) == entry.etag:
                continue
            try:
                data, spec, found = self._read_spec(name, entry.bytes, manifests)
            except NotFound:
                present.discard(name)  # deleted since the list
                continue
            except (BadDocument, BadName) as error:
                _reject(rejected, f"endpoints/{name}.json", error)
                if isinstance(error, _Unpublished):
                    etags.pop(name, None)  # looked at again in the next round
                    continue
            else:
                specs[name], spec_bytes[name] = spec, data
                for ref, (manifest_data, manifest) in found.items():
                    manifests[ref], manifest_bytes[ref] = manifest, manifest_data
                rejected.pop(f"endpoints/{name}.json", None)
                self._read_state(name, states, state_bytes, rejected)
            etags[name] = entry.etag
        for name in [name for name in (*etags, *specs) if name not in present]:
            for table in (specs, spec_bytes, states, state_bytes, etags):
                table.pop(name, None)
        for name in specs:
            if marks.get(name) != self._mark_etags.get(name):
                self._read_state(name, states, state_bytes, rejected)
        for document in [d for d in rejected if d.startswith("endpoints/")]:
            name = document.removeprefix("endpoints/").removesuffix(".json")
            if name.removesuffix("/state") not in present:
                del rejected[document]
        self._forget_manifests(specs, manifests, manifest_bytes)
        key_bytes = self._read_keys(old.key_bytes, rejected)
        new = Snapshot(
            specs, states, manifests, spec_bytes, state_bytes, manifest_bytes, key_bytes, rejected
        )
        changed = new != begun
        self.snapshot = new
        self._spec_etags, self._mark_etags = etags, marks
        self.is_known = True
        self.wishes.poll(is_asked=is_asked)
        self.is_whole &= self.wishes.is_whole
        return changed

    def resolve(self, model: str, version: str) -> Manifest | None:
        """Return the manifest of a version that somebody called by number, or None.

        Raises:
            StoreError: the registry did not answer.
            BadDocument: the manifest does not fit.
        """
        ref = (check_name("model", model), check_version(version))
        if ref in self.snapshot.manifests:
            return self.snapshot.manifests[ref]
        try:
            data, manifest = self._read_manifest(ref)
        except NotFound:
            return None
        old = self.snapshot
        manifests, manifest_bytes = dict(old.manifests), dict(old.manifest_bytes)
        manifests[ref], manifest_bytes[ref] = manifest, data
        self._forget_manifests(old.specs, manifests, manifest_bytes)
        self.snapshot = Snapshot(
            old.specs,
            old.states,
            manifests,
            old.spec_bytes,
            old.state_bytes,
            manifest_bytes,
            old.key_bytes,
            old.rejected,
        )
        return manifest

    def _drop_untrusted(self) -> None:
        """Where other keys are trusted now, drop what may no longer be used; look at all anew."""
        changes = self.trust.changes()
        if changes == self._trust_changes:
            return
        self._trust_changes = changes
        self._spec_etags.clear()
        self.snapshot = trusted_of(self.snapshot, self.trust)

    def _forget_manifests(
        self,
        specs: Mapping[str, EndpointSpec],
        manifests: dict[Ref, Manifest],
        manifest_bytes: dict[Ref, bytes],
    ) -> None:
        """Keep the manifests that are named, and of the others the last `RESOLVED_MAX`."""
        named = {(v.model, v.version) for spec in specs.values() for v in spec.variants}
        self._resolved = {ref: None for ref in self._resolved if ref in manifests}
        for ref in manifests:
            if ref in named:
                self._resolved.pop(ref, None)
            else:
                self._resolved.setdefault(ref)
        for ref in list(self._resolved)[: max(0, len(self._resolved) - RESOLVED_MAX)]:
            del self._resolved[ref], manifests[ref], manifest_bytes[ref]

    def _read_spec(
        self, name: str, size_bytes: int, known: Mapping[Ref, Manifest]
    ) -> tuple[bytes, EndpointSpec, dict[Ref, tuple[bytes, Manifest]]]:
        check_name("endpoint", name)
        if size_bytes > DOCUMENT_BYTES_MAX:
            raise BadDocument([f"$: {size_bytes} bytes; at most {DOCUMENT_BYTES_MAX} are read"])
        data = self.store.get(f"endpoints/{name}.json").data
        spec = read_spec(data)
        check_spec(spec)
        if spec.endpoint != name:
            raise BadDocument([f"$.endpoint: {spec.endpoint!r} is not the name of this document"])
        found = {}
        for index, variant in enumerate(spec.variants):
            ref = (variant.model, variant.version)
            if ref in known:
                continue
            try:
                found[ref] = self._read_manifest(ref)
            except NotFound:
                raise _Unpublished(
                    [f"$.variants[{index}]: {ref[0]} version {ref[1]} is not published"]
                ) from None
        return data, spec, found

    def _read_manifest(self, ref: Ref) -> tuple[bytes, Manifest]:
        data = self.store.get(f"models/{ref[0]}/{ref[1]}/manifest.json").data
        try:
            self.trust.check(data)
        except Untrusted as error:
            raise BadDocument([f"{ref[0]} version {ref[1]}: {error}"]) from None
        manifest = read_manifest(data)
        if (manifest.model, manifest.version) != ref:
            raise BadDocument(
                [f"$.model: {ref[0]}/{ref[1]} says it is {manifest.model}/{manifest.version}"]
            )
        return data, manifest

    def _read_state(
        self,
        name: str,
        states: dict[str, EndpointState],
        state_bytes: dict[str, bytes],
        rejected: dict[str, str],
    ) -> None:
        """Read what controllers and purges did with the endpoint."""
        document = f"endpoints/{name}/state.json"
        try:
            data = self.store.get(document).data
            state = read_state(data)
            if state.endpoint != name:
                raise BadDocument([f"$.endpoint: {state.endpoint!r} is not whose state this is"])
            states[name], state_bytes[name] = state, data
            rejected.pop(document, None)
        except NotFound:
            states.pop(name, None)
            state_bytes.pop(name, None)
            rejected.pop(document, None)
        except BadDocument as error:
            _reject(rejected, document, error)

    def _read_keys(self, old: bytes, rejected: dict[str, str]) -> bytes:
        """Return the keys that hold: the last good ones unless newer ones can be read."""
        try:
            found = self.store.get_if_changed("keys.json", self._keys_etag)
            if found is None:
                if self._are_keys_good:
                    rejected.pop("keys.json", None)  # that they could not be reached
                return old
            self._keys_etag, self._are_keys_good = found.etag, False
            read_keys(found.data)
            self._are_keys_good = True
            rejected.pop("keys.json", None)
            return found.data
        except NotFound:
            self._keys_etag = None
            rejected.pop("keys.json", None)
            return b""  # no keys at all: every call is refused
        except (BadDocument, StoreError) as error:
            if isinstance(error, StoreError):
                if not self.is_known:
                    raise  # without a last good copy nobody may be told that there are no keys
                self.is_whole = False
            _reject(rejected, "keys.json", error)
            return old


def _reject(rejected: dict[str, str], document: str, error: Exception) -> None:
    """Note why a document does not fit; log it once and not in every round."""
    if rejected.get(document) != str(error):
        rejected[document] = str(error)
        _log.warning("document_rejected", document=document, why=str(error))


def trusted_of(snapshot: Snapshot, trust: Trust) -> Snapshot:
    """Return a snapshot without the manifests that must not be used, and what names them."""
    refs = {ref for ref, data in snapshot.manifest_bytes.items() if trust.is_good(data)}
    names = {
        name
        for name, spec in snapshot.specs.items()
        if all((variant.model, variant.version) in refs for variant in spec.variants)
    }
    return replace(
        snapshot,
        specs={name: snapshot.specs[name] for name in snapshot.specs if name in names},
        states={name: snapshot.states[name] for name in snapshot.states if name in names},
        manifests={ref: snapshot.manifests[ref] for ref in snapshot.manifests if ref in refs},
        spec_bytes={n: data for n, data in snapshot.spec_bytes.items() if n in names},
        state_bytes={n: data for n, data in snapshot.state_bytes.items() if n in names},
        manifest_bytes={r: data for r, data in snapshot.manifest_bytes.items() if r in refs},
    )


def restore(documents: Documents) -> Snapshot:
    """Return the snapshot of the last good copy; what cannot be read any more stays out."""
    specs: dict[str, EndpointSpec] = {}
    states: dict[str, EndpointState] = {}
    manifests: dict[Ref, Manifest] = {}
    key_bytes = b""
    for name, data in documents.manifests.items():
        with contextlib.suppress(BadDocument):
            manifest = read_manifest(data)
            if f"{manifest.model}/{manifest.version}" == name:
                manifests[manifest.model, manifest.version] = manifest
    for name, data in documents.specs.items():
        with contextlib.suppress(BadDocument):
            spec = read_spec(data)
            if spec.endpoint == name and all(
                (v.model, v.version) in manifests for v in spec.variants
            ):
                specs[name] = spec
    for name, data in documents.states.items():
        with contextlib.suppress(BadDocument):
            if name in specs:
                states[name] = read_state(data)
    with contextlib.suppress(BadDocument):
        if documents.keys:
            read_keys(documents.keys)
            key_bytes = documents.keys
    return Snapshot(
        specs,
        states,
        manifests,
        {name: documents.specs[name] for name in specs},
        {name: documents.states[name] for name in states},
        {ref: documents.manifests["/".join(ref)] for ref in manifests},
        key_bytes,
        dict(documents.rejected),
    )
