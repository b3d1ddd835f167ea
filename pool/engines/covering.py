"""The whole signature from a plan that holds for a part of it.

A plan is built for ranges of sizes that somebody chose; the signature promises any size.  What is
outside of the ranges is run by the portable engine, as it was before the plan came.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from pool.engines.base import Session, Tensors
from registry_sync.documents import TensorSpec
from registry_sync.plans import ShapeRange

# By input: the axes that the signature leaves open, each with the sizes that the plan holds for.
Bounds: TypeAlias = Mapping[str, Sequence[tuple[int, int, int]]]


def covering(
    session: Session,
    profiles: Sequence[Mapping[str, ShapeRange]],
    portable: Callable[[], Session],
    *,
    counts_rows: bool,
) -> Session:
    """Return a session that takes whatever the signature allows.

    Args:
        session: of a plan.
        profiles: of its identity; together they leave no gap.
        portable: loads the artifact as it is; called once, when first needed.
        counts_rows: whether the first axis does, of which a session runs any number.
    """
    bounds = bounds_of(session.inputs, profiles, counts_rows=counts_rows)
    return CoveringSession(session, bounds, portable) if bounds else session


def bounds_of(
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Mapping[str, ShapeRange]],
    *,
    counts_rows: bool,
) -> Bounds:
    """Return where a plan holds for less than the signature; empty: nowhere.

    >>> profile = {"ids": ShapeRange((1, 1), (8, 64), (8, 128))}
    >>> bounds_of([TensorSpec("ids", "INT64", (-1, -1))], [profile], counts_rows=True)
    {'ids': [(1, 1, 128)]}
    """
    found: dict[str, list[tuple[int, int, int]]] = {}
    for spec in inputs:
        known = [profile[spec.name] for profile in profiles if spec.name in profile]
        for axis, size in enumerate(spec.shape):
            if known and size == -1 and axis >= counts_rows:
                low = min(one.min[axis] for one in known)
                high = max(one.max[axis] for one in known)
                found.setdefault(spec.name, []).append((axis, low, high))
    return found


class CoveringSession:
    """A plan's session, and a portable one for what the plan does not hold for."""

    def __init__(self, session: Session, bounds: Bounds, portable: Callable[[], Session]) -> None:
        self._session = session
        self._bounds = bounds
        self._load_portable = portable
        # The whole mutable state: the other engine, once it was needed, and the right to use it,
        # since it may have fewer lanes.
        self._portable: Session | None = None
        self._in_use = threading.Lock()

    @property
    def lanes(self) -> int:
        """See `Session`."""
        return self._session.lanes

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """See `Session`."""
        return self._session.outputs

    @property
    def memory_bytes(self) -> int:
        """Of both, as far as they are loaded."""
        portable = self._portable
        return self._session.memory_bytes + (portable.memory_bytes if portable else 0)

    @property
    def streams(self) -> bool:
        """See `Session`."""
        return self._session.streams

    @property
    def batches(self) -> bool:
        """See `Session`."""
        return self._session.batches

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run once, on the plan if it holds for these sizes; see `Session.infer`."""
        if self._is_within(tensors):
            return self._session.infer(tensors, outputs)
        with self._in_use:
            if self._portable is None:
                self._portable = self._load_portable()
            return self._portable.infer(tensors, outputs)

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """See `Session.stream`."""
        return self._session.stream(tensors)

    def warmup(self) -> None:
        """Warm the plan; the other engine may never be needed."""
        self._session.warmup()

    def close(self) -> None:
        """Give back what both hold."""
        self._session.close()
        portable, self._portable = self._portable, None
        if portable is not None:
            portable.close()

    def _is_within(self, tensors: Tensors) -> bool:
        return all(
            low <= tensors[name].shape[axis] <= high
            for name, axes in self._bounds.items()
            for axis, low, high in axes
        )
