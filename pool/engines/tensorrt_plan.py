"""Hands plans to TensorRT and asks it what is in them.

The framework is handed in.  A runtime allows no host code in a plan: `engine_host_code_allowed`
stays False.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pool.engines.base import PlanRefused, reason_of
from pool.engines.tensorrt_log import Said, listening


def deserialized(trt: Any, plan: Path, said: Said) -> tuple[Any, Any]:
    """Hand over a plan.

    Returns:
        The `Runtime`, which must outlive the engine, and the `ICudaEngine`.

    Raises:
        PlanRefused: with what TensorRT logged.
    """
    try:
        runtime = trt.Runtime(listening(trt, said))
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    except (TypeError, RuntimeError, OSError, MemoryError) as error:
        raise PlanRefused(
            f"TensorRT does not start: {reason_of(error)}; {said.take_reason()}"
        ) from error
    if engine is None:
        raise PlanRefused(f"TensorRT does not load the plan: {said.take_reason()}")
    return runtime, engine


def inspected(trt: Any, plan: Path) -> bytes:
    """Return what TensorRT says of a plan's layers, as JSON; empty if it cannot load it here."""
    try:
        _runtime, engine = deserialized(trt, plan, Said())
    except PlanRefused:
        return b""
    inspector = engine.create_engine_inspector()
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text.encode()
