"""Whether a spec's variants can stand for each other: published, of one signature, runnable."""

from __future__ import annotations

from registry_sync import catalog
from registry_sync.documents import BadDocument, EndpointSpec, Manifest, TensorSpec
from registry_sync.engine_wishes import wish_problems
from registry_sync.stores import NotFound, Store


def check_variants(store: Store, spec: EndpointSpec) -> None:
    """See that all variants are published, have equal signatures and what `engine` names.

    Raises:
        BadDocument: names every variant that is not or has not, and every value of `engine`.
    """
    found: list[str] = []
    manifests: list[tuple[str, Manifest]] = []
    for index, variant in enumerate(spec.variants):
        try:
            manifest = catalog.load_manifest(store, variant.model, variant.version)
        except NotFound:
            published = ", ".join(catalog.versions(store, variant.model)) or "none"
            found.append(
                f"$.variants[{index}].version: {variant.model} version {variant.version} is not "
                f"published; published are {published}"
            )
        else:
            manifests.append((f"$.variants[{index}]", manifest))
    for path, manifest in manifests[1:]:
        first_path, first = manifests[0]
        for kind, theirs, ours in (
            ("input", manifest.inputs, first.inputs),
            ("output", manifest.outputs, first.outputs),
        ):
            found += [
                f"{path}: {kind} {difference} in {first_path}"
                for difference in _differences(theirs, ours)
            ]
    found += wish_problems(spec.engine, [manifest for _, manifest in manifests])
    if found:
        raise BadDocument(found)


def _differences(theirs: tuple[TensorSpec, ...], ours: tuple[TensorSpec, ...]) -> list[str]:
    # By name: the protocol names tensors, their order means nothing.
    left = {tensor.name: _form(tensor) for tensor in theirs}
    right = {tensor.name: _form(tensor) for tensor in ours}
    return [
        f"{name} is {left.get(name, 'absent')}, but {right.get(name, 'absent')}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]


def _form(tensor: TensorSpec) -> str:
    return f"{tensor.datatype} {list(tensor.shape)}"
