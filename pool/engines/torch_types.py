"""The Open Inference Protocol's datatypes as torch's, and what both share.

Imports torch, so it is imported only when a model needs it.
"""

from __future__ import annotations

from typing import Final

import torch

from pool.engines.base import DeviceLost, EngineError, without_paths

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}


def engine_error(error: Exception, device: torch.device) -> EngineError:
    """Make of what torch raised what it means: out of memory, a lost device, or these inputs."""
    # Its later lines are advice for whoever writes kernels.
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = " ".join(without_paths(first).split())
    if isinstance(error, EngineError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError(f"out of memory on {device}: {text}")
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            # An assertion or an illegal address in a kernel ends the process's context.
            return DeviceLost(f"{device} is lost to this process: {text}")
    return EngineError(text)
