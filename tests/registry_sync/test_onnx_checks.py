"""Which graphs are refused at publish because nothing could ever run them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry_sync import onnx_checks
from registry_sync.onnx_checks import in_order
from registry_sync.onnx_signature import BadModel, read_signature
from tests.support import models
from tests.support.models import tensor

X = tensor("x", TensorProto.FLOAT, ["N", 4])
Y = tensor("y", TensorProto.FLOAT, ["N", 4])
OPSET = [helper.make_opsetid("", models.OPSET)]
CONDITION = helper.make_node("Constant", [], ["c"], value_int=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def add(one: str, other: str, to: str, name: str = "") -> Any:
    return helper.make_node("Add", [one, other], [to], name=name)


def branch(*nodes: Any) -> Any:
    return helper.make_graph(list(nodes), "branch", [], [Y])


def either(then: Any, otherwise: Any) -> Any:
    return helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)


def refused(file: Path, nodes: Sequence[Any], match: str, **more: Any) -> None:
    models.save(file, nodes, [X], [Y], **more)
    with pytest.raises(BadModel, match=match):
        read_signature(file, {})


def altered(file: Path, **changes: Any) -> None:
    model = onnx.load(models.identity(file))
    for field, value in changes.items():
        setattr(model, field, value)
    onnx.save(model, file)


@pytest.mark.parametrize("version", [0, 99])
def test_opset_that_is_not_known_is_refused(file: Path, version: int) -> None:
    model = onnx.load(models.identity(file))
    model.opset_import[0].version = version
    onnx.save(model, file)
    with pytest.raises(BadModel, match=rf"opset {version} is not one of 1 to \d+, those known"):
        read_signature(file, {})


def test_format_that_is_too_new_is_refused(file: Path) -> None:
    altered(file, ir_version=99)
    with pytest.raises(BadModel, match=r"IR version 99 is newer than \d+.*export it with an older"):
        read_signature(file, {})


def test_operator_of_a_domain_without_an_opset_is_refused(file: Path) -> None:
    refused(
        file,
        [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft", name="g")],
        "Gelu 'g' is of the domain 'com.microsoft', which has no opset",
    )
    model = onnx.load(models.identity(file))
    del model.opset_import[:]
    onnx.save(model, file)
    with pytest.raises(BadModel, match="a nameless Identity is of ONNX itself"):
        read_signature(file, {})


def test_nodes_that_need_each_other_are_refused(file: Path) -> None:
    circle = [add("x", "b", "a", "first"), add("a", "x", "b", "second"), add("a", "b", "y", "last")]
    refused(file, circle, "Add '(first|second)' needs itself")


def test_branch_that_needs_what_comes_of_it_is_refused(file: Path) -> None:
    refused(file, [CONDITION, either(branch(add("x", "y", "z")), branch())], "If needs itself")


def test_circle_in_a_branch_is_refused(file: Path) -> None:
    loop = branch(add("x", "y", "t", "one"), add("t", "x", "y", "two"))
    plain = branch(add("x", "x", "y"))
    refused(file, [CONDITION, either(plain, loop)], "Add '(one|two)' needs itself")


def test_functions_that_call_each_other_are_refused(file: Path) -> None:
    def function(name: str, calls: str) -> Any:
        node = helper.make_node(calls, ["x"], ["y"], domain="ours")
        return helper.make_function("ours", name, ["x"], ["y"], [node], OPSET)

    call = helper.make_node("F", ["x"], ["y"], domain="ours")
    functions = [function("F", "G"), function("G", "F")]
    refused(file, [call], "call each other in a circle: 'F', 'G'", functions=functions)


def test_value_that_nothing_gives_is_refused(file: Path) -> None:
    refused(file, [add("x", "w", "y", "sum")], "Add 'sum' needs 'w', which nothing gives")
    refused(file, [add("x", "x", "z")], "nothing gives the output 'y'")


def test_value_that_two_nodes_give_is_refused(file: Path) -> None:
    both = [add("x", "x", "y", "one"), add("x", "x", "y", "two")]
    refused(file, both, "both Add 'one' and Add 'two' give 'y'")


def test_branch_may_use_what_is_around_it(file: Path) -> None:
    branches = branch(add("d", "x", "y")), branch(add("x", "d", "y"))
    models.save(file, [CONDITION, add("x", "x", "d"), either(*branches)], [X], [Y])
    assert read_signature(file, {}).deterministic


def test_nodes_in_any_order_are_taken_and_put_in_one(file: Path) -> None:
    nodes = [add("b", "b", "y"), add("x", "x", "a"), add("a", "x", "b")]
    models.save(file, nodes, [X], [Y])
    assert read_signature(file, {}).deterministic
    assert [node.output[0] for node in in_order(nodes, "")] == ["a", "b", "y"]
    assert in_order(nodes[1:], "") == nodes[1:]


@pytest.mark.parametrize("dims", [[4, 4], [2], [-4], [1 << 62, 4]])
def test_weights_of_another_size_than_their_shape_are_refused(file: Path, dims: list[int]) -> None:
    weights = numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    weights.dims[:] = dims
    refused(
        file, [add("x", "w", "y")], "weights 'w' have 16 bytes, which is not", weights=[weights]
    )


def test_graph_of_too_many_nodes_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_checks, "NODES_MAX", 3)
    models.save(file, [add("x", "x", "a"), add("a", "x", "b"), add("b", "x", "y")], [X], [Y])
    assert read_signature(file, {}).inputs
    plain = branch(add("x", "x", "y"))
    refused(file, [CONDITION, add("x", "x", "z"), either(plain, plain)], "5 nodes; at most 3")
