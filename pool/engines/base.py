"""What an engine is: the contract between a worker and whatever runs a model.

An `Engine` makes a published artifact runnable and hands out a `Session`; the queue calls
the session, one run at a time, from one thread.  Anybody can write one: the operator names
it as "module:Class" (see `pool.engines.registry`).  This module decides nothing and imports
no framework.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from registry_sync.documents import Manifest, TensorSpec

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

# The Open Inference Protocol's datatypes in memory.  BYTES is an object array whose every
# element is `bytes`.  NumPy has no bfloat16: BF16 travels as the raw 16 bits of each value.
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(np.uint16),
    "BYTES": np.dtype(object),
}


class EngineError(Exception):
    """The model failed on these inputs, or could not be loaded; the text names no file path."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can work in this process, for `status` and `doctor`."""

    name: str
    available: bool
    version: str  # of the framework; empty when it is not there
    device: str  # "cpu", "cuda:0", …
    reason: str  # why it is not available; empty when it is


class Session(Protocol):
    """A model that is loaded and ready to run.  No two methods are called at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def memory_bytes(self) -> int:
        """An estimate of what `close` gives back."""

    @property
    def streams(self) -> bool:
        """True: `stream` is called instead of `infer`."""

    @property
    def batches(self) -> bool:
        """False: calls must never share a run, whatever the manifest's `rows_max` says.

        Read after `warmup`.
        """

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run once.

        Args:
            tensors: every input of the signature; several calls may have been joined along
                the first axis.  They may be read-only and belong to the caller.
            outputs: the names wanted; empty means all.  More may be returned.

        Raises:
            EngineError: the model failed on these inputs.  Any other exception means the
                same to the caller.
        """

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Run once, answering piece by piece; the iterator is closed early on a cancel."""

    def warmup(self) -> None:
        """Pay for the first run before the first call.  Never raises because of its inputs."""

    def close(self) -> None:
        """Give back what the session holds."""


class Engine(Protocol):
    """A maker of sessions for some artifact formats."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> frozenset[str]:
        """The manifest formats that `load` takes."""

    def probe(self) -> Probe: ...

    def load(self, folder: Path, manifest: Manifest, threads: int) -> Session:
        """Make the artifact in `folder` runnable.

        Args:
            folder: holds the manifest's files under their own names; read-only.
            threads: for one run; 0 leaves the choice to the engine.

        Raises:
            EngineError: it cannot be loaded; the text says why and names no path.
        """


@functools.cache
def _path_pattern() -> re.Pattern[str]:
    # A node of a graph is called "/encoder/layer/MatMul" and must stay readable, so only what
    # begins with a folder that exists at the root of this machine is taken for a path; the
    # last two are where wheels of onnxruntime and torch were compiled.
    roots = "|".join(re.escape(name) for name in [*os.listdir("/"), "onnxruntime_src", "pytorch"])
    return re.compile(rf"(?<![\w/.:])/(?:{roots})/[^\s'\"):,;\]]*/?")


def without_paths(text: str) -> str:
    """Shorten every file path in an error text to its last part, so that it may leave us.

    >>> without_paths("Load model from /tmp/data/blobs/model.onnx failed: /encoder/MatMul")
    'Load model from model.onnx failed: /encoder/MatMul'
    """
    return _path_pattern().sub(lambda found: found[0].rstrip("/").rpartition("/")[2], text)


def reason_of(error: BaseException) -> str:
    """Say in one line what an engine raised, without file paths and not longer than a line."""
    text = " ".join(without_paths(str(error)).split()) or type(error).__name__
    if not isinstance(error, EngineError):
        text = f"{type(error).__name__}: {text}" if text != type(error).__name__ else text
    return text if len(text) <= REASON_CHARS_MAX else text[: REASON_CHARS_MAX - 1] + "…"


REASON_CHARS_MAX: Final = 1000  # a model can put a whole tensor into its error text
