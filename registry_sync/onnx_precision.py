"""An fp32 ONNX graph → one that computes in fp16 or bf16, with the same inputs and outputs.

Strongly typed engines compute in the types that the graph names, so precision is chosen here, node
by node, where the operator's definition allows it; where one in fp32 meets one that is not, there
is a cast.  Branches and loops stay as they are.  Whether the numbers still hold is not decided
here: both graphs have to be run.

Source:
    PyTorch's automatic mixed precision: expensive operators change over, a list of delicate ones
    stays in fp32, and the others go by their inputs.  Softmax and layer normalization are not on
    the list here, as kernels sum up in fp32 by themselves (for the latter ONNX says so:
    `stash_type`).  Unless asked to be careful, one changed input changes a node, where PyTorch
    has the widest win: a residual sum would take all that follows back to fp32.  What only leads
    to delicate operators stays with them, so that E[x^2] - E[x]^2 keeps its digits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from registry_sync.documents import Precision
from registry_sync.onnx_checks import DEFAULT_DOMAINS, BadModel, all_nodes, in_order, needs_of

ELEMENT_OF: Final[Mapping[Precision, int]] = {
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
WORD_OF: Final[Mapping[int, str]] = {
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}
LARGEST: Final[Mapping[int, float]] = {
    TensorProto.FLOAT16: 65504.0,
    TensorProto.BFLOAT16: 255 * 2.0**120,
}
# Results that leave the range or lose their digits, or sums of many.
STAY: Final = frozenset(
    {
        *("Pow", "Exp", "Log", "Reciprocal", "Sqrt", "Softplus", "LogSoftmax", "Det"),
        *("Acos", "Asin", "Cosh", "Sinh", "Tan", "CumSum", "CumProd", "NonMaxSuppression"),
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "LpNormalization", "InstanceNormalization"),
        "MeanVarianceNormalization",
    }
)
HEAVY: Final = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"}
)
QUANTIZED: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# In a tensor of so few elements none may become zero: it may be what keeps a quotient finite.
SCALARS: Final = 16
TYPES_NEED_ELEMENTS: Final = 1024  # larger weights are not looked at to infer types


@dataclass(frozen=True, slots=True)
class Converted:
    """A graph in another precision, and what was done to it."""

    model: Any  # ModelProto, all weights inside
    nodes: int  # that compute in the new precision
    heavy_kept: Mapping[str, int]  # expensive operators that stayed in fp32, how often each
    out_of_range: tuple[str, ...]  # weights that have no value there: who needs them stayed as well


def convert(model: Any, precision: Precision, file: str, *, careful: bool = False) -> Converted:
    """Convert a graph.

    Args:
        model: a ModelProto with all weights inside; it is used up.
        precision: "fp16" or "bf16".
        file: its name, for errors.
        careful: one fp32 input is enough to keep a node in fp32 that is not expensive.

    Raises:
        BadModel: it is quantized already; nothing that is worth it can compute so; its nodes
            have no order.
    """
    if found := {node.op_type for node in all_nodes(model.graph)} & QUANTIZED:
        raise BadModel(
            f"{file}: is quantized already, with {min(found)}; publish it without a precision"
        )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _name_constants(model.graph)
    _fix_weights(model)
    conversion = _Conversion(model, precision, element_types(model, file), careful)
    nodes = in_order(model.graph.node, file)
    converted = conversion.run(nodes)
    heavy = Counter(node.op_type for node in nodes if node.op_type in HEAVY)
    if not heavy:
        raise BadModel(
            f"{file}: nothing in it is worth computing in {precision}; publish it without a "
            "precision"
        )
    if heavy == converted.heavy_kept:
        raise BadModel(
            f"{file}: {', '.join(sorted(heavy))} cannot compute in {precision} at opset "
            f"{conversion.opset}; export it with a newer one, or publish it without a precision"
        )
    return converted


class _Conversion:
    """One walk over the nodes of a graph.

    What a converted node gives has a new name.  In fp32, under the old name, it is made from that
    once somebody needs it; and the other way round.
    """

    def __init__(
        self, model: Any, precision: Precision, elements: Mapping[str, int], careful: bool
    ) -> None:
        self.opset = max(
            (o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), default=1
        )
        self._model = model
        self._precision = precision
        self._careful = careful
        self._element = ELEMENT_OF[precision]
        self._dtype = np.dtype(helper.tensor_dtype_to_np_dtype(self._element))
        self._elements = elements
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        # What follows changes while the nodes go by.
        self._names = _all_names(model.graph)
        self._nodes: list[Any] = []
        self._new_weights: list[Any] = []
        self._low: dict[str, str] = {}  # by fp32 name: the name in the new precision, if there
        self._native: set[str] = set()  # fp32 names of what converted nodes give
        self._missing: set[str] = set()  # of these, those that are not there in fp32
        self._needed: set[str] = set()  # weights that somebody needs as they were
        self._clipped: set[str] = set()  # values that may be out of range
        self._fits: dict[str, bool] = {}  # weights, once they were looked at
        self._converted = 0
        self._heavy_kept: Counter[str] = Counter()

    def run(self, nodes: Sequence[Any]) -> Converted:
        """Take the nodes over, which are in order."""
        slots = [self._slots(node) for node in nodes]
        stays = self._lead_to_fp32(nodes, slots)
        for node, low, staying in zip(nodes, slots, stays, strict=True):
            odd = any(index in low and not self._fit(name) for index, name in enumerate(node.input))
            if staying or odd or not self._is_worth_it(node, low):
                self._keep(node, odd)
            else:
                self._change(node, low)
        return self._finish()

    def _lead_to_fp32(self, nodes: Sequence[Any], slots: Sequence[set[int]]) -> list[bool]:
        """Tell of each node whether it cannot change, or only leads to such nodes."""
        leaves = {value.name for value in self._model.graph.output}
        wanted = set(leaves)  # by a node that may change
        taken = set(leaves)
        stays = []
        for node, low in zip(reversed(nodes), reversed(slots), strict=True):
            stay = not low or node.op_type in STAY
            if not stay and node.op_type not in HEAVY:
                stay = wanted.isdisjoint(node.output) and not taken.isdisjoint(node.output)
            stays.append(stay)
            taken |= (needs := needs_of(node))
            if not stay:
                wanted |= needs
        return stays[::-1]

    def _is_worth_it(self, node: Any, low: set[int]) -> bool:
        values = [node.input[index] for index in low if node.input[index] not in self._weights]
        if node.op_type in HEAVY or not values:  # a table of weights is half as large then
            return True
        changed = [name in self._native for name in values]
        return all(changed) if self._careful else any(changed)

    def _keep(self, node: Any, is_odd: bool) -> None:
        for name in sorted(needs_of(node)):
            self._make_full(name)
        self._heavy_kept[node.op_type] += node.op_type in HEAVY
        self._clipped.update(node.output if is_odd else ())
        self._nodes.append(node)

    def _change(self, node: Any, low: set[int]) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if index in low:
                new.input[index] = self._make_low(name)
            elif name:
                self._make_full(name)
        for index, name in enumerate(node.output):
            if name and self._elements.get(name) == TensorProto.FLOAT:
                new.output[index] = self._low[name] = self._new_name(name)
                self._native.add(name)
                self._missing.add(name)
        self._nodes.append(new)
        self._converted += 1

    def _finish(self) -> Converted:
        graph = self._model.graph
        for value in graph.output:
            self._make_full(value.name)
        weights = [
            tensor
            for tensor in graph.initializer
            if tensor.name in self._needed or tensor.name not in self._low
        ]
        weights += self._new_weights
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(weights)
        odd = tuple(sorted(name for name, fits in self._fits.items() if not fits))
        return Converted(self._model, self._converted, +self._heavy_kept, odd)

    def _slots(self, node: Any) -> set[int]:
        """Return the inputs that a node would take in the new precision; none: it cannot change."""
        if node.domain not in DEFAULT_DOMAINS or any(a.HasField("g") for a in node.attribute):
            return set()
        if any(self._elements.get(name) is None for name in (*node.input, *node.output) if name):
            return set()  # a sequence, or nobody knows
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return set()
        word = WORD_OF[self._element]
        slots, variables = set(), set()
        for index, formal in self._float_slots(node.input, schema.inputs):
            if "(" in formal.type_str:  # fp32 for ever, like the scales of Resize
                continue
            if word not in formal.types:
                return set()
            slots.add(index)
            variables.add(formal.type_str)
        # An output of another type variable has its type from an attribute, like that of Cast.
        given = [formal.type_str for _, formal in self._float_slots(node.output, schema.outputs)]
        return slots if given and variables.issuperset(given) else set()

    def _float_slots(self, names: Any, formals: Any) -> Iterator[tuple[int, Any]]:
        for index, name in enumerate(names):
            if name and self._elements[name] == TensorProto.FLOAT:
                yield index, formals[min(index, len(formals) - 1)]  # the last may be repeated

    def _fit(self, name: str) -> bool:
        """Tell whether every value of a weight has one like it in the new precision."""
        tensor = self._weights.get(name)
        if tensor is None:
            return True
        if name not in self._fits:
            full = numpy_helper.to_array(tensor)
            low = self._rounded(full)
            is_lost = np.isfinite(full) & ~np.isfinite(low)
            if full.size <= SCALARS:
                is_lost |= (full != 0) & (low == 0)
            self._fits[name] = not is_lost.any()
        return self._fits[name]

    def _rounded(self, full: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with np.errstate(over="ignore", under="ignore"):
            return full.astype(self._dtype)

    def _make_low(self, name: str) -> str:
        """Return the name of a value in the new precision, which is made if need be."""
        if name not in self._low:
            new = self._low[name] = self._new_name(name)
            tensor = self._weights.get(name)
            if tensor is not None:
                raw = self._rounded(numpy_helper.to_array(tensor)).tobytes()
                self._new_weights.append(
                    TensorProto(name=new, data_type=self._element, dims=tensor.dims, raw_data=raw)
                )
            else:
                source = self._clip(name) if name in self._clipped else name
                self._cast(source, new, self._element)
        return self._low[name]

    def _make_full(self, name: str) -> None:
        """See that a value is there in fp32, under its own name."""
        if name in self._missing:
            self._missing.discard(name)
            self._cast(self._low[name], name, TensorProto.FLOAT)
        if name in self._weights:
            self._needed.add(name)

    def _clip(self, name: str) -> str:
        # A mask of -3.4e38 would become -inf, and a row of nothing else NaN in a softmax.
        most = LARGEST[self._element]
        clipped = self._new_name(name)
        bounds = [self._new_name(f"{name}_{word}") for word in ("min", "max")]
        for bound, value in zip(bounds, (-most, most), strict=True):
            self._new_weights.append(numpy_helper.from_array(np.array(value, np.float32), bound))
        if self.opset >= 11:
            node = helper.make_node("Clip", [name, *bounds], [clipped], name=clipped)
        else:
            del self._new_weights[-2:]
            node = helper.make_node("Clip", [name], [clipped], name=clipped, min=-most, max=most)
        self._nodes.append(node)
        return clipped

    def _cast(self, source: str, to: str, element: int) -> None:
        name = self._new_name(f"{to}_cast")
        self._nodes.append(helper.make_node("Cast", [source], [to], name=name, to=element))

    def _new_name(self, name: str) -> str:
        new = f"{name}_{self._precision}"
        while new in self._names:
            new += "_"
        self._names.add(new)
        return new


def _name_constants(graph: Any) -> None:
    """Make weights of a graph's constant tensors and numbers."""
    rest = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" and node.attribute else None
        if attribute is None or attribute.name not in ("value", "value_float", "value_floats"):
            rest.append(node)
        elif attribute.name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
        else:
            value = helper.get_attribute_value(attribute)
            array = np.array(value, np.float32)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    if len(rest) < len(graph.node):
        del graph.node[:]
        graph.node.extend(rest)


def _fix_weights(model: Any) -> None:
    """Take weights out of the inputs, where old formats have them: no signature shows them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # the first that allows this


def element_types(model: Any, file: str) -> dict[str, int]:
    """Return the element type of every tensor of a graph, but not of those in its branches."""
    # Without the large weights: only their types matter, and together they may be too much.
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = model.graph
    bare.graph.name = graph.name or "graph"
    bare.graph.node.extend(graph.node)
    bare.graph.output.extend(graph.output)
    bare.graph.input.extend(graph.input)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if _count(tensor) <= TYPES_NEED_ELEMENTS:
            bare.graph.initializer.append(tensor)
        elif tensor.name not in inputs:  # as in a graph that nobody has converted
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            bare.graph.input.append(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except Exception as error:
        # Its exceptions have no base class of their own.
        raise BadModel(f"{file}: its types cannot be worked out: {error}") from error
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    for value in values:
        if value.type.WhichOneof("value") == "tensor_type" and value.type.tensor_type.elem_type:
            found[value.name] = value.type.tensor_type.elem_type
    return found


def _all_names(graph: Any) -> set[str]:
    names = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    for node in all_nodes(graph):
        names.update((node.name, *node.input, *node.output))
    return names


def _count(tensor: Any) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))
