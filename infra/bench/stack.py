"""What the bench needs of a running Tidepool; whoever starts one hands it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from infra.bench.calls import Target


class Stack(Protocol):
    """A started Tidepool, with every feature on and a key in `target.headers`."""

    target: Target  # `pids` names all its processes, supervisor and sync included
    ready_s: float  # from the start of the command to `ready`

    def publish(self, endpoint: str, model: Path, *, cache: bool) -> None:
        """Publish a model and return once its endpoint answers, cached or not."""

    def tier_pids(self) -> Sequence[int]:
        """Return the processes of edge, worker and controller, for the idle figure."""

    def batches(self, endpoint: str) -> Mapping[int, int]:
        """Return how many batches of each size the endpoint has run since it started."""
