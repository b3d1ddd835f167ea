"""Fixtures of the pool's tests."""

from __future__ import annotations

import pytest

from tests.support.compiled import Compiled, compiled_in


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Compiled:
    """A model that AOTInductor has compiled, once for all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return compiled_in(own if worker_id == "master" else own.parent)
