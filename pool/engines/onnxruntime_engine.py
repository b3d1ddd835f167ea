"""Runs ONNX models with ONNX Runtime on the CPU: the engine that is always there.

The only module that imports onnxruntime.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from pool.engines.base import Array, EngineError, Probe, Tensors, without_paths
from pool.engines.rows import warmed
from registry_sync.artifact import GRAPH, graph_of
from registry_sync.documents import Manifest, TensorSpec

DATATYPE_OF: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
ONNX_BFLOAT16: Final = 16  # TensorProto.BFLOAT16
SILENT: Final = 4  # errors are raised; logged as well, one client could fill the log
# Where the wheel was compiled and a class of status: of no use to whoever reads the error.
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |^\S+\.(?:cc|h):\d+ .*?\) ")


class OnnxRuntimeEngine:
    """Makes sessions of ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    formats = frozenset({"onnx"})

    def probe(self) -> Probe:
        """Say which version there is; it always works."""
        return Probe(self.name, available=True, version=ort.__version__, device="cpu", reason="")

    def load(self, folder: Path, manifest: Manifest, threads: int) -> OnnxRuntimeSession:
        """Load `model.onnx` in `folder`, or the one `.onnx` file there; see `Engine.load`."""
        graph = _graph_of(manifest)
        try:
            session = ort.InferenceSession(
                str(folder / graph), session_options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exceptions have no base class of their own.
            raise EngineError(f"ONNX Runtime cannot load {graph}: {_text(error)}") from error
        _check_tensors("input", session.get_inputs(), manifest.inputs)
        _check_tensors("output", session.get_outputs(), manifest.outputs)
        return OnnxRuntimeSession(session, manifest)


class OnnxRuntimeSession:
    """A loaded ONNX model.

    BYTES are strings inside ONNX Runtime, whose Python binding takes and gives only valid
    UTF-8: other bytes are refused, on the way in and on the way out.  BF16 tensors are
    `uint16` arrays with the raw bits.
    """

    streams = False
    lanes = 1

    def __init__(self, session: ort.InferenceSession, manifest: Manifest) -> None:
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        # Graphs in other precisions, with their weights, are for engines that build plans.
        others = tuple(graph_of(precision) for precision in ("fp16", "bf16"))
        self.memory_bytes = sum(f.bytes for f in manifest.files if not f.path.startswith(others))
        self._names = [spec.name for spec in manifest.outputs]
        self._strings_in = [spec.name for spec in self.inputs if spec.datatype == "BYTES"]
        self._strings_out = {spec.name for spec in self.outputs if spec.datatype == "BYTES"}
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in (*self.inputs, *self.outputs))
        # The whole mutable state: the session until `close`, and what `warmup` finds out.
        self._session: ort.InferenceSession | None = session
        self.batches = manifest.rows_max > 1 and all(
            spec.shape[:1] == (-1,) for spec in self.outputs
        )
        self._may_batch = manifest.rows_max > 1
        self._deterministic = manifest.deterministic

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Run once; see `Session.infer`."""
        session = self._session
        assert session is not None, "infer after close"
        names = list(outputs) or self._names
        if self._strings_in:
            tensors = tensors | {name: _decoded(name, tensors[name]) for name in self._strings_in}
        try:
            if self._has_bfloat16:
                results = self._run_ort_values(session, names, tensors)
            else:
                results = session.run(names, tensors)
        except UnicodeDecodeError as error:
            raise EngineError("the model gave a string that is not UTF-8") from error
        except Exception as error:
            # ONNX Runtime's exceptions have no base class of their own.
            raise EngineError(_text(error)) from error
        answer = dict(zip(names, results, strict=True))
        if self._strings_out:
            for name in self._strings_out.intersection(names):
                answer[name] = _encoded(answer[name])
        return answer

    def _run_ort_values(
        self, session: ort.InferenceSession, names: list[str], tensors: Tensors
    ) -> list[Array]:
        feed = {}
        for spec in self.inputs:
            tensor = np.asarray(tensors[spec.name], order="C")
            if spec.datatype == "BF16":
                value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor, ONNX_BFLOAT16)
            else:
                value = ort.OrtValue.ortvalue_from_numpy(tensor)
            feed[spec.name] = value
        return [_array_of(value) for value in session.run_with_ort_values(names, feed)]

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Give the one answer: ONNX models have no others."""
        yield self.infer(tensors)

    def warmup(self) -> None:
        """Run with zeros, and find out whether rows can be joined and told apart again."""
        self.batches = warmed(
            self.infer,
            self.inputs,
            self.outputs,
            may_batch=self._may_batch,
            deterministic=self._deterministic,
            believed=self.batches,
        )

    def close(self) -> None:
        """Free the weights and the arena."""
        self._session = None


def _graph_of(manifest: Manifest) -> str:
    graphs = [file.path for file in manifest.files if file.path.endswith(".onnx")]
    top = [path for path in graphs if "/" not in path]
    if GRAPH in top:
        return GRAPH
    if len(top) != 1:
        found = ", ".join(graphs) or "none"
        raise EngineError(f"expected {GRAPH} at the top of the artifact, found {found}")
    return top[0]


def session_options(threads: int) -> ort.SessionOptions:
    """Choose how ONNX Runtime uses the processor and memory; 0 threads: one for each core."""
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads or _cores()
    options.inter_op_num_threads = 1
    # A thread that spins for work gains some µs a run and costs a core between the runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The arena stays for the activations, which are the same size run after run, but its
    # blocks double: weights beside them would take up to twice their size.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Memory plans are kept for every input shape ever seen, and batches have many shapes.
    options.enable_mem_pattern = False
    return options


def _cores() -> int:
    # Not `cpu_count`: a container may be confined to a part of the machine.
    return len(os.sched_getaffinity(0))


def _check_tensors(kind: str, found: Sequence[Any], promised: Sequence[TensorSpec]) -> None:
    datatypes = {value.name: DATATYPE_OF.get(value.type, value.type) for value in found}
    for spec in promised:
        if spec.name not in datatypes:
            names = ", ".join(datatypes)
            raise EngineError(f'the model has no {kind} "{spec.name}", it has: {names}')
        if datatypes[spec.name] != spec.datatype:
            raise EngineError(
                f'{kind} "{spec.name}" is {datatypes[spec.name]} in the model and '
                f"{spec.datatype} in the manifest; publish the model again"
            )
    if kind == "input" and (extra := datatypes.keys() - {spec.name for spec in promised}):
        raise EngineError(
            f'the model wants an input "{min(extra)}" that the manifest does not name; '
            "publish the model again"
        )


def _text(error: Exception) -> str:
    return " ".join(_PREFIX.sub("", without_paths(str(error))).split())


def _decoded(name: str, tensor: Array) -> Array:
    try:
        texts = [element.decode() for element in tensor.ravel()]
    except UnicodeDecodeError:
        raise EngineError(
            f'input "{name}" holds bytes that are not UTF-8; strings in ONNX Runtime are text'
        ) from None
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result.reshape(tensor.shape)


def _encoded(tensor: Array) -> Array:
    result = np.empty(tensor.size, dtype=object)
    result[:] = [element.encode() for element in tensor.ravel()]
    return result.reshape(tensor.shape)


def _array_of(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    # `numpy()` knows no bfloat16; the bits are copied from where they lie, as they go with
    # `value`.
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    return np.ndarray(shape, np.uint16, bits)
