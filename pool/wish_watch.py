"""The controller's eyes on the wishes for plans: `builds/` in the registry.

One list when somebody pokes the controller, and else one every so often; a changed wish is read,
and the manifest of a version that is wished for the first time.  Blocking, as `registry_watch` is,
which calls it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import structlog

from pool.build_jobs import Ref, Target
from registry_sync import catalog, wishes
from registry_sync.documents import BadDocument
from registry_sync.stores import AccessDenied, Entry, NotFound, Store, StoreError
from registry_sync.wishes import FOLDER

WISHES_MAX: Final = 4096
WISH_BYTES_MAX: Final = 64 << 10
PAUSE_S: Final = 60.0  # between two lists; a poke does not wait for it

_log = structlog.get_logger()


class WishWatch:
    """Follows the wishes of one registry.

    Args:
        pause_s: the least between two lists that nobody asked for.
    """

    def __init__(self, store: Store, pause_s: float = PAUSE_S) -> None:
        self._store = store
        self._pause_s = pause_s
        # The whole mutable state: what is wished, what of it is not published and why, documents
        # that do not fit, digests of artifacts; and by what a change is noticed.
        self.revision = 0  # of all that follows
        self.wishes: Mapping[Target, None] = {}
        self.unknown: Mapping[Target, str] = {}
        self.rejected: Mapping[str, str] = {}
        self.artifacts: Mapping[Ref, str] = {}
        self.is_whole = True  # False: the registry did not answer in the last look
        self._known: dict[str, tuple[str, Target | None]] = {}  # by key: etag, and what it says
        self._listed_s = float("-inf")

    def poll(self, *, is_asked: bool = False) -> None:
        """Look, if it is time or somebody asked.

        A registry that does not answer, or does not let this controller list the wishes, leaves
        what was known; `rejected` says so.
        """
        now_s = time.monotonic()
        if now_s - self._listed_s < self._pause_s and not is_asked:
            return
        self._listed_s = now_s
        try:
            self._look()
            self.is_whole = True
        except StoreError as error:
            self.is_whole = isinstance(error, AccessDenied)  # which a second look does not change
            if FOLDER not in self.rejected:
                _log.warning("wishes_unreachable", error=str(error))
            self.rejected = {**self.rejected, FOLDER: str(error)}

    def _look(self) -> None:
        entries = [one for one in self._store.list(FOLDER) if wishes.is_wish(one.key)]
        rejected: dict[str, str] = {}
        known: dict[str, tuple[str, Target | None]] = {}
        for entry in entries[:WISHES_MAX]:
            before = self._known.get(entry.key)
            try:
                found = before[1] if before and before[0] == entry.etag else self._read(entry)
            except NotFound:
                continue  # withdrawn since the list
            except BadDocument as error:
                found = None
                rejected[entry.key] = str(error)
            else:
                if found is None:  # it did not fit before either
                    rejected[entry.key] = self.rejected[entry.key]
            known[entry.key] = (entry.etag, found)
        for entry in entries[WISHES_MAX:]:
            rejected[entry.key] = f"there are more than {WISHES_MAX} wishes"
        self._take(known, rejected)

    def _read(self, entry: Entry) -> Target:
        if entry.bytes > WISH_BYTES_MAX:
            raise BadDocument([f"$: {entry.bytes} bytes; at most {WISH_BYTES_MAX} are read"])
        wish = wishes.read(entry.key, self._store.get(entry.key).data)
        return Target(wish.model, wish.version, wish.engine, wish.device_class)

    def _take(self, known: dict[str, tuple[str, Target | None]], rejected: dict[str, str]) -> None:
        targets = [target for _, target in known.values() if target is not None]
        artifacts: dict[Ref, str] = {}
        problems: dict[Ref, str] = {}
        for ref in dict.fromkeys(target.ref for target in targets):
            try:
                artifacts[ref] = self.artifacts.get(ref) or self._digest(ref)
            except NotFound:
                problems[ref] = f"{ref[0]} version {ref[1]} is not published"
            except BadDocument as error:
                problems[ref] = f"the manifest of {ref[0]} version {ref[1]} does not fit: {error}"
        found = dict.fromkeys(target for target in targets if target.ref in artifacts)
        unknown = {target: problems[target.ref] for target in targets if target.ref in problems}
        if (found, unknown, rejected) != (self.wishes, self.unknown, self.rejected):
            for document, why in rejected.items():
                if self.rejected.get(document) != why:
                    _log.warning("document_rejected", document=document, why=why)
            self.wishes, self.unknown, self.rejected = found, unknown, rejected
            self.artifacts = artifacts
            self.revision += 1
        self._known = known

    def _digest(self, ref: Ref) -> str:
        return catalog.load_manifest(self._store, *ref).digest
