"""Endpoint documents in a store: the user's specs with their history, and their state.

    endpoints/<endpoint>.json                     the spec; only users write it
    endpoints/<endpoint>/history/<revision>.json  what was current; n is written before n + 1
    endpoints/<endpoint>/state.json               what the controller made of the spec, and purges
    endpoints/<endpoint>@state                    a mark that is new after every change of the state

Every write is a compare-and-swap.  The mark lies beside the specs, so that the one list by which
the controller follows these shows a changed state as well; its name is none that an endpoint can
have.  What a spec means is not decided here, nor what may replace one whose rollout runs: see
`rollouts`.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec.structs import replace

from registry_sync import catalog, documents
from registry_sync.documents import (
    CACHE_EPOCHS_MAX,
    BadDocument,
    EndpointSpec,
    EndpointState,
)
from registry_sync.endpoint_errors import NoEndpoint, NoRevision
from registry_sync.names import BadName, check_name
from registry_sync.rollouts import (
    RolloutUnfit,
    Way,
    check_replaced,
    check_returned,
    is_live,
    with_wish_of,
)
from registry_sync.rules import check_version
from registry_sync.stores import Conflict, NotFound, Object, OutcomeUnknown, Store
from registry_sync.swap import TRIES_MAX, get_or_none, swap
from registry_sync.variant_checks import check_variants

READS_AT_ONCE: Final = 8  # of one page
LOOKED_BACK_MAX: Final = 100  # revisions, for one that can be gone back to


class RevisionConflict(Exception):
    """The spec to be replaced is not the one that the caller saw."""

    def __init__(self, endpoint: str, current: int, yours: int) -> None:
        super().__init__(f"at revision {current}, yours is {yours}")
        self.endpoint = endpoint
        self.current = current  # 0: there is none
        self.yours = yours


class NoHistory(Exception):
    """There is no previous spec to go back to."""


def spec_key(endpoint: str) -> str:
    """Return the key of an endpoint's spec; raises `BadName`."""
    return f"endpoints/{check_name('endpoint', endpoint)}.json"


def state_key(endpoint: str) -> str:
    """Return the key of an endpoint's state; raises `BadName`."""
    return f"endpoints/{check_name('endpoint', endpoint)}/state.json"


MARK_SUFFIX = "@state"


def mark_key(endpoint: str) -> str:
    """Return the key of the mark that changes with an endpoint's state; raises `BadName`."""
    return f"endpoints/{check_name('endpoint', endpoint)}{MARK_SUFFIX}"


def history_key(endpoint: str, revision: int) -> str:
    """Return the key under which a spec stays after it was current; raises `BadName`."""
    return f"endpoints/{check_name('endpoint', endpoint)}/history/{revision}.json"


def names(store: Store) -> list[str]:
    """Return the names of all endpoints, sorted."""
    found = []
    for entry in store.list("endpoints", recursive=False):
        name = entry.key.removeprefix("endpoints/").removesuffix(".json")
        try:
            if spec_key(name) == entry.key:
                found.append(name)
        except BadName:
            pass  # not ours; a bucket may hold anything
    return sorted(found)


def get_spec(store: Store, name: str) -> tuple[EndpointSpec, str]:
    """Read an endpoint's current spec and its etag.

    Raises:
        NoEndpoint: there is no such endpoint.
        BadDocument: what is stored does not fit.
    """
    key = spec_key(name)
    try:
        stored = store.get(key)
    except NotFound:
        raise NoEndpoint(name, key, store.url) from None
    return _spec_of(stored, name), stored.etag


def set_spec(
    store: Store,
    spec: EndpointSpec,
    if_revision: int | None = None,
    *,
    abort_rollout: bool = False,
) -> int:
    """Make `spec` current and return its revision, which is the replaced one's plus 1.

    All variants must be published and have equal signatures.

    Args:
        store: the registry.
        spec: its own `revision`, unless 0, counts as `if_revision` where that is None.
        if_revision: the revision to be replaced; 0 for a new endpoint.  None replaces
            whatever is there.
        abort_rollout: also if a rollout runs that the spec does not go on with.

    Raises:
        BadDocument: names every value of the spec that does not fit.
        RevisionConflict: another revision than `if_revision` is current.
        RolloutLive: a rollout runs, and the spec does not go on with it as it is.
        RolloutUnfit: the spec's rollout has the id of one that was about something else.
    """
    documents.check_spec(spec)
    check_variants(store, spec)
    expected = (spec.revision or None) if if_revision is None else if_revision

    def check(current: EndpointSpec) -> None:
        if current.rollout is not None or spec.rollout is not None:
            state = _state_or_none(store, spec.endpoint)
            check_replaced(current, spec, state, may_abort=abort_rollout)

    return _put(store, spec, expected, check)


def create(store: Store, spec: EndpointSpec) -> bool:
    """Write an endpoint's first spec; False, and nothing is changed, if it has one already."""
    documents.check_spec(spec)
    try:
        store.put_new(spec_key(spec.endpoint), documents.write(replace(spec, revision=1)))
    except (Conflict, OutcomeUnknown):
        return False
    return True


def history(store: Store, name: str) -> list[EndpointSpec]:
    """Return every spec that was ever current, oldest first; the current one is the last.

    Raises:
        NotFound: there is no such endpoint.
    """
    current, _ = get_spec(store, name)
    # The current spec's copy may be there already: it is written before its successor.
    past = [number for number in _kept(store, name)[::-1] if number < current.revision]
    return [*(_past_spec(store, name, number) for number in past), current]


def history_page(
    store: Store, name: str, *, limit: int, before: int | None = None
) -> tuple[list[EndpointSpec], int | None]:
    """Return some of the specs that were ever current, newest first.

    Args:
        store: the registry.
        name: the endpoint.
        limit: of the page, 1 or more.
        before: only revisions below this one; None: the current one is the first.

    Returns:
        The specs, and `before` for the next page; None if there is none.

    Raises:
        NotFound: there is no such endpoint.
    """
    current, _ = get_spec(store, name)
    revisions = [number for number in _kept(store, name) if number < current.revision]
    revisions = [n for n in (current.revision, *revisions) if before is None or n < before]
    page, rest = revisions[:limit], revisions[limit:]
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        specs = list(
            threads.map(
                lambda n: current if n == current.revision else _past_spec(store, name, n), page
            )
        )
    return specs, page[-1] if rest else None


def get_revision(store: Store, name: str, revision: int) -> EndpointSpec:
    """Return a spec that is or was current.

    Raises:
        NoEndpoint: there is no such endpoint.
        NoRevision: there is no such revision of it.
    """
    current, _ = get_spec(store, name)
    if revision == current.revision:
        return current
    try:
        if revision < current.revision:  # a later one was kept, and maybe never became current
            return _past_spec(store, name, revision)
    except NotFound:
        pass
    known = [*(n for n in _kept(store, name)[::-1] if n < current.revision), current.revision]
    raise NoRevision(name, revision, known, history_key(name, revision), store.url)


def _past_spec(store: Store, name: str, revision: int) -> EndpointSpec:
    return documents.read_spec(store.get(history_key(name, revision)).data)


def _kept(store: Store, name: str) -> list[int]:
    """Return the revisions in an endpoint's history, newest first."""
    folder = history_key(name, 0).removesuffix("0.json")
    entries = store.list(folder, recursive=False)
    numbers = (entry.key.removeprefix(folder).removesuffix(".json") for entry in entries)
    return sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)


def rollback(
    store: Store,
    name: str,
    if_revision: int | None = None,
    *,
    to_revision: int | None = None,
    abort_rollout: bool = False,
) -> int:
    """Make the previous spec current again, as a new revision, and return that.

    Two rollbacks in a row end where they began: each goes back to what was current before.
    Revisions that only wish something else of the same rollout count as one, and what is wished
    last stays.

    Args:
        store: the registry.
        name: the endpoint.
        if_revision: that must be current; None: any.
        to_revision: that is to be current again; None: the previous one.
        abort_rollout: if a rollout runs, go back to what was current before it began.

    Raises:
        NotFound: there is no such endpoint, or no such revision of it.
        NoHistory: there is no spec before the current one, or `to_revision` is that one.
        RevisionConflict: another revision than `if_revision` is current, or somebody replaced the
            spec meanwhile.
        RolloutLive: a rollout runs, and the previous spec is from before it.
        RolloutUnfit: the previous spec's rollout would begin anew, or go on; the way out is the
            last revision of which that is not so.
    """
    current, _ = get_spec(store, name)
    if if_revision is not None and current.revision != if_revision:
        raise RevisionConflict(name, current.revision, if_revision)
    if to_revision is None:
        aborts = abort_rollout and is_live(current, _state_or_none(store, name))
        previous = _previous(store, current, is_before_rollout=aborts)
    elif to_revision == current.revision:
        raise NoHistory(f"{name} is at revision {to_revision} already")
    else:
        past = get_revision(store, name, to_revision)
        previous = with_wish_of(past, current) or past
    check_variants(store, previous)

    def check(found: EndpointSpec) -> None:
        state = _state_or_none(store, name)
        try:
            check_returned(found, previous, state, may_abort=abort_rollout)
        except RolloutUnfit as error:
            raise RolloutUnfit(str(error), _way_back(store, found, state)) from None

    return _put(store, previous, current.revision, check)


def _way_back(store: Store, current: EndpointSpec, state: EndpointState | None) -> Way | None:
    """Return the way to the last other spec that has no rollout, or one that has ended."""
    past = (number for number in _kept(store, current.endpoint) if number < current.revision)
    for number in itertools.islice(past, LOOKED_BACK_MAX):
        try:
            spec = _past_spec(store, current.endpoint, number)
        except (NotFound, BadDocument):
            continue
        if replace(spec, revision=current.revision) != current and not is_live(spec, state):
            return Way(f"go back to revision {number} with", "to_revision", str(number))
    return None


def _previous(store: Store, current: EndpointSpec, *, is_before_rollout: bool) -> EndpointSpec:
    """Return the spec that was current before, as it would be current now."""
    for revision in range(current.revision - 1, 0, -1):
        past = _past_spec(store, current.endpoint, revision)
        going_on = with_wish_of(past, current)
        if going_on is None:
            return past
        if not is_before_rollout and replace(going_on, revision=current.revision) != current:
            return going_on
    raise NoHistory(
        f"{current.endpoint} is at revision {current.revision}: there is no previous spec"
    )


def read_state(store: Store, name: str) -> tuple[EndpointState, str] | None:
    """Read an endpoint's state and its etag; None before the controller wrote one."""
    stored = get_or_none(store, state_key(name))
    return None if stored is None else (documents.read_state(stored.data), stored.etag)


def write_state(store: Store, state: EndpointState, etag: str | None) -> str:
    """Replace the state whose etag is `etag` (None: there is none yet); returns the new etag.

    Raises:
        Conflict: another state is there.
    """
    documents.check_state(state)
    key, data = state_key(state.endpoint), documents.write(state)
    return store.put_new(key, data) if etag is None else store.put_if(key, data, etag)


def update_state(
    store: Store, name: str, change: Callable[[EndpointState | None], EndpointState]
) -> EndpointState:
    """Replace an endpoint's state by what `change` makes of it, and return that.

    `change` is called again if another writer was faster, so two of them lose nothing.  This is
    how everybody changes a state that others follow: the controller sees the new mark.
    """
    written: list[EndpointState] = []

    def changed(current: Object | None) -> bytes:
        state = change(None if current is None else documents.read_state(current.data))
        documents.check_state(state)
        written.append(state)
        return documents.write(state)

    swap(store, state_key(name), changed)
    mark_state(store, name)  # after the state: who sees the mark reads this one or a later one
    return written[-1]


def mark_state(store: Store, name: str) -> None:
    """Let everybody who follows the registry read an endpoint's state again."""
    mark = secrets.token_hex(8).encode()
    swap(store, mark_key(name), lambda _: mark)


def purge(store: Store, name: str, version: str | None = None) -> EndpointState:
    """Let no edge answer out of a cache what was computed before now; returns the new state.

    It holds for the edges that follow the registry from when they have the new state on, and for
    answers in memory and on disk.  What is being computed meanwhile is not kept as newer.

    Args:
        store: the registry.
        name: the endpoint.
        version: only the answers of this version, of whatever model; None: all.

    Raises:
        NotFound: there is no such endpoint, or none of its models has that version.
        BadName: `version` is not one.
    """
    spec, _ = get_spec(store, name)
    if version is not None:
        _require_version(store, spec, check_version(version))

    def purged(state: EndpointState | None) -> EndpointState:
        if state is None:
            state = EndpointState(name, spec.revision, {})
        epochs = state.cache_epochs
        if version is not None and (version in epochs or len(epochs) < CACHE_EPOCHS_MAX):
            return replace(state, cache_epochs={**epochs, version: epochs.get(version, 0) + 1})
        return replace(state, cache_epoch=state.cache_epoch + 1, cache_epochs={})

    return update_state(store, name, purged)


def warm_until(store: Store, name: str, until_unix_s: float) -> EndpointState:
    """Have an endpoint warm until then, whatever its policy says; returns the new state.

    Args:
        store: the registry.
        name: the endpoint.
        until_unix_s: by the wall clock; 0: no longer.

    Raises:
        NotFound: there is no such endpoint.
    """
    spec, _ = get_spec(store, name)

    def asked(state: EndpointState | None) -> EndpointState:
        state = state or EndpointState(name, spec.revision, {})
        return replace(state, warm_until_unix_s=until_unix_s)

    return update_state(store, name, asked)


def _state_or_none(store: Store, name: str) -> EndpointState | None:
    try:
        found = read_state(store, name)
    except BadDocument:
        return None  # nobody goes by it; so a rollout counts as running
    return None if found is None else found[0]


def _require_version(store: Store, spec: EndpointSpec, version: str) -> None:
    # Not only those of the spec: one that it named before is answered from the cache again as
    # soon as a rollback names it.
    if any(variant.version == version for variant in spec.variants):
        return
    models = {variant.model for variant in spec.variants}
    if not any(version in catalog.versions(store, model) for model in models):
        raise NotFound(f"version {version} of {', '.join(sorted(models))}", store.url)


def _put(
    store: Store,
    spec: EndpointSpec,
    expected: int | None,
    check: Callable[[EndpointSpec], None],
) -> int:
    """Write a spec if `check`, which is shown the one that it replaces, raises nothing."""
    name = spec.endpoint
    tried: list[EndpointSpec] = []

    def changed(current: Object | None) -> bytes:
        replaced = None if current is None else _spec_of(current, name)
        at = 0 if replaced is None else replaced.revision
        if expected is not None and at != expected:
            raise RevisionConflict(name, at, expected)
        if current is not None and replaced is not None:
            check(replaced)
            _keep(store, history_key(name, at), current.data)
        tried.append(replace(spec, revision=at + 1))
        return documents.write(tried[-1])

    for _ in range(TRIES_MAX):
        try:
            swap(store, spec_key(name), changed, again_if_unknown=False)
        except OutcomeUnknown:
            # Ours may have landed and been replaced since: to write it once more would then
            # undo a spec that somebody set after it.
            if not _has_landed(store, tried[-1]):
                continue
        return tried[-1].revision
    raise Conflict(spec_key(name), f"the outcome was lost {TRIES_MAX} times; try again")


def _has_landed(store: Store, spec: EndpointSpec) -> bool:
    keys = (spec_key(spec.endpoint), history_key(spec.endpoint, spec.revision))
    stored = (get_or_none(store, key) for key in keys)
    return any(found is not None and found.data == documents.write(spec) for found in stored)


def _keep(store: Store, key: str, data: bytes) -> None:
    try:
        store.put_new(key, data)
    except (Conflict, OutcomeUnknown):
        pass  # a writer before us kept the same spec, and then lost the race or died


def _spec_of(stored: Object, name: str) -> EndpointSpec:
    spec = documents.read_spec(stored.data)
    if spec.endpoint != name:
        raise BadDocument([f"$.endpoint: {spec_key(name)} is about {spec.endpoint}"])
    return spec
