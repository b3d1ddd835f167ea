"""Two nodes with the model `echo` in every worker, dialled through proxies alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import identity
from tests.support.nodes import Fleet, running_fleet
from tests.support.seaweed import BUCKET, S3Server


@contextlib.contextmanager
def echo_fleet(
    folder: Path, seaweed: S3Server, *, workers: int, deadline_s: float
) -> Iterator[Fleet]:
    """Run one edge and so many workers; they may not be warm yet."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        registry = f"s3://{BUCKET}/{folder.name}"
        with running_fleet(
            *(folder, registry, seaweed.environment), edges=1, workers=workers, is_toxic=True
        ) as fleet:
            fleet.publish("echo", identity(folder / "1.onnx"))
            deadline_ms, scale = int(deadline_s * 1000), {"replicas_min": workers}
            fleet.edit_endpoint("echo", cache=None, deadline_ms=deadline_ms, scale=scale)
            yield fleet
