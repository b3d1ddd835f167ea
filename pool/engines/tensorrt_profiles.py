"""Which shapes and flags a TensorRT plan is built with, and which models can have one at all.

Values only: functions of the manifest and of what is wanted.  What they return is a part of a
plan's identity, so equal wishes must give equal answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pool.engines.base import BuildSpec, CannotBuild, EngineError
from pool.engines.buckets import buckets
from registry_sync import artifact
from registry_sync.builds import is_batched
from registry_sync.documents import AxisRange, TensorSpec
from registry_sync.plans import ShapeRange

Profile = dict[str, ShapeRange]

RTX: Final = "tensorrt_rtx"
NAMES: Final = ("tensorrt", RTX)  # in the order in which they are preferred
# The first releases with what is called here: a context's memory given with its size, and the
# choice of how a context of RTX uses CUDA graphs.
OLDEST: Final = {"tensorrt": (10, 1), RTX: (1, 3)}
# TensorRT takes up to all of the device's memory for a layer's intermediate values by default,
# beside engines that serve there; more than this rarely gains anything.
WORKSPACE_BYTES_MAX: Final = 1024**3

# By datatype, the member of `tensorrt.DataType`.  TensorRT has neither strings nor integers of
# other widths, and its ONNX parser reads FP64 as FP32 without a word, which is not what the
# signature promises.
TENSORRT_DTYPES: Final = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "FP16": "HALF",
    "FP32": "FLOAT",
    "BF16": "BF16",
}


ONE: Final = AxisRange(1, 1, 1)


def profiles_of(spec: BuildSpec) -> tuple[Profile, ...]:
    """Return the optimization profiles of a plan, one for each batch bucket.

    The profile of a bucket is tuned for the full bucket and takes every number of rows above the
    bucket before: together they leave no gap, so that rows which must not be padded (because they
    depend on one another) can be run as they come.

    Raises:
        CannotBuild: an axis may have any size and nobody says which, or there is an input or
            output of a type that TensorRT does not have.  All of them are named.
    """
    manifest = spec.manifest
    problems = [
        *_datatype_problems("input", manifest.inputs),
        *_datatype_problems("output", manifest.outputs),
    ]
    batched = is_batched(manifest)
    ranges = {one.name: _ranges(one, batched, spec.wish.axes, problems) for one in manifest.inputs}
    if problems:
        raise CannotBuild("\n".join(problems))
    sizes = buckets(spec.rows_max) if batched else (1,)
    firsts = [before + 1 for before in (0, *sizes[:-1])]
    rows = [AxisRange(first, size, size) for first, size in zip(firsts, sizes, strict=True)]
    return tuple({name: _shape_range(axes, row) for name, axes in ranges.items()} for row in rows)


def profile_for(
    profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, bool]:
    """Return the first profile that holds for inputs of these shapes.

    Returns:
        Its place, and whether these are the largest shapes of it.

    Raises:
        EngineError: none does; the text names an input, an axis and what is possible.

    >>> one, more = ShapeRange((1, 4), (1, 4), (1, 4)), ShapeRange((2, 4), (8, 4), (8, 4))
    >>> profiles = [{"x": one}, {"x": more}]
    >>> profile_for(profiles, {"x": (5, 4)}), profile_for(profiles, {"x": (8, 4)})
    ((1, False), (1, True))
    """
    for index, profile in enumerate(profiles):
        if all(_fits(shape, profile[name]) for name, shape in shapes.items()):
            return index, all(shape == profile[name].max for name, shape in shapes.items())
    raise EngineError(_misfit(profiles, shapes))


def _fits(shape: tuple[int, ...], known: ShapeRange) -> bool:
    return len(shape) == len(known.max) and all(
        low <= size <= high for low, size, high in zip(known.min, shape, known.max, strict=True)
    )


def _misfit(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in shapes.items():
        known = [profile[name] for profile in profiles]
        if len(shape) != len(known[0].max):
            return f'input "{name}" has {len(shape)} axes; the plan has {len(known[0].max)}'
        for axis, size in enumerate(shape):
            low, high = min(one.min[axis] for one in known), max(one.max[axis] for one in known)
            if not low <= size <= high:
                return (
                    f'input "{name}" has size {size} on axis {axis}; the plan was built for '
                    f"{low} to {high}"
                )
    return f"the plan was built for no such combination of shapes: {dict(shapes)}"


def is_fixed(profiles: Sequence[Profile], *, batched: bool) -> bool:
    """Whether every axis has one size in each profile, but for that of rows."""
    return all(
        shape.min[batched:] == shape.max[batched:]
        for profile in profiles
        for shape in profile.values()
    )


def flags_of(spec: BuildSpec) -> tuple[str, ...]:
    """Return what a plan is built with besides the defaults of its TensorRT; sorted."""
    exact = ["no_tf32"] if is_exact(spec) else []
    return (*exact, f"workspace_bytes={WORKSPACE_BYTES_MAX}")


def is_exact(spec: BuildSpec) -> bool:
    """Whether FP32 must be computed as such.

    TF32 keeps ten bits of a fraction, as FP16 does, and is on by default: a version that promises
    fp32 is built without it.
    """
    return spec.wish.precision in (None, "fp32")


def graph_of(spec: BuildSpec) -> str:
    """Return the path of the graph from which a plan of the wanted precision is built.

    Raises:
        CannotBuild: the artifact holds none of that precision.
    """
    precision = spec.wish.precision or "fp32"
    graph = artifact.graph_of(precision)
    graphs = [
        file.path
        for file in spec.manifest.files
        if file.path.endswith(".onnx") and "/" not in file.path
    ]
    if graph in graphs:
        return graph
    if precision != "fp32":
        raise CannotBuild(
            f"the artifact has no {graph}; publish the model with `--precision {precision}`"
        )
    if len(graphs) != 1:
        found = ", ".join(graphs) or "none"
        raise CannotBuild(f"expected {graph} at the top of the artifact, found {found}")
    return graphs[0]


def _datatype_problems(kind: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    for spec in specs:
        if spec.datatype not in TENSORRT_DTYPES:
            yield (
                f'{kind} "{spec.name}" is {spec.datatype}, which TensorRT does not have; it has '
                f"{', '.join(TENSORRT_DTYPES)}"
            )


def _ranges(
    spec: TensorSpec, batched: bool, axes: dict[str, AxisRange], problems: list[str]
) -> list[AxisRange | None]:
    """Return the range of each axis, None for rows; what is missing goes into `problems`."""
    ranges: list[AxisRange | None] = []
    for axis, size in enumerate(spec.shape):
        name = f"{spec.name}:{axis}"
        if axis == 0 and batched:
            ranges.append(None)
        elif size >= 0:
            ranges.append(AxisRange(size, size, size))
        elif name in axes:
            ranges.append(axes[name])
        elif axis == 0:
            ranges.append(ONE)  # a model that is not batched is mostly called with one row
        else:
            problems.append(
                f'input "{spec.name}": axis {axis} may have any size; say which at publish, e.g. '
                f'`--axis {name}=1,128,512`, or in the endpoint: engine: {{axes: {{"{name}": '
                "{min: 1, opt: 128, max: 512}}}"
            )
    return ranges


def _shape_range(axes: list[AxisRange | None], rows: AxisRange) -> ShapeRange:
    known = [axis or rows for axis in axes]
    return ShapeRange(
        tuple(axis.min for axis in known),
        tuple(axis.opt for axis in known),
        tuple(axis.max for axis in known),
    )
