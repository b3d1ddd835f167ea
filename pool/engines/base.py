"""What an engine is: the contract between a worker and whatever runs a model.

An `Engine` makes a published artifact runnable and hands out a `Session`, which the queue calls.
A `PlanEngine` needs a plan for that, which somebody has built before.  Anybody can write one: the
operator names it as "module:Class" (see `pool.engines.registry`).  This module decides nothing and
imports no framework.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from registry_sync.documents import EngineWish, Manifest, TensorSpec
from registry_sync.plans import PlanIdentity

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


class CannotBuild(EngineError):
    """A plan cannot be built; the text holds what the framework said, and the way out."""


class PlanRefused(EngineError):
    """A plan cannot be loaded here: damaged, or for another device or version."""


class DeviceLost(EngineError):
    """The device answers nobody in this process any more: only a new process can use it."""


class Probe(msgspec.Struct, frozen=True):
    """What an engine can do in this process; made without loading its framework."""

    name: str
    available: bool  # it can run models on `device`
    version: str  # of the framework, exact; empty when it is not there
    device: str  # "cpu", "cuda:0", …
    reason: str  # why it is not available, or builds nothing for `device`; else empty
    device_class: str = ""  # of `device`, as plans name it: "sm_90", …
    driver: int = 0  # major version; 0: none
    builds_for: tuple[str, ...] = ()  # device classes for which plans can be built here


class Session(Protocol):
    """A model that is loaded and ready to run.

    Calls of `infer` may overlap up to `lanes`, from different threads; nothing else overlaps.

    A session may also have ``infer_joint(parts, outputs)``, which is `infer` of several calls as
    if they had been joined along the first axis; it spares a copy of everything.
    """

    @property
    def lanes(self) -> int:
        """How many runs may be under way at once; 2 lets copies overlap with computation."""

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
    """A maker of sessions for some artifact formats, from the artifact alone."""

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


class BuildSpec(msgspec.Struct, frozen=True):
    """What is to be built: one artifact for one kind of device."""

    manifest: Manifest
    folder: Path  # the manifest's files under their own names; read-only
    wish: EngineWish  # of the manifest and the endpoints together; its precision is never None
    rows_max: int  # the largest batch
    device_class: str


class Built(msgspec.Struct, frozen=True):
    """What came of a build, besides the plan in its file."""

    inspector: bytes = b""  # JSON: what the engine says of its layers; empty if nothing


class PlanEngine(Protocol):
    """A maker of sessions from plans that are built beforehand, in a process of their own."""

    @property
    def name(self) -> str: ...

    @property
    def formats(self) -> frozenset[str]:
        """The manifest formats for which plans can be built."""

    @property
    def is_on_request(self) -> bool:
        """True: only built where a wish says so; False: wherever the device can run it."""

    def probe(self) -> Probe: ...

    def identity(self, spec: BuildSpec) -> PlanIdentity:
        """Say what the plan of `spec` depends on, without loading the framework.

        Raises:
            CannotBuild: there can be none, e.g. because an axis has no range.
        """

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        """Build, for as long as it takes, and write the plan to a file that does not exist.

        Args:
            caches: a folder of this node for what makes later builds quicker.

        Raises:
            CannotBuild: the text holds every error of the framework.
            OSError: the plan cannot be written.
        """

    def load_plan(
        self, spec: BuildSpec, identity: PlanIdentity, plan: Path, caches: Path
    ) -> Session:
        """Make a plan runnable.

        Args:
            plan: its bytes are those that the metadata vouches for.

        Raises:
            PlanRefused: it cannot be loaded here; the text says why.
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
