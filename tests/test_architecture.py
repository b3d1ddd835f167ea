"""Who may import what, read out of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.support.source import PACKAGES, ROOT, SOURCES, TREES, nodes
from tests.support.source import imports as _imports
from tests.support.source import is_in as _is_in
from tests.support.source import is_ours as _is_ours
from tests.support.source import module_of as _module_of

# Each package with what it may import of ours; the README shows the same table.
MAY_IMPORT = {
    "registry_sync": ("registry_sync",),
    "pool": ("pool", "registry_sync"),
    "edge": ("edge", "pool.wire", "registry_sync"),
    "infra": ("infra", "edge", "pool", "registry_sync"),
}

# The bench's peers are other ways to serve the same model, so they call the framework themselves.
PEERS = (
    "infra.bench.peer_fastapi",
    "infra.bench.peer_loop",
    "infra.bench.peer_pydantic",
    "infra.bench.peer_pytriton",
    "infra.bench.sessions",
)

# Third parties that only some modules may name.
CONFINED = {
    "torch": ("pool.engines", "infra.bench.gpu_loop"),
    "tensorrt": ("pool.engines",),
    "tensorrt_rtx": ("pool.engines",),
    "onnxruntime": ("pool.engines", *PEERS),
    "boto3": ("registry_sync.s3", "registry_sync.notifications", "infra.doctor", "pool.aws.client"),
    "botocore": (
        *("registry_sync.s3", "registry_sync.notifications"),
        *("infra.doctor", "pool.aws.client"),
    ),
    "cryptography": ("registry_sync.ed25519", "infra.doctor.proofs"),
    "diskcache": ("edge.disk_store",),
    "matplotlib": ("infra.simulate.plots", "infra.estimate.picture"),
    "opentelemetry": ("registry_sync.otel",),
    "magika": (),  # the demo's model: infra.demo_files finds it by name, and does without
}

# Imports inside a function, and why each must be one.
LATE_IMPORTS = {
    ("registry_sync.open", "registry_sync.s3"): "boto3 never loads for a directory",
    ("registry_sync.open", "registry_sync.notifications"): "boto3 never loads for a directory",
    ("registry_sync.signing", "registry_sync.ed25519"): "cryptography never loads for no signature",
}

# Policies are functions of values: they know no clock, loop, file, log or chance.
PURE = (
    "pool.queueing.admission",
    "pool.queueing.batching",
    "pool.queueing.sharing",
    "pool.engines.buckets",
    "pool.engines.choice",
    "pool.engines.gate",
    "pool.engines.tensorrt_profiles",
    "pool.fallback",
    "pool.far_starts",
    "pool.letting_go",
    "pool.look_pace",
    "registry_sync.news",
    "pool.placement",
    "pool.state_times",
    "pool.unserved",
    "pool.wanted",
    "registry_sync.engine_wishes",
    "registry_sync.rollouts",
    "registry_sync.spec_diff",
    "pool.rollouts.evidence",
    "pool.rollouts.policy",
    "pool.rollouts.report",
    "pool.rollouts.signals",
    "pool.queueing.profile",
    "pool.status",
    "pool.wake_estimates",
    "pool.phase_times",
    "pool.rollouts.compare",
    "pool.shadow_counts",
    "pool.rollouts.shadow_view",
    "pool.tally",
    "pool.recent",
    "pool.rollouts.eprocess",
    "pool.rollouts.guards",
    "pool.rollouts.rate_guard",
    "pool.rollouts.unit_guard",
    "pool.rollouts.window_guard",
    "pool.deaths",
    "pool.aws.config",
    "pool.aws.described",
    "pool.aws.observed",
    "pool.aws.places",
    "pool.aws.memory",
    "pool.aws.steps",
    "pool.aws.reconcile",
    "edge.dispatching.quarantine",
    "pool.queueing.inline",
    "pool.recycling",
    "pool.queueing.inside",
    "pool.queueing.lanes",
    "pool.queueing.line",
    "pool.scaling.gaps",
    "pool.scaling.hazard",
    "pool.scaling.keepalive",
    "pool.scaling.kept",
    "pool.scaling.renewal",
    "pool.scaling.signals",
    "pool.scaling.due",
    "pool.scaling.limits",
    "pool.scaling.seen",
    "pool.scaling.ticks",
    "pool.scaling.policy",
    "pool.scaling.autoscale",
    "pool.scaling.budget",
    "pool.scaling.clumps",
    "pool.scaling.envelope",
    "pool.scaling.seasonal",
    "pool.scaling.fleet",
    "pool.scaling.residency",
    "pool.rollouts.needs",
    "registry_sync.pt2_operators",
    "registry_sync.pt2_rules",
    "edge.dispatching.starting",
    "edge.dispatching.retry_budget",
    "edge.dispatching.hedging",
    "edge.dispatching.late_bills",
    "edge.device_prices",
    "infra.estimate.hours",
    "infra.estimate.lines",
    "infra.estimate.report",
    "edge.dispatching.outliers",
    "edge.variants",
    "edge.cache",
    "edge.sampling",
    "edge.shadowing",
    "edge.arm_metrics",
    "edge.output_metrics",
    "edge.watch",
    "edge.exposition",
    "pool.wire.histogram",
    "edge.quota",
    "pool.quota_shares",
    "edge.breaker",
    "edge.disk_frame",
    "registry_sync.plan_eviction",
    "registry_sync.schedules",
)
IMPURE = {"asyncio", "time", "os", "socket", "structlog", "random", "threading", "subprocess"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    found = {
        f"{module}: {name}"
        for module, tree in TREES.items()
        if _is_in(module, (package,))
        for _, name in _imports(tree)
        if _is_ours(name) and not _is_in(name, MAY_IMPORT[package])
    }
    assert not found


def test_nobody_imports_tests() -> None:
    assert not [m for m, tree in TREES.items() for _, n in _imports(tree) if _is_in(n, ("tests",))]


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        module: {_module_of(name) for _, name in _imports(tree) if _is_ours(name)} - {module}
        for module, tree in TREES.items()
    }
    while leaves := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, "these import each other, or need who does"


def test_imports_are_at_the_head_of_a_file() -> None:
    found = {
        (module, _module_of(name))
        for module, tree in TREES.items()
        for function in nodes(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for _, name in _imports(function)
    }
    assert found == LATE_IMPORTS.keys()


@pytest.mark.parametrize("third_party", CONFINED)
def test_third_party_is_named_only_where_it_belongs(third_party: str) -> None:
    found = {
        module
        for module, tree in TREES.items()
        for _, name in _imports(tree)
        if _is_in(name, (third_party,)) and not _is_in(module, CONFINED[third_party])
    }
    assert not found


@pytest.mark.parametrize("module", PURE)
def test_policy_imports_no_clock_loop_file_log_or_chance(module: str) -> None:
    assert not {name.partition(".")[0] for _, name in _imports(TREES[module])} & IMPURE


@pytest.mark.parametrize("module", PURE)
def test_policy_has_nothing_asynchronous(module: str) -> None:
    asynchronous = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    assert not [node for node in nodes(TREES[module]) if isinstance(node, asynchronous)]


def test_every_module_says_what_it_is() -> None:
    assert not [module for module, tree in TREES.items() if not ast.get_docstring(tree)]


def _loaded_by(modules: list[str], watched: set[str]) -> set[str]:
    """Import `modules` in an interpreter of its own; return which of `watched` came with them."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return watched & set(done.stdout.split())


def test_edge_loads_no_framework() -> None:
    modules = [name for name in SOURCES if _is_in(name, ("edge",))]
    watched = {"torch", "tensorrt", "onnxruntime", "boto3", "botocore", "onnx", "cryptography"}
    assert not _loaded_by(modules, watched)


def test_controller_loads_no_framework() -> None:
    # numpy may come: what is learned of idle gaps are vectors, replanned while calls come in.
    watched = {"torch", "tensorrt", "onnxruntime", "boto3", "onnx"}
    assert not _loaded_by(["pool.controller_main"], watched)


def test_sync_loads_no_framework() -> None:
    watched = {"torch", "tensorrt", "onnxruntime", "numpy", "boto3", "onnx"}
    assert not _loaded_by(["registry_sync.__main__"], watched)


def test_environment_is_read_only_where_a_process_begins() -> None:
    """Whatever else a process goes by is in its config (STYLE R6)."""
    readers = {
        module
        for module, path in SOURCES.items()
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text())
        and not _is_in(module, ("infra",))
    }
    assert readers == {"pool.wire.fleet_secret"}
