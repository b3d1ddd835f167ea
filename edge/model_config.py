"""An endpoint as Triton's ModelConfig: what its clients and perf_analyzer ask before they call.

Only fields that mean something here, in Triton's JSON: dims without the batch where there is one,
datatypes as TYPE_*, the queue's policy in microseconds.  A pure function; nothing can be set by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.body_parameters import PRIORITY_MAX
from edge.snapshot import Endpoint
from pool.wire.control import EngineRoute
from registry_sync.documents import TensorSpec

# By the manifest's format: Triton's platform, and its backend.
PLATFORMS = {
    "onnx": ("onnxruntime_onnx", "onnxruntime"),
    "torch-export": ("pytorch_export", "pytorch"),
}
_TYPES = {"BYTES": "TYPE_STRING"}  # the others have their own name


def model_config(endpoint: Endpoint, routes: Sequence[EngineRoute | None]) -> dict[str, Any]:
    """Return the ModelConfig of an endpoint, as JSON would hold it.

    Args:
        endpoint: its arms have one signature, so the first speaks for all.
        routes: where each arm's engine runs; None where nobody knows.
    """
    version = endpoint.arms[0].version
    manifest, signature = version.manifest, version.signature
    platform, backend = PLATFORMS.get(manifest.format, (manifest.format, manifest.format))
    rows_max = min(manifest.rows_max, endpoint.rows_max) if signature.batched else 0
    # What each arm computes in at least, not what happens to run it now.
    precisions = dict.fromkeys(arm.precision for arm in endpoint.arms)
    config: dict[str, Any] = {
        "name": endpoint.name,
        "platform": platform,
        "backend": backend,
        "version_policy": {
            "specific": {"versions": [int(arm.version.ref[1]) for arm in endpoint.arms]}
        },
        "max_batch_size": rows_max,
        "input": [_tensor(spec, signature.batched) for spec in manifest.inputs],
        "output": [_tensor(spec, signature.batched) for spec in manifest.outputs],
        "instance_group": [
            # Which device a worker has is not known here.
            {"name": f"{endpoint.name}_{number}", "kind": "KIND_AUTO", "count": len(route.warm)}
            for number, route in enumerate(routes)
            if route is not None and route.warm
        ],
        "response_cache": {"enable": endpoint.cache_ttl_s > 0 and version.caches},
        "model_transaction_policy": {"decoupled": False},
        "parameters": {"precision": {"string_value": ",".join(precisions)}},
    }
    if signature.batched:
        # How long a batch waits for company is worked out anew each time, not set.
        config["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "priority_levels": PRIORITY_MAX,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(endpoint.deadline_s * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": 0,
            },
        }
    return config


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(spec.shape[1:] if batched else spec.shape),
    }
