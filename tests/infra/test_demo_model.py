"""The demo's model answers as the magika package does, in both of its versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from magika import Magika
from magika.types import Seekable
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from infra import demo_files, demo_model
from infra.demo_model import Answer
from infra.demo_rollout import worst_residue


@pytest.fixture(scope="module")
def samples() -> list[demo_files.Sample]:
    return demo_files.samples()


@pytest.fixture(scope="module")
def version_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("version-2") / "model.onnx"
    demo_model.make_version_2(demo_model.model_path(), path)
    return path


def magikas_features(path: Path) -> list[int]:
    magika = Magika()
    with path.open("rb") as stream:
        result, row = magika._get_result_or_features_from_seekable(Seekable(stream))
    assert result is None
    assert row is not None
    return [*row.beg, *row.end]


def served(model: Path, rows: np.ndarray) -> list[Answer]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scores = session.run([demo_model.OUTPUT], {demo_model.INPUT: rows})[0]
    return [demo_model.answer(row) for row in scores]


def disagreeing(model: Path, samples: list[demo_files.Sample]) -> list[tuple[Path, Answer, Answer]]:
    rows = np.stack([demo_model.features(sample.path) for sample in samples])
    answers = served(model, rows)
    pairs = zip(samples, answers, strict=True)
    return [(s.path, s.answer, a) for s, a in pairs if not s.answer.agrees(a)]


def test_the_model_is_the_one_that_the_package_uses() -> None:
    assert demo_model.model_path() == Magika()._model_path


def test_features_equal_the_packages_own(samples: list[demo_files.Sample]) -> None:
    for path in (sample.path for sample in samples):
        row = demo_model.features(path)
        assert row.dtype == np.int32
        assert row.tolist() == magikas_features(path), path


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 8,
        b"  \n" + b"ab" * 500 + b" \n",
        b"y" * 1023,
        b"y" * 1024,
        b"y" * 1025,
        b"z" * 4095 + b"\t",
        b" " * 4090 + b"123456789" * 3 + b" " * 4090,
        b"12345678" + b" " * 8000,
        bytes(range(256)) * 40,
    ],
)
def test_features_of_short_padded_and_blank_ends_equal_the_packages_own(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    try:
        wanted = magikas_features(path)
    except AssertionError:
        with pytest.raises(demo_model.NotForTheModel):
            demo_model.features(path)
        return
    assert demo_model.features(path).tolist() == wanted
    assert demo_model.features(content).tolist() == wanted


@pytest.mark.parametrize("content", [b"", b"1234567", b" " * 100 + b"1234567"])
def test_content_that_the_package_answers_without_the_model_is_refused(content: bytes) -> None:
    with pytest.raises(demo_model.NotForTheModel):
        demo_model.features(content)


def test_files_are_many_diverse_and_the_same_each_time(samples: list[demo_files.Sample]) -> None:
    assert len(samples) >= 20
    assert len({sample.answer.label for sample in samples}) >= 8
    assert [sample.path for sample in demo_files.samples()] == [s.path for s in samples]


def test_version_1_agrees_with_the_package(samples: list[demo_files.Sample]) -> None:
    assert disagreeing(demo_model.model_path(), samples) == []


def test_version_2_agrees_with_the_package(
    samples: list[demo_files.Sample], version_2: Path
) -> None:
    assert disagreeing(version_2, samples) == []


def test_version_2_is_another_artifact_and_always_the_same(version_2: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    demo_model.make_version_2(demo_model.model_path(), again)
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (demo_model.model_path(), version_2, again)
    ]
    assert digests[0] != digests[1] == digests[2]


def test_version_2_has_the_signature_of_version_1(version_2: Path) -> None:
    first, second = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (demo_model.model_path(), version_2)
    )
    for ours, theirs in (
        (first.get_inputs(), second.get_inputs()),
        (first.get_outputs(), second.get_outputs()),
    ):
        assert [(i.name, i.type, i.shape) for i in ours] == [
            (i.name, i.type, i.shape) for i in theirs
        ]


def test_version_2_answers_differ_from_version_1_by_rounding_only(
    samples: list[demo_files.Sample], version_2: Path
) -> None:
    rows = np.stack([demo_model.features(sample.path) for sample in samples])
    first, second = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            None, {demo_model.INPUT: rows}
        )[0]
        for path in (demo_model.model_path(), version_2)
    )
    assert 0 < np.abs(first - second).max() < demo_model.SCORE_DIFFERENCE_MAX / 4


def test_bad_version_fails_at_a_fifth_of_the_files_and_answers_the_others_alike(
    samples: list[demo_files.Sample], tmp_path: Path
) -> None:
    fails_at = worst_residue(samples)
    demo_model.make_failing(demo_model.model_path(), tmp_path / "bad.onnx", fails_at)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it would print every failure
    good, bad = (
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for path in (demo_model.model_path(), tmp_path / "bad.onnx")
    )
    failed = 0
    for row in (demo_model.features(sample.path)[None] for sample in samples):
        if demo_model.residue(row) == fails_at:
            failed += 1
            with pytest.raises(InvalidArgument, match="out of data bounds"):
                bad.run(None, {demo_model.INPUT: row})
        else:
            feed = {demo_model.INPUT: row}
            assert np.array_equal(bad.run(None, feed)[0], good.run(None, feed)[0])
    assert failed >= len(samples) / demo_model.FAILS_OF


def test_a_score_below_its_threshold_tells_only_text_or_not() -> None:
    rules = demo_model.config()

    def scored(label: str, score: float) -> Answer:
        row = np.zeros(len(rules.labels), dtype=np.float32)
        row[rules.labels.index(label)] = score
        return demo_model.answer(row)

    assert scored("python", 0.5).label == "python"
    assert scored("python", 0.49).label == "txt"
    assert scored("elf", 0.49).label == "unknown"
    assert scored("latex", 0.94).label == "txt"
    assert scored("latex", 0.96).label == "latex"
    assert scored("randombytes", 0.99).label == "unknown"


def test_answers_agree_only_with_the_same_label_and_nearly_the_same_score() -> None:
    answer = Answer("python", 0.9)
    assert answer.agrees(Answer("python", 0.91))
    assert not answer.agrees(Answer("python", 0.95))
    assert not answer.agrees(Answer("txt", 0.9))


def test_importing_the_demo_loads_neither_magika_nor_onnxruntime() -> None:
    script = (
        "import sys, infra.demo_files, infra.demo_model\n"
        "infra.demo_model.features(b'x' * 100)\n"
        "assert not {'magika', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
