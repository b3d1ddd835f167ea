"""Puts a model version into a store: blobs, then the manifest, then a first endpoint.

The manifest is written last and create-only, so a publish that dies leaves nothing to see, and
two at once never share a version.  What a version's traffic is stays the user's: only a model
that has no endpoint yet gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from registry_sync import artifact, catalog, documents, endpoints
from registry_sync.artifact import PT2, BadArtifact, Source
from registry_sync.documents import (
    BadDocument,
    Cache,
    EndpointSpec,
    EngineWish,
    File,
    GateLimits,
    Manifest,
    Precision,
    TensorSpec,
    Variant,
)
from registry_sync.engine_wishes import wish_problems
from registry_sync.golden import find_golden
from registry_sync.names import check_name
from registry_sync.onnx_signature import BadModel, read_signature
from registry_sync.plain import TEXT_BYTES_MAX
from registry_sync.pt2_signature import FORMAT, publish_archive
from registry_sync.rules import WEIGHTS_TOTAL, check_version
from registry_sync.signing import Sign
from registry_sync.stores import Conflict, NotFound, OutcomeUnknown, Store

ROWS_MAX_DEFAULT: Final = 32
SIDECAR_BYTES_MAX: Final = TEXT_BYTES_MAX
TRIES_MAX: Final = 1_000  # each lost try means that another publish of the model went through

__all__ = ["BadArtifact", "BadModel", "Convert", "Sidecar", "Terms", "VersionExists", "publish"]


class VersionExists(Exception):
    """The version is published already; versions are immutable."""

    def __init__(self, model: str, version: str) -> None:
        super().__init__(
            f"{model} version {version} is published already and cannot change: "
            "choose another version, or none for the next"
        )
        self.model = model
        self.version = version


class Sidecar(msgspec.Struct, frozen=True):
    """`tidepool.json`: what a folder in a format other than onnx says of itself."""

    format: Annotated[str, Meta(min_length=1)]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows_max: int | None = None
    deterministic: bool = False  # nobody can see it from outside


class Terms(msgspec.Struct, frozen=True):
    """How exactly a version is to compute and on what, besides what its files say."""

    precision: Precision = "fp32"  # at least
    engine: EngineWish | None = None
    gate: GateLimits | None = None


# Of what is about to be published: the files that it needs besides.
Convert = Callable[[Manifest, Sequence[Source], Source | None], Sequence[Source]]


def publish(
    store: Store,
    model: str,
    path: Path,
    version: str | None = None,
    labels: Mapping[str, str] | None = None,
    nondeterministic: bool = False,
    golden: Path | None = None,
    rows_max: int | None = None,
    check: Callable[[Manifest], None] = lambda _: None,
    terms: Terms | None = None,
    convert: Convert | None = None,
    sign: Sign = lambda manifest: manifest,
) -> str:
    """Publish a file or folder as a version of a model, and return the version.

    A model that has no endpoint yet gets one of its own name with all its traffic on this
    version; otherwise no traffic moves.

    Args:
        store: the registry.
        model: its name.
        path: an ``.onnx`` file; a folder with one and whatever it needs; a ``.pt2`` file, which
            is written anew without pickles; or a folder with a ``tidepool.json`` (see `Sidecar`)
            for other formats.
        version: None takes the one after the highest.
        labels: any words, for people.
        nondeterministic: answers are not to be cached, though no random operator was found.
        golden: an ``.npz`` with recorded inputs, perhaps outputs, under the names of the model's.
        rows_max: of a batch; 1 for a model whose rows depend on one another, which no graph says.
            None takes the sidecar's, or 32 where the graph has a batch axis, else 1.
        check: sees what is about to be published, without digests, and raises to refuse it.
        terms: precision, engine and gate; None: as the artifact came, on any engine.
        convert: makes what an artifact needs for a precision other than fp32, and checks it.
        sign: returns the manifest with a signature, see `signing.load_key`.

    Raises:
        VersionExists: `version` is taken.
        BadName: the model's name or the version is not one.
        BadArtifact: see `artifact.find_sources`; or the golden file does not fit.
        BadModel: see `onnx_signature.read_signature` and `pt2_signature.publish_archive`.
        BadDocument: the sidecar, the signature, the labels or the terms do not fit.
    """
    terms = terms or Terms()
    check_name("model", model)
    if version is not None and check_version(version) in catalog.versions(store, model):
        raise VersionExists(model, version)
    with _read_sources(path) as (sources, says):
        draft = Manifest(
            model=model,
            version=version or "1",  # the next one is taken when everything else is there
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
            format=says.format,
            files=tuple(File(source.path, "0" * 64, source.bytes) for source in sources),
            inputs=says.inputs,
            outputs=says.outputs,
            rows_max=_rows_max(says) if rows_max is None else rows_max,
            deterministic=says.deterministic and not nondeterministic,
            labels=dict(labels or {}),
            precision=terms.precision,
            engine=terms.engine,
            gate=terms.gate,
        )
        _check_draft(draft)  # before gigabytes are hashed and sent
        recorded = None if golden is None else find_golden(golden, draft)
        check(draft)
        if draft.precision != "fp32":
            if convert is None:
                raise BadArtifact(f"nothing here converts to {draft.precision}")
            sources = sorted([*sources, *convert(draft, sources, recorded)], key=_path_of)
        draft = replace(
            draft,
            files=tuple(_upload(store, source) for source in sources),
            golden=None if recorded is None else _upload(store, recorded).sha256,
        )
    published = _write_manifest(store, draft, version, sign)
    endpoints.create(store, _first_spec(published))
    return published.version


def _path_of(source: Source) -> str:
    return source.path


def _check_draft(draft: Manifest) -> None:
    documents.check_manifest(draft)
    if draft.engine is not None and (found := wish_problems(draft.engine, [draft])):
        raise BadDocument(found)


@contextmanager
def _read_sources(path: Path) -> Iterator[tuple[list[Source], Sidecar]]:
    """Yield the files to publish and what they say; what had to be written anew goes afterwards."""
    sources = artifact.find_sources(path)
    with TemporaryDirectory(prefix="tidepool-") as scratch:
        if [source.path for source in sources] == [PT2]:
            found = publish_archive(sources[0].at, Path(scratch) / PT2)
            rows_max = min(ROWS_MAX_DEFAULT, found.rows_max or ROWS_MAX_DEFAULT)
            says = Sidecar(
                FORMAT,
                found.inputs,
                found.outputs,
                rows_max if found.has_batch_axis else 1,
                found.deterministic,
            )
            clean = artifact.find_file(Path(scratch) / PT2)
            yield [clean], says
            return
        says = _sidecar_of(sources)
        yield [source for source in sources if source.path != artifact.SIDECAR], says


def _sidecar_of(sources: Sequence[Source]) -> Sidecar:
    by_path = {source.path: source for source in sources}
    if artifact.SIDECAR in by_path:
        return _read_sidecar(by_path[artifact.SIDECAR])
    beside = {path: source.bytes for path, source in by_path.items() if path != artifact.GRAPH}
    found = read_signature(by_path[artifact.GRAPH].at, beside)
    rows_max = None if found.has_batch_axis else 1
    return Sidecar("onnx", found.inputs, found.outputs, rows_max, found.deterministic)


def _read_sidecar(source: Source) -> Sidecar:
    if source.bytes > SIDECAR_BYTES_MAX:
        raise BadArtifact(f"{source.path}: {source.bytes} bytes; at most {SIDECAR_BYTES_MAX}")
    try:
        sidecar = documents.parse_plain(source.at.read_bytes(), Sidecar)
    except BadDocument as error:
        raise BadDocument([f"{source.path}: {problem}" for problem in error.problems]) from None
    if sidecar.format == "onnx":
        raise BadArtifact(
            f"{source.path}: an onnx model's signature is read from its graph; remove the file"
        )
    if sidecar.format == FORMAT:
        raise BadArtifact(
            f"{source.path}: an archive of torch says itself what it takes; publish the .pt2 file"
        )
    return sidecar


def _rows_max(says: Sidecar) -> int:
    if says.rows_max is not None:
        return says.rows_max
    # Outputs as well: rows that come back without an axis of their own cannot be told apart.
    firsts = {tensor.shape[:1] for tensor in (*says.inputs, *says.outputs)}
    return ROWS_MAX_DEFAULT if says.inputs and firsts == {(-1,)} else 1


def _upload(store: Store, source: Source) -> File:
    sha256 = artifact.digest(source)
    key = catalog.blob_key(sha256)
    try:
        if store.size(key) == source.bytes:
            return File(source.path, sha256, source.bytes)
        # Of another size, it is not what its name says; nobody can have used it.
        store.delete(key)
    except NotFound:
        pass
    store.put_file_new(key, source.at)
    try:
        artifact.check_unchanged(source)
    except BadArtifact:
        store.delete(key)
        raise
    return File(source.path, sha256, source.bytes)


def _write_manifest(store: Store, draft: Manifest, version: str | None, sign: Sign) -> Manifest:
    for _ in range(TRIES_MAX):
        if version is None:
            highest = max(map(int, catalog.versions(store, draft.model)), default=0)
            draft = replace(draft, version=str(highest + 1))
        try:
            data = documents.write(sign(draft))
            store.put_new(catalog.manifest_key(draft.model, draft.version), data)
        except (Conflict, OutcomeUnknown):
            if version is not None:
                raise VersionExists(draft.model, version) from None
        else:
            return draft
    raise Conflict(draft.model, f"other publishes were faster {TRIES_MAX} times; try again")


def _first_spec(manifest: Manifest) -> EndpointSpec:
    return EndpointSpec(
        endpoint=manifest.model,
        variants=(Variant("stable", manifest.model, manifest.version, WEIGHTS_TOTAL),),
        cache=Cache() if manifest.deterministic else None,
    )
