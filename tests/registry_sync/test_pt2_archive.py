"""Archives of torch.export: what may be in them, and what they say of themselves."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from registry_sync.documents import TensorSpec
from registry_sync.onnx_signature import BadModel
from registry_sync.pt2_archive import CONSTANTS, MODEL, SAMPLES, WEIGHTS
from registry_sync.pt2_rules import check_expression, check_operator, leaves
from registry_sync.pt2_signature import Constant, Pt2Signature, publish_archive, read_published
from tests.support import pt2


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return pt2.scaled(tmp_path / "raw.pt2")


@pytest.fixture
def clean(raw: Path, tmp_path: Path) -> Path:
    publish_archive(raw, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def signature(tmp_path: Path, module: torch.nn.Module, *args: Any, **options: Any) -> Pt2Signature:
    path = pt2.save(tmp_path / "one.pt2", module, *args, **options)
    target = tmp_path / "published.pt2"
    target.unlink(missing_ok=True)
    return publish_archive(path, target)


# What publishing writes.


def test_a_published_archive_is_loaded_by_torch_and_computes(clean: Path) -> None:
    program = torch.export.load(str(clean))
    found = program.module(check_guards=False)(torch.full((5, 4), 3.0))
    assert found.tolist() == [[6.0] * 4] * 5


@pytest.mark.rule("SEC-10")
def test_a_published_archive_holds_no_pickle_and_no_path_of_its_author(clean: Path) -> None:
    assert b"sample_inputs" in clean.read_bytes()
    with zipfile.ZipFile(clean) as archive:
        for info in archive.infolist():
            data = archive.read(info)
            assert not data.startswith((b"\x80\x02", b"\x80\x04", b"PK")), info.filename
            assert b"tests/support" not in data
        assert archive.getinfo(f"model/{SAMPLES}").file_size == 0


def test_the_same_model_gives_the_same_bytes(raw: Path, clean: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.pt2"
    publish_archive(pt2.scaled(tmp_path / "other name.pt2"), again)
    assert again.read_bytes() == clean.read_bytes()


def test_a_published_archive_can_be_published_again(clean: Path, tmp_path: Path) -> None:
    publish_archive(clean, tmp_path / "again.pt2")
    assert (tmp_path / "again.pt2").read_bytes() == clean.read_bytes()


def test_what_was_exported_on_a_gpu_is_published_for_any_device(raw: Path, tmp_path: Path) -> None:
    def on_gpu(plain: Any) -> None:
        for payload in plain["config"].values():
            payload["tensor_meta"]["device"] = {"type": "cuda", "index": 0}

    pt2.altered(raw, json_of={WEIGHTS: on_gpu})
    publish_archive(raw, tmp_path / "m.pt2")
    assert torch.export.load(str(tmp_path / "m.pt2")).state_dict["weight"].device.type == "cpu"


# What it says of itself.


def test_the_signature_is_read_without_torch(clean: Path) -> None:
    found = read_published(clean)
    assert found.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert found.outputs == (TensorSpec("output", "FP32", (-1, 4)),)
    assert (found.deterministic, found.has_batch_axis, found.rows_max) == (True, True, 1024)
    assert not found.writes_inputs


class Nested(torch.nn.Module):
    def forward(self, x: Any, more: Any, scale: float = 2.0) -> Any:
        return {"a": x * scale, "b": [more["k"] + 1, None]}, x.sum()


def test_containers_become_names_and_constants_are_kept(tmp_path: Path) -> None:
    x = torch.ones(3, 2)
    found = signature(tmp_path, Nested(), x, {"k": x.long()}, 3.0, rows=False)
    assert [spec.name for spec in found.inputs] == ["x", "more.k"]
    assert [spec.name for spec in found.outputs] == ["output_0.a", "output_0.b.0", "output_1"]
    assert found.flat_inputs == ("x", "more.k", Constant(3.0))
    assert found.flat_outputs == ("output_0.a", "output_0.b.0", None, "output_1")
    assert found.outputs[2].shape == ()


class Doubled(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cat([x, x])


def test_an_output_with_other_rows_is_no_batch_axis(tmp_path: Path) -> None:
    assert not signature(tmp_path, Doubled(), torch.ones(3, 2)).has_batch_axis


class Drawing(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.rand_like(x)


class Branching(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cond(
            x.sum() > 0, lambda one: one + torch.rand_like(one), lambda one: one - 1, (x,)
        )


@pytest.mark.parametrize("module", [Drawing(), Branching()])
def test_a_model_that_draws_is_not_deterministic(tmp_path: Path, module: Any) -> None:
    assert not signature(tmp_path, module, torch.ones(3, 2), rows=False).deterministic


@pytest.mark.parametrize(
    "module", [torch.nn.Dropout(), torch.nn.Sequential(torch.nn.LSTM(4, 4, dropout=0.0))]
)
@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_what_draws_only_in_training_is_deterministic(tmp_path: Path, module: Any) -> None:
    assert signature(tmp_path, module, torch.ones(3, 2, 4), rows=False).deterministic


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        view = self.count.view(-1)
        view.add_(1)
        return x + self.count


def test_a_model_with_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="changes its own state"):
        signature(tmp_path, Counting(), torch.ones(3, 2), rows=False)


def test_a_norm_in_training_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.BatchNorm1d(4).train(), (torch.ones(3, 4),))
    torch.export.save(program, tmp_path / "bn.pt2")
    with pytest.raises(BadModel, match=r"its own state.*\.eval\(\)"):
        publish_archive(tmp_path / "bn.pt2", tmp_path / "m.pt2")


def test_a_norm_out_of_training_is_published(tmp_path: Path) -> None:
    assert signature(tmp_path, torch.nn.BatchNorm1d(4), torch.ones(3, 4)).has_batch_axis


class Writing(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        x.view(-1).mul_(3)
        return x + 0


def test_a_model_that_writes_to_its_inputs_is_known(tmp_path: Path) -> None:
    assert signature(tmp_path, Writing(), torch.ones(3, 2), rows=False).writes_inputs


# What must not be loaded.  The same is refused when it is published, unless publishing mends it.


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(plain: Any) -> None:
        *way, last = path.split(".")
        for key in way:
            plain = plain[int(key)] if isinstance(plain, list) else plain[key]
        plain[int(last) if isinstance(plain, list) else last] = value

    return change


GRAPH = "graph_module.graph"
ENUM = json.dumps(
    [1, {"type": "builtins.tuple", "context": '{"__enum__": 1}', "children_spec": []}]
)
PICKLED = pickle.dumps(Evil())
HOSTILE: dict[str, dict[str, Any]] = {
    "a pickled weight": {"json_of": {WEIGHTS: _set("config.weight.use_pickle", True)}},
    "weights elsewhere": {"json_of": {WEIGHTS: _set("config.weight.path_name", "../x")}},
    "weights not there": {"json_of": {WEIGHTS: _set("config.weight.path_name", "weight_77")}},
    "an object": {"json_of": {CONSTANTS: _set("config.constant.path_name", "custom_obj_0")}},
    "an opaque object": {"added": {"data/constants/opaque_obj_0": PICKLED}},
    "old weights": {"added": {"data/weights/model.pt": PICKLED}},
    "old constants": {"added": {"data/constants/model.pt": PICKLED}},
    "a library": {"added": {"data/aotinductor/model/x.so": b"\x7fELF"}},
    "a second model": {"added": {"models/other.json": b"{}"}},
    "one name in another case": {"added": {SAMPLES.upper(): PICKLED}},
    "a name twice": {"added": {"models/model.json": b"{}"}},
    "compressed": {"compression": zipfile.ZIP_DEFLATED},
    "no graph": {"removed": (MODEL,)},
    "no list of weights": {"removed": (WEIGHTS,)},
    "python as a size": {
        "json_of": {
            MODEL: _set(
                f"{GRAPH}.tensor_values.x.sizes.0.as_expr.expr_str",
                "__import__('os').system('true')",
            )
        }
    },
    "a list as a size": {
        "json_of": {
            MODEL: _set(f"{GRAPH}.tensor_values.x.sizes.0.as_expr.expr_str", ["print('run')"])
        }
    },
    "another operator": {"json_of": {MODEL: _set(f"{GRAPH}.nodes.0.target", "torch.os.system")}},
    "an operator on files": {
        "json_of": {MODEL: _set(f"{GRAPH}.nodes.0.target", "torch.ops.aten.from_file.default")}
    },
    "an enumeration": {
        "json_of": {MODEL: _set("graph_module.module_call_graph.0.signature.in_spec", ENUM)}
    },
    "not an object": {"json_of": {MODEL: lambda _plain: [1]}},
}


@pytest.mark.rule("SEC-9", "SEC-10")
@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_could_run_code_is_neither_loaded_nor_published(
    what: str, raw: Path, clean: Path, tmp_path: Path
) -> None:
    for path, reads in (
        (clean, read_published),
        (raw, lambda path: publish_archive(path, tmp_path / "x.pt2")),
    ):
        pt2.altered(path, **HOSTILE[what])
        with pytest.raises(BadModel, match=path.name):
            reads(path)
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"json_of": {MODEL: _set("guards_code", ["print('run')"])}},
        {"added": {"extra/notes.txt": b"x"}},
    ],
)
def test_what_publishing_takes_out_is_not_loaded(
    change: dict[str, Any], raw: Path, clean: Path, tmp_path: Path
) -> None:
    pt2.altered(clean, **change)
    with pytest.raises(BadModel):
        read_published(clean)
    pt2.altered(raw, **change)
    publish_archive(raw, tmp_path / "x.pt2")
    read_published(tmp_path / "x.pt2")


@pytest.mark.rule("SEC-9", "SEC-10")
def test_pickled_sample_inputs_are_not_loaded(raw: Path) -> None:
    with pytest.raises(BadModel, match=r"pickled sample inputs; publish it with `tidepool publish"):
        read_published(raw)


@pytest.mark.parametrize("data", [b"", b"PK", b"garbage" * 100])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.pt2").write_bytes(data)
    with pytest.raises(BadModel, match=r"m\.pt2: not a torch\.export archive"):
        read_published(tmp_path / "m.pt2")


def test_every_truncation_is_refused(clean: Path) -> None:
    whole = clean.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        clean.write_bytes(whole[:length])
        with pytest.raises(BadModel):
            read_published(clean)


def test_what_torch_itself_once_wrote_as_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt2")
    with pytest.raises(BadModel):
        publish_archive(tmp_path / "state.pt2", tmp_path / "m.pt2")


# The rules.


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Add(Integer(1), Mul(Integer(-1), Symbol('s0', integer=True)))",
        "FloorDiv(Symbol('s1', positive=True, integer=True), Integer(2))",
        "Pow(Symbol('u0', integer=True), Integer(2))",
        "Max(Integer(1), s0)",
        "2*s0 + 1",
        "Float('0.5', precision=53)",
        "True",
    ],
)
def test_arithmetic_of_sizes_is_taken(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "Symbol.__class__",
        "Symbol('s0').func",
        "Symbol('__import__')",
        "(lambda: 1)()",
        "[1 for _ in s0]",
        "open('x')",
        "Add(*[1])",
        "Add(**{})",
        "Symbol('s0', name=Integer(1))",
        "f'{1}'",
        "9**9**9",
        "Pow(Integer(9), Integer(999999))",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Integer(" + "9" * 40 + ")",
        "s0 if s0 else s0",
        "s0; s1",
        "(" * 300 + "s0" + ")" * 300,
        "-" * 3000 + "s0",
        "s0 + " * 2000 + "s0",
        "",
        None,
        ["s0"],
    ],
)
def test_anything_else_is_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="the size"):
        check_expression(text)


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.add.Tensor",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.higher_order.cond",
        "_operator.getitem",
        "torch.sym_max",
        "math.trunc",
    ],
)
def test_operators_that_compute_are_taken(name: str) -> None:
    check_operator(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.save.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.custom.op.default",
        "torch.ops.higher_order.call_torchbind",
        "torch.sym_int.__globals__",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "#ext:op",
        "os.system",
        "",
    ],
)
def test_operators_that_may_do_more_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be published"):
        check_operator(name)


def test_containers_other_than_pythons_own_are_refused() -> None:
    spec = {"type": "transformers.modeling_outputs.BaseModelOutput", "context": "[]"}
    with pytest.raises(ValueError, match="wrap it so that it takes and gives tensors"):
        leaves(json.dumps([1, spec | {"children_spec": []}]))
