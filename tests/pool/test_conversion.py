"""A converted artifact is proved before it is published, by running both graphs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pool.engines import conversion
from pool.engines.conversion import Proof, convert_artifact
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine, session_options
from pool.engines.widening import widen
from registry_sync import catalog
from registry_sync.directory import DirectoryStore
from registry_sync.documents import GateLimits, Manifest, Precision
from registry_sync.onnx_checks import BadModel
from registry_sync.onnx_precision import element_types
from registry_sync.publish import Terms, publish
from tests.support import models
from tests.support.models import tensor

FLOAT = TensorProto.FLOAT
X, Y = tensor("x", FLOAT, ["N", 4]), tensor("y", FLOAT, ["N", 4])
each_precision = pytest.mark.parametrize("precision", ["fp16", "bf16"])


class Bench:
    """Publishes into a registry of its own, and keeps what the conversion had to say."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder / "registry")
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.said: list[str] = []

    def publish(self, path: Path, precision: Precision, **more: Any) -> Manifest:
        gate = more.pop("gate", None)
        terms = Terms(precision, None, gate)
        version = publish(self.store, "m", path, terms=terms, convert=self._convert, **more)
        return catalog.load_manifest(self.store, "m", version)

    def _convert(self, draft: Manifest, sources: Any, golden: Any) -> Any:
        scratch = Path(tempfile.mkdtemp(dir=self.scratch))
        proof: Proof = convert_artifact(draft, sources, scratch, golden)
        self.said += proof.said
        return proof.sources

    def graph(self, manifest: Manifest, path: str) -> Any:
        (file,) = (file for file in manifest.files if file.path == path)
        return onnx.load_from_string(self.store.get(catalog.blob_key(file.sha256)).data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def weight(name: str, *shape: int, value: float = 0.5) -> Any:
    return numpy_helper.from_array(np.full(shape, value, np.float32), name)


def overflowing(path: Path) -> Path:
    """Write a graph whose middle is beyond fp16, though no weight of it is."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]
    weights = [weight("w", 4, 4, value=6e4), weight("v", 4, 4, value=1e-4)]
    return models.save(path, nodes, [X], [Y], weights)


@each_precision
@pytest.mark.parametrize("write", [models.mlp, models.attention])
def test_both_graphs_are_published_and_the_figures_told(
    bench: Bench, tmp_path: Path, precision: Precision, write: Any
) -> None:
    manifest = bench.publish(write(tmp_path / "m.onnx"), precision)
    name = f"model.{precision}.onnx"
    assert [file.path for file in manifest.files] == sorted(["model.onnx", name])
    assert manifest.precision == precision
    held = {tensor.data_type for tensor in bench.graph(manifest, name).graph.initializer}
    assert {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision] in held
    assert any("nodes compute in" in line for line in bench.said)
    assert any("compared on 8 random inputs" in line for line in bench.said)
    assert not list(bench.scratch.rglob("wide*"))


def test_original_stays_for_portable_engines(bench: Bench, tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "m.onnx")
    manifest = bench.publish(path, "fp16")
    assert bench.graph(manifest, "model.onnx") == onnx.load(path)


# --- what is not exact enough ---


def test_overflow_between_the_nodes_is_refused_with_the_figures(
    bench: Bench, tmp_path: Path
) -> None:
    path = overflowing(tmp_path / "m.onnx")
    with pytest.raises(
        BadModel, match=r'in fp16 the answers are not .*"y" is infinite.*--gate-rel'
    ):
        bench.publish(path, "fp16")
    assert not list(bench.store.list(""))
    assert bench.publish(path, "bf16").precision == "bf16"


def cancelling(path: Path) -> Path:
    """Write a graph that subtracts two numbers of which half precision keeps three digits."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["x", "v"], ["k"]),
        helper.make_node("Sub", ["h", "k"], ["y"]),
    ]
    weights = [weight("w", 4, 4, value=1.003), weight("v", 4, 4, value=1.0)]
    return models.save(path, nodes, [X], [Y], weights)


def test_figures_decide_and_the_manifest_may_allow_more(bench: Bench, tmp_path: Path) -> None:
    path = cancelling(tmp_path / "m.onnx")
    with pytest.raises(
        BadModel, match=r'"y" is off by [0-9.]+ of the artifact.s, allowed are 0.02'
    ):
        bench.publish(path, "fp16")
    assert bench.publish(path, "fp16", gate=GateLimits(10.0)).gate == GateLimits(10.0)


def test_what_is_not_exact_enough_is_converted_with_care(bench: Bench, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["x", "five"], ["fivefold"]),
        helper.make_node("Exp", ["fivefold"], ["e"]),
        helper.make_node("Add", ["h", "e"], ["y"]),
    ]
    weights = [weight("w", 4, 4), weight("five", value=5.0)]
    bench.publish(models.save(tmp_path / "m.onnx", nodes, [X], [Y], weights), "fp16")
    assert bench.said[0].startswith('converted once more, with care, as output "y" is infinite')
    assert bench.said[1].startswith("1 of 6 nodes compute in fp16")


def test_numbers_out_of_range_are_told(bench: Bench, tmp_path: Path) -> None:
    bench.publish(models.attention(tmp_path / "m.onnx"), "fp16")
    (told,) = (line for line in bench.said if "out" not in line and "stays" in line)
    assert told == "in fp32 stays what needs epsilon, lowest: too large or too small a number"


def test_graph_that_draws_numbers_is_refused(bench: Bench, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("RandomNormalLike", ["h"], ["y"]),
    ]
    path = models.save(tmp_path / "m.onnx", nodes, [X], [Y], [weight("w", 4, 4)])
    with pytest.raises(BadModel, match="draws random numbers"):
        bench.publish(path, "fp16")


# --- inputs ---


def picking(path: Path) -> Path:
    """Write a graph that takes 64 indices into a table of one row: no drawn input is valid."""
    ids = tensor("ids", TensorProto.INT64, ["N", 64])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["h"]),
        helper.make_node("ReduceSum", ["h", "axes"], ["y"], keepdims=0),
    ]
    weights = [weight("table", 1, 4), weight("w", 4, 4)]
    weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    return models.save(path, nodes, [ids], [Y], weights)


def test_recorded_inputs_are_used_where_there_are_some(bench: Bench, tmp_path: Path) -> None:
    path = picking(tmp_path / "m.onnx")
    with pytest.raises(BadModel, match=r"random inputs is one that this model takes.*--golden"):
        bench.publish(path, "fp16")
    golden = tmp_path / "golden.npz"
    np.savez(golden, ids=np.zeros((3, 64), np.int64))
    bench.publish(path, "fp16", golden=golden)
    assert any("golden inputs" in line for line in bench.said)


# --- files ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def test_weights_beside_the_graph_are_converted_too(bench: Bench, folder: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    models.save(folder / "g.onnx", nodes, [X], [Y], [weight("w", 4, 4)], external="w.bin")
    manifest = bench.publish(folder, "fp16")
    assert [file.path for file in manifest.files] == ["model.fp16.onnx", "model.onnx", "w.bin"]
    (held,) = bench.graph(manifest, "model.fp16.onnx").graph.initializer
    assert (numpy_helper.to_array(held) == np.float16(0.5)).all()


def test_large_weights_go_beside_the_converted_graph(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "INSIDE_BYTES_MAX", 0)
    models.mlp(folder / "m.onnx", hidden=512)
    manifest = bench.publish(folder, "bf16")
    paths = [file.path for file in manifest.files]
    assert paths == ["model.bf16.onnx", "model.bf16.onnx.data", "model.onnx"]
    (folder / "model.bf16.onnx.data").write_bytes(b"mine")
    with pytest.raises(BadModel, match=r"^model.bf16.onnx.data would be in the way of"):
        bench.publish(folder, "bf16")


def test_graph_that_somebody_has_converted_is_proved_as_well(bench: Bench, folder: Path) -> None:
    models.mlp(folder / "model.onnx")
    bench.publish(folder / "model.onnx", "fp16")
    (made,) = bench.scratch.rglob("model.fp16.onnx")
    (folder / made.name).write_bytes(made.read_bytes())
    manifest = bench.publish(folder, "fp16")
    assert "model.fp16.onnx is there already, and taken as it is" in bench.said
    assert [file.path for file in manifest.files] == ["model.fp16.onnx", "model.onnx"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seed": 1}, "the answers are not good enough"),
        ({"classes": 3}, r"model.fp16.onnx: its inputs and outputs are not those of model.onnx"),
    ],
)
def test_graph_that_somebody_has_converted_badly_is_refused(
    bench: Bench, folder: Path, changes: dict[str, int], why: str
) -> None:
    models.mlp(folder / "model.onnx")
    models.mlp(folder / "model.fp16.onnx", **changes)
    with pytest.raises(BadModel, match=why):
        bench.publish(folder, "fp16")
    assert not list(bench.store.list(""))


def test_graph_that_the_checker_refuses_is_refused(bench: Bench, folder: Path) -> None:
    """Nodes in no order: engines take them, other tools do not."""
    models.mlp(folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, folder / "model.bf16.onnx")
    with pytest.raises(BadModel, match=r"^model.bf16.onnx: the converted graph is not valid"):
        bench.publish(folder, "bf16")


def test_other_formats_are_not_converted(bench: Bench, folder: Path) -> None:
    (folder / "tidepool.json").write_text(
        '{"format": "acme", "outputs": [],'
        ' "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}'
    )
    (folder / "weights").write_bytes(b"w")
    with pytest.raises(BadModel, match="only onnx artifacts are converted to fp16"):
        bench.publish(folder, "fp16")


# --- the graph that rounds ---


def answer(model: Any, x: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), session_options(1))
    return session.run(None, {"x": np.asarray(x, np.float32)})[0]


def test_every_value_is_rounded_as_it_would_be_stored() -> None:
    """ONNX Runtime itself leaves the roundings between two nodes out."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("Mul", ["square", "tiny"], ["z"]),
        helper.make_node("Cast", ["z"], ["y"], to=FLOAT),
    ]
    tiny = numpy_helper.from_array(np.array(1e-4, np.float16), "tiny")
    graph = helper.make_graph(nodes, "g", [X], [Y], [tiny])
    opset = [helper.make_opsetid("", models.OPSET)]
    model = helper.make_model(graph, ir_version=models.IR_VERSION, opset_imports=opset)
    x = np.array([[0.1, 1.0, 250.0, 300.0]])
    half = x.astype(np.float16)
    with np.errstate(over="ignore"):
        expected = (half * half * np.float16(1e-4)).astype(np.float32)
    assert np.isinf(expected[0, 3])
    elements = element_types(model, "")
    assert (answer(widen(model, elements), x) == expected).all()
    assert {node.op_type for node in model.graph.node} == {"Cast", "Mul"}


def test_bf16_is_rounded_to_eight_bits() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=FLOAT),
    ]
    opset = [helper.make_opsetid("", models.OPSET)]
    graph = helper.make_graph(nodes, "g", [X], [Y])
    model = helper.make_model(graph, ir_version=models.IR_VERSION, opset_imports=opset)
    found = answer(widen(model, element_types(model, "")), [[1 / 3, 1.0, 1e30, -257.0]])
    assert found.tolist() == [[0.333984375, 1.0, pytest.approx(1e30, rel=4e-3), -256.0]]


# --- who runs it ---


def test_portable_engine_counts_only_its_own_graph(bench: Bench, folder: Path) -> None:
    path = models.mlp(folder / "model.onnx")
    manifest = bench.publish(path, "fp16")
    session = OnnxRuntimeEngine().load(folder, manifest, 1)
    assert session.memory_bytes == path.stat().st_size
