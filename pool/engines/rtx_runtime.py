"""What only TensorRT for RTX has at run time: it finishes kernels on the device, and keeps them.

A cache of finished kernels is a file of this node.  TensorRT checks on its own that it is for this
version, device and driver; like the timing cache, it is as trusted as the folder in which it lies.

Not verified: there was no device on which this package runs; every name is checked against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pool.engines.local_caches import read_cache, write_cache

CACHE_BYTES_MAX: Final = 256 * 1024**2  # of finished kernels of one plan


class RtxRuntime:
    """Makes the execution contexts of one engine, all with one cache of kernels."""

    def __init__(self, trt: Any, engine: Any, path: Path) -> None:
        """Open the cache; a current CUDA context must be there.

        Args:
            path: of the cache's file.
        """
        self._engine = engine
        self._path = path
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        blob = read_cache(path, CACHE_BYTES_MAX)
        if blob:
            cache.deserialize(blob)  # False: it is for something else, and stays empty
        self._cache = cache
        # They stay as long as contexts are made by them; nobody says that they need not.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self._eager = self._config(trt, strategies.EAGER)
        self._lazy = self._config(trt, strategies.LAZY)

    def context(self, *, eager: bool) -> Any:
        """Make an execution context without memory, None if that fails.

        Args:
            eager: compile for a new shape before its first run.  Else, run it with a kernel for
                any shape, and compile beside.
        """
        return self._engine.create_execution_context(self._eager if eager else self._lazy)

    def keep(self) -> None:
        """Write the cache; what cannot be written is done without."""
        cache = self._cache
        memory = cache.serialize()
        if memory is not None:
            write_cache(self._path, memory)

    def _config(self, trt: Any, strategy: Any) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        # The lanes record runs themselves, as for every other engine.
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        config.set_runtime_cache(self._cache)
        return config
