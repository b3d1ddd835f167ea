"""What is read from a graph, and which graphs are refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry_sync.documents import TensorSpec
from registry_sync.onnx_signature import BadModel, read_signature
from tests.support import models
from tests.support.models import tensor

FLOAT = TensorProto.FLOAT
X = tensor("x", FLOAT, ["N", 4])
Y = tensor("y", FLOAT, ["N", 4])


def is_deterministic(path: Path, nodes: Sequence[Any], **more: Any) -> bool:
    return read_signature(models.save(path, nodes, [X], [Y], **more), {}).deterministic


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("shape", [("N", 4), ()])
@pytest.mark.parametrize("datatype", models.ELEMENT_TYPES)
def test_every_datatype_of_the_protocol_is_read(
    file: Path, datatype: str, shape: tuple[int | str, ...]
) -> None:
    found = read_signature(models.identity(file, datatype, shape), {})
    sizes = (-1, 4) if shape else ()
    assert found.inputs == (TensorSpec("x", datatype, sizes),)
    assert found.outputs == (TensorSpec("y", datatype, sizes),)


def test_symbolic_unset_and_negative_sizes_are_minus_one(file: Path) -> None:
    models.save(
        file,
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor("x", FLOAT, ["N", None, -5, 3])],
        [Y],
    )
    assert read_signature(file, {}).inputs[0].shape == (-1, -1, -1, 3)


def test_weights_listed_among_the_inputs_are_none(file: Path) -> None:
    w = numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    models.save(file, nodes, [X, tensor("w", FLOAT, [4])], [Y], [w])
    assert [spec.name for spec in read_signature(file, {}).inputs] == ["x"]


def test_input_without_a_rank_is_refused(file: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    models.save(file, nodes, [tensor("x", FLOAT, None)], [Y])
    with pytest.raises(BadModel, match=r"^model.onnx: input 'x' has no rank; export the model"):
        read_signature(file, {})


def test_output_without_a_rank_is_an_array_of_any_size(file: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    models.save(file, nodes, [X], [tensor("y", FLOAT, None)])
    assert read_signature(file, {}).outputs == (TensorSpec("y", "FP32", (-1,)),)


@pytest.mark.parametrize(
    ("value", "held"),
    [
        (tensor("x", TensorProto.COMPLEX64, [1]), "holds COMPLEX64; allowed are BOOL"),
        (tensor("x", TensorProto.FLOAT8E4M3FN, [1]), "holds FLOAT8E4M3FN; allowed are BOOL"),
        (helper.make_tensor_sequence_value_info("x", FLOAT, [1]), "is a sequence; only tensors"),
    ],
)
def test_input_that_the_protocol_cannot_carry_is_refused(file: Path, value: Any, held: str) -> None:
    models.save(file, [helper.make_node("Identity", ["x"], ["y"])], [value], [Y])
    with pytest.raises(BadModel, match=f"^model.onnx: input 'x' {held}"):
        read_signature(file, {})


# --- random operators ---

RANDOM_NODES = [
    helper.make_node("RandomNormal", [], ["y"], shape=[1, 4], seed=1.0),
    helper.make_node("RandomUniform", [], ["y"], shape=[1, 4]),
    helper.make_node("RandomNormalLike", ["x"], ["y"]),
    helper.make_node("RandomUniformLike", ["x"], ["y"]),
    helper.make_node("Bernoulli", ["x"], ["y"]),
    helper.make_node("Multinomial", ["x"], ["y"]),
]
each_random_node = pytest.mark.parametrize(
    "node", RANDOM_NODES, ids=[node.op_type for node in RANDOM_NODES]
)


def test_graph_without_random_operators_is_deterministic(file: Path) -> None:
    assert read_signature(models.mlp(file), {}).deterministic


@each_random_node
def test_random_operator_is_found(file: Path, node: Any) -> None:
    assert not is_deterministic(file, [node])


def test_random_operator_is_found_in_a_branch_of_a_branch(file: Path) -> None:
    def either(then: Any, otherwise: Any) -> Any:
        return helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise)

    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", [], [Y])
    dice = helper.make_graph([RANDOM_NODES[0]], "dice", [], [Y])
    deep = helper.make_graph([either(plain, dice)], "deep", [], [Y])
    constant = helper.make_node("Constant", [], ["c"], value_int=1)
    assert is_deterministic(file, [constant, either(plain, plain)])
    assert not is_deterministic(file, [constant, either(plain, deep)])


def test_random_operator_is_found_in_a_function(file: Path) -> None:
    opset = [helper.make_opsetid("", models.OPSET)]
    functions = [
        helper.make_function("ours", op, ["x"], ["y"], [helper.make_node(op, ["x"], ["y"])], opset)
        for op in ("Relu", "Bernoulli")
    ]
    call = helper.make_node("Relu", ["x"], ["y"], domain="ours")
    assert is_deterministic(file, [call], functions=functions[:1])
    assert not is_deterministic(file, [call], functions=functions)


@pytest.mark.parametrize(("training", "deterministic"), [(False, True), (True, False)])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_dropout_is_random_only_while_training(
    file: Path, training: bool, deterministic: bool, place: str
) -> None:
    flag = numpy_helper.from_array(np.array(training), "t")
    dropout = helper.make_node("Dropout", ["x", "", "t"], ["y"])
    if place == "initializer":
        assert is_deterministic(file, [dropout], weights=[flag]) == deterministic
    else:
        constant = helper.make_node("Constant", [], ["t"], value=flag)
        assert is_deterministic(file, [constant, dropout]) == deterministic


def test_dropout_without_a_training_flag_is_deterministic(file: Path) -> None:
    assert is_deterministic(file, [helper.make_node("Dropout", ["x"], ["y"])])


def test_dropout_that_a_request_can_turn_on_is_random(file: Path) -> None:
    dropout = helper.make_node("Dropout", ["x", "", "t"], ["y"])
    models.save(file, [dropout], [X, tensor("t", TensorProto.BOOL, [])], [Y])
    assert not read_signature(file, {}).deterministic


def test_dropout_in_a_branch_sees_the_flag_around_it(file: Path) -> None:
    flag = numpy_helper.from_array(np.array(False), "t")
    dropout = helper.make_node("Dropout", ["x", "", "t"], ["y"])
    branch = helper.make_graph([dropout], "branch", [], [Y])
    nodes = [
        helper.make_node("Constant", [], ["c"], value_int=1),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    assert is_deterministic(file, nodes, weights=[flag])


# --- weights in other files ---

ADD = [helper.make_node("Add", ["x", "w"], ["y"])]


def weights_at(location: str, **fields: str) -> Any:
    w = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        w.external_data.add(key=key, value=value)
    return w


def test_weights_beside_the_graph_are_listed_and_not_read(file: Path) -> None:
    w = numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    models.save(file, ADD, [X], [Y], [w], external="w.bin")
    (file.parent / "w.bin").unlink()
    assert read_signature(file, {"w.bin": 16}).external == ("w.bin",)


@pytest.mark.parametrize("location", ["sub/w.bin", "./sub/w.bin"])
def test_weights_may_lie_in_a_folder_below(file: Path, location: str) -> None:
    models.save(file, ADD, [X], [Y], [weights_at(location)])
    assert read_signature(file, {"sub/w.bin": 16}).external == ("sub/w.bin",)


@pytest.mark.rule("SEC-15")
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.bin", "sub/../w.bin", "..", "", "..\\w.bin", "C:\\w.bin"]
)
def test_weights_outside_the_folder_are_refused(file: Path, location: str) -> None:
    models.save(file, ADD, [X], [Y], [weights_at(location)])
    listed = {location: 99, "w.bin": 99}
    with pytest.raises(BadModel, match=r"^model.onnx: weights 'w' lie in .*; allowed is a file in"):
        read_signature(file, listed)


@pytest.mark.rule("SEC-15")
def test_weights_in_a_file_that_is_not_published_are_refused(file: Path) -> None:
    models.save(file, ADD, [X], [Y], [weights_at("w.bin")])
    with pytest.raises(BadModel, match=r"lie in 'w\.bin', which is not published with it"):
        read_signature(file, {"v.bin": 99})


def test_weights_beyond_the_end_of_their_file_are_refused(file: Path) -> None:
    models.save(file, ADD, [X], [Y], [weights_at("w.bin", offset="8", length="16")])
    assert read_signature(file, {"w.bin": 24}).external == ("w.bin",)
    with pytest.raises(BadModel, match=r"reach to byte 24 of w\.bin, which has 23"):
        read_signature(file, {"w.bin": 23})


@pytest.mark.rule("SEC-15")
@pytest.mark.parametrize("fields", [{"data_type": "1"}, {"__class__": "x"}, {"basepath": "/"}])
def test_unknown_fields_beside_a_location_are_refused(file: Path, fields: dict[str, str]) -> None:
    models.save(file, ADD, [X], [Y], [weights_at("w.bin", **fields)])
    with pytest.raises(BadModel, match="unknown or repeated field"):
        read_signature(file, {"w.bin": 99})


@pytest.mark.parametrize("number", ["-1", "x", "9" * 5000, "1.5"])
def test_offsets_that_are_no_numbers_are_refused(file: Path, number: str) -> None:
    models.save(file, ADD, [X], [Y], [weights_at("w.bin", offset=number)])
    with pytest.raises(BadModel, match="have offset"):
        read_signature(file, {"w.bin": 99})


@pytest.mark.rule("SEC-15")
def test_weights_outside_the_folder_are_found_wherever_a_graph_can_hold_them(file: Path) -> None:
    hidden = weights_at("/etc/passwd")
    constant = helper.make_node("Constant", [], ["w"], value=hidden)
    branch = helper.make_graph([], "branch", [], [Y], [hidden])
    either = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    opset = [helper.make_opsetid("", models.OPSET)]
    function = helper.make_function("ours", "F", ["x"], ["w"], [constant], opset)
    sparse = onnx.SparseTensorProto(values=hidden, dims=[4])
    sparse_constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse)
    identity = helper.make_node("Identity", ["x"], ["y"])
    for nodes, functions in (
        ([constant], []),
        ([either], []),
        ([sparse_constant], []),
        ([identity], [function]),
    ):
        models.save(file, nodes, [X], [Y], functions=functions)
        with pytest.raises(BadModel, match="/etc/passwd"):
            read_signature(file, {})


# --- broken files ---


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\x00" * 100, b"PK\x03\x04", b"{}", b"\x08\x0a"]
)
def test_file_that_is_no_model_is_refused_by_name(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(BadModel, match=r"^model\.onnx: not an ONNX file"):
        read_signature(file, {})


def test_every_truncation_and_bit_flip_is_read_or_refused(file: Path) -> None:
    whole = models.identity(file).read_bytes()
    flag = numpy_helper.from_array(np.array(False), "t")
    dropout = helper.make_node("Dropout", ["x", "", "t"], ["y"])
    training = models.save(file, [dropout], [X], [Y], [flag, weights_at("w.bin")]).read_bytes()
    dice = random.Random(7)
    broken = [whole[:length] for length in range(len(whole))]
    for _ in range(1500):
        flipped = bytearray(training)
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
        broken.append(bytes(flipped))
    refused = 0
    for data in broken:
        file.write_bytes(data)
        try:
            found = read_signature(file, {"w.bin": 99})
        except BadModel:
            refused += 1
        else:
            assert all(isinstance(spec.name, str) for spec in (*found.inputs, *found.outputs))
    assert refused > 300
