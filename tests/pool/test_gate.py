"""What the gate tries and how it judges; then real engines beside one another."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pool.engines import gate
from pool.engines.base import Array, BuildSpec, EngineError, Tensors
from pool.engines.gate import DEFAULTS, Limits, compare, drawn, draws, judge, limits_of, why_not
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from pool.engines.trial import read_golden, try_out
from registry_sync.documents import AxisRange, EngineWish, GateLimits, Manifest, TensorSpec
from registry_sync.golden import BadGolden
from registry_sync.open import open_store
from registry_sync.plans import NOT_RUN, GateReport, OutputReport
from registry_sync.publish import publish
from tests.support.artifacts import manifest_of
from tests.support.models import mlp

Y = TensorSpec("y", "FP32", (-1, 3))
FP32 = DEFAULTS["fp32"]


def array(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


def compared(
    want: Array, have: Array | None, spec: TensorSpec = Y, limits: Limits = FP32
) -> tuple[OutputReport, str]:
    got = {} if have is None else {spec.name: have}
    (report,), problem = compare([{spec.name: want}], [got], [spec], limits)
    return report, problem


# --- what is tried ---


def test_full_batches_single_rows_and_odd_ones_are_tried() -> None:
    assert {draw.rows for draw in draws(32)} == {1, 32, 3, 17}


def test_model_that_is_never_batched_gets_single_rows() -> None:
    assert {draw.rows for draw in draws(1)} == {1}


def test_both_ends_of_every_range_are_tried_with_a_full_batch() -> None:
    assert {draw.end for draw in draws(2) if draw.rows == 2} == {0, 1, 2}


def test_inputs_are_the_same_each_time_and_others_for_another_run() -> None:
    specs = [TensorSpec("x", "FP32", (-1, 4))]
    one, other = list(draws(4))[:2]
    again = drawn(one, 0, specs, {})["x"]
    np.testing.assert_array_equal(drawn(one, 0, specs, {})["x"], again)
    assert not np.array_equal(drawn(other, 0, specs, {})["x"][:1], again[:1])


def test_axis_with_a_range_stays_within_it() -> None:
    specs = [TensorSpec("x", "INT64", (-1, -1))]
    axes = {"x:1": AxisRange(3, 5, 9)}
    sizes = {drawn(draw, 0, specs, axes)["x"].shape[1] for draw in draws(4)}
    assert sizes == {3, 5, 9}


def test_open_axes_of_one_run_have_the_same_size() -> None:
    specs = [TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))]
    found = drawn(next(draws(4)), 3, specs, {})
    assert found["ids"].shape == found["mask"].shape


@pytest.mark.parametrize("datatype", sorted(gate.NUMPY_DTYPES))
def test_every_datatype_can_be_drawn(datatype: str) -> None:
    found = drawn(next(draws(2)), 0, [TensorSpec("x", datatype, (-1, 4))], {})["x"]
    assert (found.shape, found.dtype) == ((1, 4), gate.NUMPY_DTYPES[datatype])


# --- what is compared ---


def test_equal_outputs_are_not_apart() -> None:
    assert compared(array([1, 2, 3]), array([1, 2, 3])) == (OutputReport("y", 0.0), "")


def test_error_is_relative_to_the_largest_of_its_own_row() -> None:
    report, _ = compared(array([1000, 0, 0], [0, 10, 0]), array([1000, 0, 0], [0, 10, 1]))
    assert report.relative_error == pytest.approx(0.1)


def test_row_of_almost_nothing_is_measured_against_the_others() -> None:
    report, _ = compared(array([1000, 0, 0], [0, 0, 0]), array([1000, 0, 0], [0, 1e-4, 0]))
    assert report.relative_error == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("have", "problem"),
    [
        (array([1, np.nan, 3]), "infinite or no number"),
        (array([1, np.inf, 3]), "infinite or no number"),
        (array([1, 2]), r"has shape \[1, 2\]"),
        (None, 'no output "y"'),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(have: Array | None, problem: str) -> None:
    report, found = compared(array([1, 2, 3]), have)
    assert (report.relative_error, report.top1_agreement) == (None, None)
    assert judge([report], FP32)
    assert re.search(problem, found)


def test_infinities_in_the_same_places_are_equal() -> None:
    same = array([np.inf, -np.inf, np.nan])
    assert compared(same, same)[0].relative_error == 0.0
    assert compared(same, -same)[0].relative_error is None


def test_distribution_is_a_classifier_and_its_choice_counts() -> None:
    want = array([0.7, 0.2, 0.1], [0.1, 0.8, 0.1])
    report, _ = compared(want, array([0.7, 0.2, 0.1], [0.6, 0.3, 0.1]))
    assert report.top1_agreement == 0.5


def test_choice_between_two_that_the_precision_cannot_tell_apart_is_no_disagreement() -> None:
    report, _ = compared(array([0.4, 0.4001, 0.2]), array([0.4001, 0.4, 0.2]))
    assert report.top1_agreement == 1.0


def test_scores_are_a_classifier_if_the_manifest_says_so() -> None:
    limits = limits_of(GateLimits(top1_agreement_min=0.5), "fp16")
    report, _ = compared(array([7, 2, 1]), array([1, 2, 7]), limits=limits)
    assert report.top1_agreement == 0.0
    assert compared(array([7, 2, 1]), array([1, 2, 7]))[0].top1_agreement is None


def test_labels_must_be_equal() -> None:
    label = TensorSpec("label", "INT64", (-1,))
    report, _ = compared(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), label)
    assert (report.relative_error, report.top1_agreement) == (None, 0.75)
    assert judge([report], FP32)


def test_bf16_is_compared_by_value_and_not_by_bits() -> None:
    spec = TensorSpec("y", "BF16", (-1, 1))
    one, near = np.array([[0x3F80]], np.uint16), np.array([[0x3F81]], np.uint16)
    assert compared(one, near, spec)[0].relative_error == pytest.approx(1 / 128)


# --- how it is judged ---


def test_error_beyond_the_limit_is_named_with_the_limit() -> None:
    found = judge([OutputReport("y", 0.5)], FP32)
    assert found == 'output "y" is off by 0.5 of the artifact\'s, allowed are 0.002'


def test_error_at_the_limit_passes() -> None:
    assert judge([OutputReport("y", FP32.relative_error_max)], FP32) == ""


def test_less_exact_precisions_may_be_further_off() -> None:
    errors = [DEFAULTS[p].relative_error_max for p in ("fp32", "fp16", "bf16")]
    assert errors == sorted({*errors})


def test_the_manifest_overrules_the_defaults() -> None:
    limits = limits_of(GateLimits(relative_error_max=0.5), "fp32")
    assert (limits.relative_error_max, limits.top1_agreement_min) == (0.5, 0.99)


def test_plan_is_judged_by_the_limits_of_the_version_that_wants_it() -> None:
    report = GateReport("failed", "", "random", 8, (OutputReport("y", 0.3),))
    assert "off by 0.3" in why_not(report, FP32)
    assert why_not(report, limits_of(GateLimits(relative_error_max=0.5), "fp32")) == ""


@pytest.mark.parametrize("report", [NOT_RUN, GateReport("passed"), GateReport("failed", "no")])
def test_report_without_a_comparison_lets_nothing_serve(report: GateReport) -> None:
    assert why_not(report, FP32)


# --- real engines ---


class Tampered:
    """A real session whose answers somebody changes on the way."""

    def __init__(self, session: Any, change: Any) -> None:
        self._session, self._change = session, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        answer: Tensors = self._change(dict(self._session.infer(tensors, outputs)))
        return answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("model")
    store = open_store(str(folder / "registry"))
    publish(store, "digits", mlp(folder / "model.onnx"))
    manifest = msgspec.json.decode(
        store.read("models/digits/1/manifest.json", 0, 1 << 20), type=Manifest
    )
    return folder, manifest


def trial(model: tuple[Path, Manifest], golden: bytes | None = None, **changes: Any) -> GateReport:
    folder, manifest = model
    limits = changes.pop("gate", None)
    change = changes.pop("change", lambda answer: answer)
    manifest = msgspec.structs.replace(manifest, gate=limits)
    session = OnnxRuntimeEngine().load(folder, manifest, 1)
    session.warmup()
    spec = BuildSpec(manifest, folder, EngineWish(precision="fp32"), 8, "cpu")
    return try_out(
        session, Tampered(session, change), spec, golden, reference_name="ort", device="cpu"
    )


def npz(**arrays: Array) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_the_same_engine_passes(model: tuple[Path, Manifest]) -> None:
    report = trial(model)
    assert (report.verdict, report.inputs, report.runs) == ("passed", "random", gate.RUNS)
    assert [output.relative_error for output in report.outputs] == [0.0]


def test_engine_that_is_wrong_fails_with_its_figure(model: tuple[Path, Manifest]) -> None:
    report = trial(model, change=lambda answer: {"y": answer["y"] * 1.5})
    assert report.verdict == "failed"
    assert report.outputs[0].relative_error == pytest.approx(0.5, rel=0.01)
    assert 'output "y" is off by 0.5' in report.reason


def test_engine_that_is_wrong_only_in_full_batches_fails(model: tuple[Path, Manifest]) -> None:
    def change(answer: Tensors) -> Tensors:
        return answer if len(answer["y"]) < 8 else {"y": answer["y"][::-1]}

    assert trial(model, change=change).verdict == "failed"


def test_engine_that_raises_fails_and_names_the_shapes(model: tuple[Path, Manifest]) -> None:
    def change(answer: Tensors) -> Tensors:
        raise EngineError("no kernel image")

    report = trial(model, change=change)
    assert report.verdict == "failed"
    assert report.reason == 'the built engine fails on "x" [1, 16]: no kernel image'


def test_golden_inputs_are_taken_instead_of_drawn_ones(model: tuple[Path, Manifest]) -> None:
    golden = npz(x=np.ones((20, 16), np.float32))
    report = trial(model, golden=golden)
    assert (report.verdict, report.inputs, report.runs) == ("passed", "golden", 3)
    assert report.golden == hashlib.sha256(golden).hexdigest()
    assert trial(model).golden == ""


def test_golden_file_that_does_not_fit_is_no_verdict(model: tuple[Path, Manifest]) -> None:
    with pytest.raises(BadGolden, match='has no "x"; publish the model with another --golden'):
        trial(model, golden=npz(z=np.ones((1, 16), np.float32)))


def test_golden_inputs_that_the_artifact_itself_does_not_take_are_no_verdict(
    model: tuple[Path, Manifest],
) -> None:
    folder, manifest = model
    wide = msgspec.structs.replace(manifest, inputs=(TensorSpec("x", "FP32", (-1, 3)),))
    session = OnnxRuntimeEngine().load(folder, manifest, 1)
    spec = BuildSpec(wide, folder, EngineWish(precision="fp32"), 8, "cpu")
    golden = npz(x=np.ones((1, 3), np.float32))
    with pytest.raises(BadGolden, match="the artifact itself fails on the golden inputs"):
        try_out(session, session, spec, golden, reference_name="ort", device="cpu")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"no zip", "not an .npz file"),
        (npz(x=np.ones((1, 3), np.float32)), r"has shape \[1, 3\], the signature says \[-1, 2\]"),
        (npz(x=np.ones((1, 2), np.int64)), "is int64, the signature says FP32"),
    ],
)
def test_golden_file_is_checked(data: bytes, problem: str) -> None:
    with pytest.raises(BadGolden, match=problem):
        read_golden(data, manifest_of({"a": b"a"}).inputs)


def test_golden_strings_become_bytes() -> None:
    text = read_golden(npz(t=np.array(["é", "b"])), (TensorSpec("t", "BYTES", (-1,)),))["t"]
    assert text.tolist() == ["é".encode(), b"b"]


def test_model_that_takes_no_drawn_input_asks_for_golden_ones(
    model: tuple[Path, Manifest],
) -> None:
    folder, manifest = model
    odd = msgspec.structs.replace(manifest, inputs=(TensorSpec("x", "FP32", (-1, 3)),))
    session = OnnxRuntimeEngine().load(folder, manifest, 1)
    spec = BuildSpec(odd, folder, EngineWish(precision="fp32"), 8, "cpu")
    report = try_out(session, session, spec, None, reference_name="ort", device="cpu")
    assert report.verdict == "failed"
    assert "--golden" in report.reason
