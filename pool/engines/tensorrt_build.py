"""Builds TensorRT plans from ONNX graphs; runs in the builder process.

One function for `tensorrt` 10 and 11 and for `tensorrt_rtx`: the framework is handed in.  Networks
are strongly typed: precision lives in the graph (TensorRT 11 has no other way any more, and
ignores the flag that asks for it).  A name of a variable stands for one class of the framework
throughout (`builder`, `network`, `config`, …): the conformance test goes by them.

Not verified: building with `tensorrt` itself, which needs a GPU; what is called here is the same
as for `tensorrt_rtx`, but for the timing cache, which exists there without effect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from pool.engines.base import BuildSpec, CannotBuild
from pool.engines.local_caches import read_cache, write_cache
from pool.engines.tensorrt_log import Said, clean, listening
from pool.engines.tensorrt_profiles import (
    RTX,
    TENSORRT_DTYPES,
    WORKSPACE_BYTES_MAX,
    Profile,
    graph_of,
    is_exact,
)
from registry_sync.documents import TensorSpec

TIMING_BYTES_MAX: Final = 64 * 1024**2  # of a timing cache; a larger one begins anew
OPSET_MIN: Final = 7  # older ones are "not guaranteed to work", says its parser
ERRORS_MAX: Final = 200  # of the parser, in one text


def build_plan(
    trt: Any,
    spec: BuildSpec,
    profiles: Sequence[Profile],
    plan: Path,
    timing: Path | None,
    said: Said,
) -> None:
    """Build and write a plan.

    Args:
        trt: the framework's module.
        profiles: as the plan's identity has them.
        plan: a file that does not exist.
        timing: where what earlier builds measured is kept; None: nowhere.
        said: gets what TensorRT logs.

    Raises:
        CannotBuild: the text holds every error of the parser or the builder.
        OSError: the plan cannot be written; nothing is left behind.
    """
    logger = listening(trt, said)
    graph = spec.folder / graph_of(spec)
    _check_opset(graph)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11, where the factory gave nothing
        raise CannotBuild(f"TensorRT does not start: {said.reason()}") from error
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = [_error_text(parser.get_error(index)) for index in range(parser.num_errors)]
        raise CannotBuild(_parser_text(errors, said))
    _check_network(trt, network, spec)
    config = config_of(trt, builder, spec)
    for shapes in profiles:
        _add_profile(builder, network, config, shapes, said)
    if timing is not None:
        _use_timing(config, timing)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise CannotBuild(said.reason())
    _write_new(plan, memory)
    if timing is not None:
        _keep_timing(config, timing)


def layers_of(said: Said) -> bytes:
    """Return what the builder said of the layers, as JSON, where no device can be asked."""
    return json.dumps({"source": "the builder's log", "layers": said.layers}).encode()


def config_of(trt: Any, builder: Any, spec: BuildSpec) -> Any:
    """Return an `IBuilderConfig` with what `flags_of` says, for the device class of the spec."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES_MAX)
    if is_exact(spec):
        config.clear_flag(trt.BuilderFlag.TF32)
    if trt.__name__ == RTX:
        # It names the layers in its log, unless details are asked for, and there may be no
        # device with which to inspect the plan.
        _set_target(trt, config, spec.device_class)
    else:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    return config


def _set_target(trt: Any, config: Any, device_class: str) -> None:
    targets = trt.ComputeCapability.__members__
    target = targets.get(device_class.replace("sm_", "SM"))
    if target is None:
        known = ", ".join(f"sm_{name[2:]}" for name in targets if name.startswith("SM"))
        raise CannotBuild(f"{RTX} {trt.__version__} builds for {known}, not for {device_class}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)


def _add_profile(builder: Any, network: Any, config: Any, shapes: Profile, said: Said) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = shapes[tensor.name]
        if -1 in tensor.shape:
            profile.set_shape(tensor.name, shape.min, shape.opt, shape.max)
    if config.add_optimization_profile(profile) < 0:
        raise CannotBuild(said.reason())


def _check_opset(graph: Path) -> None:
    """Refuse what TensorRT would read without a word although it cannot know what it means."""
    try:
        model = onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise CannotBuild(f"{graph.name} is no ONNX model: {error}") from None
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and not OPSET_MIN <= opset.version <= newest:
            raise CannotBuild(
                f"{graph.name} is of opset {opset.version}; TensorRT reads {OPSET_MIN} to "
                f"{newest}: convert it with onnx.version_converter or export it again"
            )


def _check_network(trt: Any, network: Any, spec: BuildSpec) -> None:
    """Refuse a network whose inputs and outputs are not what the signature promises."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    problems = [
        *_differences(trt, "input", inputs, spec.manifest.inputs),
        *_differences(trt, "output", outputs, spec.manifest.outputs),
    ]
    promised = {one.name for one in spec.manifest.inputs}
    problems += [
        f'the graph wants an input "{tensor.name}" that the manifest does not name'
        for tensor in inputs
        if tensor.name not in promised
    ]
    if problems:
        raise CannotBuild("\n".join(problems))


def _differences(
    trt: Any, kind: str, tensors: Sequence[Any], promised: Sequence[TensorSpec]
) -> Iterator[str]:
    by_name = {tensor.name: tensor for tensor in tensors}
    for spec in promised:
        tensor = by_name.get(spec.name)
        if tensor is None:
            yield f'TensorRT finds no {kind} "{spec.name}" in the graph'
            continue
        dtype = getattr(trt.DataType, TENSORRT_DTYPES[spec.datatype])
        if tensor.dtype != dtype:
            yield (
                f'{kind} "{spec.name}" is {spec.datatype} in the manifest and '
                f"{tensor.dtype.name} for TensorRT"
            )
        # An output's rank may be unknown before it has run, which `len` refuses.
        with suppress(ValueError):
            if len(tensor.shape) != len(spec.shape):
                yield (
                    f'{kind} "{spec.name}" has {len(spec.shape)} axes in the manifest and '
                    f"{len(tensor.shape)} for TensorRT"
                )


def _error_text(error: Any) -> str:
    where = " ".join(filter(None, (error.node_operator(), f'"{error.node_name()}"')))
    node = f"node {error.node()} ({where}): " if error.node() >= 0 else ""
    return clean(f"{node}{error.desc()} [{error.code().name}]")


def _parser_text(errors: list[str], said: Said) -> str:
    known = list(dict.fromkeys(errors))
    if len(known) > ERRORS_MAX:
        known[ERRORS_MAX:] = [f"and {len(known) - ERRORS_MAX} more"]
    # Only the log says which file of weights is missing, say.
    details = [
        line
        for line in dict.fromkeys(clean(line.partition(": ")[2]) for line in said.errors)
        if line and not line.startswith(("---", "While parsing", "ERROR:"))
    ]
    return "TensorRT cannot read the graph:\n" + "\n".join([*known, *details[:ERRORS_MAX]])


def _use_timing(config: Any, timing: Path) -> None:
    """Begin with what earlier builds measured; a cache that does not fit begins empty."""
    blob = read_cache(timing, TIMING_BYTES_MAX)
    cache = config.create_timing_cache(blob)
    if not config.set_timing_cache(cache, ignore_mismatch=False) and blob:
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _keep_timing(config: Any, timing: Path) -> None:
    cache = config.get_timing_cache()
    memory = cache.serialize() if cache is not None else None
    if memory is not None:
        write_cache(timing, memory)


def _write_new(path: Path, data: Any) -> None:
    with path.open("xb") as file:
        try:
            file.write(memoryview(data))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
