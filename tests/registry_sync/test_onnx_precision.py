"""What changes over to half precision, what stays in fp32, and which graphs are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry_sync.documents import Precision
from registry_sync.onnx_checks import BadModel
from registry_sync.onnx_precision import Converted, convert, element_types
from tests.support import models
from tests.support.models import tensor

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
X = tensor("x", FLOAT, ["N", 4])
Y = tensor("y", FLOAT, ["N", 4])
HALF = {"fp16": FLOAT16, "bf16": BFLOAT16}
each_precision = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def weight(name: str, *shape: int, value: float = 0.5) -> Any:
    return numpy_helper.from_array(np.full(shape, value, np.float32), name)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(
        op, inputs.split(), outputs.split(), name=f"{op} {outputs}", **attributes
    )


def converted(
    tmp_path: Path,
    nodes: Sequence[Any],
    weights: Sequence[Any] = (),
    *,
    precision: Precision = "fp16",
    inputs: Sequence[Any] = (X,),
    outputs: Sequence[Any] = (Y,),
    careful: bool = False,
    opset: int = models.OPSET,
    **more: Any,
) -> Converted:
    """Convert a graph, and see that what comes of it is one."""
    path = models.save(tmp_path / "m.onnx", nodes, inputs, outputs, list(weights), **more)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    signature = [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)]
    found = convert(model, precision, "m.onnx", careful=careful)
    onnx.checker.check_model(found.model, full_check=True)
    graph = found.model.graph
    assert [value.SerializeToString() for value in (*graph.input, *graph.output)] == signature
    return found


def types(found: Converted) -> dict[str, str]:
    """Return in which type each node that was there before computes, by operator."""
    elements = element_types(found.model, "")
    words = {FLOAT: "fp32", FLOAT16: "fp16", BFLOAT16: "bf16"}
    return {
        one.op_type: words.get(elements[one.output[0]], "other")
        for one in found.model.graph.node
        if one.op_type not in ("Cast", "Clip")
    }


def ops(found: Converted) -> list[str]:
    return [one.op_type for one in found.model.graph.node]


MATMUL, W = node("MatMul", "x w", "h"), weight("w", 4, 4)


@each_precision
def test_inputs_and_outputs_stay_and_casts_stand_between(
    tmp_path: Path, precision: Precision
) -> None:
    found = converted(tmp_path, [MATMUL, node("Relu", "h", "y")], [W], precision=precision)
    assert ops(found) == ["Cast", "MatMul", "Relu", "Cast"]
    assert types(found) == {"MatMul": precision, "Relu": precision}
    assert (found.nodes, found.heavy_kept, found.out_of_range) == (2, {}, ())
    assert [t.data_type for t in found.model.graph.initializer] == [HALF[precision]]


def test_weights_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    w = weight("w", 4, 4, value=1 / 3)
    for precision, expected in (("fp16", np.float16(1 / 3)), ("bf16", 0.333984375)):
        found = converted(tmp_path, [node("MatMul", "x w", "y")], [w], precision=precision)  # type: ignore[arg-type]
        held = numpy_helper.to_array(found.model.graph.initializer[0]).astype(np.float32)
        assert (held == np.float32(expected)).all()


def test_value_that_is_used_both_ways_is_cast_once_each_way(tmp_path: Path) -> None:
    nodes = [
        MATMUL,
        node("Exp", "h", "e"),
        node("Sqrt", "h", "s"),
        node("Add", "e s", "t"),
        node("Add", "h t", "a"),
        node("MatMul", "a w", "y"),
    ]
    assert ops(converted(tmp_path, nodes, [W])).count("Cast") == 4  # x, h, t, y


def test_delicate_operators_stay_and_take_what_only_leads_to_them(tmp_path: Path) -> None:
    """E[x^2] - E[x]^2 loses all its digits in half precision."""
    nodes = [
        MATMUL,
        node("Mul", "h h", "square"),
        node("ReduceMean", "square axes", "m2", keepdims=1),
        node("Sub", "m2 h", "d"),
        node("MatMul", "d w", "y"),
    ]
    axes = numpy_helper.from_array(np.array([1]), "axes")
    found = converted(tmp_path, nodes, [W, axes])
    assert types(found) == {"MatMul": "fp16", "Mul": "fp32", "ReduceMean": "fp32", "Sub": "fp16"}
    assert found.nodes == 3


def test_who_has_only_fp32_inputs_stays(tmp_path: Path) -> None:
    nodes = [
        node("Sub", "x mean", "c"),
        node("MatMul", "c w", "h"),
        node("Exp", "h", "e"),
        node("Mul", "e mean", "y"),
    ]
    found = converted(tmp_path, nodes, [W, weight("mean", 4)])
    assert types(found) == {"Sub": "fp32", "MatMul": "fp16", "Exp": "fp32", "Mul": "fp32"}
    assert {t.name for t in found.model.graph.initializer} == {"w_fp16", "mean"}


@pytest.mark.parametrize(("careful", "expected"), [(False, "fp16"), (True, "fp32")])
def test_one_fp32_input_keeps_a_node_only_with_care(
    tmp_path: Path, careful: bool, expected: str
) -> None:
    nodes = [MATMUL, node("Exp", "x", "e"), node("Add", "h e", "a"), node("MatMul", "a w", "y")]
    assert types(converted(tmp_path, nodes, [W], careful=careful))["Add"] == expected


def test_table_of_weights_is_halved(tmp_path: Path) -> None:
    ids = tensor("ids", TensorProto.INT64, ["N"])
    nodes = [node("Gather", "table ids", "rows"), node("MatMul", "rows w", "y")]
    found = converted(tmp_path, nodes, [weight("table", 9, 4), W], inputs=[ids])
    assert types(found) == {"Gather": "fp16", "MatMul": "fp16"}


def test_type_that_an_attribute_decides_stays(tmp_path: Path) -> None:
    ids = tensor("ids", TensorProto.INT64, ["N", 4])
    nodes = [
        node("Cast", "ids", "f", to=FLOAT),
        node("MatMul", "f w", "h"),
        node("Cast", "h", "i", to=TensorProto.INT32),
    ]
    whole = tensor("i", TensorProto.INT32, ["N", 4])
    found = converted(tmp_path, nodes, [W], inputs=[ids], outputs=[whole])
    to = [
        helper.get_node_attr_value(n, "to") for n in found.model.graph.node if n.op_type == "Cast"
    ]
    assert to == [FLOAT, FLOAT16, FLOAT, TensorProto.INT32]


def test_input_that_is_fp32_by_definition_stays(tmp_path: Path) -> None:
    image = tensor("x", FLOAT, ["N", 1, 4, 4])
    large = tensor("y", FLOAT, ["N", 1, 8, 8])
    nodes = [node("Conv", "x k", "c"), node("Resize", "c  scales", "y", mode="nearest")]
    nodes[1].input[:] = ["c", "", "scales"]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    found = converted(
        tmp_path, nodes, [weight("k", 1, 1, 1, 1), scales], inputs=[image], outputs=[large]
    )
    assert types(found) == {"Conv": "fp16", "Resize": "fp16"}
    assert {t.name: t.data_type for t in found.model.graph.initializer}["scales"] == FLOAT


@pytest.mark.parametrize(
    ("precision", "value"), [("fp16", -3.4e38), ("fp16", 65520.0), ("bf16", 3.4e38)]
)
def test_weights_beyond_the_range_stay_and_are_named(
    tmp_path: Path, precision: Precision, value: float
) -> None:
    nodes = [MATMUL, node("Mul", "h big", "b"), node("MatMul", "b w", "y")]
    found = converted(tmp_path, nodes, [W, weight("big", value=value)], precision=precision)
    assert found.out_of_range == ("big",)
    assert types(found) == {"MatMul": precision, "Mul": "fp32"}
    assert ops(found) == ["Cast", "MatMul", "Cast", "Mul", "Clip", "Cast", "MatMul", "Cast"]


def test_largest_values_of_the_range_do_not_stay(tmp_path: Path) -> None:
    nodes = [MATMUL, node("Mul", "h big", "b"), node("MatMul", "b w", "y")]
    assert not converted(tmp_path, nodes, [W, weight("big", value=65504.0)]).out_of_range


def test_mask_does_not_become_infinite(tmp_path: Path) -> None:
    """A softmax of nothing but -inf is NaN."""
    nodes = [
        MATMUL,
        node("Mul", "x low", "mask"),
        node("Add", "h mask", "m"),
        node("Softmax", "m", "s"),
        node("MatMul", "s w", "y"),
    ]
    found = converted(tmp_path, nodes, [W, weight("low", value=-3.4e38)])
    bounds = [float(numpy_helper.to_array(t)) for t in found.model.graph.initializer if not t.dims]
    assert bounds == pytest.approx([-3.4e38, -65504.0, 65504.0])


def test_small_constant_that_would_become_zero_stays(tmp_path: Path) -> None:
    nodes = [MATMUL, node("Add", "h eps", "b"), node("MatMul", "b w", "y")]
    assert converted(tmp_path, nodes, [W, weight("eps", value=1e-12)]).out_of_range == ("eps",)
    assert not converted(tmp_path, nodes, [W, weight("eps", value=1e-6)]).out_of_range
    many = weight("eps", 4, 5, value=1e-12)
    nodes[1] = node("MatMul", "h eps", "b")
    w2 = weight("w2", 5, 4)
    nodes[2] = node("MatMul", "b w2", "y")
    assert not converted(tmp_path, nodes, [W, many, w2]).out_of_range


def test_weights_among_the_inputs_of_an_old_graph_are_weights(tmp_path: Path) -> None:
    path = models.save(tmp_path / "m.onnx", [node("MatMul", "x w", "y")], [X], [Y], [W])
    model = onnx.load(path)
    model.ir_version = 3
    model.graph.input.append(tensor("w", FLOAT, [4, 4]))
    found = convert(model, "fp16", "").model
    onnx.checker.check_model(found, full_check=True)
    assert [value.name for value in found.graph.input] == ["x"]
    assert [t.name for t in found.graph.initializer] == ["w_fp16"]


def test_constants_in_nodes_count_as_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight("", 4, 4)),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        MATMUL,
        node("Add", "h one", "y"),
    ]
    found = converted(tmp_path, nodes)
    assert types(found) == {"MatMul": "fp16", "Add": "fp16"}
    assert all(t.data_type == FLOAT16 for t in found.model.graph.initializer)


def test_branches_stay_and_see_what_is_around_them_in_fp32(tmp_path: Path) -> None:
    branch = helper.make_graph([node("Mul", "h w", "b")], "branch", [], [tensor("b", FLOAT, None)])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        MATMUL,
        helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch),
        node("MatMul", "d w", "y"),
    ]
    found = converted(tmp_path, nodes, [W])
    assert ops(found) == ["Cast", "MatMul", "Cast", "If", "Cast", "MatMul", "Cast"]
    assert {t.name: t.data_type for t in found.model.graph.initializer} == {
        "c": TensorProto.BOOL,
        "w": FLOAT,
        "w_fp16": FLOAT16,
    }


def test_loop_that_carries_a_value_stays(tmp_path: Path) -> None:
    ends = [tensor("go", TensorProto.BOOL, []), tensor("b", FLOAT, None)]
    starts = [tensor("i", TensorProto.INT64, []), tensor("go_", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [node("Identity", "go_", "go"), node("Add", "a a", "b")],
        "body",
        [*starts, tensor("a", FLOAT, ["N", 4])],
        ends,
    )
    loop = helper.make_node("Loop", ["count", "", "h"], ["d"], body=body)
    count = numpy_helper.from_array(np.array(3), "count")
    found = converted(tmp_path, [MATMUL, loop, node("MatMul", "d w", "y")], [W, count])
    assert ops(found) == ["Cast", "MatMul", "Cast", "Loop", "Cast", "MatMul", "Cast"]


def test_output_that_stays_fp32_by_definition_keeps_its_node(tmp_path: Path) -> None:
    """What a layer normalization says of its mean is fp32, in whatever it computes."""
    weights = [W, weight("gamma", 4)]
    both = [MATMUL, node("LayerNormalization", "h gamma", "n mean"), node("MatMul", "n w", "y")]
    outputs = [Y, tensor("mean", FLOAT, ["N", 1])]
    found = converted(tmp_path, both, weights, outputs=outputs)
    assert types(found)["LayerNormalization"] == "fp32"
    alone = [MATMUL, node("LayerNormalization", "h gamma", "n"), node("MatMul", "n w", "y")]
    assert types(converted(tmp_path, alone, weights))["LayerNormalization"] == "fp16"


def test_functions_are_laid_open(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", models.OPSET)]
    twice = helper.make_function("ours", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opset)
    call = helper.make_node("Twice", ["h"], ["y"], domain="ours")
    found = converted(tmp_path, [MATMUL, call], [W], functions=[twice])
    assert types(found) == {"MatMul": "fp16", "Add": "fp16"}


def test_operators_of_others_stay_and_so_does_what_nobody_knows_the_type_of(
    tmp_path: Path,
) -> None:
    path = models.save(
        tmp_path / "m.onnx",
        [MATMUL, helper.make_node("Ours", ["h"], ["o"], domain="ours"), node("Relu", "o", "y")],
        [X],
        [Y],
        [W],
    )
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("ours", 1))
    graph = convert(model, "fp16", "").model.graph
    assert [n.op_type for n in graph.node] == ["Cast", "MatMul", "Cast", "Ours", "Relu"]


def test_nodes_in_any_order_are_converted(tmp_path: Path) -> None:
    path = models.save(tmp_path / "m.onnx", [node("Relu", "h", "y"), MATMUL], [X], [Y], [W])
    found = convert(onnx.load(path), "fp16", "")
    onnx.checker.check_model(found.model, full_check=True)
    assert found.nodes == 2


def test_names_that_are_taken_are_passed_over(tmp_path: Path) -> None:
    nodes = [MATMUL, node("Relu", "h", "h_fp16"), node("MatMul", "h_fp16 w", "y")]
    assert converted(tmp_path, nodes, [W]).nodes == 3


def test_old_opset_has_no_bf16_and_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"^m.onnx: MatMul cannot compute in bf16 at opset 12"):
        converted(tmp_path, [node("MatMul", "x w", "y")], [W], precision="bf16", opset=12)


def test_expensive_operators_that_stay_are_counted(tmp_path: Path) -> None:
    image, y = tensor("x", FLOAT, ["N", 1, 4, 4]), tensor("y", FLOAT, ["N", 1, 4, 4])
    nodes = [node("Conv", "x k", "c"), node("MatMul", "c w", "y")]
    weights = [weight("k", 1, 1, 1, 1), W]
    given: dict[str, Any] = {"precision": "bf16", "inputs": [image], "outputs": [y]}
    assert converted(tmp_path, nodes, weights, **given).heavy_kept == {"Conv": 1}
    assert converted(tmp_path, nodes, weights, **given, opset=22).heavy_kept == {}


def test_graph_that_computes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"^m.onnx: nothing in it is worth computing in fp16"):
        converted(tmp_path, [node("Exp", "x", "y")])


def test_quantized_graph_is_refused(tmp_path: Path) -> None:
    scale, zero = weight("s", value=0.1), numpy_helper.from_array(np.array(0, np.int8), "z")
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    with pytest.raises(BadModel, match="is quantized already, with DequantizeLinear; publish it"):
        converted(tmp_path, nodes, [scale, zero])
